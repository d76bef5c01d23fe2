"""`report.html`: one self-contained page about a round, for those who answer for its bill.

An effect beside the stages, no DVC output: it shows times. One file a part of the page, in the page's order: headline, curve, picks, balance,
pool_map, confusion, provenance; each takes the round's `facts` and gives markup, or None while there is nothing to show.
"""

from tasks.report.page import write_report

__all__ = ["write_report"]

"""What spreadsheets do to tables: cells that they would take for formulas, and the separators that they save CSV with."""

from __future__ import annotations

import re

SEPARATORS = ",;\t"
FORMULA = re.compile(r"'*(\s*[=+\-@\uFF1D\uFF0B\uFF0D\uFF20]|[\t\r\n])")  # the last four are full-width forms of the first


def guard(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula: a quote is put before what begins like one. `unguard` is its exact inverse."""
    return f"'{cell}" if FORMULA.match(cell) else cell


def unguard(cell: str) -> str:
    """The cell that `guard` was given."""
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell[1:]) else cell


def separator(header: str) -> str:
    """What separates the columns of that header: comma, semicolon or tab, whichever it has most of; the comma where it has none."""
    return max(SEPARATORS, key=header.count)

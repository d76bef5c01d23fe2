"""The whole page."""

from __future__ import annotations

from pathlib import Path

from tasks.report.balance import balance
from tasks.report.confusion import confusion
from tasks.report.curve import curve
from tasks.report.facts import Facts, gather
from tasks.report.headline import headline
from tasks.report.markup import Html, element
from tasks.report.picks import picks
from tasks.report.pool_map import pool_map
from tasks.report.provenance import files, parameters, times
from tasks.workspace import Workspace

FILE = "report.html"
PARTS = (curve, picks, balance, pool_map, confusion, times, files, parameters)
MARKS = Html(
    '<svg width="0" height="0" class="defs" aria-hidden="true"><defs>'
    '<symbol id="right" viewBox="0 0 12 12"><path d="M1.5 6.5l3 3 6-7"/></symbol>'
    '<symbol id="wrong" viewBox="0 0 12 12"><path d="M2 2l8 8M10 2l-8 8"/></symbol>'
    "</defs></svg>"
)


def write_report(workspace: Workspace, name: str) -> Path:
    """Write `rounds/<name>/report.html` from what is there, at any state of the round; the same files give the same page.

    Raises:
        WorkspaceError: there is no round of that name.
        ArtifactError: a file of the round is damaged.
    """
    facts = gather(workspace, name)
    path = facts.this.path / FILE
    beside = path.with_name(f".{FILE}.partial")
    beside.write_text(f"<!DOCTYPE html>\n{page(facts)}\n", "utf-8", newline="\n")
    beside.replace(path)
    return path


def page(facts: Facts) -> Html:
    """The document: nothing in it refers to anything outside."""
    style = Html(Path(__file__).with_name("report.css").read_text("utf-8"))
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", f"{facts.workspace} {facts.name}"),
        element("style", style),
    )
    return element("html", head, element("body", MARKS, headline(facts), element("main", [part(facts) for part in PARTS])), lang="en")

"""What the parts of the page are made of: sections, tables, and how figures are written."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.artifacts import Estimate
from tasks.report.facts import Facts
from tasks.report.markup import Child, Html, element, join


def section(title: str, *content: Child, lead: Child = None) -> Html:
    """A part of the page: heading, what to see in a sentence, and the rest."""
    return element("section", element("h2", title), element("p", lead, class_="lead") if lead is not None else None, content)


def table(heads: Sequence[str], rows: Sequence[Sequence[Child]], kind: str | None = None) -> Html:
    """A table that scrolls sideways where it is too wide; a heading that begins with `>` is of a column of numbers."""
    classes = ["number" if head.startswith(">") else None for head in heads]
    top = [element("th", head.removeprefix(">"), scope="col", class_=name) for head, name in zip(heads, classes, strict=True)]
    body = [element("tr", [element("td", cell, class_=name) for cell, name in zip(row, classes, strict=True)]) for row in rows]
    return element("div", element("table", element("thead", element("tr", top)), element("tbody", body), class_=kind), class_="wide")


def pairs(items: Sequence[tuple[Child, Child]], kind: str) -> Html:
    """Names and values."""
    return element("dl", [element("div", element("dt", name), element("dd", value)) for name, value in items], class_=kind)


def class_cell(name: str) -> Html:
    """A class name in a table: cut at the end of its column, whole when hovered."""
    return element("span", name, class_="class", title=name)


def percent(estimate: Estimate | None, sign: str = "") -> str:
    """`91.2 [88.0, 94.1]`, the value with its 95% interval in percent, or a dash; `sign` follows the value. Lines do not break inside of the brackets."""
    return f"{100 * estimate.value:.1f}{sign} [{100 * estimate.low:.1f},\u00a0{100 * estimate.high:.1f}]" if estimate else "-"


def count_images(count: int) -> str:
    """`1 image`, `1,200 images`."""
    return f"{count:,} image" + ("" if count == 1 else "s")


def elsewhere(facts: Facts) -> Html:
    """What to say where a stage has run but its files are not here."""
    command = element("code", f"dvc pull {facts.pool.folder}/dvc.yaml {facts.this.folder}/dvc.yaml")
    return join("The files for this part are not on this machine; ", command, " brings them.")

"""`rondo methods`: the acquisition methods for people."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table

from al_core import registry
from al_core.registry import spelled
from tasks.errors import ParamsError


def table() -> Table:
    """Name, family, what it reads and use of every method."""
    shown = Table(title="acquisition methods", title_justify="left", caption="rondo methods NAME shows one in full")
    for heading in ("name", "family", "reads", "when to use it"):
        shown.add_column(heading)
    for each in registry.methods():
        shown.add_row(each.name, each.family, ", ".join(each.needs) or "-", each.when)
    return shown


def card(name: str) -> Group:
    """All that is known of one method.

    Raises:
        ParamsError: there is no such method; names the nearest.
    """
    try:
        it = registry.card(name)
    except (ValueError, ImportError) as error:
        raise ParamsError(str(error)) from error
    about = Table(title=f"{it.name}: {it.summary}", title_justify="left", show_header=False)
    for label, text in (
        ("family", it.family),
        ("reads", ", ".join(it.needs) or "no signal"),
        ("score", it.direction),
        ("when", it.when),
        ("time", it.complexity),
        ("memory", it.memory),
        ("source", it.source),
        ("seed", "draws at random" if it.stochastic else "draws nothing: every seed gives the same picks"),
    ):
        about.add_row(label, text)
    knobs = Table(title="parameters", title_justify="left")
    for heading in ("name", "type", "default", "meaning"):
        knobs.add_column(heading)
    for each in it.parameters:
        knobs.add_row(each.name, spelled(each.type), str(each.default), each.meaning)
    return Group(about, knobs) if it.parameters else Group(about, "it has no parameters")

"""HTML and SVG put together so that text is escaped unless it is markup already."""

from __future__ import annotations

import html
from collections.abc import Iterable


class Html(str):
    """Text that is markup already. Only `element` and constants make it; what comes from data never does."""

    __slots__ = ()


Child = str | int | float | None | Iterable["Child"]

EMPTY = frozenset({"br", "img", "meta", "hr"})  # without an end tag


def element(name: str, /, *children: Child, **attributes: str | int | float | bool | None) -> Html:
    """`<name attributes>children</name>`.

    Args:
        name: of the element.
        children: plain text is escaped, `Html` stays, None is nothing, numbers are written out, iterables are taken apart.
        attributes: a trailing `_` is dropped and other `_` become `-`; None and False leave the attribute out, True writes it without a value.
    """
    written = "".join(attribute(key, value) for key, value in attributes.items())
    end = "" if name in EMPTY else f"</{name}>"
    return Html(f"<{name}{written}>{join(children)}{end}")


def join(*children: Child) -> Html:
    """The children one after another."""
    return Html("".join(text_of(child) for child in children))


def text_of(child: Child) -> str:
    """A child as it stands in the page."""
    if child is None:
        return ""
    if isinstance(child, Html):
        return child
    if isinstance(child, str):
        return html.escape(child)
    if isinstance(child, int | float):
        return number(child)
    return join(*child)


def attribute(key: str, value: str | int | float | bool | None) -> str:
    """An attribute with the space before it, or nothing."""
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    if value is True:
        return f" {name}"
    text = value if isinstance(value, str) else number(value)
    return f' {name}="{html.escape(text)}"'


def number(value: float) -> str:
    """At most two decimals and no trailing zeros: enough for coordinates in pixels, and short."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)

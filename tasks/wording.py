"""Words for people: what others wrote, in a form that cannot drive a terminal, and long rows of things cut short."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def quoted(text: str, limit: int = 60) -> str:
    """In double quotes on one line, control characters escaped, the end of a long text cut off."""
    short = text if len(text) <= limit else text[: limit - 1] + "…"
    inner = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in short.replace("\\", "\\\\").replace('"', '\\"'))
    return f'"{inner}"'


def quoted_path(path: str) -> str:
    """As `quoted`, whole: what tells paths apart is their end."""
    return quoted(path, len(path))


def some(items: Sequence[Item], limit: int, tell: Callable[[Item], str] = str) -> str:
    """The first ones in a row, each as `tell` puts it, and how many more there are."""
    more = len(items) - limit
    return ", ".join(map(tell, items[:limit])) + (f" and {more} more" if more > 0 else "")


def counted(number: int, noun: str) -> str:
    """`1 pool`, `1,797 images`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")

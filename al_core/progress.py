"""How far long work has come, told to whoever listens. The work says it as it goes, and does not know who that is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

Item = TypeVar("Item")
Listener = Callable[[str, int, int], None]  # what is counted, how many are done, of how many: ("picks", 120, 10000)

LISTENER: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def listening(listener: Listener | None) -> Iterator[None]:
    """Have work in this block told to a listener: `with listening(print): select(...)`; None: to nobody."""
    token = LISTENER.set(listener)
    try:
        yield
    finally:
        LISTENER.reset(token)


def tell(what: str, done: int, total: int) -> None:
    """Say how many of what are done."""
    listener = LISTENER.get()
    if listener is not None:
        listener(what, done, total)


def counted(items: Iterable[Item], what: str, total: int) -> Iterator[Item]:
    """The items as they come; one is done when the next is asked for."""
    for done, item in enumerate(items):
        tell(what, done, total)
        yield item
    tell(what, total, total)


def over(parts: Iterable[slice], what: str, total: int) -> Iterator[slice]:
    """Slices as they come, of `total` rows in all; the rows of one are done when the next is asked for."""
    for part in parts:
        tell(what, part.start, total)
        yield part
    tell(what, total, total)

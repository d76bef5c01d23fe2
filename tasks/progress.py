"""Progress of long work as plain lines on stderr, which read well in a terminal, in a pipe and in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def progress(items: Iterable[Item], total: int, what: str, every: float = 2.0) -> Iterator[Item]:
    """The items as they come, with a line at most every `every` seconds and one at the end.

    Args:
        items: what is worked on; one is done when the next is asked for.
        total: how many there will be, for the share and the time left.
        what: such as "ingest: files".
        every: seconds between lines.
    """
    started = last = time.monotonic()
    done = 0
    for item in items:
        yield item
        done += 1
        now = time.monotonic()
        if now - last >= every and done < total:
            last = now
            say(line(what, done, total, now - started))
    say(line(what, done, total, time.monotonic() - started))


class Told:
    """Takes progress from elsewhere, as `al_core` tells it, and prints a line at most every `every` seconds.

    Args:
        stage: whose work it is; begins each line.
        every: seconds between lines, and before the first: what takes less time prints nothing.
    """

    def __init__(self, stage: str, every: float = 2.0) -> None:
        self.stage, self.every = stage, every
        self.started: dict[str, float] = {}  # when each count began
        self.last: dict[str, float] = {}  # when it was last printed, if it was
        self.done: dict[str, int] = {}

    def __call__(self, what: str, done: int, total: int, also: str = "") -> None:
        now = time.monotonic()
        again = done < self.done.get(what, 0)  # another count of the same
        self.done[what] = done
        if again or what not in self.started:
            self.started[what] = now
            self.last.pop(what, None)
        elif now - self.last.get(what, self.started[what]) >= self.every or (done == total and what in self.last):
            self.last[what] = now
            say(line(f"{self.stage}: {what}", done, total, now - self.started[what]) + (f", {also}" if also else ""))


def line(what: str, done: int, total: int, seconds: float, before: int = 0) -> str:
    """`ingest: files 1,200 of 20,000 (6%), 953/s, 20 s left`; at the end the time taken instead. `before`: how many an earlier run had done."""
    rate = (done - before) / seconds if seconds > 0 else float("inf")
    head = f"{what} {done:,} of {total:,}"
    speed = f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s"
    if done >= total:
        return f"{head}, {speed}, took {duration(seconds)}" if done else head
    return f"{head} ({100 * done // total}%), {speed}, {duration((total - done) / rate)} left"


def duration(seconds: float) -> str:
    """`8 s`, `3 min 20 s` or `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def say(text: str) -> None:
    """One line on stderr, at once."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()

"""Several processes that do the work of one: each does its share of what grows with the pool.

Those that make one selection all end with the same picks as one would. Every process holds the same pool, its signals as memory maps of the same files,
and calls `select` with the same arguments. It reads the rows of its share, contiguous ones, and hands the others a number or a few for each row; rows
that come into question as picks are read by all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from al_core.pool import Rows

Item = TypeVar("Item")
Value = TypeVar("Value")
Array = TypeVar("Array", bound=npt.NDArray[np.generic])


@dataclass(frozen=True, eq=False)
class Processes:
    """Those that share the work.

    Args:
        group: of torch.distributed, such as `torch.distributed.group.WORLD`, whose backend can send what lies in the CPU's memory; None: this process
            works alone.
    """

    group: ProcessGroup | None = None

    @property
    def count(self) -> int:
        """How many there are."""
        return 1 if self.group is None else self.group.size()

    @property
    def rank(self) -> int:
        """Which of them this one is, from 0."""
        return 0 if self.group is None else self.group.rank()

    def share(self, rows: Rows) -> Rows:
        """(about m / count,) the part of (m,) rows that this process works on; in the order of the processes the parts make up all."""
        if self.group is None:
            return rows
        return rows[len(rows) * self.rank // self.count : len(rows) * (self.rank + 1) // self.count]

    def turns(self, items: Iterable[Item]) -> Iterator[Item]:
        """Those that this process works on when all take the next one in turn."""
        return iter(items) if self.group is None else islice(items, self.rank, None, self.count)

    def in_turn(self, values: Iterator[Value], total: int) -> Iterator[Value]:
        """What the processes make of their turns, in the order of all items; each has to ask for all, and the first one alone gets them.

        Args:
            values: this process's own, one for each of its turns.
            total: how many there are in all processes.
        """
        if self.group is None:
            yield from values
            return
        for start in range(0, total, self.count):
            mine = [next(values)] if start + self.rank < total else []
            for each in self.at_first(mine):
                yield from each

    def at_first(self, value: Value) -> list[Value]:
        """What every process gave, in the order of the processes, in the first of them; nothing in the others. Each has to call this."""
        if self.group is None:
            return [value]
        import torch.distributed

        values: list[Value] | None = [value] * self.count if self.rank == 0 else None
        torch.distributed.gather_object(value, values, group=self.group, group_dst=0)
        return values or []

    def gathered(self, value: Value) -> list[Value]:
        """What every process gave, in the order of the processes; each has to call this."""
        if self.group is None:
            return [value]
        import torch.distributed

        values: list[Value] = [value] * self.count
        torch.distributed.all_gather_object(values, value, group=self.group)
        return values

    def joined(self, part: Array) -> Array:
        """The arrays that every process gave, one after the other along their first axis; each has to call this."""
        return part if self.group is None else np.concatenate(self.gathered(part))  # type: ignore[return-value]

    def mapped(self, values_of: Callable[[Rows], Array], rows: Rows) -> Array:
        """What a function gives for (m,) rows, a value or a row of values each, when every process applies it to its share."""
        return self.joined(values_of(self.share(rows)))

    def first(self, value: Value) -> Value:
        """What the first process gave; each has to call this. For what may differ between them, by rounding or by the clock, and is to be the same for all."""
        if self.group is None:
            return value
        import torch.distributed

        values = [value]
        torch.distributed.broadcast_object_list(values, group=self.group, group_src=0)
        return values[0]

    def agree(self, what: str, value: object) -> None:
        """Raise in every process unless all gave the same.

        Raises:
            ValueError: they did not.
        """
        for rank, other in enumerate(self.gathered(value)):
            if other != value:
                raise ValueError(f"process {rank} was asked for {what} {other!r}, this one for {value!r}; call it alike in all processes of the group")


ALONE = Processes()


@contextmanager
def grouped(backend: str | None = None, **how: Any) -> Iterator[ProcessGroup]:
    """torch.distributed's default group while a block runs.

    Its threads end with it, unless something goes on holding the group: a variable, a network with batch norm of `al_core.pretraining.batch_norm`, or
    what `torch.compile` made of one. A group that lives to the end of the process may kill it there, after all work is done: a thread of it then waits
    for the interpreter in vain.

    Args:
        backend, how: as `torch.distributed.init_process_group` takes them.
    """
    import torch.distributed.nn  # before there is a group: its functions' defaults would keep the group of the moment for good

    torch.distributed.init_process_group(backend, **how)
    try:
        yield torch.distributed.group.WORLD  # type: ignore[misc]  # there is one now
    finally:
        torch.distributed.destroy_process_group()

"""Bounds on distances between points, from float32 matrix products whose rounding is accounted for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from al_core.pool import Rows, blocks

if TYPE_CHECKING:
    from torch import Tensor

    from al_core.processes import Processes

Doubles = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

REACH = 2048  # centres in one product, at most
LANE, STRIP = 64, 512  # terms that are added in float32 before a sum goes on in float64, or in the next product
ROUNDING = 2.0**-24  # of float32, relative


@dataclass(frozen=True)
class Bounded:
    """Vectors in float32 that stand for points, and what is certain of squared distances between the points.

    Of two points with vectors v, w, the squared distance is at least (1 - slack) (low_v + low_w - 2 v.w) and, unless these are sketches, at most
    (1 + slack) (high_v + high_w - 2 v.w), in whatever order float32 sums v.w.

    Why. Let each vector be off by at most its blur from one that has the point's own distances (for sketches: distances that are never longer). With
    s = |v - w|^2 and b the sum of both blurs, the distance lies within b of sqrt(s), and 2 b sqrt(s) <= (slack / 2) s + (2 / slack) b^2, so its square is
    at least (1 - slack / 2) s - (2 / slack) b^2 and at most (1 + slack / 2) s + (2 / slack + 1) b^2, where b^2 <= 2 blur_v^2 + 2 blur_w^2. The other half
    of `slack` is for the rounding of the exact distance. What is computed for s has the terms |v|^2, |w|^2, 2 v.w. A float32 sum of n products errs by
    at most n ROUNDING times the sum of their sizes, here |v| |w| <= (|v|^2 + |w|^2) / 2, and what is below float32's range by n 2^-126: hence gamma.
    """

    v: Tensor  # (n, k)
    low: Doubles  # (n,)
    high: Doubles  # (n,)
    slack: float

    @classmethod
    def of(cls, v: Tensor, square: Doubles, blur: Doubles, slack: float) -> Bounded:
        """From vectors, their squared lengths as `sums` gives them, and how far each may be off."""
        import torch

        lost = ~(square < 1e30)  # too long for float32: nothing is known of these
        if lost.any():
            v = v.masked_fill(torch.from_numpy(lost).to(v.device)[:, None], 0)
            square, blur = np.where(lost, 0, square), np.where(lost, np.inf, blur)
        width = v.shape[1]
        gamma = 1.05 * (min(width, STRIP) + width / STRIP + LANE + 16) * ROUNDING
        room = 2 * gamma * square + 2.1 * (2 / slack + 1) * blur**2 + 8 * width * 2.0**-126
        return cls(v, square - room, square + room, slack)

    def __getitem__(self, at: Rows | slice) -> Bounded:
        import torch

        v = self.v[at] if isinstance(at, slice) else self.v.index_select(0, torch.from_numpy(at).to(self.v.device))
        return Bounded(v, self.low[at], self.high[at], self.slack)

    def empty(self, count: int) -> Bounded:
        """So many that are still to be put in."""
        return Bounded(self.v.new_zeros(count, self.v.shape[1]), np.zeros(count), np.zeros(count), self.slack)

    def joined(self, processes: Processes) -> Bounded:
        """Those of all processes, one after the other."""
        import torch

        parts = processes.gathered((self.v.cpu(), self.low, self.high))
        v, low, high = zip(*parts, strict=True)
        return Bounded(torch.cat(v).to(self.v.device), np.concatenate(low), np.concatenate(high), self.slack)

    def put(self, at: slice, new: Bounded) -> None:
        """Replace some."""
        self.v[at], self.low[at], self.high[at] = new.v, new.low, new.high

    @property
    def doubt(self) -> Doubles:
        """(n,) what the distance between bounds owes to each, `slack` apart."""
        return 1.02 * (self.high - self.low)

    def lower(self, lean: Doubles | npt.NDArray[np.float32]) -> Doubles:
        """(n,) or (n, m) lower bounds from what `product` gives."""
        lower: Doubles = (1 - self.slack) * (self.low.reshape(-1, *[1] * (lean.ndim - 1)) + lean)
        return lower

    def upper(self, lean: Doubles, others: Bounded, partner: Rows) -> Doubles:
        """(n,) upper bounds from what `product` gives of each with its partner."""
        with np.errstate(invalid="ignore"):
            upper = (1 + self.slack) * (self.high + others.high[partner] + lean - others.low[partner].astype(np.float32))
        return np.where(np.isnan(upper), np.inf, upper)

    def within(self, lean: Tensor, at: Rows, limit: Doubles) -> Tensor:
        """(n, m) pairs whose squared distance may be `limit` (n,) or less, from the rows `at` of what `product` gives."""
        import torch

        with np.errstate(over="ignore", invalid="ignore"):
            most = np.nextafter((limit / (1 - self.slack) - self.low).astype(np.float32), np.float32(np.inf))
        lean = lean if len(at) == len(lean) else lean.index_select(0, torch.from_numpy(at).to(lean.device))
        return lean <= torch.from_numpy(most).to(lean.device)[:, None]

    def alone(self, row: Rows, others: Bounded, partner: Rows) -> tuple[Doubles, Doubles]:
        """(p,) lower and upper bounds of pairs, one by one."""
        import torch

        lean = np.empty(len(row))
        for block in blocks(row, width=4 * self.v.shape[1]):
            a, b = (v.index_select(0, torch.from_numpy(at[block]).to(v.device)) for v, at in ((self.v, row), (others.v, partner)))
            lean[block] = -2 * sums(a.mul_(b))
        mine = self.low[row] + others.low[partner], self.high[row] + others.high[partner]
        return (1 - self.slack) * (mine[0] + lean), (1 + self.slack) * (mine[1] + lean)


class Centers:
    """Rows that distances are measured from, in the order in which they came, as points or as sketches."""

    def __init__(self, of: Callable[[Rows], Bounded], rows: Rows) -> None:
        self.of, self.room, self.count = of, rows.copy(), len(rows)
        self.held: Bounded | None = None  # of the first `known`, with room for more
        self.known = 0
        self.doubt = 0.0  # the largest of theirs

    def __len__(self) -> int:
        return self.count

    @property
    def rows(self) -> Rows:
        """(count,) rows of the pool."""
        return self.room[: self.count]

    def add(self, row: int) -> None:
        """The next one."""
        if self.count == len(self.room):
            self.room = np.concatenate([self.room, np.zeros(self.count + 64, dtype=np.int64)])
        self.room[self.count] = row
        self.count += 1

    def __getitem__(self, part: slice) -> Bounded:
        while self.known < self.count:
            until = min(self.known + REACH, self.count)
            new = self.of(self.room[self.known : until])
            self.doubt = max(self.doubt, float(new.doubt.max()))
            if self.held is None or len(self.held.low) < self.count:
                held, self.held = self.held, new.empty(2 * self.count)
                if held is not None:
                    self.held.put(slice(0, self.known), held[: self.known])
            self.held.put(slice(self.known, until), new)
            self.known = until
        assert self.held is not None
        return self.held[part.start : min(part.stop, self.count)]


class Contest:
    """Pairs of rows and centres, with bounds on their squared distances: which of the centres that a row is paired with may be its nearest.

    Args:
        row: (p,) what each pair is of.
        low: (p,) lower bounds.
        high: (p,) upper bounds.
    """

    def __init__(self, row: Rows, low: Doubles, high: Doubles) -> None:
        self.high = high
        order = np.lexsort((high, row))
        _, first, number = np.unique(row[order], return_index=True, return_inverse=True)
        self.leader = order[first]  # (distinct rows, ascending) the pair with the lowest upper bound
        self.open = np.empty(len(row), dtype=bool)  # (p,)
        self.open[order] = low[order] <= high[self.leader][number]
        self.rivals = np.bincount(number, weights=self.open[order], minlength=len(first))  # (distinct rows,)


def product(mine: Bounded, others: Bounded) -> Tensor:
    """(n, m) float32: low_w - 2 v.w, which is a lower bound on their squared distance less what is of v alone."""
    import torch

    return plus_product(torch.from_numpy(others.low.astype(np.float32)).to(mine.v.device), mine.v, others.v.T, -2)


def plus_product(start: Tensor, a: Tensor, b: Tensor, factor: float) -> Tensor:
    """Start + factor a b, a strip of columns of a after the other, or in float64 where torch would take fewer bits than float32 has."""
    import torch

    if not float32_is_kept():
        return torch.addmm(start.double(), a.double(), b.double(), alpha=factor).float()
    total = torch.addmm(start, a[:, :STRIP], b[:STRIP], alpha=factor)
    for at in range(STRIP, a.shape[1], STRIP):
        total.addmm_(a[:, at : at + STRIP], b[at : at + STRIP], alpha=factor)
    return total


def float32_is_kept() -> bool:
    """Whether torch multiplies float32 matrices as float32, and not with fewer bits, which it can be told to."""
    import torch

    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # it was told so for some devices alone
        return False


def squared_length(x: Doubles) -> Doubles:
    """(n,) sums of squares of the rows of (n, d)."""
    square: Doubles = np.einsum("nd,nd->n", x, x)
    return square


def sums(x: Tensor) -> Doubles:
    """(n,) sums of the rows of (n, d), whatever d is off by no more than (LANE + 1) ROUNDING of the sum of their sizes."""
    import torch

    whole = x.shape[1] // LANE * LANE
    total = x[:, :whole].reshape(len(x), whole // LANE, LANE).sum(dim=2).sum(dim=1, dtype=torch.float64) + x[:, whole:].sum(dim=1).to(torch.float64)
    square: Doubles = total.cpu().numpy()
    return square


def smallest(lean: Tensor) -> tuple[Doubles, Rows]:
    """(n,) smallest values of the rows of (n, m), and where they are."""
    if lean.device.type == "cpu":  # where numpy is ten times as fast
        where = lean.numpy().argmin(axis=1)
        return lean.numpy()[np.arange(len(lean)), where].astype(np.float64), where
    least = lean.min(dim=1)
    return least.values.cpu().numpy().astype(np.float64), least.indices.cpu().numpy()


def pairs(mask: Tensor, but: Rows | None = None) -> tuple[Rows, Rows]:
    """(p,) rows and columns where (n, m) is true, but for one column of each row."""
    held = mask.cpu().numpy()
    if but is not None:
        held[np.arange(len(held)), but] = False
    row, column = np.nonzero(held)
    return row, column

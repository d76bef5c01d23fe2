"""Balancing with the true labels: every pick goes where the rarest class should be, as long as the labelled classes are too uneven (Aggarwal et al.)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from al_core.bounds import Doubles, squared_length
from al_core.points import Points
from al_core.pool import Floats, Pool, Rows, blocks
from al_core.progress import counted
from al_core.registry import method
from al_core.selection import Selection


@method(
    "balancing",
    family="balance",
    needs=("embeddings", "labels", "truth"),
    direction="squared distance to the mean of the rarest class over that to the farthest mean of a majority class, at the moment of the pick; "
    "lowest first; NaN for a pick at random",
    complexity="O(n d) a pick while classes are uneven, and up to O(n d classes) where a majority class moves; O(n) a pick at random",
    memory="O(n + classes d), and some blocks of 8 MB through which the embeddings are streamed",
    source="Aggarwal, Popescu & Hudelot 2020; the released code of Emam et al. 2021 at fc90eae",
    when="in backtests alone, as a reference for what balance is worth: it sees the label of every pick before it makes the next",
    stochastic=True,
)
@dataclass(frozen=True)
class Balancing:
    """Rows near the mean of the rarest class and far from those of majority classes; random rows while later picks can still even the classes out.

    A majority class has more labelled rows than the mean over classes. A pick is made for balance if the picks that are left, itself included, are at
    most the number of other classes times the difference between the mean counts of the two groups. Its true label counts at once. A class without
    labelled rows has no mean: 1 stands for the distance to it. Where distances are 0 over 0, the score is NaN. Classes are those among the labels and
    the truth of available rows. `info` has the picks made for balance, and how many rows of each class are labelled in the end.
    """

    def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Selection:
        balance = Balance(pool)
        rows, scores = np.empty(budget, dtype=np.int64), np.full(budget, np.nan)
        for_balance = 0
        for i in counted(range(budget), "picks", budget):
            if balance.uneven(budget - i):
                rows[i], scores[i] = balance.rarest()
                for_balance += 1
            else:
                rows[i] = rng.choice(np.flatnonzero(balance.free))
            balance.take(int(rows[i]))
        labels = {str(number): int(count) for number, count in zip(balance.classes, balance.count, strict=True)}
        return Selection(rows, scores, {"for_balance": for_balance, "labels": labels})


class Balance:
    """The labelled classes as they grow, and how far every row that may be picked lies from the farthest majority class."""

    def __init__(self, pool: Pool) -> None:
        self.points = Points.of(pool.embeddings, pool.looked_at, unit=False)
        self.square = np.concatenate([squared_length(self.points[block]) for block in blocks(pool.embeddings)])
        roomy = ((self.square > 1e-24) & (self.square < 1e36)) | (self.square == 0)  # no product of two such lengths leaves float32's range
        self.precision: type[np.float32 | np.float64] = np.float32 if pool.embeddings.dtype != np.float64 and roomy.all() else np.float64
        self.truth = pool.truth
        self.classes = np.union1d(pool.labels, pool.truth[pool.available])
        self.count = np.zeros(len(self.classes), dtype=np.int64)
        self.sum = np.zeros((len(self.classes), pool.embeddings.shape[1]))
        number = np.searchsorted(self.classes, pool.labels)
        for block in blocks(number, width=self.sum.shape[1]):
            np.add.at(self.sum, number[block], self.points[pool.labeled[block]])
            np.add.at(self.count, number[block], 1)
        self.free = np.zeros(pool.size, dtype=np.bool_)
        self.free[pool.available] = True
        self.least, self.most = np.zeros(pool.size), np.zeros(pool.size)  # bounds on the squared distance to the farthest mean of a majority class, ...
        self.farthest = np.full(pool.size, -1)  # ... which is this class's, or lies no nearer; -1: not measured
        self.measured = np.zeros(len(self.classes), dtype=np.bool_)  # majority classes whose means the bounds heed, as they are

    @property
    def majority(self) -> npt.NDArray[np.bool_]:
        """(classes,) more rows than the mean over classes."""
        above: npt.NDArray[np.bool_] = self.count * len(self.count) > self.count.sum()
        return above

    def uneven(self, left: int) -> bool:
        """Whether so many picks are too few to even the classes out at random: left <= others (majority's mean count - others' mean count)."""
        majority = self.majority
        others = ~majority
        return bool(majority.any() and (left + self.count[others].sum()) * majority.sum() <= others.sum() * self.count[majority].sum())

    def take(self, row: int) -> None:
        """Pick a row: its label is known from now on."""
        number = int(np.searchsorted(self.classes, self.truth[row]))
        self.free[row] = False
        self.count[number] += 1
        self.sum[number] += self.points[np.array([row])][0]
        self.forget(number)

    def rarest(self) -> tuple[int, float]:
        """The row with the lowest ratio (of several, the first), and the ratio; NaN where the row lies on the mean of every majority class."""
        self.measure()
        rows = np.flatnonzero(self.free)
        rarest = self.count.argmin()
        mean = self.means(np.array([rarest])) if self.count[rarest] else None
        near, error = np.ones(len(rows)), np.zeros(len(rows))
        if mean is not None:
            parts = zip(*(self.bounds(block, mean) for block in blocks(self.points.x)), strict=True)
            near, error = (np.concatenate(part)[rows, 0] for part in parts)
        close = over(np.maximum(near - error, 0), self.most[rows]) <= over(near + error, self.least[rows]).min()
        rows, near = rows[close], near[close]
        far = np.empty(len(rows))
        for block in blocks(rows, width=self.points.x.shape[1]):
            near[block] = near[block] if mean is None else squared_length(self.points[rows[block]] - mean)
            far[block] = self.exactly(rows[block], self.means(np.flatnonzero(self.measured)))
        ratio = over(near, far)
        best = int(ratio.argmin())
        return int(rows[best]), float(ratio[best]) if far[best] > 0 else np.nan

    def means(self, numbers: Rows) -> Doubles:
        """(numbers, d) of some classes."""
        means: Doubles = self.sum[numbers] / self.count[numbers, None]
        return means

    def forget(self, number: int) -> None:
        """What was measured to a class's mean no longer holds."""
        self.measured[number] = False
        self.farthest[self.farthest == number] = -1

    def measure(self) -> None:
        """Bring the bounds up to date: of rows whose farthest class moved or is no majority any more, or may have become another that moved or joined."""
        majority = self.majority
        for number in np.flatnonzero(self.measured & ~majority).tolist():
            self.forget(number)
        stale = self.farthest < 0
        fresh = np.flatnonzero(majority & ~self.measured)
        if len(fresh) and not stale[self.free].all():
            means = self.means(fresh)
            for block in blocks(self.points.x, width=len(fresh)):
                square, error = self.bounds(block, means)
                stale[block] |= (square + error > self.most[block, None]).any(axis=1)
        rows, numbers = np.flatnonzero(stale & self.free), np.flatnonzero(majority)
        means = self.means(numbers)
        for block in blocks(rows, width=max(means.shape)):
            square, error = self.bounds(rows[block], means)
            self.farthest[rows[block]] = numbers[(square - error).argmax(axis=1)]
            self.least[rows[block]], self.most[rows[block]] = (square - error).max(axis=1), (square + error).max(axis=1)
        self.measured = majority

    def exactly(self, rows: Rows, means: Doubles) -> Doubles:
        """(rows,) squared distance to the farthest of some means."""
        square, error = self.bounds(rows, means)
        row, mean = np.nonzero(square + error >= (square - error).max(axis=1, keepdims=True))
        far = np.zeros(len(rows))
        for part in blocks(row, width=means.shape[1]):
            np.maximum.at(far, row[part], squared_length(self.points[rows[row[part]]] - means[mean[part]]))
        return far

    def bounds(self, rows: slice | Rows, means: Doubles) -> tuple[Doubles, Doubles]:
        """(b, m) squared distances of rows to means by a matrix product, and by how much each is off at most.

        |x|^2 + |c|^2 - 2 x.c is off by less than (d + 8) eps (|x|^2 + |c|^2): a dot product of length d errs by at most d eps / 2 |x| |c|, and 2 |x| |c| is
        at most |x|^2 + |c|^2; the rest is room for the other roundings.
        """
        x: Floats = self.points.x[rows].astype(self.precision, copy=False)
        c: Floats = means.astype(self.precision)
        dots: Floats = x @ c.T
        squares: Doubles = self.square[rows, None] + squared_length(means)
        return squares - 2 * dots, (means.shape[1] + 8) * np.finfo(self.precision).eps * squares


def over(square: Doubles, far: Doubles) -> Doubles:
    """Ratios; infinite where `far` is not above 0."""
    ratio: Doubles = np.divide(square, far, out=np.full(len(far), np.inf), where=far > 0)
    return ratio

"""Distances to the decision boundaries of a linear head: the rows nearest to any of them (MASE), or to each class's in turn (BASE).

Between the predicted class y and a class c lies the hyperplane where their logits are equal. An embedding is (z_y - z_c) / |w_y - w_c| away from it:
one subtraction and one division for each logit. Everything is float64 and done value by value, so neither blocks nor threads change a bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from al_core.pool import Floats, Pool, Rows, blocks
from al_core.processes import ALONE, Processes
from al_core.progress import over
from al_core.ranking import Ranked, Ranking
from al_core.registry import method
from al_core.selection import Scores, Selection, lowest

if TYPE_CHECKING:
    import torch

    Entries = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # class, distance and row of each

SPARE = 64  # rows that a class's list holds beyond ...
TIMES = 4  # ... so many times its quota, since classes before it will take some of them
KEPT = 2**20  # entries of all lists together
PENDING = 2**16  # candidates that may wait to be sorted into the lists, at least


@dataclass(frozen=True, eq=False)
class Distances:
    """How far some rows lie from the boundaries, on the head's device.

    Attributes:
        predicted: (b,) the class with the largest logit, of several the lowest.
        nearest: (b,) distance to the nearest boundary of the predicted class.
        to_class: (b, classes) distance to the boundary between predicted class and each other; in the predicted class's own column, `nearest`.
            Infinite where the head has the same weights for both classes, so that there is no boundary.
    """

    predicted: torch.Tensor
    nearest: torch.Tensor
    to_class: torch.Tensor


class Boundaries:
    """The hyperplanes between the classes of a linear head.

    Args:
        weight: (classes, d) of the head; at least two rows differ.
        device: where distances are computed, as torch names it.

    Raises:
        ValueError: a single class, the same weights for every class, or weights too large to be squared.
    """

    def __init__(self, weight: Floats, device: str = "cpu") -> None:
        import torch

        classes = len(weight)
        if classes < 2:
            raise ValueError("logits have 1 class; a boundary needs at least 2 to lie between")
        pairs = torch.pdist(torch.from_numpy(weight.astype(np.float64)).to(device))  # from differences: equal rows are exactly 0 apart
        if not pairs.isfinite().all():
            raise ValueError("head weight is too large to measure: two of its rows are more than 1e150 apart; scale it down")
        if not pairs.any():
            raise ValueError("head weight has the same row for every class, so there is no boundary between them; train the model first")
        self.apart = torch.zeros(classes, classes, dtype=torch.float64, device=pairs.device)  # (classes, classes)
        for first, part in enumerate(torch.split(pairs, list(range(classes - 1, 0, -1)))):
            self.apart[first, first + 1 :] = self.apart[first + 1 :, first] = part
        self.twins = not bool(pairs.all())
        self.scratch = torch.empty(2, 0, classes, dtype=torch.float64, device=pairs.device)

    def distances(self, logits: torch.Tensor) -> Distances:
        """(b, classes) logits to distances. `to_class` is overwritten by the next call: new memory for every block would take longer than all else here."""
        import torch

        if len(logits) > self.scratch.shape[1]:
            self.scratch = self.scratch.new_empty(2, *logits.shape)
        to_class, apart = self.scratch[:, : len(logits)]
        to_class.copy_(logits)
        predicted = first_largest(to_class)[:, None]
        top = to_class.gather(1, predicted)
        torch.index_select(self.apart, 0, predicted[:, 0], out=apart)
        torch.sub(top, to_class, out=to_class).div_(apart).scatter_(1, predicted, torch.inf)
        if self.twins:
            to_class.masked_fill_(apart == 0, torch.inf)
        nearest = to_class.amin(dim=1, keepdim=True).clamp_(max=np.finfo(np.float64).max)
        to_class.scatter_(1, predicted, nearest)
        return Distances(predicted[:, 0], nearest[:, 0], to_class)

    def over_share(self, pool: Pool) -> Iterator[tuple[slice, Distances]]:
        """Positions in pool.available that this process works on, ascending, and the distances of those rows."""
        import torch

        share = pool.processes.share(np.arange(len(pool.available)))
        for part in over(blocks(share, width=pool.logits.shape[1]), "rows", len(share)):
            at = slice(int(share[part][0]), int(share[part][-1]) + 1)
            logits = np.ascontiguousarray(pool.logits[pool.available[at]])
            yield at, self.distances(torch.from_numpy(logits).to(self.apart.device))


@method(
    "mase",
    family="uncertainty",
    needs=("logits", "head"),
    direction="distance to the nearest decision boundary, in the embeddings' unit; lowest first",
    complexity="O(n classes + classes^2 d)",
    memory="O(n + classes^2)",
    source="Emam et al. 2021, MASE; its released code at fc90eae",
    when="like margin, in a distance that heads with weights of many lengths do not bend; picks are often alike and of few classes: see base",
)
@dataclass(frozen=True)
class MASE(Ranking):
    """The rows nearest to a decision boundary: how little an embedding must move for its prediction to change."""

    highest_first = False
    worst = None

    def rank(self, pool: Pool, rng: np.random.Generator) -> Ranked:
        boundaries = Boundaries(pool.head[0], pool.device)
        mine = np.concatenate([np.empty(0), *(each.nearest.cpu().numpy() for _, each in boundaries.over_share(pool))])
        return Ranked(pool.available, pool.processes.joined(mine))


@method(
    "base",
    family="balance",
    needs=("logits", "head"),
    direction="distance to the boundary of the class whose turn it was, in the embeddings' unit; class by class, lowest first in each",
    complexity="O(n classes + classes^2 d); once more over the logits where classes dispute very many rows",
    memory="O(n + budget + classes^2), and at most some 100 MB of candidates",
    source="Emam et al. 2021, BASE; its released code at fc90eae",
    when="to keep batches balanced over many or unevenly predicted classes; with fewer picks than classes, some classes get none",
)
@dataclass(frozen=True)
class BASE:
    """An equal share of the batch for every class: the rows nearest to that class's boundary, on either side of it.

    Classes choose one after the other, and each row is picked once. A row predicted as the class lies as far from its boundary as from its nearest
    one; any other as far as from the hyperplane between its predicted class and this class. Each class has budget / classes picks, and the first
    budget % classes have one more. Picks come class after class. `info` has the quota of each class and how many picks are predicted as each;
    `unfilled` counts picks that no class had a boundary to (possible only where rows of the head are equal), which go to the rows nearest to any.
    """

    class_offset: int = field(default=0, metadata={"meaning": "class that chooses first and has the remainder first; by the round, it goes around"})

    def __post_init__(self) -> None:
        if self.class_offset < 0:
            raise ValueError(f"class_offset is {self.class_offset}; expected at least 0")

    def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Selection:
        boundaries = Boundaries(pool.head[0], pool.device)
        order, quota = quotas(budget, len(boundaries.apart), self.class_offset)
        picks = in_turn(lambda: boundaries.over_share(pool), len(pool.available), order, quota, pool.device, pool.processes)
        return Selection(pool.available[picks.rows], picks.scores, picks.info)


def quotas(budget: int, classes: int, offset: int) -> tuple[Rows, Rows]:
    """Classes in the order in which they choose, and (classes,) how many picks each has, by class."""
    order = (np.arange(classes) + offset) % classes
    quota = np.full(classes, budget // classes)
    quota[order[: budget % classes]] += 1
    return order, quota


def in_turn(
    scan: Callable[[], Iterator[tuple[slice, Distances]]], size: int, order: Rows, quota: Rows, device: str = "cpu", processes: Processes = ALONE
) -> Selection:
    """For one class after the other, the nearest rows that no class before it has taken.

    A scan keeps a list of the nearest rows for each class. Where classes before it have taken so many of a list that the rest cannot fill the quota,
    the rows are scanned again for that class and those after it, into longer lists. The first class of a scan always has enough, so this ends.

    Args:
        scan: goes over all rows of this process's share in order, as often as it is called: positions, and the distances there.
        size: number of rows.
        order: classes in the order in which they choose.
        quota: (classes,) picks of each.
        device: where the distances are.
        processes: among which all rows are shared.

    Returns:
        Positions, with the distances and `info` of BASE.
    """
    predicted, nearest = np.empty(size, dtype=np.int64), np.empty(size)
    free = np.ones(size, dtype=np.bool_)
    picks: list[Rows] = []
    scores: list[Scores] = []
    waiting, times = order[quota[order] > 0], TIMES
    while len(waiting):
        lists = Lists(lengths(quota, waiting, times), device)
        for part, distances in scan():
            predicted[part], nearest[part] = distances.predicted.cpu().numpy(), distances.nearest.cpu().numpy()
            lists.offer(distances.to_class, part.start, free[part])
        share = processes.share(np.arange(size))
        predicted, nearest = processes.joined(predicted[share]), processes.joined(nearest[share])
        lists.join(processes)
        for number, (rows, away, complete) in zip(waiting, lists.of(waiting), strict=True):
            best = np.flatnonzero(free[rows])[: quota[number]]
            if len(best) < quota[number] and not complete:
                break
            picks.append(rows[best])
            scores.append(away[best])
            free[rows[best]] = False
            waiting = waiting[1:]
        times *= 2
    unfilled = int(quota.sum()) - sum(map(len, picks))
    if unfilled:
        rest = np.flatnonzero(free)
        picks.append(rest[lowest(nearest[rest], unfilled)])
        scores.append(nearest[picks[-1]])
    chosen = np.concatenate(picks)
    counts = np.bincount(predicted[chosen], minlength=len(quota))
    return Selection(chosen, np.concatenate(scores), {"quota": quota.tolist(), "predicted": counts.tolist(), "unfilled": unfilled})


def lengths(quota: Rows, waiting: Rows, times: int) -> Rows:
    """(classes,) how long each class's list is to be, at most; 0 for classes that are not waiting, or that a scan has no room for.

    As many as are picked until a class has had its turn always suffice, since no more can have been taken before.
    """
    needed = quota[waiting]
    kept = np.minimum(np.cumsum(needed), times * needed + SPARE)
    kept[1:][np.cumsum(kept)[1:] > KEPT] = 0
    length = np.zeros_like(quota)
    length[waiting] = kept
    return length


class Lists:
    """For each class, the rows nearest to its boundary among those offered: lowest distance first, of several the lowest row.

    Args:
        length: (classes,) rows to hold for each, at most.
        device: where distances are offered.
    """

    def __init__(self, length: Rows, device: str) -> None:
        import torch

        self.length = torch.from_numpy(length).to(device)
        self.reach = torch.where(self.length > 0, torch.inf, -torch.inf).double()  # (classes,) only what lies nearer can enter
        none = self.length[:0]
        self.parts: list[Entries] = [(none, self.reach[:0], none)]
        self.room, self.pending = max(PENDING, int(length.sum())), 0

    def offer(self, to_class: torch.Tensor, first: int, free: npt.NDArray[np.bool_]) -> None:
        """The next rows: (b, classes) their distances, which become infinite for those that may not be picked, the first row, and (b,) whether they may."""
        import torch

        if not free.all():
            to_class[torch.from_numpy(~free).to(to_class.device)] = torch.inf
        longest = int(self.length.max())
        if bool(self.reach.isposinf().any()) and len(to_class) > longest:  # far fewer candidates to sort
            self.reach = self.reach.minimum(to_class.kthvalue(longest, dim=0).values.nextafter(torch.tensor(torch.inf).to(self.reach)))
        at, number = true(to_class < self.reach)
        self.parts.append((number, to_class[at, number], at + first))
        self.pending += len(at)
        if self.pending > self.room:
            self.settle()

    def settle(self) -> None:
        """Sort what was offered into the lists. What is earlier in `parts` has lower rows or was sorted before, so stable sorts keep ties by row."""
        import torch

        number, away, row = (torch.cat(column) for column in zip(*self.parts, strict=True))
        order = away.argsort(stable=True)
        order = order[number[order].argsort(stable=True)]
        number, away, row = number[order], away[order], row[order]
        count = torch.bincount(number, minlength=len(self.length))
        start = count.cumsum(0) - count
        full = (count >= self.length) & (self.length > 0)
        self.reach[full] = away[(start + self.length - 1)[full]]
        kept = torch.arange(len(number), device=number.device) - start[number] < self.length[number]
        self.parts, self.pending = [(number[kept], away[kept], row[kept])], 0

    def join(self, processes: Processes) -> None:
        """Take in the lists of all processes, of which each was offered later rows than those before."""
        self.settle()
        parts = processes.gathered(tuple(column.cpu() for column in self.parts[0]))
        self.parts = [(number.to(self.reach.device), away.to(self.reach.device), row.to(self.reach.device)) for number, away, row in parts]

    def of(self, classes: Rows) -> Iterator[tuple[Rows, Scores, bool]]:
        """Of each class the list, as rows and distances, and whether it holds all that was offered to it with a finite distance."""
        self.settle()
        number, away, row = (column.cpu().numpy() for column in self.parts[0])
        for each in classes:
            part = slice(*np.searchsorted(number, [each, each + 1]))
            yield row[part], away[part], bool(part.stop - part.start < self.length[each])


def first_largest(values: torch.Tensor) -> torch.Tensor:
    """(b,) where each row of (b, m) is largest, of several the first. NumPy is several times faster at it than torch, which serves other devices."""
    import torch

    return torch.from_numpy(values.numpy().argmax(axis=1)) if values.device.type == "cpu" else values.max(dim=1).indices


def true(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and columns of the true entries of (b, m), row by row; by NumPy for the same reason."""
    import torch

    at = torch.from_numpy(np.flatnonzero(mask.numpy())) if mask.device.type == "cpu" else mask.flatten().nonzero()[:, 0]
    return at // mask.shape[1], at % mask.shape[1]

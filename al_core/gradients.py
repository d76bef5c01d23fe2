"""Gradients of the last layer as pairs of factors, and how far apart they lie. A gradient itself, classes x d numbers a row, is never written out.

The loss of a row whose label is the predicted class y has the gradient a (x) h: the outer product of a = p - e_y, what the softmax says less that
class, and of the embedding h. So |g|^2 = |a|^2 |h|^2 and <g, g'> = <a, a'> <h, h'>.

A squared distance that decides something comes from `distances`: float64, from the differences of the factors, so that nothing cancels, equal rows
are exactly 0 apart, and no block, thread or device changes a bit. That is too slow for every pair, so matrix products bound the distances first, in
float32, and where that decides too little in float64. A bound only ever says which pairs need not be measured.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from al_core.bounds import Doubles, float32_is_kept
from al_core.pool import Floats, Pool, Rows, blocks
from al_core.progress import counted

if TYPE_CHECKING:
    import torch

CLOSED = -1.0  # squared distance that stands for a gradient that is picked
LONGEST = 1e280  # squared length of an embedding, at most: sums of such squares stay finite
SHORT = 4  # blocks this much shorter than usual stay in a core's cache, as do the next two
PAIRS = 64  # measured at a time
ASKED, PICKS = 256, 512  # gradients and picks between which distances are bounded at a time
CROWD = 1 / 32  # share of the pairs that float32 may leave to be measured, or 2 a gradient; where it leaves more, float64 is asked
TINY = 1e-30  # more than what float32 loses to underflow, over the longest gradient's squared length


def loss_gradient(logits: Floats) -> Doubles:
    """(n, classes) a = p - e_y in float64, y being the likeliest class, the first of several.

    The entry of y is minus the sum of the others: of a sure model's p - 1 no digit would be left.
    """
    a: Doubles = logits.astype(np.float64, order="C")
    likeliest = a.argmax(axis=1, keepdims=True)
    with np.errstate(over="ignore"):
        a -= np.take_along_axis(a, likeliest, axis=1)
    np.exp(a, out=a)
    np.put_along_axis(a, likeliest, 0.0, axis=1)
    others = a.sum(axis=1, keepdims=True)
    np.put_along_axis(a, likeliest, -others, axis=1)
    a /= 1 + others
    return a


def dots(one: Doubles, other: Doubles) -> Doubles:
    """(n,) products of the rows of two (n, d)."""
    products: Doubles = np.einsum("nd,nd->n", one, other)
    return products


@dataclass(frozen=True, eq=False)
class Factors:
    """Both factors of some gradients, over powers of two: the gradient is in units of the pool's, and its factors are about equally long.

    Attributes:
        a: (m, classes) float64.
        h: (m, d) float64.
        square: (m,) squared length of the gradient.
    """

    a: Doubles
    h: Doubles
    square: Doubles

    def __len__(self) -> int:
        return len(self.square)

    def __getitem__(self, which: Rows | slice) -> Factors:
        return Factors(self.a[which], self.h[which], self.square[which])

    def joined(self, more: Factors) -> Factors:
        """These, then others."""
        return Factors(np.concatenate([self.a, more.a]), np.concatenate([self.h, more.h]), np.concatenate([self.square, more.square]))


def distances(one: Factors, i: Rows, other: Factors, j: Rows) -> Doubles:
    """(pairs,) squared distances between the i-th gradients of the one and the j-th of the other.

    With differences D and means M of the factors, g - g' = M_a (x) D_h + D_a (x) M_h.
    """
    squares = np.empty(len(i))
    for start in range(0, len(i), PAIRS):
        part = slice(start, start + PAIRS)
        a, b, h, k = one.a[i[part]], other.a[j[part]], one.h[i[part]], other.h[j[part]]
        minus_a, plus_a, minus_h, plus_h = a - b, a + b, h - k, h + k
        squares[part] = dots(plus_a, plus_a) * dots(minus_h, minus_h) + dots(minus_a, minus_a) * dots(plus_h, plus_h)
        squares[part] += 2 * dots(plus_a, minus_a) * dots(minus_h, plus_h)
    return np.maximum(squares / 4, 0.0)


class Gradients:
    """The gradients of a pool's available rows, numbered from 0.

    Attributes:
        unit: a power of four near the longest gradient's length, so that float32 holds them all when they are counted in it.
        square: (n,) squared lengths, in units squared.

    Raises:
        ValueError: a single class, or an embedding that is too long to be squared.
    """

    def __init__(self, pool: Pool) -> None:
        import torch

        self.logits, self.embeddings, self.rows, self.device, self.processes = pool.logits, pool.embeddings, pool.available, pool.device, pool.processes
        self.classes, self.d = self.logits.shape[1], self.embeddings.shape[1]
        if self.classes < 2:
            raise ValueError("logits have 1 class; with fewer than 2 every gradient is 0")
        share = pool.processes.share(self.rows)
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:  # NumPy lets go of the interpreter's lock while it computes
            parts = list(blocks(share, width=SHORT * max(self.classes, self.d)))
            measured = threads.map(lambda part: self.measure(share[part]), parts)
            squares = np.concatenate([np.empty((0, 2)), *counted(measured, "blocks of rows", len(parts))])
        self.a_square, self.h_square = pool.processes.joined(squares).T
        if self.h_square.max() > LONGEST:
            raise ValueError(f"embeddings are too long to measure: row {self.rows[np.argmax(self.h_square)]} is longer than 1e140; scale them down")
        square: Doubles = self.a_square * self.h_square
        self.unit = float(4.0 ** np.round(np.log2(square.max()) / 4)) if square.any() else 1.0
        self.square: Doubles = square / self.unit**2

    def measure(self, rows: Rows) -> Doubles:
        """(rows, 2) squared lengths of both factors."""
        a, h = self.read(rows)
        with np.errstate(over="ignore"):
            return np.stack([dots(a, a), dots(h, h)], axis=1)

    def read(self, rows: Rows) -> tuple[Doubles, Doubles]:
        """Both factors of some rows of the pool, as they are."""
        return loss_gradient(self.logits[rows]), self.embeddings[rows].astype(np.float64, order="C")

    def factors(self, at: Rows) -> Factors:
        """Of the gradients with these numbers."""
        a, h = self.read(self.rows[at])
        long = self.square[at] > 0
        of_h, of_a = (np.log2(squares[at], out=np.zeros(len(at)), where=long) for squares in (self.h_square, self.a_square))
        shift = np.exp2(np.round((of_h - of_a) / 4))[:, None]
        a *= shift / np.sqrt(self.unit)
        h /= shift * np.sqrt(self.unit)
        a[~long] = h[~long] = 0.0  # not even the square of the length is above 0, so neither factor may be large
        return Factors(a, h, self.square[at])

    def error(self, kind: type[np.float32 | np.float64]) -> float:
        """How far a squared distance from matrix products lies from the one of `distances`, at most, over the sum of both squared lengths.

        <a, a'> <h, h'> errs by at most (classes + d + 6) eps / 2 of both lengths, whatever the order of the sums, and the rest by some eps more;
        `distances`, whose factors are balanced within a power of two, by at most 9 (classes + d + 10) eps.
        """
        return float((self.classes + self.d + 16) * (np.finfo(kind).eps + 16 * np.finfo(np.float64).eps))

    def tensors(self, factors: Factors, kind: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Factors and squared lengths on the device."""
        import torch

        a, h, square = (torch.from_numpy(each).to(self.device, kind) for each in (factors.a, factors.h, factors.square))
        return a, h, square


class Picked:
    """Picks that came one after another.

    Attributes:
        factors: of the picks.
        end: how many picks there are with these.
    """

    def __init__(self, gradients: Gradients, factors: Factors, end: int) -> None:
        import torch

        self.gradients, self.factors, self.end = gradients, factors, end
        self.single = gradients.tensors(factors, torch.float32)

    def near(self, factors: Factors, reach: Doubles) -> tuple[Rows, Rows]:
        """Pairs of one of the gradients and a pick that may be as near as `reach` (m,) and as the nearest pick; any other pair is proven not to be."""
        if float32_is_kept():
            row, pick = self.bounded(factors, reach, np.float32)
            if len(row) <= len(factors) * max(2, CROWD * len(self.factors)):
                return row, pick
        return self.bounded(factors, reach, np.float64)

    def bounded(self, factors: Factors, reach: Doubles, kind: type[np.float32 | np.float64]) -> tuple[Rows, Rows]:
        """The same, from products of one precision."""
        import torch

        error, dtype = self.gradients.error(kind), torch.float32 if kind is np.float32 else torch.float64
        a, h, square = self.gradients.tensors(factors, dtype)
        to_a, to_h, to_square = self.single if kind is np.float32 else self.gradients.tensors(self.factors, dtype)
        low = torch.add(square[:, None] * (1 - error), to_square * (1 - error)).sub_((a @ to_a.T).mul_(h @ to_h.T), alpha=2)  # (m, picks)
        lowest, nearest = low.min(dim=1)
        limit = torch.from_numpy(reach).to(low).minimum(lowest + 2 * error * (square + to_square[nearest]))
        row, pick = (low <= (limit * (1 + error) + TINY)[:, None]).nonzero(as_tuple=True)
        return row.cpu().numpy(), pick.cpu().numpy()


class Nearest:
    """For each gradient, how near the nearest pick is. Only those that are asked about are brought up to date.

    Attributes:
        gap: (n,) squared distance to the nearest of the picks there were when it was last brought up to date; CLOSED for a pick.
        picks: their numbers, in order.
    """

    def __init__(self, gradients: Gradients) -> None:
        self.gradients = gradients
        self.gap: Doubles = np.full(len(gradients.rows), np.inf)
        self.picks: list[int] = []
        self.parts: list[Picked] = []
        self.seen = np.zeros(len(gradients.rows), dtype=np.int64)  # (n,) how many picks `gap` knows of
        self.length = np.sqrt(gradients.square)
        self.shortest = np.inf  # length of the shortest pick

    def ceiling(self, at: Rows | slice = slice(None)) -> Doubles:
        """What no squared distance to the nearest pick exceeds: the one last measured, or the sum of both lengths, squared."""
        return np.minimum(self.gap[at], np.square(self.length[at] + self.shortest) * (1 + self.gradients.error(np.float64)))

    def add(self, at: Rows, factors: Factors) -> None:
        """Make gradients picks."""
        if self.parts and len(self.parts[-1].factors) + len(at) <= PICKS:
            factors = self.parts.pop().factors.joined(factors)
        self.picks.extend(at.tolist())
        self.parts.append(Picked(self.gradients, factors, len(self.picks)))
        self.gap[at] = CLOSED
        self.shortest = min(self.shortest, float(self.length[at].min()))

    def bring_up_to_date(self, at: Rows) -> Factors:
        """Let `gap` know of all picks where these open gradients are concerned; gives their factors."""
        factors = self.gradients.factors(at)
        self.gap[at] = self.gradients.processes.mapped(lambda which: self.up_to_date(at[which], factors[which]), np.arange(len(at)))
        self.seen[at] = len(self.picks)
        return factors

    def up_to_date(self, at: Rows, factors: Factors) -> Doubles:
        """(m,) what `gap` is to be for some open gradients."""
        up_to_date, ceiling = self.gap[at], self.ceiling(at)
        for start in range(0, len(at), ASKED):
            part = slice(start, start + ASKED)
            rows, gap, seen = factors[part], up_to_date[part], self.seen[at[part]].min()
            for picked in self.parts:
                if picked.end > seen:
                    row, pick = picked.near(rows, np.minimum(gap, ceiling[part]))
                    np.minimum.at(gap, row, distances(rows, row, picked.factors, pick))
        return up_to_date


class Batch:
    """Open gradients that are up to date, while picks are made among them one by one.

    Attributes:
        low, high: (m,) bounds of the squared distance to the nearest pick, equal where it is measured; CLOSED for a pick.
        taken: which have been picked, in order.
    """

    def __init__(self, nearest: Nearest, at: Rows, factors: Factors) -> None:
        import torch

        self.nearest, self.at, self.factors = nearest, at, factors
        self.before = nearest.gap[at]
        self.low, self.high = self.before.copy(), self.before.copy()
        self.taken: list[int] = []
        a, h, _ = nearest.gradients.tensors(factors, torch.float64)
        self.products: Doubles = (a @ a.T).mul_(h @ h.T).cpu().numpy()

    def between(self, i: int) -> tuple[Doubles, Doubles]:
        """(m,) bounds of the squared distances to one of them."""
        both = self.factors.square + self.factors.square[i]
        middle, slack = both - 2 * self.products[i], both * self.nearest.gradients.error(np.float64)
        return np.maximum(middle - slack, 0.0), middle + slack

    def measure(self, i: int) -> float:
        """The squared distance of an open one to the nearest pick."""
        if self.low[i] < self.high[i]:
            taken = np.array(self.taken)
            near = taken[self.between(i)[0][taken] <= self.high[i]]
            squares = distances(self.factors, np.full(len(near), i), self.factors, near)
            self.low[i] = self.high[i] = min(self.before[i], squares.min(initial=np.inf))
        return float(self.low[i])

    def take(self, i: int) -> None:
        """Pick an open one."""
        low, high = self.between(i)
        np.minimum(self.low, low, out=self.low)
        np.minimum(self.high, high, out=self.high)
        self.taken.append(i)
        self.low[i] = self.high[i] = CLOSED

    def close(self) -> None:
        """Hand over what was picked."""
        if self.taken:
            self.nearest.add(self.at[self.taken], self.factors[np.array(self.taken)])

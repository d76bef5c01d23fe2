"""Farthest-first traversal: each pick is the row with the highest priority, which falls as picks come nearer.

Distances are summed in float64 from the differences of coordinates: nothing cancels, coincident rows are exactly 0 apart, ties are ties, and no
number of threads changes a pick. That is too slow for every pair, so a matrix product a block, in the embeddings' own precision, first bounds
all distances from both sides, and only pairs that may bring a row nearer to a centre are measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from al_core.pool import Floats, Rows, blocks

Doubles = npt.NDArray[np.float64]
Priority = Callable[[Rows, Doubles], Doubles]  # (m,) rows and (m,) squared distances to the nearest centre -> (m,), never rising as the distance falls

CENTERS = 256  # centres measured against in one pass over the pool
CLOSED = -1.0  # squared distance that stands for a row that can no longer be picked


class FarthestFirst:
    """The rows that may be picked, with their squared distances to the nearest centre: the rows that are known, and those taken since.

    Args:
        points: of the whole pool.
        rows: (m,) rows that may be picked, ascending.
        centers: (c,) rows to begin with; without any, every distance is infinite until the first `take`.
        priority: what is maximised; None: the squared distance itself.
    """

    def __init__(self, points: Points, rows: Rows, centers: Rows, priority: Priority | None = None) -> None:
        self.points, self.priority = points, priority
        self.gap = np.full(len(points.x), CLOSED)  # (n,)
        self.gap[rows] = np.inf
        for start in range(0, len(centers), CENTERS):
            points.approach(self.gap, centers[start : start + CENTERS])

    def best(self) -> tuple[int, float]:
        """The open row of the highest priority, the lowest such row of several, and its squared distance to the nearest centre; -1 where none is open."""
        if self.priority is None:
            row = int(np.argmax(self.gap))
        else:
            rows = np.flatnonzero(self.gap != CLOSED)
            row = int(rows[np.argmax(self.priority(rows, self.gap[rows]))]) if len(rows) else 0
        return (row, float(self.gap[row])) if self.gap[row] != CLOSED else (-1, CLOSED)

    def take(self, row: int) -> None:
        """Pick an open row: it is a centre from now on."""
        self.gap[row] = CLOSED
        self.points.approach(self.gap, np.array([row]))

    def drop(self, row: int) -> None:
        """Close a row without picking it."""
        self.gap[row] = CLOSED

    def radius(self) -> float:
        """How far an open row lies from its nearest centre, at most; 0 where none is open."""
        return float(np.sqrt(max(self.gap.max(), 0.0)))


@dataclass(frozen=True)
class Points:
    """Embeddings as points, read block by block.

    Attributes:
        x: (n, d) embeddings as they lie.
        scale: (n,) factor on each row: 1, or 1 / its length.
        square: (n,) squared length after scaling.
        precision: of the matrix product that bounds distances; float32 where the embeddings are no finer and their lengths leave it room.
    """

    x: Floats
    scale: Doubles
    square: Doubles
    precision: type[np.float32 | np.float64]

    @classmethod
    def of(cls, x: Floats, *, unit: bool) -> Points:
        """Measure the rows; with `unit`, scale each to length 1.

        Raises:
            ValueError: a row is too long to be squared, or has length 0 and is to be scaled.
        """
        square = np.concatenate([squared_length(x[block].astype(np.float64, order="C")) for block in blocks(x)])
        if square.max() > 1e300:
            raise ValueError(f"embeddings are too long to measure: row {np.argmax(square)} is longer than 1e150; scale them down")
        if unit and not square.all():
            raise ValueError(f"embeddings hold only zeros in row {np.argmin(square)}, which gives it no direction; use normalize: false")
        roomy = ((square > 1e-24) & (square < 1e36)) | (square == 0)  # no product of two such lengths leaves float32's range
        precision = np.float32 if x.dtype != np.float64 and roomy.all() else np.float64
        return cls(x, 1 / np.sqrt(square), np.ones(len(x)), precision) if unit else cls(x, np.ones(len(x)), square, precision)

    def __getitem__(self, rows: Rows | slice) -> Doubles:
        """(rows, d) coordinates in float64."""
        return self.x[rows].astype(np.float64, order="C") * self.scale[rows, None]

    def nearest_mean(self, rows: Rows) -> int:
        """Of these rows, the one nearest to their mean; of several, the first."""
        parts = [rows[block] for block in blocks(rows, width=self.x.shape[1])]
        mean = np.sum([self[part].sum(axis=0) for part in parts], axis=0) / len(rows)
        return int(rows[np.argmin(np.concatenate([squared_length(self[part] - mean) for part in parts]))])

    def approach(self, gap: Doubles, centers: Rows) -> None:
        """Lower each gap above 0 to the squared distance from its row to the nearest of these centres, where that is smaller.

        Args:
            gap: (n,) changed in place.
            centers: (m,) rows.
        """
        at = self[centers]  # (m, d)
        for block in blocks(self.x, width=len(centers)):
            if not (gap[block] > 0).any():
                continue
            row, center = np.nonzero(self.may_be_nearer(block, gap[block], centers, at))
            for part in blocks(row, width=self.x.shape[1]):
                rows = row[part] + block.start
                np.minimum.at(gap, rows, squared_length(self[rows] - at[center[part]]))

    def may_be_nearer(self, block: slice, gap: Doubles, centers: Rows, at: Doubles) -> npt.NDArray[np.bool_]:
        """(b, m) pairs of which one may lower the gap (b,) of its row; every other pair is proven not to.

        |x|^2 + |c|^2 - 2 x.c is off by less than (d + 8) eps (|x|^2 + |c|^2): a dot product of length d errs by at most d eps / 2 |x| |c|, and 2 |x| |c| is
        at most |x|^2 + |c|^2; the rest is room for the other roundings.
        """
        x: Floats = self.x[block].astype(self.precision, copy=False)
        c: Floats = at.astype(self.precision)
        dots: Floats = x @ c.T  # (b, m)
        squares = self.square[block, None] + self.square[centers]
        distance = squares - 2 * self.scale[block, None] * dots
        error = (self.x.shape[1] + 8) * np.finfo(self.precision).eps * squares
        reach = np.minimum(gap, (distance + error).min(axis=1))  # no row ends farther than this from its nearest centre
        near: npt.NDArray[np.bool_] = (distance - error <= reach[:, None]) & (gap[:, None] > 0)
        return near


def squared_length(x: Doubles) -> Doubles:
    """(n,) sums of squares of the rows of (n, d)."""
    square: Doubles = np.einsum("nd,nd->n", x, x)
    return square

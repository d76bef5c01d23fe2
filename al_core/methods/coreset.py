"""Core-set selection by k-center greedy: every pick is the row farthest from all rows seen so far.

Distances are summed in float64 from the differences of coordinates: nothing cancels, coincident rows are exactly 0 apart, ties are ties, and no
number of threads changes a pick. That is too slow for every pair, so a matrix product a block, in the embeddings' own precision, first bounds
all distances from both sides, and only pairs that may bring a row nearer to a centre are measured.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from al_core.pool import Floats, Pool, Rows, blocks
from al_core.registry import method
from al_core.selection import Selection

Doubles = npt.NDArray[np.float64]

CENTERS = 256  # centres measured against in one pass over the pool
CLOSED = -1.0  # squared distance that stands for a row that can no longer be picked


@method(
    "coreset",
    family="diversity",
    needs=("embeddings",),
    direction="distance to the nearest row labelled or picked before, in the embeddings' unit, at the moment of the pick; farthest first",
    complexity="O(n d (labelled + budget)), one pass over the embeddings a pick",
    memory="O(n), and some blocks of 8 MB through which the embeddings are streamed",
    source="Sener & Savarese 2018, algorithm 1; Gonzalez 1985 for the bound",
    when="to cover a varied pool before there is a model; it goes after outliers, and with strong encoders published comparisons put it below random",
)
@dataclass(frozen=True)
class CoreSet:
    """Rows that cover the pool: each pick is the one farthest from all rows labelled or picked before (k-center greedy).

    Labelled rows are the first centres. Where none is labelled, the first pick is the row nearest to the mean of the available ones, and its score
    is NaN. Ties go to the lowest row, so coincident rows are picked in order, with score 0, once nothing else is left. `info["radius"]` is how far
    from a labelled or picked row an available one still lies, at most; no other choice of as many rows could bring it below half of that.
    """

    normalize: bool = field(default=False, metadata={"meaning": "compare directions: every embedding is scaled to length 1 first"})

    def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Selection:
        points = Points.of(pool.embeddings, unit=self.normalize)
        gap = np.full(pool.size, CLOSED)  # (n,) squared distance to the nearest seen row
        gap[pool.available] = np.inf
        for start in range(0, len(pool.labeled), CENTERS):
            points.approach(gap, pool.labeled[start : start + CENTERS])
        rows, scores = np.empty(budget, dtype=np.int64), np.empty(budget)
        for i in range(budget):
            first = i == 0 and not len(pool.labeled)
            row = points.nearest_mean(pool.available) if first else int(np.argmax(gap))
            rows[i], scores[i] = row, np.nan if first else np.sqrt(gap[row])
            gap[row] = CLOSED
            points.approach(gap, rows[i : i + 1])
        return Selection(rows, scores, {"start": "labeled" if len(pool.labeled) else "mean", "radius": float(np.sqrt(max(gap.max(), 0.0)))})


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

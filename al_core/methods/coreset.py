"""Core-set selection by k-center greedy: every pick is the row farthest from all rows seen so far."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from al_core.farthest import FarthestFirst, Points
from al_core.pool import Pool
from al_core.progress import counted
from al_core.registry import method
from al_core.selection import Selection


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
        greedy = FarthestFirst(points, pool.available, pool.labeled)
        rows, scores = np.empty(budget, dtype=np.int64), np.empty(budget)
        for i in counted(range(budget), "picks", budget):
            first = i == 0 and not len(pool.labeled)
            row, square = (points.nearest_mean(pool.available), np.nan) if first else greedy.best()
            rows[i], scores[i] = row, np.sqrt(square)
            greedy.take(row)
        return Selection(rows, scores, {"start": "labeled" if len(pool.labeled) else "mean", "radius": greedy.radius()})

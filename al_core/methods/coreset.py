"""Core-set selection by k-center greedy: every pick is the row farthest from all rows seen so far."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from al_core.farthest import farthest_first
from al_core.points import Points
from al_core.pool import Pool
from al_core.registry import method
from al_core.selection import Selection


@method(
    "coreset",
    family="diversity",
    needs=("embeddings",),
    direction="distance to the nearest row labelled or picked before, in the embeddings' unit, at the moment of the pick; farthest first",
    complexity="at most O(n d (labelled + budget)); most distances are never taken: bounds show that they do not matter",
    memory="O(n), 8 d bytes a labelled or picked row, 4 d bytes for each of up to 8192 others; with sketches 300 bytes a row more; embeddings are streamed",
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
        points = Points.of(pool.embeddings, pool.looked_at, unit=self.normalize, device=pool.device, processes=pool.processes)
        rows, squares, left = farthest_first(points, pool.available, pool.labeled, budget)
        radius = float(np.sqrt(max(left.best()[1], 0.0)))
        return Selection(rows, np.sqrt(squares), {"start": "labeled" if len(pool.labeled) else "mean", "radius": radius})

"""What an acquisition method answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from al_core.pool import Pool, Rows

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Selection:
    """Picks in order, with the reason for each as a number.

    Attributes:
        rows: (budget,) int64 rows of the pool, first pick first.
        scores: (budget,) float64 score of each pick at the moment of the pick; the method's card says what it means and which way it points.
            NaN where a pick has no score, as in a random draw.
        info: what the method says of its own run; plain values that JSON can hold.
    """

    rows: Rows
    scores: Scores
    info: Mapping[str, object] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)


class Method(Protocol):
    """Picks `budget` distinct available rows of a pool, in order; every random choice comes from the generator."""

    def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Selection: ...


def lowest(scores: Scores, budget: int) -> Rows:
    """Positions of the `budget` lowest of (n,) scores without NaN, lowest first; ties by lowest position."""
    cutoff = np.partition(scores, budget - 1)[budget - 1]
    contenders = np.flatnonzero(scores <= cutoff)  # holds every tie at the cutoff, for the stable sort to decide
    return contenders[np.argsort(scores[contenders], kind="stable")[:budget]]

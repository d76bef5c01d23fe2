"""Uniform random choice: the baseline of every comparison, and the control arm of every round."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from al_core.pool import Pool
from al_core.registry import method
from al_core.selection import Selection


@method(
    "random",
    family="baseline",
    needs=(),
    direction="none: a random draw has no score (NaN)",
    complexity="O(n)",
    memory="O(n)",
    source="none",
    when="as the control arm of every round, in first rounds, and as the baseline that any other method has to beat",
    stochastic=True,
)
@dataclass(frozen=True)
class Random:
    """A uniform draw without replacement: every ordered set of available rows is equally likely."""

    def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Selection:
        return Selection(rng.choice(pool.available, size=budget, replace=False), np.full(budget, np.nan))

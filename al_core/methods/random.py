"""Random choice: uniform, the baseline of every comparison and the control arm of every round; and balanced by class, which only a backtest can do."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from al_core.pool import Pool, Rows
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


@method(
    "balanced-random",
    family="baseline",
    needs=("truth",),
    direction="none: a random draw has no score (NaN)",
    complexity="O(n log n)",
    memory="O(n)",
    source="Emam et al. 2021, as coded",
    when="in backtests alone, as an oracle: what class balance by itself would be worth",
    stochastic=True,
)
@dataclass(frozen=True)
class BalancedRandom:
    """As many available rows of every class as there are, up to one number for all classes; uniformly at random within a class, in random order.

    The number is the highest that the budget allows; picks that are left over go, one each, to the classes with most rows remaining, the lower class
    first. It is `info["each"]`. Labelled rows do not count. It reads the true class of every row, which nobody has before the labels are bought.
    """

    def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Selection:
        classes = pool.truth[pool.available]
        counts = np.unique(classes, return_counts=True)[1]
        each, shares = balanced(counts, budget)
        by_class = np.split(pool.available[np.argsort(classes, kind="stable")], np.cumsum(counts)[:-1])
        drawn = [rng.choice(rows, size=share, replace=False) for rows, share in zip(by_class, shares, strict=True)]
        return Selection(rng.permutation(np.concatenate(drawn)), np.full(budget, np.nan), {"each": each})


def balanced(counts: Rows, budget: int) -> tuple[int, Rows]:
    """The highest t with sum of min(count, t) within the budget, and each class's share: min(count, t), and 1 more where most rows remain.

    Args:
        counts: (classes,) rows that there are of each class; at least the budget in all.
        budget: at least 1.
    """
    low, high = 0, int(counts.max())
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(counts, middle).sum() <= budget else (low, middle - 1)
    shares = np.minimum(counts, low)
    left_over = budget - int(shares.sum())
    shares[np.argsort(shares - counts, kind="stable")[:left_over]] += 1
    return low, shares

"""BADGE: a batch of gradients that are long and differ, seeded as k-means++ seeds its centres."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from al_core.bounds import Doubles
from al_core.gradients import CLOSED, Batch, Gradients, Nearest
from al_core.pool import Pool, Rows
from al_core.progress import tell
from al_core.registry import method
from al_core.selection import Selection

LEAST, MOST = 64, 512  # gradients looked at between two looks at the whole pool


@method(
    "badge",
    family="hybrid",
    needs=("embeddings", "logits"),
    direction="squared distance to the nearest gradient picked before, at the moment of the pick; of the first pick, squared length; higher is likelier",
    complexity="O(n (d + classes)), one pass over the signals; then at most as much for each pick, and far less where gradients differ",
    memory="O(n + budget (d + classes)), and some blocks of 8 MB through which the signals are streamed",
    source="Ash et al. 2020, algorithm 1; Zhang et al. 2023, appendix D for the factors; Arthur & Vassilvitskii 2007 for the seeding",
    when="a safe choice for large batches and for pools with many images alike; needs a trained model",
    stochastic=True,
)
@dataclass(frozen=True)
class Badge:
    """Rows whose loss, were the prediction right, would pull the last layer hard and in different directions.

    The first pick is the row with the longest gradient. Each further one is drawn with a probability proportional to the squared distance to the
    nearest gradient picked before (k-means++), or is the farthest of all, ties by lowest row: then the seed changes nothing. Labelled rows are not
    looked at. Once every gradient left coincides with one picked, the rest of the batch is drawn uniformly, or by lowest row; `info["duplicates"]`
    counts these picks.
    """

    draw: Literal["sample", "farthest"] = field(
        default="sample", metadata={"meaning": "draw by squared distance, as the paper does, or take the farthest each time, without chance"}
    )

    def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Selection:
        gradients = Gradients(pool)
        nearest = Nearest(gradients)
        longest = np.array([np.argmax(gradients.square)])
        nearest.add(longest, gradients.factors(longest))
        rest = sample(nearest, budget, rng) if self.draw == "sample" else farthest(nearest, budget)
        scores = np.concatenate([gradients.square[longest], rest, np.zeros(budget - 1 - len(rest))]) * gradients.unit**2
        tell("picks", budget, budget)
        duplicates = budget - len(nearest.picks)
        left = np.flatnonzero(nearest.gap != CLOSED)
        last = rng.permutation(left)[:duplicates] if self.draw == "sample" else left[:duplicates]
        rows = gradients.rows[np.concatenate([np.array(nearest.picks, dtype=np.int64), last])]
        return Selection(rows, scores, {"duplicates": duplicates})


def sample(nearest: Nearest, budget: int, rng: np.random.Generator) -> list[float]:
    """Make picks by squared distance until there are enough, or none is away from those before; gives the squared distance of each.

    By rejection: proposals are drawn by ceilings, which no squared distance exceeds, and one is accepted with the probability that its squared
    distance has of the ceiling. Whatever the ceilings are, what is accepted follows the squared distances. Only proposals are ever measured.
    """
    scores: list[float] = []
    size = LEAST
    while len(nearest.picks) < budget:
        tell("picks", len(nearest.picks), budget)
        ceiling = np.maximum(nearest.ceiling(), 0.0)
        steps = np.cumsum(ceiling)
        if steps[-1] == 0:
            break
        draws = rng.random((size, 2))
        last = np.searchsorted(steps, steps[-1])  # no rounding leads beyond it
        proposals = np.minimum(np.searchsorted(steps, draws[:, 0] * steps[-1], side="right"), last)
        heights = draws[:, 1] * ceiling[proposals]
        accepted, used = accept(nearest, proposals, heights, budget - len(nearest.picks))
        scores += accepted
        needed = (budget - len(nearest.picks)) * (used + 1) / (len(accepted) + 1)
        size = min(max(math.ceil(1.1 * needed), LEAST), MOST)
    return scores


def accept(nearest: Nearest, proposals: Rows, heights: Doubles, most: int) -> tuple[list[float], int]:
    """Pick, in order, each proposal whose squared distance is above its height; gives those distances, and how many proposals that took."""
    at, which = np.unique(proposals, return_inverse=True)
    factors = nearest.bring_up_to_date(at)
    likely = np.flatnonzero(heights < nearest.gap[at][which])
    among, which = np.unique(which[likely], return_inverse=True)
    batch = Batch(nearest, at[among], factors[among])
    scores: list[float] = []
    used = len(proposals)
    for i, height, place in zip(which.tolist(), heights[likely].tolist(), likely.tolist(), strict=True):
        if height < batch.high[i] and height < batch.measure(i):
            scores.append(batch.measure(i))
            batch.take(i)
            if len(scores) == most:
                used = place + 1
                break
    batch.close()
    return scores, used


def farthest(nearest: Nearest, budget: int) -> list[float]:
    """Take the farthest each time until there are enough, or none is away from those before; gives the squared distance of each.

    Only those with the highest ceilings are brought up to date, and picks are made among them while the farthest lies above all other ceilings.
    """
    scores: list[float] = []
    while len(nearest.picks) < budget and (ceiling := nearest.ceiling()).max() > 0:
        tell("picks", len(nearest.picks), budget)
        at, other, first = leaders(ceiling, MOST)
        factors = nearest.bring_up_to_date(at)
        eligible = np.flatnonzero(nearest.gap[at] >= other)
        if len(eligible):
            scores += take_farthest(Batch(nearest, at[eligible], factors[eligible]), other, first, budget - len(nearest.picks))
    return scores


def leaders(ceiling: Doubles, most: int) -> tuple[Rows, float, int]:
    """Open gradients with the highest ceilings, the lowest numbers of equal ones, ascending; and of the others the highest ceiling and its first number."""
    if len(ceiling) <= most:
        return np.flatnonzero(ceiling != CLOSED), CLOSED, len(ceiling)
    other = float(np.partition(ceiling, -most - 1)[-most - 1])
    above, equal = np.flatnonzero(ceiling > other), np.flatnonzero(ceiling == other)
    room = most - len(above) if other != CLOSED else 0
    return np.sort(np.concatenate([above, equal[:room]])), other, int(equal[room])


def take_farthest(batch: Batch, other: float, first: int, most: int) -> list[float]:
    """Pick the farthest of a batch, the first of several, while it comes before all others, of which none lies beyond `other` and none before `first`."""
    scores: list[float] = []
    while len(scores) < most:
        for rival in np.flatnonzero((batch.low < batch.high) & (batch.high >= batch.low.max())).tolist():
            batch.measure(rival)
        i = int(np.argmax(batch.low))  # measured, and above what any other can be
        value = float(batch.low[i])
        if value <= 0 or value < other or (value == other and batch.at[i] > first):
            break
        scores.append(value)
        batch.take(i)
    batch.close()
    return scores

"""DropQuery: rows whose predicted class does not survive dropout on the embeddings, one of each of their clusters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from al_core.kmeans import kmeans
from al_core.neighbors import Cloud, squared_distances
from al_core.pool import Pool, Rows, blocks
from al_core.progress import counted
from al_core.registry import method
from al_core.selection import Scores, Selection

PLENTY = 25  # candidates a pick: where fewer change in most passes, those that change in fewer passes are candidates too
ITERATIONS = 100  # of k-means, at most
DIGITS = 12  # of squared distances of directions: two rows lie equally far from their mean, but for rounding


@method(
    "dropquery",
    family="low budget",
    needs=("embeddings", "head"),
    direction="share of the dropout passes that change the predicted class, 0 to 1; a pick stands for its cluster, larger clusters first, not for a high share",
    complexity="O(n d classes passes), and O(candidates d budget) for k-means: 10,000 picks of 1M x 512 take tens of minutes of 2 cores, 1,000 some minutes",
    memory="O(n), and some blocks of 8 MB through which the embeddings are streamed",
    source="Gupte et al. 2024",
    when="from few to many labels, with frozen foundation models and a linear head",
    stochastic=True,
)
@dataclass(frozen=True)
class DropQuery:
    """Rows that dropout makes change their class, spread by k-means: of each cluster of such rows, the one nearest to its centre.

    Candidates are the rows that change in more than half of the passes; while they are fewer than 25 a pick, those that change in fewer passes join,
    down to once. They fall into as many clusters as picks, by direction. Where clusters stay empty, other candidates are drawn at random, then
    other rows.
    """

    passes: int = field(default=3, metadata={"meaning": "passes of the head over the embeddings with dropout"})
    dropout: float = field(default=0.75, metadata={"meaning": "share of the embedding's coordinates that a pass sets to 0"})

    def __post_init__(self) -> None:
        if self.passes < 1:
            raise ValueError(f"passes is {self.passes}; expected at least 1")
        if not 0 < self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; expected above 0 and below 1")

    def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Selection:
        changes = self.changes(pool, rng)
        least = self.passes // 2 + 1
        while least > 1 and np.count_nonzero(changes >= least) < PLENTY * budget:
            least -= 1
        candidates = np.flatnonzero(changes >= least)
        picks = central(pool, pool.available[candidates], budget, rng) if len(candidates) else candidates
        picks = candidates[picks]
        others = np.setdiff1d(candidates, picks)
        rest = np.flatnonzero(changes < least)
        picks = np.concatenate([picks, rng.permutation(others), rng.permutation(rest)])[:budget]
        return Selection(pool.available[picks], changes[picks] / self.passes, {"candidates": len(candidates), "changes_of_a_candidate": least})

    def changes(self, pool: Pool, rng: np.random.Generator) -> Rows:
        """(available,) passes in which the predicted class is another than without dropout."""
        classes = len(pool.head[1])
        if classes < 2:
            raise ValueError("head has 1 class; a model needs at least 2 for its prediction to change")
        cloud = Cloud(pool.embeddings, pool.available)
        predicted = np.concatenate(list(predictions(pool, cloud, None, 0.0)))
        changes = np.zeros(len(cloud), dtype=np.int64)
        for _ in counted(range(self.passes), "passes", self.passes):
            changes += np.concatenate(list(predictions(pool, cloud, rng, self.dropout))) != predicted
        return changes


def predictions(pool: Pool, cloud: Cloud, rng: np.random.Generator | None, dropout: float) -> Iterator[Rows]:
    """The head's class of each row, the first of several, in blocks; coordinates are dropped at random, and what is left scaled up."""
    import torch

    weight, bias = (torch.from_numpy(array.astype(np.float64, order="C")).to(pool.device) for array in pool.head)
    for block in blocks(cloud.rows, width=max(cloud.dim, len(bias))):
        x = cloud[block]
        if rng is not None:
            x *= (rng.random(x.shape) >= dropout) / (1 - dropout)
        logits = torch.from_numpy(x).to(pool.device) @ weight.T + bias
        yield logits.cpu().numpy().argmax(axis=1)


def central(pool: Pool, rows: Rows, number: int, rng: np.random.Generator) -> Rows:
    """Positions of one row of each k-means cluster, the nearest to its centre, lowest of several; largest cluster first. Fewer where clusters are empty."""
    found = kmeans(pool.embeddings, rows, min(number, len(rows)), rng, unit=True, device=pool.device, iterations=ITERATIONS)
    square: Scores = squared_distances(Cloud(pool.embeddings, rows, unit=True), np.arange(len(rows)), found.centers, found.assignment)
    order = np.lexsort((square.round(DIGITS), found.assignment))
    nearest = order[np.flatnonzero(np.diff(found.assignment[order], prepend=-1))]
    return nearest[np.argsort(-found.counts[found.assignment[nearest]], kind="stable")]

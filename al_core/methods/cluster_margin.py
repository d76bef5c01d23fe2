"""Cluster-Margin: rows of low margin, taken from the clusters of the pool in turn, so that a large batch is not all of one kind."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from al_core.bounds import Doubles
from al_core.kmeans import kmeans
from al_core.neighbors import Cloud
from al_core.pool import Pool, Rows, blocks
from al_core.progress import tell
from al_core.registry import method
from al_core.selection import Scores, Selection, lowest
from al_core.softmax import margin

ITERATIONS = 5  # of k-means, whose clusters are only leaves of the hierarchy


@method(
    "cluster-margin",
    family="hybrid",
    needs=("embeddings", "logits"),
    direction="probability of the likeliest class minus that of the second, 0 to 1; only low ones are candidates, but picks go by cluster",
    complexity="O(n d max_leaves + n classes + max_leaves^2), less for k-means' iterations, which run over a sample",
    memory="O(n + max_leaves (d + max_leaves)), and some blocks of 8 MB",
    source="Citovsky et al. 2021, algorithm 1",
    when="for large batches from a model that margins can be taken from; in small ones margin does nearly the same",
    stochastic=True,
)
@dataclass(frozen=True)
class ClusterMargin:
    """Rows of low margin, one from each cluster in turn, small clusters first.

    The candidates are the ratio * budget available rows of lowest margin. They are grouped by clusters of the pool, and the groups are visited from the
    smallest to the largest, equal ones in random order, again and again; each visit takes a random one, until the budget is met. The clusters are those of
    hierarchical clustering with average linkage over the embeddings of available and labelled rows. Where these are more than `max_leaves`, k-means
    first brings them down to so many leaves, which weigh in the averages as much as they have rows.
    """

    ratio: float = field(default=10.0, metadata={"meaning": "candidates for each pick: the lowest margins, so many times the budget"})
    clusters: int = field(default=200, metadata={"meaning": "into how many clusters the pool is cut"})
    max_leaves: int = field(default=1000, metadata={"meaning": "most points to cluster hierarchically; k-means brings larger pools down to so many"})

    def __post_init__(self) -> None:
        if self.ratio < 1:
            raise ValueError(f"ratio is {self.ratio}; expected at least 1, or there are fewer candidates than picks")
        if self.clusters < 1:
            raise ValueError(f"clusters is {self.clusters}; expected at least 1")
        if self.max_leaves < self.clusters:
            raise ValueError(f"max_leaves is {self.max_leaves}, but {self.clusters} clusters are to be made of the leaves; raise it or lower clusters")

    def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Selection:
        margins = margins_of(pool)
        candidates = lowest(margins, min(math.ceil(self.ratio * budget), len(margins)))
        rows = pool.looked_at
        cluster = self.cluster(pool, rows, rng)[np.searchsorted(rows, pool.available[candidates])]
        picks = candidates[in_turn(cluster, rng)[:budget]]
        info = {"candidates": len(candidates), "clusters_of_candidates": len(np.unique(cluster))}
        return Selection(pool.available[picks], margins[picks], info)

    def cluster(self, pool: Pool, rows: Rows, rng: np.random.Generator) -> Rows:
        """(rows,) number of the cluster of each."""
        if len(rows) <= self.max_leaves:
            leaf, points, weight = np.arange(len(rows)), Cloud(pool.embeddings, rows)[:], np.ones(len(rows))
        else:
            found = kmeans(pool.embeddings, rows, self.max_leaves, rng, device=pool.device, iterations=ITERATIONS)
            filled = np.flatnonzero(found.counts)
            leaf, points, weight = np.searchsorted(filled, found.assignment), found.centers[filled], found.counts[filled].astype(np.float64)
        return average_linkage(distances(points, pool.device), weight, self.clusters)[leaf]


def margins_of(pool: Pool) -> Scores:
    """(available,) probability of the likeliest class minus that of the second."""
    if pool.logits.shape[1] < 2:
        raise ValueError("logits have 1 class; a margin lies between 2")
    return np.concatenate([margin(pool.logits[pool.available[block]]) for block in blocks(pool.available, width=pool.logits.shape[1])])


def in_turn(group: Rows, rng: np.random.Generator) -> Rows:
    """Positions in the order of the visits: the groups from the smallest to the largest, equal ones in random order, each time one at random."""
    shuffled = rng.permutation(len(group))
    shuffled = shuffled[np.argsort(group[shuffled], kind="stable")]  # group after group
    _, number, size = np.unique(group[shuffled], return_inverse=True, return_counts=True)
    visit = np.arange(len(group)) - (np.cumsum(size) - size)[number]
    order: Rows = shuffled[np.lexsort((rng.permutation(len(size))[number], size[number], visit))]
    return order


def distances(points: Doubles, device: str) -> Doubles:
    """(m, m) between points, from the differences of coordinates; infinite from each point to itself."""
    import torch

    x = torch.from_numpy(points).to(device)
    between: Doubles = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").cpu().numpy()
    if not np.isfinite(between).all():
        raise ValueError("embeddings are too long to measure: some are more than 1e150 apart; scale them down")
    np.fill_diagonal(between, np.inf)
    return between


def average_linkage(between: Doubles, weight: Doubles, clusters: int) -> Rows:
    """(m,) clusters of points by hierarchical clustering, which merges the two clusters of the smallest mean distance again and again.

    Follows chains of nearest neighbours: two clusters that are nearest to each other are merged whenever they are met, which gives the same hierarchy.

    Args:
        between: (m, m) distances, infinite from each point to itself; overwritten.
        weight: (m,) how much each point counts in means.
        clusters: where the hierarchy is cut.
    """
    weight = weight.copy()
    merges: list[tuple[float, int, int]] = []
    chain: list[int] = []
    while len(merges) < len(between) - 1:
        tell("merges of clusters", len(merges), len(between) - 1)
        if not chain:
            chain = [int(np.flatnonzero(weight)[0])]
        last = chain[-1]
        nearest = int(between[last].argmin())
        if len(chain) == 1 or between[last, nearest] < between[last, chain[-2]]:
            chain.append(nearest)
            continue
        kept = chain[-2]
        del chain[-2:]
        merges.append((float(between[last, kept]), last, kept))
        between[kept] = between[:, kept] = (weight[last] * between[last] + weight[kept] * between[kept]) / (weight[last] + weight[kept])
        between[last] = between[:, last] = between[kept, kept] = np.inf
        weight[kept], weight[last] = weight[kept] + weight[last], 0
    tell("merges of clusters", len(merges), len(merges))
    merges.sort(key=lambda merge: merge[0])
    cluster = np.arange(len(between))
    for _, one, other in merges[: max(0, len(between) - clusters)]:
        cluster[cluster == cluster[one]] = cluster[other]
    return cluster

"""TypiClust: the most typical row of each cluster, clusters without labels first."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from al_core.kmeans import kmeans
from al_core.neighbors import Index, neighbors
from al_core.pool import Pool, Rows
from al_core.progress import counted
from al_core.registry import method
from al_core.selection import Scores, Selection

NEIGHBORS = 20  # that typicality is measured by, at most; at most half of the cluster, too
SMALL = 5  # rows of a cluster that waits until the larger ones are used up
SPARE = 20  # neighbours listed beyond NEIGHBORS, so that a list outlasts so many picks
SOFTENING = 1e-5  # added to the mean distance


@method(
    "typiclust",
    family="low budget",
    needs=("embeddings",),
    direction="typicality: 1 / mean distance to the nearest rows of its cluster, above 0; highest first in each cluster in turn; NaN for the last of a cluster",
    complexity="O(n d clusters) for k-means, O(n^2 d / clusters) for neighbours: 1M x 512 takes minutes of 2 cores with 500 clusters, half an hour with 10",
    memory="O(n), of which 640 bytes a row are lists of neighbours, and some blocks of 8 MB",
    source="Hacohen, Dekel & Weinshall 2022",
    when="in first rounds and with fewer than some 5 labels a class, over self-supervised embeddings; later uncertainty does better",
    stochastic=True,
)
@dataclass(frozen=True)
class TypiClust:
    """The most typical rows: from each k-means cluster in turn, the row whose nearest neighbours lie nearest.

    There are as many clusters as labelled rows and picks together, up to a limit. Clusters with the fewest labelled rows come first, of these the
    largest, and each gives one row a turn until it has none; clusters of 5 rows or fewer wait until the others are used up. Typicality is
    measured among the rows of the cluster that are neither labelled nor picked.
    """

    max_clusters: int = field(default=500, metadata={"meaning": "k-means clusters, at most"})
    distance: Literal["squared", "euclidean"] = field(
        default="squared", metadata={"meaning": "what typicality averages: squared distances, as the authors' code does, or distances, as their formula does"}
    )
    normalize: bool = field(default=True, metadata={"meaning": "compare directions: every embedding is scaled to length 1 first"})
    index: Index = field(default="exact", metadata={"meaning": "how neighbours are found; ivf and hnsw are approximate and need faiss"})

    def __post_init__(self) -> None:
        if self.max_clusters < 1:
            raise ValueError(f"max_clusters is {self.max_clusters}; expected at least 1")

    def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Selection:
        rows = pool.looked_at
        number = min(len(pool.labeled) + budget, self.max_clusters, len(rows))
        found = kmeans(pool.embeddings, rows, number, rng, unit=self.normalize, device=pool.device)
        labeled = np.isin(rows, pool.labeled)
        known = np.bincount(found.assignment[labeled], minlength=number)
        small, filled = found.counts <= SMALL, found.counts > 0
        order = np.lexsort((-found.counts, known, small))
        by_cluster = np.split(np.argsort(found.assignment, kind="stable"), np.cumsum(found.counts)[:-1])
        members = [rows[by_cluster[cluster]][~labeled[by_cluster[cluster]]] for cluster in order]
        large = deque(Cluster(self, pool, each) for each in members[: int((~small).sum())] if len(each))
        rest = deque(Cluster(self, pool, each) for each in members[int((~small).sum()) :] if len(each))
        picks, scores = np.empty(budget, dtype=np.int64), np.empty(budget)
        for i in counted(range(budget), "picks", budget):
            turn = large or rest
            cluster = turn.popleft()
            picks[i], scores[i] = cluster.pick()
            if cluster.open.any():
                turn.append(cluster)
        info = {"clusters": int(filled.sum()), "small_clusters": int((small & filled).sum()), "clusters_without_labels": int(((known == 0) & filled).sum())}
        return Selection(picks, scores, info)


class Cluster:
    """The rows of a cluster that may be picked, with their nearest neighbours among each other."""

    def __init__(self, method: TypiClust, pool: Pool, rows: Rows) -> None:
        self.method, self.pool, self.rows = method, pool, rows
        self.open = np.ones(len(rows), dtype=bool)
        self.outlasts = 0  # picks before the lists have to be made again

    def pick(self) -> tuple[int, float]:
        """The most typical open row, the lowest of several, and its typicality; it is closed from now on."""
        number = int(self.open.sum())
        if number == 1:
            best, typicality = int(np.argmax(self.open)), np.nan
        else:
            each = self.typicality(min(NEIGHBORS, number // 2))
            best = int(np.argmax(each))
            typicality = float(each[best])
        self.open[best] = False
        return int(self.rows[best]), typicality

    def typicality(self, k: int) -> Scores:
        """(rows,) of each open row, by its k nearest open neighbours; -1 for the others."""
        if not self.outlasts:
            self.list_neighbors(k)
        self.outlasts -= 1
        listed = self.open[self.near]
        nearest = listed & (np.cumsum(listed, axis=1) <= k)
        gap = self.square if self.method.distance == "squared" else np.sqrt(self.square)
        typicality = np.full(len(self.rows), -1.0)
        typicality[self.at] = 1 / ((gap * nearest).sum(axis=1) / k + SOFTENING)
        typicality[~self.open] = -1.0
        return typicality

    def list_neighbors(self, k: int) -> None:
        """For each open row, its k nearest open rows and some to spare."""
        self.at = np.flatnonzero(self.open)
        width = min(k + SPARE, len(self.at) - 1)
        found, self.square = neighbors(
            self.pool.embeddings, self.rows[self.at], width, unit=self.method.normalize, device=self.pool.device, index=self.method.index
        )
        self.near = self.at[found]
        self.outlasts = len(self.at) if width == len(self.at) - 1 else SPARE + 1

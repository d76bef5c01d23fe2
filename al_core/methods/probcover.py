"""ProbCover: each pick is the row with the most uncovered rows within a radius."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from al_core.bounds import Doubles
from al_core.fingerprints import sample
from al_core.kmeans import approach, kmeans
from al_core.neighbors import Balls, Cloud
from al_core.pool import Pool, Rows
from al_core.progress import counted
from al_core.registry import method
from al_core.selection import Selection

ASKED = 10_000  # rows whose nearest row of another cluster is looked for, at most
CENTERS = 1024  # points approached at a time
LEAST = float(np.finfo(np.float64).tiny)  # squared radius that halving stops at: of less, no point would cover itself


@method(
    "probcover",
    family="low budget",
    needs=("embeddings",),
    direction="share of the rows looked at that the pick newly covers, 0 to 1; highest first, for one radius",
    complexity="O(s^2 d) for s rows looked at, at most `sample` or twice the budget; 10,000 picks of 30,000 x 512 take some minutes of 2 cores",
    memory="O(s d): 4 bytes a coordinate, 0.06 GB for 30,000 x 512",
    source="Yehuda, Dekel, Hacohen & Weinshall 2022",
    when="in first rounds, over self-supervised embeddings; it depends much on the radius",
    stochastic=True,
)
@dataclass(frozen=True)
class ProbCover:
    """Rows that cover the densest regions: each pick has the most rows that lie nearer than `delta` and that nothing labelled or picked covers yet.

    Ties go to the lowest row. Without a `delta`, it is the largest at which the ball around a share `purity` of the rows holds rows of one k-means
    cluster alone. Once all is covered, the radius is halved, or lowered to the largest distance from a row to the nearest labelled or picked one
    if that is less, and what that leaves uncovered is covered next; rows that coincide with labelled or picked ones come last, lowest first.
    """

    delta: float | None = field(default=None, metadata={"meaning": "radius, in the embeddings' unit, after scaling; None: estimated"})
    purity: float = field(default=0.95, metadata={"meaning": "share of balls that hold one cluster alone, for the estimate"})
    clusters: int = field(default=10, metadata={"meaning": "k-means clusters for the estimate: as many as classes are expected"})
    normalize: bool = field(default=True, metadata={"meaning": "compare directions: every embedding is scaled to length 1 first"})
    sample: int = field(default=30_000, metadata={"meaning": "rows to cover and to pick from, at most, chosen by a hash; twice the budget if that is more"})

    def __post_init__(self) -> None:
        if self.delta is not None and self.delta <= 0:
            raise ValueError(f"delta is {self.delta}; expected above 0, or null to estimate it")
        if not 0 < self.purity <= 1:
            raise ValueError(f"purity is {self.purity}; expected above 0, at most 1")
        if self.clusters < 1:
            raise ValueError(f"clusters is {self.clusters}; expected at least 1")
        if self.sample < 1:
            raise ValueError(f"sample is {self.sample}; expected at least 1")

    def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Selection:
        rows = sample(pool.embeddings, pool.available, max(self.sample, 2 * budget))
        cloud = Cloud(pool.embeddings, rows, self.normalize)
        delta = self.delta or self.pure_radius(cloud, rng, pool.device)
        cover = Cover(cloud, Cloud(pool.embeddings, pool.labeled, self.normalize), max(delta**2, LEAST), pool.device)
        picks, scores = np.empty(budget, dtype=np.int64), np.empty(budget)
        for i in counted(range(budget), "picks", budget):
            picks[i], newly = cover.pick()
            scores[i] = newly / len(rows)
        return Selection(
            rows[picks],
            scores,
            {
                "delta": delta if np.isfinite(delta) else None,  # None: one cluster, so that every ball is pure
                "covered": 1.0 if cover.lowered else 1 - float(cover.uncovered.mean()),
                "times_lowered": cover.lowered,
                "rows_looked_at": len(rows),
            },
        )

    def pure_radius(self, cloud: Cloud, rng: np.random.Generator, device: str) -> float:
        """The largest radius at which a share `purity` of balls is pure: that share of rows lies no nearer than it to a row of another cluster."""
        found = kmeans(cloud.x, cloud.rows, min(self.clusters, len(cloud)), rng, unit=cloud.unit, device=device)
        asked = np.searchsorted(cloud.rows, sample(cloud.x, cloud.rows, ASKED))
        gap = np.full(len(asked), np.inf)
        for cluster in np.flatnonzero(found.counts):
            outside = np.flatnonzero(found.assignment[asked] != cluster)
            nearest = gap[outside]
            approach_all(nearest, cloud.part(asked[outside]), cloud.part(np.flatnonzero(found.assignment == cluster)), device)
            gap[outside] = nearest
        return float(np.sqrt(np.sort(gap)[len(gap) - int(np.ceil(self.purity * len(gap)))]))


class Cover:
    """Points of which some are covered.

    Args:
        cloud: the points.
        known: points that cover from the start.
        square: squared radius.
        device: where distances are bounded.
    """

    def __init__(self, cloud: Cloud, known: Cloud, square: float, device: str) -> None:
        self.cloud, self.square, self.device = cloud, square, device
        self.balls = Balls(cloud, device)
        self.open = np.ones(len(cloud), dtype=bool)
        self.gap = np.full(len(cloud), np.inf)  # squared distance to the nearest that covers, but for `pending`
        self.pending: list[int] = []  # picks that the gaps do not know yet
        approach_all(self.gap, cloud, known, device)
        self.lowered = 0
        self.uncover()

    def pick(self) -> tuple[int, int]:
        """The open point that covers the most, the lowest of several, and how many it newly covers; it is closed from now on."""
        best = int(np.argmax(np.where(self.open, self.counts, -1)))
        if not self.counts[best] and self.lower():
            return self.pick()
        newly = self.uncovered & (self.balls.counts(np.array([best]), self.square) > 0) if self.counts[best] else np.zeros(len(self.open), dtype=bool)
        self.open[best] = False
        self.pending.append(best)
        self.uncovered &= ~newly
        self.counts -= self.balls.counts(np.flatnonzero(newly), self.square)
        return best, int(newly.sum())

    def lower(self) -> bool:
        """Shrink the radius until something is uncovered; false where no radius does that."""
        approach_all(self.gap, self.cloud, self.cloud.part(np.array(self.pending, dtype=np.int64)), self.device)
        self.pending = []
        largest = float(self.gap.max())
        if largest == 0:
            return False
        self.square = min(max(self.square / 4, LEAST), largest)
        self.lowered += 1
        self.uncover()
        return True

    def uncover(self) -> None:
        """Count anew, by the gaps and the radius."""
        self.uncovered: npt.NDArray[np.bool_] = self.gap >= self.square
        self.counts: Rows = self.balls.counts(np.flatnonzero(self.uncovered), self.square)


def approach_all(gap: Doubles, cloud: Cloud, centers: Cloud, device: str) -> None:
    """Lower each gap (points,) to the squared distance to the nearest of many centres."""
    for start in range(0, len(centers), CENTERS):
        approach(gap, cloud, centers[slice(start, start + CENTERS)], device)

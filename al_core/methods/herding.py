"""MaxHerding and UHerding: rows that raise the kernel coverage of the pool most, each row counted alike or by how unsure the model is of it.

The coverage of a row is the highest kernel value k(x, c) = exp(-|x - c|^2 / sigma^2) of a centre: a row labelled or picked. A pick raises the
coverage of rows near it alone, so after it only the kernels of those rows are looked at again. All is float64.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from al_core.fingerprints import distinct, sample
from al_core.kmeans import approach
from al_core.neighbors import Cloud, neighbors
from al_core.pool import Pool, blocks
from al_core.progress import counted
from al_core.registry import method
from al_core.selection import Scores, Selection
from al_core.softmax import margin

if TYPE_CHECKING:
    import torch

TIE = 1e-10  # coverages that differ by no more are equal, and so are rises, times the sum of weights: rounding comes to 1e-12 of it at most
KERNELS = 2**22  # kernel values computed at a time
COINCIDENT = 1e-6  # distance of directions below which two labelled rows are one

COMPLEXITY = "O(s^2 d log(budget)) for s rows looked at, at most `sample` or twice the budget; 1,000 of 10,000 x 512 take a minute or two of 2 cores"
MEMORY = "O(s d): 8 bytes a coordinate, 0.04 GB for 10,000 x 512"
NORMALIZE = "compare directions: every embedding is scaled to length 1 first"
SAMPLE = "rows to cover and to pick from, at most, chosen by a hash; twice the budget if that is more"


@method(
    "maxherding",
    family="low budget",
    needs=("embeddings",),
    direction="rise of the mean kernel coverage, 0 to 1; highest first",
    complexity=COMPLEXITY,
    memory=MEMORY,
    source="Bae, Noh & Sutherland 2024",
    when="in first rounds and with few labels, over self-supervised embeddings",
)
@dataclass(frozen=True)
class MaxHerding:
    """Rows that raise the mean kernel coverage of the pool most, one after the other.

    Of rises that differ by less than 1e-10 of what all available rows count for, as of two rows that only cover each other, the row that is covered
    least so far, then the lowest.
    """

    sigma: float = field(default=1.0, metadata={"meaning": "width of the kernel exp(-distance^2 / sigma^2), in the embeddings' unit, after scaling"})
    normalize: bool = field(default=True, metadata={"meaning": NORMALIZE})
    sample: int = field(default=10_000, metadata={"meaning": SAMPLE})

    def __post_init__(self) -> None:
        check(self.sigma, self.sample)

    def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Selection:
        rows = sample(pool.embeddings, pool.available, max(self.sample, 2 * budget))
        return herd(pool, Cloud(pool.embeddings, rows, self.normalize), np.ones(len(rows)), self.sigma, budget)


@method(
    "uherding",
    family="low budget",
    needs=("embeddings", "logits"),
    direction="rise of the mean kernel coverage weighted by 1 - margin, 0 to 1; highest first",
    complexity=COMPLEXITY,
    memory=MEMORY,
    source="Bae, Oliveira & Sutherland 2025",
    when="from few to many labels: like maxherding while labels are far apart, like margin once they are close",
)
@dataclass(frozen=True)
class UHerding:
    """Rows that raise the kernel coverage of what the model is unsure of most, one after the other.

    A row counts by 1 - margin of the class probabilities. The kernel is as wide as the least distance between two labelled rows, so that it narrows
    as labels come. Of rises that differ by less than 1e-10 of what all available rows count for, the row that is covered least so far, then the lowest.
    """

    sigma: float | None = field(
        default=None, metadata={"meaning": "width of the kernel exp(-distance^2 / sigma^2); None: least distance between labelled rows, or 1 below two of them"}
    )
    softmax_temperature: float = field(
        default=1.0, metadata={"meaning": "the logits are divided by it; calibrate it on labels that the model was not trained on"}
    )
    normalize: bool = field(default=True, metadata={"meaning": NORMALIZE})
    sample: int = field(default=10_000, metadata={"meaning": SAMPLE})

    def __post_init__(self) -> None:
        check(self.sigma, self.sample)
        if self.softmax_temperature <= 0:
            raise ValueError(f"softmax_temperature is {self.softmax_temperature}; expected above 0")

    def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Selection:
        rows = sample(pool.embeddings, pool.available, max(self.sample, 2 * budget))
        logits = pool.logits
        if logits.shape[1] < 2:
            raise ValueError("logits have 1 class; a model needs at least 2 to be unsure between")
        unsure = np.concatenate(
            [1 - margin(logits[rows[block]].astype(np.float64) / self.softmax_temperature) for block in blocks(rows, width=logits.shape[1])]
        )
        sigma = self.sigma or least_distance(Cloud(pool.embeddings, pool.labeled, self.normalize), pool.device)
        return herd(pool, Cloud(pool.embeddings, rows, self.normalize), unsure, sigma, budget)


def check(sigma: float | None, sample: int) -> None:
    """Raise where a width or a number of rows makes no sense."""
    if sigma is not None and sigma <= 0:
        raise ValueError(f"sigma is {sigma}; expected above 0")
    if sample < 1:
        raise ValueError(f"sample is {sample}; expected at least 1")


def least_distance(cloud: Cloud, device: str) -> float:
    """Between two points that do not coincide; 1 where there are none."""
    coincident = COINCIDENT**2 if cloud.unit else 0.0
    rows = cloud.rows[distinct(cloud.x, cloud.rows)[0]]
    while len(rows) > 1:
        nearest, square = neighbors(cloud.x, rows, 1, unit=cloud.unit, device=device)
        repeated = (square <= coincident)[:, 0]
        if not repeated.any():
            return float(np.sqrt(square.min()))
        rows = rows[~(repeated & (nearest[:, 0] < np.arange(len(rows))))]
    return 1.0


def herd(pool: Pool, cloud: Cloud, weights: Scores, sigma: float, budget: int) -> Selection:
    """Greedy picks.

    Args:
        pool: whose labelled rows cover from the start.
        cloud: the rows to cover and to pick from, which stand for all that are available.
        weights: (points,) how much each counts.
        sigma: width of the kernel.
        budget: picks.
    """
    gap = np.full(len(cloud), np.inf)
    known = Cloud(pool.embeddings, pool.labeled, cloud.unit)
    for part in blocks(known.rows, width=known.dim):
        approach(gap, cloud, known[part], pool.device)
    stands_for = len(pool.available) / len(cloud) / (len(pool.available) + len(pool.labeled))  # of all rows; those that are labelled are covered
    coverage = Coverage(cloud, weights * stands_for, np.exp(-gap / sigma**2), sigma, pool.device)
    picks, scores = np.empty(budget, dtype=np.int64), np.empty(budget)
    for i in counted(range(budget), "picks", budget):
        picks[i], scores[i] = coverage.take()
    return Selection(cloud.rows[picks], scores, {"sigma": sigma, "rows_looked_at": len(cloud)})


class Coverage:
    """How well each point is covered, and by how much the weighted sum of that would rise with each as a centre."""

    def __init__(self, cloud: Cloud, weights: Scores, covered: Scores, sigma: float, device: str) -> None:
        import torch

        self.sigma = sigma
        self.x = torch.empty((len(cloud), cloud.dim), dtype=torch.float64, device=device)
        for part in blocks(cloud.rows, width=cloud.dim):
            self.x[part] = torch.from_numpy(cloud[part] - cloud.frame.origin)
        self.square = self.x.square().sum(dim=1)
        self.weights, self.covered = torch.from_numpy(weights).to(device), torch.from_numpy(covered).to(device)
        self.tie = TIE * float(weights.sum())
        self.open = torch.ones(len(cloud), dtype=torch.bool, device=device)
        self.rise = self.gain(torch.ones_like(self.covered))

    def take(self) -> tuple[int, float]:
        """The open point of the highest rise, of several the least covered, of these the lowest, and the rise; it is a centre from now on."""
        import torch

        rise = torch.where(self.open, self.rise, -torch.inf)
        covered = torch.where(rise >= rise.max() - self.tie, self.covered, torch.inf)
        best = (covered <= covered.min() + TIE).int().argmax()  # the first
        score = max(float(rise[best]), 0.0)
        covered = torch.maximum(self.covered, self.kernel(best[None])[0])
        self.rise -= self.gain(covered)
        self.covered = covered
        self.open[best] = False
        return int(best), score

    def gain(self, covered: torch.Tensor) -> torch.Tensor:
        """(points,) what of a centre's rise is used up when the points are covered so much better."""
        import torch

        gain, raised = torch.zeros_like(self.covered), torch.nonzero((covered > self.covered) & (self.weights > 0)).view(-1)
        step = max(1, KERNELS // len(self.x))
        for start in range(0, len(raised), step):
            at = raised[start : start + step]
            more = self.kernel(at) - self.covered[at, None]
            gain += self.weights[at] @ more.clamp(min=0).minimum((covered - self.covered)[at, None])
        return gain

    def kernel(self, at: torch.Tensor) -> torch.Tensor:
        """(b, points) between some points and all."""
        import torch

        square = self.square[at, None] + self.square - 2 * (self.x[at] @ self.x.T)
        kernel = torch.exp(square.clamp(min=0) / -(self.sigma**2))
        kernel[torch.arange(len(at), device=at.device), at] = 1.0
        return kernel

"""k-means: Lloyd's iterations from k-means++ seeds, exact, streamed, and the same on every device.

Every row goes to its nearest centre, decided in float64 (al_core.neighbors), of several the first; sums run in fixed chunks of rows. So equal
generators give equal clusters, whatever the device, the number of threads or the size of blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from al_core.bounds import Doubles, squared_length
from al_core.neighbors import Cloud, Targets, chunks, squared_distances
from al_core.pool import Floats, Rows, blocks
from al_core.progress import counted, tell

SAMPLE = 2**16  # rows that Lloyd's iterations run over, at least, where there are as many ...
SAMPLE_PER_CENTER = 32  # ... and at least so many a centre
SETTLED = 0.001  # share of the rows of which fewer change their centre in an iteration that is the last ...
SETTLED_SAMPLE = 0.01  # ... and of a sample
PROPOSALS = 1024  # seeds drawn at a time, at most


@dataclass(frozen=True, eq=False)
class KMeans:
    """Clusters of rows.

    Attributes:
        centers: (k, d) float64.
        assignment: (rows,) int64 number of the centre nearest to each row, in the order of the rows given; of several, the lowest.
        counts: (k,) int64 rows of each centre. 0 where there are fewer distinct rows than centres: the centres too many repeat the first.
    """

    centers: Doubles
    assignment: Rows
    counts: Rows


def kmeans(x: Floats, rows: Rows, k: int, rng: np.random.Generator, *, unit: bool = False, device: str = "cpu", iterations: int = 25) -> KMeans:
    """Clusters of some rows: k-means++ seeds, Lloyd's iterations until hardly a row changes its centre, then every row to its nearest centre.

    Hardly a row: fewer than 1 in 1000, so among fewer rows than 1000 none. Over more than SAMPLE rows and SAMPLE_PER_CENTER rows a centre, seeds and
    iterations see a uniform sample of so many, and 1 in 100 of it is hardly a row. So a centre is the mean of its rows in the sample, not of all its
    rows. A centre that loses all its rows moves to the row farthest from its own centre. Time O(sample k d iterations + rows k d); memory
    O(rows + k d), and blocks.

    Args:
        x: (n, d) embeddings, such as a memory map; read block by block.
        rows: (m,) the rows to cluster.
        k: clusters, 1 to m.
        rng: draws the sample and the seeds; it sees the number of rows, not of n.
        unit: scale every row to length 1 first; rows of zeros stay as they are. Centres are plain means, not scaled.
        device: where distances are computed, as torch names it.
        iterations: at most.

    Raises:
        ValueError: k is below 1 or above the number of rows.
    """
    if not 1 <= k <= len(rows):
        raise ValueError(f"k is {k}; expected 1 to {len(rows)}, the number of rows to cluster")
    size = max(SAMPLE, SAMPLE_PER_CENTER * k)
    sampled = size < len(rows)
    sample = Cloud(x, np.sort(rng.choice(rows, size, replace=False)) if sampled else rows, unit)
    centers = lloyd(sample, sample[seeds(sample, k, rng, device)], iterations, SETTLED_SAMPLE if sampled else SETTLED, device)
    assignment = assign(Cloud(x, rows, unit), centers, device)
    repeated = np.repeat(centers[:1], k - len(centers), axis=0)
    return KMeans(np.concatenate([centers, repeated]), assignment, np.bincount(assignment, minlength=k))


def lloyd(cloud: Cloud, centers: Doubles, iterations: int, settled: float, device: str) -> Doubles:
    """(k, d) centres after Lloyd's iterations, which end early when no more than this share of the points changes its centre."""
    assignment = np.full(len(cloud), -1)
    for _ in counted(range(iterations), "k-means iterations", iterations):
        before, assignment = assignment, assign(cloud, centers, device)
        changed = np.count_nonzero(before != assignment)
        if changed:
            centers = means(cloud, assignment, centers)
        if changed < settled * len(cloud):
            break
    return centers


def assign(cloud: Cloud, centers: Doubles, device: str = "cpu") -> Rows:
    """(points,) the nearest centre of each point; of several, the lowest."""
    targets = Targets(centers, device)
    assignment = np.empty(len(cloud), dtype=np.int64)
    for block in blocks(cloud.rows, width=max(len(centers), cloud.dim)):
        x = cloud[block]
        row, center = targets.contenders(x)
        assignment[block.start + row[::-1]] = center[::-1]  # the first of each row; most have one alone
        unsure = np.isin(row, row[1:][row[1:] == row[:-1]])
        row, center = row[unsure], center[unsure]
        square = squared_distances(x, row, centers, center)
        nearest_last = np.lexsort((-center, -square, row))
        assignment[block.start + row[nearest_last]] = center[nearest_last]
    return assignment


def means(cloud: Cloud, assignment: Rows, centers: Doubles) -> Doubles:
    """(k, d) the mean of each centre's points; for a centre without any, the point farthest from the centre that it is assigned to."""
    sums, counts = np.zeros_like(centers), np.bincount(assignment, minlength=len(centers))
    for chunk in chunks(len(cloud)):
        order = chunk.start + np.argsort(assignment[chunk], kind="stable")
        starts = np.flatnonzero(np.diff(assignment[order], prepend=-1))
        sums[assignment[order[starts]]] += np.add.reduceat(cloud[order], starts, axis=0)
    moved: Doubles = sums / np.maximum(counts, 1)[:, None]
    empty = np.flatnonzero(counts == 0)
    if len(empty):
        square = squared_distances(cloud, np.arange(len(cloud)), centers, assignment)
        moved[empty] = cloud[np.argsort(-square, kind="stable")[: len(empty)]]
    return moved


def seeds(cloud: Cloud, k: int, rng: np.random.Generator, device: str = "cpu") -> Rows:
    """Points drawn one after the other, each with a probability that goes with its squared distance to the nearest drawn before (k-means++).

    Several are proposed at once by the distances to those drawn in earlier turns, and each is accepted with the ratio that its distance has fallen by
    since: the same law as one by one. Returns fewer than k where no more points are distinct.
    """
    drawn = np.array([rng.integers(len(cloud))])
    gap = np.full(len(cloud), np.inf)  # squared distance to the nearest drawn
    approach(gap, cloud, cloud[drawn], device)
    while len(drawn) < k and gap.any():
        tell("k-means seeds", len(drawn), k)
        proposed = propose(gap, min(max(1, len(drawn) // 2), PROPOSALS, k - len(drawn)), rng)
        accepted = accept(gap[proposed], cloud[proposed], rng)
        drawn = np.concatenate([drawn, proposed[accepted]])
        approach(gap, cloud, cloud[proposed[accepted]], device)
    tell("k-means seeds", k, k)
    return drawn


def propose(weights: Doubles, number: int, rng: np.random.Generator) -> Rows:
    """So many independent draws of positions, by weight; a weight of 0 is never drawn."""
    total = np.cumsum(weights)
    drawn = np.searchsorted(total, rng.random(number) * total[-1], side="right")
    positions: Rows = np.minimum(drawn, np.searchsorted(total, total[-1]))  # the last weight above 0, where the product rounds up to the total
    return positions


def accept(gap: Doubles, points: Doubles, rng: np.random.Generator) -> Rows:
    """Positions of the proposals that are taken: each with the probability current / proposed squared distance, current since those before were taken."""
    current, level, taken = gap.copy(), rng.random(len(gap)) * gap, []
    for i in range(len(gap)):
        if level[i] < current[i]:
            taken.append(i)
            current[i + 1 :] = np.minimum(current[i + 1 :], squared_length(points[i + 1 :] - points[i]))
    return np.array(taken, dtype=np.int64)


def approach(gap: Doubles, cloud: Cloud, centers: Doubles, device: str) -> None:
    """Lower each gap (points,), in place, to the squared distance to the nearest of these centres where that is smaller."""
    targets = Targets(centers, device)
    for block in blocks(cloud.rows, width=max(len(centers), cloud.dim)):
        x = cloud[block]
        row, center = targets.contenders(x, gap[block])
        np.minimum.at(gap, block.start + row, squared_distances(x, row, centers, center))

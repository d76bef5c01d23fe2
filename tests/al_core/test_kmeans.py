"""k-means against its definition: all distances in float64, one centre and one row at a time."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import numpy as np
import numpy.typing as npt
import pytest
import torch

import al_core.pool
from al_core import kmeans as module
from al_core.kmeans import KMeans, kmeans, seeds
from al_core.neighbors import Cloud

Doubles = npt.NDArray[np.float64]


def blobs(n: int = 300, dim: int = 7, centers: int = 5, spread: float = 0.4, seed: int = 0) -> Doubles:
    rng = np.random.default_rng(seed)
    points: Doubles = rng.normal(size=(centers, dim))[rng.integers(centers, size=n)] + spread * rng.normal(size=(n, dim))
    return points


def nearest(points: Doubles, centers: Doubles) -> list[int]:
    """The first centre of the least distance, by the definition."""
    return [min(range(len(centers)), key=lambda j: (float(((point - centers[j]) ** 2).sum()), j)) for point in points]


def run(x: npt.NDArray[np.floating], k: int, rows: npt.NDArray[np.int64] | None = None, seed: int = 0, *, unit: bool = False, iterations: int = 25) -> KMeans:
    return kmeans(x, np.arange(len(x)) if rows is None else rows, k, np.random.default_rng(seed), unit=unit, iterations=iterations)


def same(one: KMeans, other: KMeans) -> bool:
    return np.array_equal(one.centers, other.centers) and np.array_equal(one.assignment, other.assignment) and np.array_equal(one.counts, other.counts)


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("k", [1, 4, 20, 300])
def test_a_local_optimum(k: int, unit: bool) -> None:
    """Every row at its nearest centre, and every centre the mean of its rows: what Lloyd's iterations end in."""
    x = blobs()
    found = run(x, k, unit=unit, iterations=200)
    points = x / np.linalg.norm(x, axis=1, keepdims=True) if unit else x
    assert found.assignment.tolist() == nearest(points, found.centers)
    assert found.counts.tolist() == [found.assignment.tolist().count(center) for center in range(k)]
    for center in range(k):
        np.testing.assert_allclose(found.centers[center], points[found.assignment == center].mean(axis=0), rtol=1e-12, atol=1e-12)
    assert found.centers.dtype == np.float64 and found.assignment.dtype == found.counts.dtype == np.int64


def test_each_iteration_by_the_definition() -> None:
    x = blobs()
    centers = x[seeds(Cloud(x, np.arange(300)), 6, np.random.default_rng(3))]
    for iterations in (0, 1, 2, 3):
        np.testing.assert_allclose(run(x, 6, seed=3, iterations=iterations).centers, centers, rtol=1e-12)
        at = np.array(nearest(x, centers))
        centers = np.array([x[at == center].mean(axis=0) for center in range(6)])


def test_only_the_rows_given() -> None:
    x = blobs()
    rows = np.random.default_rng(1).permutation(300)[:80]
    assert same(run(x, 5, rows), run(x[rows], 5))


def test_separate_clusters_are_found() -> None:
    truth = np.random.default_rng(0).integers(8, size=400)
    x = 100 * np.eye(8)[truth] + np.random.default_rng(1).normal(size=(400, 8))
    found = run(x, 8)
    assert len(set(zip(truth.tolist(), found.assignment.tolist(), strict=True))) == 8


def test_k_is_1_to_the_number_of_rows() -> None:
    for k in (0, 301):
        with pytest.raises(ValueError, match=f"k is {k}; expected 1 to 300, the number of rows to cluster"):
            run(blobs(), k)


@pytest.mark.parametrize("distinct", [1, 3])
def test_fewer_distinct_rows_than_centres(distinct: int) -> None:
    x = np.repeat(blobs(n=distinct), 10, axis=0)
    found = run(x, 6)
    assert sorted(found.counts.tolist(), reverse=True)[:distinct] == [10] * distinct and found.counts.sum() == 10 * distinct
    np.testing.assert_allclose(found.centers[found.assignment], x, rtol=1e-14)


def test_a_centre_without_rows_moves_to_the_farthest_row() -> None:
    x = np.array([[0.0], [1], [2], [50], [60]])
    moved = module.lloyd(Cloud(x, np.arange(5)), np.array([[1.0], [1000], [2000]]), 1, 0.0, "cpu")
    assert moved.tolist() == [[22.6], [60], [50]]


def test_ties_go_to_the_first_centre() -> None:
    x = np.array([[0.0], [1], [2], [3]])
    assert module.assign(Cloud(x, np.arange(4)), np.array([[2.0], [0], [2], [4]])).tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("scale", [1e-30, 1, 1e30])
@pytest.mark.parametrize("offset", [0, 1000])
def test_near_ties_are_decided_in_float64(scale: float, offset: float) -> None:
    """Distances that float32 cannot tell apart: rows next to the plane between two of a few far centres."""
    rng = np.random.default_rng(0)
    centers = offset + rng.normal(size=(9, 40))
    middle = (centers[:, None] + centers[None])[np.triu_indices(9, 1)] / 2
    x = (np.repeat(middle, 5, axis=0) + 1e-9 * rng.normal(size=(180, 40))) * scale
    assert module.assign(Cloud(x, np.arange(180)), centers * scale).tolist() == nearest(x, centers * scale)


@pytest.mark.usefixtures("fewer_bits")
def test_near_ties_where_torch_is_told_to_multiply_with_fewer_bits() -> None:
    test_near_ties_are_decided_in_float64(1, 0)


@pytest.mark.usefixtures("fewer_bits")
def test_gaps_where_torch_is_told_to_multiply_with_fewer_bits() -> None:
    x = blobs(spread=0.01)
    gap = np.full(300, np.inf)
    for start in (0, 20):
        module.approach(gap, Cloud(x, np.arange(300)), x[start : start + 20], "cpu")
    np.testing.assert_allclose(gap, ((x[:, None] - x[:40]) ** 2).sum(axis=2).min(axis=1), rtol=1e-12)


def test_no_setting_changes_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    x = blobs(n=3000, dim=40).astype(np.float16)
    expected = run(x, 30)
    assert same(run(x.astype(np.float64), 30), expected)
    assert same(run(np.asfortranarray(x), 30), expected)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert same(run(x, 30), expected)
    finally:
        torch.set_num_threads(threads)
    for values in (1000, 2**14):
        monkeypatch.setattr(al_core.pool, "BLOCK_VALUES", values)
        assert same(run(x, 30), expected)


def test_many_rows_are_clustered_by_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SAMPLE", 500)
    x = blobs(n=5000, dim=3)
    found = run(x, 5)
    assert found.assignment.tolist() == nearest(x, found.centers)
    sample = np.sort(np.random.default_rng(0).choice(5000, 500, replace=False))
    rest = np.random.default_rng(0)
    rest.choice(5000, 500, replace=False)
    points = Cloud(x, sample)
    np.testing.assert_array_equal(found.centers, module.lloyd(points, points[seeds(points, 5, rest)], 25, module.SETTLED_SAMPLE, "cpu"))


def test_seeds_follow_the_law_of_k_means_plus_plus() -> None:
    """Chi-squared of ordered seeds against their exact probabilities."""
    x = np.array([[0.0], [1], [3], [4], [9]])
    square = (x - x.T) ** 2
    expected = {}
    for order in permutations(range(5), 4):
        probability = 1 / 5
        for i in range(1, 4):
            gap = square[:, order[:i]].min(axis=1)
            probability *= gap[order[i]] / gap.sum()
        expected[order] = probability
    rng = np.random.default_rng(0)
    draws = 2000
    seen = Counter(tuple(seeds(Cloud(x, np.arange(5)), 4, rng).tolist()) for _ in range(draws))
    likely = [order for order, probability in expected.items() if probability * draws >= 5]
    rest = 1 - sum(expected[order] for order in likely)
    cells = [(seen[order], expected[order] * draws) for order in likely]
    cells.append((draws - sum(seen[order] for order in likely), rest * draws))
    statistic = sum((got - wanted) ** 2 / wanted for got, wanted in cells)
    degrees = len(cells) - 1
    assert statistic < degrees + 4 * np.sqrt(2 * degrees)


def test_proposals_in_batches_follow_the_same_law() -> None:
    """Of the last of nine seeds, four of which are proposed at once: its mean potential is that of seeds drawn one by one."""
    x = blobs(n=60, dim=2, centers=12, spread=0.1)
    square = ((x[:, None] - x[None]) ** 2).sum(axis=2)

    def one_by_one(rng: np.random.Generator) -> list[int]:
        drawn = [int(rng.integers(60))]
        for _ in range(8):
            gap = square[:, drawn].min(axis=1)
            drawn.append(int(rng.choice(60, p=gap / gap.sum())))
        return drawn

    rng = np.random.default_rng(0)
    ours = [square[:, seeds(Cloud(x, np.arange(60)), 9, rng)].min(axis=1).sum() for _ in range(600)]
    theirs = [square[:, one_by_one(rng)].min(axis=1).sum() for _ in range(600)]
    error = np.sqrt((np.var(ours) + np.var(theirs)) / 600)
    assert abs(np.mean(ours) - np.mean(theirs)) < 4 * error


@pytest.mark.gpu
def test_a_gpu_gives_the_same(gpu: str) -> None:
    x = blobs(n=3000, dim=40).astype(np.float32)
    assert same(kmeans(x, np.arange(3000), 30, np.random.default_rng(0), device=gpu), run(x, 30))

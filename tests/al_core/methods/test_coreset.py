"""k-center greedy against its definition: all distances in float64, all centres looked at again for every pick."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest

from al_core import Pool, Selection, select

Doubles = npt.NDArray[np.float64]


def distances(x: npt.NDArray[np.floating]) -> Doubles:
    """(n, n), by the definition."""
    x = x.astype(np.float64)
    return np.array([np.sqrt(((x - row) ** 2).sum(axis=1)) for row in x])


def farthest_first(between: Doubles, seen: Sequence[int], budget: int, closed: Sequence[int] = ()) -> tuple[list[int], list[float]]:
    """Algorithm 1 of Sener & Savarese: u = argmax over the rest of the smallest distance to what is seen; ties by lowest row."""
    seen, rows, scores = list(seen), [], []
    for _ in range(budget):
        rest = [row for row in range(len(between)) if row not in seen and row not in closed]
        best = max(rest, key=lambda row: (min(between[row, seen]), -row))
        scores.append(min(between[best, seen]))
        rows.append(best)
        seen.append(best)
    return rows, scores


def coreset(x: npt.NDArray[np.floating], budget: int, labeled: Sequence[int] = (), excluded: Sequence[int] = (), **params: object) -> Selection:
    return select("coreset", Pool(embeddings=x, labeled=labeled, excluded=excluded), budget=budget, seed=0, **params)


def test_points_on_a_line() -> None:
    x = np.array([[0.0], [1], [3], [7], [8]])
    selection = coreset(x, budget=4, labeled=[0])
    assert selection.rows.tolist() == [4, 2, 1, 3]  # 1 and 7 are both 1 away from something seen: the lower row first
    assert selection.scores.tolist() == [8, 3, 1, 1]
    assert selection.info == {"start": "labeled", "radius": 0.0}
    assert coreset(x, budget=2, labeled=[0]).info["radius"] == 1.0


def test_nothing_labelled_starts_next_to_the_mean() -> None:
    x = np.array([[0.0], [1], [3], [7], [8], [1000]])
    selection = coreset(x, budget=3, excluded=[5])  # mean 3.8 of what is available
    assert selection.rows.tolist() == [2, 4, 0]
    np.testing.assert_array_equal(selection.scores, [np.nan, 5, 3])
    assert selection.info == {"start": "mean", "radius": 1.0}


def test_excluded_rows_are_no_centres() -> None:
    x = np.array([[0.0], [10], [9], [4]])
    assert coreset(x, budget=1, labeled=[0], excluded=[1]).rows.tolist() == [2]
    assert coreset(x, budget=1, labeled=[0, 1]).rows.tolist() == [3]


def test_directions() -> None:
    x = np.array([[1.0, 0], [100, 1], [0, 2], [3, 3]])
    assert coreset(x, budget=3, labeled=[0]).rows.tolist() == [1, 3, 2]
    selection = coreset(x, budget=3, labeled=[0], normalize=True)
    assert selection.rows.tolist() == [2, 3, 1]
    np.testing.assert_allclose(selection.scores, [np.sqrt(2), np.sqrt(2 - np.sqrt(2)), np.sqrt(2 - 200 / np.hypot(100, 1))], rtol=1e-12)
    x[2] = 0
    with pytest.raises(ValueError, match="embeddings hold only zeros in row 2, which gives it no direction; use normalize: false"):
        coreset(x, budget=3, labeled=[0], normalize=True)


RNG = np.random.default_rng(3)
CLOUDS: dict[str, Doubles] = {
    "gaussian": RNG.normal(size=(120, 20)),
    "one dimension": RNG.normal(size=(120, 1)),
    "many dimensions": RNG.normal(size=(120, 1500)),
    "clusters": RNG.normal(size=(6, 20))[RNG.integers(6, size=120)] + 0.01 * RNG.normal(size=(120, 20)),
    "far from the origin": 1000 + RNG.normal(size=(120, 20)),
    "grid with many ties": RNG.integers(0, 3, size=(120, 3)).astype(np.float64),
    "pairs of twins": np.repeat(RNG.normal(size=(60, 20)), 2, axis=0),
    "lengths of many sizes": RNG.normal(size=(120, 20)) * np.exp(2 * RNG.normal(size=(120, 1))),
    "one outlier": np.concatenate([RNG.normal(size=(119, 20)), np.full((1, 20), 6e4)]),
}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("num_labeled", [0, 1, 30])
@pytest.mark.parametrize("cloud", CLOUDS)
def test_against_the_definition(cloud: str, num_labeled: int, dtype: npt.DTypeLike) -> None:
    x = CLOUDS[cloud].astype(dtype)
    order = np.random.default_rng(4).permutation(120).tolist()
    labeled, excluded = order[:num_labeled], order[100:]
    selection = coreset(x, 40, labeled, excluded)
    if labeled:
        rows, scores = farthest_first(distances(x), labeled, 40, excluded)
    else:
        rest = np.sort(order[:100])
        from_mean = ((x[rest].astype(np.float64) - x[rest].astype(np.float64).mean(axis=0)) ** 2).sum(axis=1)
        first = int(rest[np.argmin(from_mean)])
        rows, scores = farthest_first(distances(x), [first], 39, excluded)
        rows, scores = [first, *rows], [np.nan, *scores]
    assert selection.rows.tolist() == rows
    np.testing.assert_allclose(selection.scores, scores, rtol=1e-12)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e-10, 1e10, 1e19, 1e30])
def test_scale_changes_no_pick(scale: float) -> None:
    """float32 products of such lengths under- or overflow; float64 does not."""
    x = np.random.default_rng(4).normal(size=(80, 10)).astype(np.float32)
    power_of_two = np.float32(2.0 ** np.round(np.log2(scale)))  # exact, so that distances scale exactly
    one, other = coreset(x, 30, labeled=range(20)), coreset(x * power_of_two, 30, labeled=range(20))
    np.testing.assert_array_equal(other.rows, one.rows)
    np.testing.assert_array_equal(other.scores, one.scores * power_of_two)


def test_an_excluded_row_without_a_direction_is_as_if_it_were_not_there() -> None:
    x = np.array([[0.0, 0], [1, 0], [0, 1], [-1, 0]])
    assert select("coreset", Pool(embeddings=x, labeled=[1], excluded=[0]), budget=2, seed=0, normalize=True).rows.tolist() == [3, 2]


def test_directions_are_those_of_rows_scaled_beforehand() -> None:
    x = np.random.default_rng(4).normal(size=(80, 10)) * np.exp(5 * np.random.default_rng(5).normal(size=(80, 1)))
    scaled = x / np.linalg.norm(x, axis=1, keepdims=True)
    selection = coreset(x.astype(np.float32), 30, labeled=[0], normalize=True)
    rows, scores = farthest_first(distances(scaled), [0], 30)
    assert selection.rows.tolist() == rows
    np.testing.assert_allclose(selection.scores, scores, rtol=1e-5)


def test_more_labelled_rows_than_one_pass_measures_against() -> None:
    x = np.random.default_rng(6).normal(size=(600, 4)).astype(np.float32)
    assert coreset(x, 10, labeled=range(570)).rows.tolist() == farthest_first(distances(x), range(570), 10)[0]


def test_lengths_that_cannot_be_squared_are_refused() -> None:
    with pytest.raises(ValueError, match="embeddings are too long to measure: row 1 is longer than 1e150; scale them down"):
        coreset(np.array([[0.0], [1e160]]), 1)


def radius(between: Doubles, centers: Sequence[int]) -> float:
    return float(between[:, list(centers)].min(axis=1).max())


@pytest.mark.parametrize("num_labeled", [0, 1, 3])
@pytest.mark.parametrize("seed", range(12))
def test_radius_is_within_twice_the_best_possible(seed: int, num_labeled: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(10, 2)) * np.exp(rng.normal(size=(10, 1)))
    between, labeled = distances(x), list(range(num_labeled))
    for budget in (1, 2, 3, 4):
        best = min(radius(between, [*labeled, *others]) for others in combinations(range(num_labeled, 10), budget))
        selection = coreset(x, budget, labeled)
        assert selection.info["radius"] == pytest.approx(radius(between, [*labeled, *selection.rows]), rel=1e-12)
        assert best <= selection.info["radius"] * (1 + 1e-12)  # type: ignore[operator]
        assert selection.info["radius"] <= 2 * best * (1 + 1e-12)  # type: ignore[operator]


def test_scores_never_rise() -> None:
    x = np.random.default_rng(7).normal(size=(200, 5)).astype(np.float32)
    assert (np.diff(coreset(x, 150, labeled=[0]).scores) <= 0).all()

"""ProbCover against its definition: a graph of who covers whom, and degrees counted anew for every pick."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from al_core import Pool, Selection, select
from al_core.fingerprints import sample
from al_core.kmeans import kmeans
from al_core.methods.probcover import ProbCover

Doubles = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]


def between(x: Doubles) -> Doubles:
    """(n, n) distances."""
    square: Doubles = np.array([((x - row) ** 2).sum(axis=1) for row in x])
    return np.sqrt(square)


def defined(x: Doubles, labeled: Sequence[int], available: Sequence[int], budget: int, delta: float) -> tuple[list[int], list[float], int]:
    """Greedy cover; once all is covered, half the radius, or the largest distance to what was taken if that is less, until something is not."""
    away = between(x)
    picks: list[int] = []
    scores: list[float] = []
    lowered = 0
    while len(picks) < budget:
        taken = [*labeled, *picks]
        gap = {row: min((away[row, other] for other in taken), default=np.inf) for row in available}
        uncovered = [row for row in available if gap[row] >= delta]
        if not uncovered and max(gap.values()) > 0:
            delta = min(delta / 2, max(gap.values()))
            lowered += 1
            continue
        degree = {row: sum(away[row, other] < delta for other in uncovered) for row in available if row not in picks}
        best = max(degree, key=lambda row: (degree[row], -row))
        picks.append(best)
        scores.append(degree[best] / len(available))
    return picks, scores, lowered


def unit(x: Doubles) -> Doubles:
    length: Doubles = np.sqrt((x**2).sum(axis=1, keepdims=True))
    return x / length


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("delta", [0.05, 0.4, 1.5])
@pytest.mark.parametrize("seed", range(3))
def test_picks_against_the_definition(seed: int, delta: float, normalize: bool) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(90, 3)) + 3 * rng.normal(size=(5, 3))[rng.integers(5, size=90)]
    given = rng.permutation(90)
    labeled, excluded = given[: 5 * seed], given[30:40]
    pool = Pool(embeddings=x, labeled=labeled, excluded=excluded)
    found = select("probcover", pool, budget=60, seed=0, delta=delta, normalize=normalize)
    picks, scores, lowered = defined(unit(x) if normalize else x, labeled.tolist(), pool.available.tolist(), 60, delta)
    np.testing.assert_array_equal(found.rows, picks)
    np.testing.assert_allclose(found.scores, scores, rtol=1e-12)
    assert found.info["times_lowered"] == lowered
    assert found.info["covered"] == pytest.approx(1.0 if lowered else sum(scores) + covered_before(pool, unit(x) if normalize else x, delta))


def covered_before(pool: Pool, x: Doubles, delta: float) -> float:
    """Share of the available rows that labelled ones cover."""
    away = between(x)
    return float(np.mean([(away[row, pool.labeled] < delta).any() for row in pool.available]))


def line(*points: float) -> Doubles:
    return np.array(points, dtype=np.float64)[:, None]


def choose(x: Doubles, budget: int, labeled: Sequence[int] = (), **params: Any) -> Selection:
    return select("probcover", Pool(embeddings=x, labeled=labeled), budget=budget, seed=0, normalize=False, **params)


def test_by_hand() -> None:
    """Balls are open: at radius 1, 1 does not cover 2. At 1.1 the row at 1 covers 0, 1 and 2; then 11 covers two; then 30 itself."""
    x = line(0, 1, 2, 10.5, 11, 30)
    found = choose(x, 3, delta=1.1)
    np.testing.assert_array_equal(found.rows, [1, 3, 5])
    np.testing.assert_allclose(found.scores, [3 / 6, 2 / 6, 1 / 6])
    assert found.info == {"delta": 1.1, "covered": 1.0, "times_lowered": 0, "rows_looked_at": 6}
    np.testing.assert_array_equal(choose(x, 3, delta=1.0).rows, [3, 0, 1])
    assert choose(x, 3, delta=1.0).info["covered"] == pytest.approx(4 / 6)


def test_what_labelled_rows_cover_counts_no_more() -> None:
    x = line(0, 1, 2, 10.5, 11, 30)
    found = choose(x, 2, labeled=[1], delta=1.1)
    np.testing.assert_array_equal(found.rows, [3, 5])
    np.testing.assert_allclose(found.scores, [2 / 5, 1 / 5])


def test_the_radius_is_lowered_once_all_is_covered() -> None:
    """0 covers all at radius 100. 8 is farthest from it, so the radius falls to 8, where 3 and 8 cover 8, and 3 is the lower row. Then to 5."""
    found = choose(line(0, 3, 8), 3, delta=100.0)
    np.testing.assert_array_equal(found.rows, [0, 1, 2])
    np.testing.assert_allclose(found.scores, [1, 1 / 3, 1 / 3])
    assert found.info["times_lowered"] == 2
    halved = choose(line(0, 7, 8), 3, delta=10.0)  # to 5: both 7 and 8 cover both; then to 1
    np.testing.assert_array_equal(halved.rows, [0, 1, 2])
    np.testing.assert_allclose(halved.scores, [1, 2 / 3, 1 / 3])


def test_rows_that_coincide_come_last_lowest_first() -> None:
    x = line(5, 5, 1, 1, 9, 5)
    np.testing.assert_array_equal(choose(x, 6, delta=0.5).rows, [0, 2, 4, 1, 3, 5])
    np.testing.assert_array_equal(choose(x, 5, labeled=[4], delta=0.5).rows, [0, 2, 1, 3, 5])


@pytest.mark.parametrize("purity", [0.3, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_estimate_is_the_largest_radius_at_which_enough_balls_are_pure(seed: int, purity: float) -> None:
    rng = np.random.default_rng(seed)
    x = unit(rng.normal(size=(80, 3)))
    labeled = rng.permutation(80)[:8]
    pool = Pool(embeddings=x, labeled=labeled)
    found = ProbCover(purity=purity, clusters=4)(pool, 5, np.random.default_rng(3)).info["delta"]
    cluster = kmeans(x, pool.available, 4, np.random.default_rng(3), unit=True).assignment
    away = between(x[pool.available])

    def pure(radius: float) -> float:
        return float(np.mean([len(set(cluster[away[row] < radius].tolist())) == 1 for row in range(72)]))

    radii = [radius for radius in np.unique(away) if radius > 0 and pure(radius) >= purity]
    assert found == pytest.approx(max(radii), rel=1e-12)


def test_one_cluster_is_pure_at_any_radius() -> None:
    found = choose(line(0, 3, 8), 3, clusters=1)
    assert found.info["delta"] is None
    np.testing.assert_array_equal(found.rows, [0, 1, 2])
    assert choose(np.ones((4, 2)), 4).info["delta"] is None


def test_two_clear_clusters_give_a_radius_between_them() -> None:
    x = np.concatenate([line(*range(20)), line(*range(100, 120))])
    assert choose(x, 1, clusters=2, purity=1.0).info["delta"] == 81.0


def test_a_large_pool_is_sampled() -> None:
    x = np.random.default_rng(0).normal(size=(500, 4))
    pool = Pool(embeddings=x, labeled=range(20), excluded=range(480, 500))
    found = select("probcover", pool, budget=20, seed=0, sample=100, delta=0.5)
    kept = sample(x, pool.available, 100)
    assert found.info["rows_looked_at"] == 100
    picks, scores, _ = defined(unit(x), range(20), kept.tolist(), 20, 0.5)
    np.testing.assert_array_equal(found.rows, picks)
    np.testing.assert_allclose(found.scores, scores)
    assert select("probcover", pool, budget=90, seed=0, sample=100).info["rows_looked_at"] == 180


def test_a_radius_too_small_to_square() -> None:
    np.testing.assert_array_equal(choose(line(0, 0, 5, 9), 4, delta=1e-200).rows, [0, 2, 3, 1])


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"delta": 0.0}, "probcover: delta is 0.0; expected above 0, or null to estimate it"),
        ({"purity": 0.0}, "probcover: purity is 0.0; expected above 0, at most 1"),
        ({"purity": 1.5}, "probcover: purity is 1.5; expected above 0, at most 1"),
        ({"clusters": 0}, "probcover: clusters is 0; expected at least 1"),
        ({"sample": 0}, "probcover: sample is 0; expected at least 1"),
    ],
)
def test_parameters_that_cannot_be(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        choose(line(0, 1), 1, **params)
    assert str(error.value) == message

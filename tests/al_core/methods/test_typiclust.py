"""TypiClust against its definition: clusters visited one by one, typicality of every row anew for every pick."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from al_core import Pool, Selection, select
from al_core.kmeans import kmeans
from al_core.methods.typiclust import TypiClust

Doubles = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]


def typicality(x: Doubles, row: int, others: Sequence[int], distance: str) -> float:
    """1 / the mean distance to the nearest of some rows: 20 of them, or half of the cluster where it is smaller."""
    square = np.sort(((x[[other for other in others if other != row]] - x[row]) ** 2).sum(axis=1))
    nearest = square[: min(20, len(others) // 2)]
    return float(1 / ((nearest if distance == "squared" else np.sqrt(nearest)).mean() + 1e-5))


def defined(x: Doubles, cluster: Int, labeled: Sequence[int], excluded: Sequence[int], budget: int, distance: str) -> tuple[list[int], list[float]]:
    """The paper's loop: clusters with few labels first, of these the large ones, in turn; those of 5 rows or fewer once the others are empty."""
    members = {number: [row for row in range(len(x)) if cluster[row] == number and row not in excluded] for number in set(cluster.tolist())}
    order = sorted(members, key=lambda number: (len(set(members[number]) & set(labeled)), -len(members[number]), number))
    picks: list[int] = []
    scores: list[float] = []
    for wanted in (True, False):
        turns = [number for number in order if (len(members[number]) > 5) == wanted]
        open_rows = {number: [row for row in members[number] if row not in labeled] for number in turns}
        while len(picks) < budget and any(open_rows.values()):
            for number in turns:
                rows = open_rows[number]
                if not rows or len(picks) == budget:
                    continue
                each = [typicality(x, row, rows, distance) if len(rows) > 1 else np.nan for row in rows]
                best = max(range(len(rows)), key=lambda i: (each[i], -i))
                scores.append(each[best])
                picks.append(rows.pop(best))
    return picks, scores


def unit(x: Doubles) -> Doubles:
    length: Doubles = np.sqrt((x**2).sum(axis=1, keepdims=True))
    return x / length


@pytest.mark.parametrize("distance", ["squared", "euclidean"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_picks_against_the_definition(seed: int, normalize: bool, distance: str) -> None:
    """More picks than neighbours are spared for, so that lists of neighbours are made again; small clusters come in at the end."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(100, 3)) + 4 * rng.normal(size=(6, 3))[rng.integers(6, size=100)]
    given = rng.permutation(100)
    labeled, excluded = given[: 4 * seed], given[40:55]
    budget, limit = 80 - 4 * seed, (1, 4, 12, 60)[seed]
    pool = Pool(embeddings=x, labeled=labeled, excluded=excluded)
    method = TypiClust(max_clusters=limit, normalize=normalize, distance=distance)  # type: ignore[arg-type]
    found = method(pool, budget, np.random.default_rng(9))
    rows = np.setdiff1d(np.arange(100), excluded)
    clusters = kmeans(x, rows, min(limit, len(labeled) + budget), np.random.default_rng(9), unit=normalize)
    cluster = np.full(100, -1)
    cluster[rows] = clusters.assignment
    picks, scores = defined(unit(x) if normalize else x, cluster, labeled.tolist(), excluded.tolist(), budget, distance)
    np.testing.assert_array_equal(found.rows, picks)
    np.testing.assert_allclose(found.scores, scores, rtol=1e-9)


def line(*points: float) -> Doubles:
    return np.array(points, dtype=np.float64)[:, None]


def choose(x: Doubles, budget: int, labeled: Sequence[int] = (), **params: object) -> Selection:
    return select("typiclust", Pool(embeddings=x, labeled=labeled), budget=budget, seed=0, normalize=False, **params)


LARGE = (0.0, 1, 2.5, 3.5, 4, 6, 9, 10)  # 8 rows; of each, the 4 nearest count
LEFT = (100.0, 101, 101.5, 103, 106, 110)  # 6 rows; of each, the 3 nearest count


def test_by_hand() -> None:
    """Means of squares: 3.5 has 0.25, 1, 6.25, 6.25 (mean 3.4375); 2.5 has 1, 2.25, 2.25, 6.25 (2.9375); 4 has 0.25, 2.25, 4, 9 (3.875)."""
    found = choose(line(*LARGE, *LEFT), 2)
    np.testing.assert_array_equal(found.rows, [2, 10])  # then 101: 0.25, 1, 4 (1.75); 101.5 has 0.25, 2.25, 2.25 (1.583) and is the one
    np.testing.assert_allclose(found.scores, [1 / (2.9375 + 1e-5), 1 / (4.75 / 3 + 1e-5)])


def test_clusters_without_labels_come_first_and_others_after() -> None:
    x = line(*LARGE, *LEFT)
    assert choose(x, 1).rows[0] < 8  # the larger cluster
    found = choose(x, 2, labeled=[3], max_clusters=2)
    assert [row < 8 for row in found.rows] == [False, True]
    assert found.info == {"clusters": 2, "small_clusters": 0, "clusters_without_labels": 1}


def test_small_clusters_wait_until_the_others_are_used_up() -> None:
    found = choose(line(*LARGE, 500, 501, 502, 503, 504), 13, max_clusters=2)
    assert sorted(found.rows[:8]) == list(range(8)) and sorted(found.rows[8:]) == list(range(8, 13))
    assert np.isnan(found.scores[[7, 12]]).all() and np.isfinite(np.delete(found.scores, [7, 12])).all()  # the last of a cluster has no neighbour
    assert found.info["small_clusters"] == 1


def test_as_many_clusters_as_labels_and_picks() -> None:
    x = np.random.default_rng(0).normal(size=(400, 5))
    for labeled, budget, clusters in ((0, 3, 3), (7, 3, 10), (7, 90, 50), (0, 400, 50)):
        assert choose(x, budget, labeled=range(labeled), max_clusters=50).info["clusters"] == clusters


def test_equally_typical_rows_go_by_row() -> None:
    np.testing.assert_array_equal(choose(line(0, 1, 2, 3, 4, 5, 6), 1, max_clusters=1).rows, [1])  # 1 to 5 have squares 1, 1, 4
    assert choose(np.repeat(line(*LARGE), 3, axis=0), 24, max_clusters=2).info["clusters"] == 2


def test_rows_in_fewer_places_than_clusters() -> None:
    found = choose(np.repeat(line(0, 10, 20), 10, axis=0), 9)
    assert found.info["clusters"] == 3
    assert np.bincount(found.rows // 10).tolist() == [3, 3, 3]


def test_a_scaled_row_is_as_typical_as_the_row() -> None:
    x = np.random.default_rng(3).normal(size=(80, 4))
    scaled = x * 2.0 ** np.random.default_rng(4).integers(-5, 6, size=(80, 1))
    one, other = (select("typiclust", Pool(embeddings=each), budget=30, seed=0) for each in (x, scaled))
    np.testing.assert_array_equal(one.rows, other.rows)


@pytest.mark.parametrize("index", ["ivf", "hnsw"])
def test_an_approximate_index_finds_the_typical_of_clear_clusters(index: str) -> None:
    pytest.importorskip("faiss")
    rng = np.random.default_rng(5)
    x = 20 * rng.normal(size=(4, 8))[np.arange(2000) % 4] + rng.normal(size=(2000, 8))
    exact, found = choose(x, 8), choose(x, 8, index=index)
    assert np.intersect1d(exact.rows, found.rows).size >= 6


def test_parameters_that_cannot_be() -> None:
    with pytest.raises(ValueError) as error:
        choose(line(*LARGE), 1, max_clusters=0)
    assert str(error.value) == "typiclust: max_clusters is 0; expected at least 1"
    with pytest.raises(ValueError) as error:
        choose(line(*LARGE), 1, distance="cosine")
    assert str(error.value) == "typiclust.distance is 'cosine'; expected 'squared' | 'euclidean'"

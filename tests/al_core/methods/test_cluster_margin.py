"""Cluster-Margin: its hierarchy against SciPy's and against plain merging, its visits against queues, and its parts by hand."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest

from al_core import Pool, Selection, select
from al_core.methods.cluster_margin import average_linkage, distances, in_turn
from al_core.softmax import margin

Doubles = npt.NDArray[np.float64]


def partition(labels: npt.ArrayLike) -> set[frozenset[int]]:
    """Clusters as sets of positions, whatever their numbers."""
    labels = np.asarray(labels)
    return {frozenset(np.flatnonzero(labels == number).tolist()) for number in np.unique(labels)}


def merged_one_by_one(points: Doubles, weight: Doubles, clusters: int) -> set[frozenset[int]]:
    """The definition: all mean distances anew before every merge."""
    between = np.sqrt(((points[:, None] - points) ** 2).sum(axis=2))
    found = [[i] for i in range(len(points))]
    while len(found) > clusters:

        def mean(pair: tuple[list[int], list[int]]) -> float:
            weights = weight[np.ix_(pair[0])][:, None] * weight[np.ix_(pair[1])]
            return float((weights * between[np.ix_(pair[0], pair[1])]).sum() / weights.sum())

        one, other = min(itertools.combinations(found, 2), key=mean)
        found = [each for each in found if each is not one and each is not other] + [one + other]
    return {frozenset(each) for each in found}


@pytest.mark.parametrize("clusters", [1, 2, 5, 11, 24, 25, 40])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_hierarchy_against_the_definition(seed: int, weighted: bool, clusters: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(25, 3)) + 3 * rng.normal(size=(4, 3))[rng.integers(4, size=25)]
    weight = rng.integers(1, 50, size=25).astype(np.float64) if weighted else np.ones(25)
    found = average_linkage(distances(points, "cpu"), weight, clusters)
    assert partition(found) == merged_one_by_one(points, weight, clusters)


@pytest.mark.parametrize("clusters", [3, 20, 100])
def test_hierarchy_against_scipy(clusters: int) -> None:
    hierarchy = pytest.importorskip("scipy.cluster.hierarchy")
    points = np.random.default_rng(1).normal(size=(300, 8))
    expected = hierarchy.fcluster(hierarchy.linkage(points, "average"), clusters, "maxclust")
    assert partition(average_linkage(distances(points, "cpu"), np.ones(300), clusters)) == partition(expected)


def test_weights_stand_for_rows_in_the_same_place() -> None:
    rng = np.random.default_rng(2)
    points, times = rng.normal(size=(12, 2)), rng.integers(1, 6, size=12)
    repeated = np.repeat(np.arange(12), times)
    one_by_one = average_linkage(distances(points[repeated], "cpu"), np.ones(len(repeated)), 4)
    weighted = average_linkage(distances(points, "cpu"), times.astype(np.float64), 4)
    assert partition(one_by_one) == partition(weighted[repeated])


def test_points_in_one_place_and_on_a_grid() -> None:
    assert len(partition(average_linkage(distances(np.ones((9, 2)), "cpu"), np.ones(9), 4))) == 4
    grid = np.array(list(itertools.product(range(4), range(4))), dtype=np.float64)
    for clusters in range(1, 17):
        assert len(partition(average_linkage(distances(grid, "cpu"), np.ones(16), clusters))) == clusters


def test_visits() -> None:
    group = np.array([7, 7, 7, 7, 3, 3, 5, 5, 5])  # sizes 4, 2, 3
    orders = [in_turn(group, np.random.default_rng(seed)) for seed in range(400)]
    for order in orders:
        assert group[order].tolist() == [3, 5, 7, 3, 5, 7, 5, 7, 7]
        assert sorted(order.tolist()) == list(range(9))
    for place, members in ((0, (4, 5)), (1, (6, 7, 8)), (8, (0, 1, 2, 3))):
        counts = Counter(int(order[place]) for order in orders)
        assert counts.keys() == set(members) and min(counts.values()) > 0.7 * 400 / len(members)


def test_groups_of_one_size_come_in_random_order() -> None:
    firsts = Counter(int(in_turn(np.arange(5), np.random.default_rng(seed))[0]) for seed in range(500))
    assert len(firsts) == 5 and min(firsts.values()) > 60


def test_margin_is_that_of_softmax() -> None:
    z = np.random.default_rng(0).normal(size=(50, 4)) * 3
    p = np.sort(np.exp(z) / np.exp(z).sum(axis=1, keepdims=True), axis=1)
    np.testing.assert_allclose(margin(z), p[:, -1] - p[:, -2], rtol=1e-12)
    most = np.finfo(np.float64).max
    np.testing.assert_array_equal(margin(np.array([[most, -most], [0.0, 0]])), [1, 0])


def lumps() -> tuple[Doubles, Doubles]:
    """Embeddings in four far lumps of 5, 10, 20 and 65 rows, and logits of two classes whose margin grows with the row within each lump."""
    rng = np.random.default_rng(3)
    lump = np.repeat(np.arange(4), [5, 10, 20, 65])
    z = np.zeros((100, 2))
    z[:, 0] = 0.01 + 0.01 * np.concatenate([np.arange(size) for size in (5, 10, 20, 65)]) + 1e-5 * lump
    return 100 * rng.normal(size=(4, 6))[lump] + rng.normal(size=(100, 6)), z


def choose(budget: int, seed: int = 0, labeled: tuple[int, ...] = (), **params: object) -> Selection:
    x, z = lumps()
    return select("cluster-margin", Pool(embeddings=x, logits=z, labeled=labeled), budget=budget, seed=seed, **params)


def test_clusters_take_turns_among_the_lowest_margins() -> None:
    lump = np.repeat(np.arange(4), [5, 10, 20, 65])
    _, z = lumps()
    order = np.argsort(z[:, 0], kind="stable")
    for seed in range(20):
        selection = choose(8, seed, clusters=4, ratio=4)
        assert set(selection.rows.tolist()) <= set(order[:32].tolist())  # 5, 9, 9 and 9 of the lumps
        assert selection.info == {"candidates": 32, "clusters_of_candidates": 4}
        assert lump[selection.rows[0]] == lump[selection.rows[4]] == 0  # the smallest is first
        assert Counter(lump[selection.rows].tolist()) == {0: 2, 1: 2, 2: 2, 3: 2}
        np.testing.assert_allclose(selection.scores, np.tanh(z[selection.rows, 0] / 2), rtol=1e-12)
    assert len({tuple(choose(8, seed, clusters=4, ratio=4).rows.tolist()) for seed in range(20)}) == 20


def test_small_clusters_run_out_and_all_are_taken_in_the_end() -> None:
    lump = np.repeat(np.arange(4), [5, 10, 20, 65])
    counts = Counter(lump[choose(40, clusters=4, ratio=100).rows].tolist())
    assert counts == {0: 5, 1: 10, 2: 13, 3: 12}
    assert sorted(choose(100, clusters=4).rows.tolist()) == list(range(100))


def test_a_ratio_of_one_is_margin_sampling_in_another_order() -> None:
    _, z = lumps()
    lowest = select("margin", Pool(logits=z), budget=17, seed=0)
    assert sorted(choose(17, ratio=1).rows.tolist()) == sorted(lowest.rows.tolist())


def test_labelled_rows_belong_to_clusters_but_are_no_candidates() -> None:
    selection = choose(6, labeled=(0, 1, 2, 3, 4), clusters=4, ratio=100)
    assert selection.info == {"candidates": 95, "clusters_of_candidates": 3}
    assert Counter(np.repeat(np.arange(4), [5, 10, 20, 65])[selection.rows].tolist()) == {1: 2, 2: 2, 3: 2}


@pytest.mark.parametrize("max_leaves", [4, 8, 30, 99, 100])
def test_k_means_before_the_hierarchy_finds_the_same_lumps(max_leaves: int) -> None:
    lump = np.repeat(np.arange(4), [5, 10, 20, 65])
    selection = choose(20, clusters=4, ratio=100, max_leaves=max_leaves)
    assert Counter(lump[selection.rows].tolist()) == {0: 5, 1: 5, 2: 5, 3: 5}


def test_fewer_places_than_leaves() -> None:
    x = np.repeat(np.random.default_rng(0).normal(size=(3, 2)), 30, axis=0)
    z = np.random.default_rng(1).normal(size=(90, 3))
    selection = select("cluster-margin", Pool(embeddings=x, logits=z), budget=9, seed=0, clusters=10, max_leaves=20)
    assert Counter((selection.rows // 30).tolist()) == {0: 3, 1: 3, 2: 3}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"ratio": 0.5}, "cluster-margin: ratio is 0.5; expected at least 1, or there are fewer candidates than picks"),
        ({"clusters": 0}, "cluster-margin: clusters is 0; expected at least 1"),
        ({"max_leaves": 100}, "cluster-margin: max_leaves is 100, but 200 clusters are to be made of the leaves; raise it or lower clusters"),
    ],
)
def test_parameters_that_cannot_be(params: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as error:
        choose(3, **params)  # type: ignore[arg-type]
    assert str(error.value) == message


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="logits have 1 class; a margin lies between 2"):
        select("cluster-margin", Pool(embeddings=np.zeros((3, 1)), logits=np.zeros((3, 1))), budget=1, seed=0)
    with pytest.raises(ValueError, match="embeddings are too long to measure: some are more than 1e150 apart; scale them down"):
        select("cluster-margin", Pool(embeddings=np.array([[0.0], [1e200]]), logits=np.zeros((2, 2))), budget=1, seed=0)

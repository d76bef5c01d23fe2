"""Nearest neighbours against their definition: all distances in float64, sorted."""

from __future__ import annotations

import builtins
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import al_core.pool
from al_core import neighbors as module
from al_core.neighbors import COMPONENTS, Balls, Cloud, Held, Index, Projected, Targets, neighbors

Doubles = npt.NDArray[np.float64]

RNG = np.random.default_rng(3)
CLOUDS: dict[str, Doubles] = {
    "gaussian": RNG.normal(size=(150, 20)),
    "one dimension": RNG.normal(size=(150, 1)),
    "many dimensions": RNG.normal(size=(150, 1500)),
    "clusters": RNG.normal(size=(6, 20))[RNG.integers(6, size=150)] + 0.01 * RNG.normal(size=(150, 20)),
    "far from the origin": 1000 + RNG.normal(size=(150, 20)),
    "grid with many ties": RNG.integers(0, 3, size=(150, 3)).astype(np.float64),
    "pairs of twins": np.repeat(RNG.normal(size=(75, 20)), 2, axis=0),
    "all alike": np.ones((150, 4)),
    "lengths of many sizes": RNG.normal(size=(150, 20)) * np.exp(2 * RNG.normal(size=(150, 1))),
    "one outlier": np.concatenate([RNG.normal(size=(149, 20)), np.full((1, 20), 6e4)]),
}


def by_definition(x: npt.NDArray[np.floating], k: int) -> tuple[npt.NDArray[np.int64], Doubles]:
    """(n, k) nearest others of each point and squared distances; ties by lowest number."""
    x = x.astype(np.float64)
    rows, squares = [], []
    for i, point in enumerate(x):
        square = [(float(((point - other) ** 2).sum()), j) for j, other in enumerate(x) if j != i]
        nearest = sorted(square)[:k]
        rows.append([j for _, j in nearest])
        squares.append([gap for gap, _ in nearest])
    return np.array(rows), np.array(squares)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("cloud", CLOUDS)
def test_against_the_definition(cloud: str, dtype: npt.DTypeLike) -> None:
    x = CLOUDS[cloud].astype(dtype)
    found, squares = neighbors(x, np.arange(150), 7)
    expected, expected_squares = by_definition(x, 7)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(squares, expected_squares, rtol=1e-12)
    assert found.dtype == np.int64 and squares.dtype == np.float64


@pytest.mark.parametrize("k", [1, 2, 40, 149])
def test_any_number_of_neighbours(k: int) -> None:
    x = CLOUDS["gaussian"]
    np.testing.assert_array_equal(neighbors(x, np.arange(150), k)[0], by_definition(x, k)[0])


@pytest.mark.parametrize(("queries", "values"), [(1, 1), (7, 100), (1, 5000), (1000, 10_000)])
def test_blocks_change_nothing(queries: int, values: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = CLOUDS["clusters"].astype(np.float32)
    expected = neighbors(x, np.arange(150), 5)
    monkeypatch.setattr(module, "QUERIES", queries)
    monkeypatch.setattr(al_core.pool, "BLOCK_VALUES", values)
    for one, other in zip(neighbors(x, np.arange(150), 5), expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_more_points_than_one_tile() -> None:
    x = np.random.default_rng(0).normal(size=(2500, 6)).astype(np.float32)
    found, _ = neighbors(x, np.arange(2500), 10)
    square = ((x.astype(np.float64)[:, None] - x.astype(np.float64)[None]) ** 2).sum(axis=2)
    np.fill_diagonal(square, np.inf)
    np.testing.assert_array_equal(found, np.argsort(square, axis=1, kind="stable")[:, :10])


def test_positions_in_the_rows_given() -> None:
    x = CLOUDS["gaussian"]
    rows = np.random.default_rng(1).permutation(150)[:60]
    for one, other in zip(neighbors(x, rows, 4), neighbors(x[rows], np.arange(60), 4), strict=True):
        np.testing.assert_array_equal(one, other)


def test_directions() -> None:
    x = CLOUDS["lengths of many sizes"].copy()
    x[5] = 0
    scaled = x / np.where(np.arange(150) == 5, 1, np.linalg.norm(x, axis=1))[:, None]
    found, squares = neighbors(x, np.arange(150), 6, unit=True)
    expected, expected_squares = by_definition(scaled, 6)
    np.testing.assert_allclose(squares, expected_squares, rtol=1e-9)
    np.testing.assert_array_equal(found[6:], expected[6:])  # to row 5, the origin, all the others are 1 away, within a rounding


def test_k_is_1_to_the_number_of_others() -> None:
    for k in (0, 150):
        with pytest.raises(ValueError, match=f"k is {k}; expected 1 to 149, the number of other rows"):
            neighbors(CLOUDS["gaussian"], np.arange(150), k)


@pytest.mark.parametrize("length", [1e-145, 1e141, 1e149])
def test_lengths_whose_squares_are_near_the_ends_of_float64(length: float) -> None:
    x = length * CLOUDS["clusters"] / 10
    np.testing.assert_array_equal(neighbors(x, np.arange(150), 3)[0], by_definition(x, 3)[0])


def test_too_long_to_measure() -> None:
    with pytest.raises(ValueError) as error:
        neighbors(np.array([[-2e150], [0.0], [2e150]]), np.arange(3), 1)
    assert str(error.value) == "embeddings are too long to measure: they spread over 1.63e+150, expected less than 1e+150; scale them down"


@pytest.mark.parametrize("cloud", CLOUDS)
def test_points_held_on_a_device(cloud: str) -> None:
    """What runs on a GPU, run on the CPU: the same pairs, bar the order of pairs whose distances differ by a rounding."""
    for unit in (False, True):
        points = Cloud(CLOUDS[cloud].astype(np.float32), np.arange(150), unit)
        for (_, *one, gap), (_, *other, other_gap) in zip(module.near_pairs(points, 7), module.near_pairs(Held(points, "cpu"), 7), strict=True):
            np.testing.assert_allclose(gap, other_gap, rtol=1e-9, atol=1e-12)
            for array, other_array in zip(one, other, strict=True):
                np.testing.assert_array_equal(array, other_array)


@pytest.mark.parametrize("index", ["ivf", "hnsw"])
def test_approximate_indexes_find_most_and_measure_exactly(index: Index) -> None:
    pytest.importorskip("faiss")
    x = np.random.default_rng(0).normal(size=(2000, 8)).astype(np.float32)
    found, squares = neighbors(x, np.arange(2000), 10, index=index)
    exact, _ = neighbors(x, np.arange(2000), 10)
    assert np.mean([len(np.intersect1d(one, other)) / 10 for one, other in zip(found, exact, strict=True)]) > 0.9
    np.testing.assert_allclose(squares, ((x[:, None].astype(np.float64) - x[found]) ** 2).sum(axis=2), rtol=1e-12)
    assert (np.diff(squares, axis=1) >= 0).all() and not (found == np.arange(2000)[:, None]).any()
    assert all(len(set(one.tolist())) == 10 for one in found)


@pytest.mark.parametrize("index", ["ivf", "hnsw"])
@pytest.mark.parametrize("dim", [5, 80])
@pytest.mark.parametrize("size", [2, 3, 40])
def test_approximate_indexes_of_few_rows_are_exact(index: Index, size: int, dim: int) -> None:
    pytest.importorskip("faiss")
    x = np.random.default_rng(2).normal(size=(size, dim)).astype(np.float32)
    np.testing.assert_array_equal(neighbors(x, np.arange(size), size - 1, index=index)[0], by_definition(x, size - 1)[0])


def folded(n: int, dim: int) -> npt.NDArray[np.float32]:
    """Points of a curved surface of 6 dimensions in many more, and noise."""
    rng = np.random.default_rng(3)
    surface = np.tanh(rng.normal(size=(n, 6)) @ rng.normal(size=(6, 40))) @ rng.normal(size=(40, dim))
    return (surface + 0.05 * rng.normal(size=(n, dim))).astype(np.float32)


def test_an_index_looks_along_as_few_components_as_find_the_neighbours() -> None:
    """Every 33rd point is a probe; of each the 10 nearest by definition, against the 20 nearest along the components taken and along the next fewer."""
    x = folded(2080, 300)
    projected = Projected.of(Cloud(x, np.arange(len(x))), 10)
    assert projected.basis is not None
    assert projected.dim in COMPONENTS
    np.testing.assert_allclose(projected.basis.T @ projected.basis, np.eye(projected.dim), atol=1e-5)

    def nearest(points: npt.NDArray[Any], probe: int, k: int) -> set[int]:
        return set(np.argsort(((points - points[probe]) ** 2).sum(axis=1))[: k + 1].tolist()) - {probe}

    def share(size: int) -> float:
        along = (x - x.mean(axis=0)) @ projected.basis.numpy()[:, :size]  # type: ignore[union-attr]
        return np.mean([len(nearest(along, probe, 20) & nearest(x, probe, 10)) / 10 for probe in range(0, 2080, 33)])  # type: ignore[return-value]

    assert share(projected.dim) >= 0.99
    assert projected.dim == COMPONENTS[0] or share(COMPONENTS[COMPONENTS.index(projected.dim) - 1]) < 0.99


def test_an_index_looks_along_all_where_none_lead() -> None:
    x = np.random.default_rng(0).normal(size=(1500, 300)).astype(np.float32)
    assert Projected.of(Cloud(x, np.arange(1500)), 10).basis is None
    assert Projected.of(Cloud(x[:, :63], np.arange(1500)), 10).dim == 63


@pytest.mark.parametrize("index", ["ivf", "hnsw"])
def test_along_few_directions_distances_are_still_those_of_all(index: Index) -> None:
    pytest.importorskip("faiss")
    x = folded(2080, 300)
    assert Projected.of(Cloud(x, np.arange(2080)), 10).dim < 300
    found, squares = neighbors(x, np.arange(2080), 10, index=index)
    exact, _ = neighbors(x, np.arange(2080), 10)
    assert np.mean([len(np.intersect1d(one, other)) / 10 for one, other in zip(found, exact, strict=True)]) > 0.9
    np.testing.assert_allclose(squares, ((x[:, None].astype(np.float64) - x[found]) ** 2).sum(axis=2), rtol=1e-12)


def test_without_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name == "faiss":
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    x = CLOUDS["gaussian"]
    assert neighbors(x, np.arange(150), 3)[0].shape == (150, 3)
    with pytest.raises(ValueError, match="an approximate index needs faiss, which is not installed: pip install faiss-cpu, or say index: exact"):
        neighbors(x, np.arange(150), 3, index="ivf")


@pytest.mark.parametrize("scale", [1e-150, 1e-30, 1, 1e30, 1e140])
@pytest.mark.parametrize("cloud", CLOUDS)
def test_contenders_hold_every_nearest(cloud: str, scale: float) -> None:
    x = CLOUDS[cloud] * scale
    targets, points = x[:40], x[40:]
    square = np.array([((point / scale - targets / scale) ** 2).sum(axis=1) for point in points]) * scale**2
    point, target = Targets(targets).contenders(points)
    kept = set(zip(point.tolist(), target.tolist(), strict=True))
    assert {(i, j) for i, j in np.argwhere(square == square.min(axis=1, keepdims=True)).tolist()} <= kept
    reach = np.median(square, axis=1) / 2
    point, target = Targets(targets).contenders(points, reach)
    kept = set(zip(point.tolist(), target.tolist(), strict=True))
    wanted = (square == square.min(axis=1, keepdims=True)) & (square <= reach[:, None])
    assert {(i, j) for i, j in np.argwhere(wanted).tolist()} <= kept


CLOSE = np.random.default_rng(5).normal(size=(40, 20))[np.arange(160) // 4] + 0.01 * np.random.default_rng(6).normal(size=(160, 20))  # in fours


@pytest.mark.usefixtures("fewer_bits")
def test_neighbours_where_torch_is_told_to_multiply_with_fewer_bits() -> None:
    expected = by_definition(CLOSE, 2)[0]
    np.testing.assert_array_equal(neighbors(CLOSE, np.arange(160), 2)[0], expected)
    for queries, query, other, square in module.near_pairs(Held(Cloud(CLOSE, np.arange(160)), "cpu"), 2):
        order = np.lexsort((square, query))
        first = np.searchsorted(query[order], np.arange(queries.stop - queries.start))
        np.testing.assert_array_equal(other[order[first[:, None] + np.arange(2)]], expected[queries])


@pytest.mark.usefixtures("fewer_bits")
def test_contenders_where_torch_is_told_to_multiply_with_fewer_bits() -> None:
    targets, points = CLOSE[np.arange(160) % 4 > 0], CLOSE[::4]
    square = ((points[:, None] - targets) ** 2).sum(axis=2)
    for reach in (None, 1.001 * square.min(axis=1)):
        point, target = Targets(targets).contenders(points, reach)
        assert set(enumerate(square.argmin(axis=1).tolist())) <= set(zip(point.tolist(), target.tolist(), strict=True))


def test_balls() -> None:
    square = ((CLOSE[:, None] - CLOSE) ** 2).sum(axis=2)
    for reach in (np.sort(square.ravel())[[200, 500, 5000]] * (1 + 1e-9)).tolist():
        np.testing.assert_array_equal(Balls(Cloud(CLOSE, np.arange(160)), "cpu").counts(np.arange(160), reach), (square < reach).sum(axis=1))


@pytest.mark.usefixtures("fewer_bits")
def test_balls_where_torch_is_told_to_multiply_with_fewer_bits() -> None:
    test_balls()


@pytest.mark.gpu
def test_a_gpu_finds_the_same(gpu: str) -> None:
    x = np.random.default_rng(0).normal(size=(9000, 30)).astype(np.float32)
    on_gpu, squares = neighbors(x, np.arange(9000), 10, device=gpu)
    expected, expected_squares = neighbors(x, np.arange(9000), 10)
    np.testing.assert_array_equal(on_gpu, expected)
    np.testing.assert_allclose(squares, expected_squares, rtol=1e-12)

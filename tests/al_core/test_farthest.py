"""Farthest-first traversal against its definition: all distances in float64, to every centre, for every pick."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from al_core import bounds, farthest, points, pool, sketches
from al_core.farthest import FarthestFirst, Priority, farthest_first
from al_core.points import Points

Doubles = npt.NDArray[np.float64]
Array = npt.NDArray[np.floating]


def by_definition(
    x: Array, rows: Sequence[int], centers: Sequence[int], budget: int, priority: Priority | None = None, dropped: Sequence[int] = (), *, unit: bool = False
) -> tuple[list[int], list[float]]:
    """The picks, and their squared distances at the time. Turns in `dropped` close a row and add no centre."""
    z = x.astype(np.float64)
    z = z / np.sqrt((z**2).sum(axis=1, keepdims=True)) if unit else z
    gap = np.array([min((((row - z[center]) ** 2).sum() for center in centers), default=np.inf) for row in z])
    left, picks, squares = sorted(rows), list[int](), list[float]()
    for turn in range(budget):
        value = priority(np.array(left), gap[left]) if priority and np.isfinite(gap).all() else gap[left]
        pick = left[int(np.argmax(value))]
        picks.append(pick)
        squares.append(float(gap[pick]))
        left.remove(pick)
        if turn not in dropped:
            gap = np.minimum(gap, ((z - z[pick]) ** 2).sum(axis=1))
    return picks, squares


def traversed(greedy: FarthestFirst, budget: int, dropped: Sequence[int] = ()) -> tuple[list[int], list[float]]:
    """The same from the code."""
    picks, squares = [], []
    for turn in range(budget):
        row, square = greedy.best()
        picks.append(row)
        squares.append(square)
        if turn in dropped:
            greedy.drop(row)
        else:
            greedy.take(row)
    return picks, squares


CLOUDS: dict[str, Callable[[np.random.Generator, int, int], Doubles]] = {
    "gaussian": lambda rng, n, d: rng.normal(size=(n, d)),
    "tight clusters": lambda rng, n, d: rng.normal(size=(7, d))[rng.integers(7, size=n)] + 1e-5 * rng.normal(size=(n, d)),
    "bundles in the middle": lambda rng, n, d: np.where(
        np.arange(n)[:, None] % 2, rng.normal(size=(n, d)), 0.2 * rng.normal(size=(3, d))[rng.integers(3, size=n)] + 1e-7 * rng.normal(size=(n, d))
    ),
    "far from the origin": lambda rng, n, d: rng.normal(size=(n, d)) + 3e4,
    "grid": lambda rng, n, d: rng.integers(0, 3, size=(n, d)).astype(np.float64),
    "triplets": lambda rng, n, d: np.repeat(rng.normal(size=(n // 3 + 1, d)), 3, axis=0)[:n],
    "lengths of many sizes": lambda rng, n, d: rng.normal(size=(n, d)) * np.exp(2 * rng.normal(size=(n, 1))),
    "an outlier": lambda rng, n, d: np.concatenate([rng.normal(size=(n - 1, d)), np.full((1, d), 6e4)]),
    "tiny": lambda rng, n, d: 1e-25 * rng.normal(size=(n, d)),
    "huge": lambda rng, n, d: 1e25 * rng.normal(size=(n, d)),
    "few directions": lambda rng, n, d: rng.normal(size=(n, 5)) @ rng.normal(size=(5, d)) + 1e-3 * rng.normal(size=(n, d)),
    "half zeros": lambda rng, n, d: rng.normal(size=(n, d)) * (rng.random(size=(n, 1)) < 0.5),
    "all the same": lambda rng, n, d: np.full((n, d), 1.7),
}
DTYPES = [np.float16, np.float32, np.float64]


def cloud(kind: str, rng: np.random.Generator, n: int, d: int, dtype: npt.DTypeLike) -> Array:
    """Such rows as float16 has room for, where it is asked for."""
    x = CLOUDS[kind](rng, n, d)
    return (np.clip(x, -6e4, 6e4) if dtype == np.float16 else x).astype(dtype)


def strained(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    """Blocks, products and looks ahead so short that few rows already take every turn of the code."""
    reach = int(rng.choice([16, 64]))
    for module in (bounds, farthest, points, sketches):
        monkeypatch.setattr(module, "REACH", reach)
    for module in (bounds, sketches):
        monkeypatch.setattr(module, "STRIP", int(rng.choice([64, 512])))
    for module in (farthest, sketches):
        monkeypatch.setattr(module, "SKETCH", 4)
        monkeypatch.setattr(module, "PAIR_COST", float(rng.choice([0, 0.1])))
    monkeypatch.setattr(farthest, "FIRST_REACH", int(rng.choice([2, 8])))
    monkeypatch.setattr(farthest, "AHEAD", int(rng.choice([1, 5, 64])))
    monkeypatch.setattr(farthest, "MANY", int(rng.choice([0, 5])))
    monkeypatch.setattr(farthest, "EVERY", int(rng.choice([2, 8])))
    monkeypatch.setattr(pool, "BLOCK_VALUES", int(rng.choice([3000, 20000])))


def small(greedy: FarthestFirst, size: int) -> FarthestFirst:
    """With a front of so many rows, and sketches from its first renewal on where the points are long enough."""
    greedy.size, greedy.wanted, greedy.patience = size, 8 * size, 0.0
    return greedy


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", CLOUDS)
@pytest.mark.parametrize(("seed", "n", "d"), [(0, 80, 3), (1, 90, 70)])
def test_against_the_definition(kind: str, dtype: npt.DTypeLike, seed: int, n: int, d: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(seed)
    x = cloud(kind, rng, n, d, dtype)
    strained(monkeypatch, rng)
    order = rng.permutation(n)
    centers, rows = np.sort(order[: (1, 20)[seed]]), np.sort(order[25:])
    expected = by_definition(x, rows.tolist(), centers.tolist(), len(rows))
    for size, budget in ((1, 15), (8, len(rows))):
        picks, squares = traversed(small(FarthestFirst(Points.of(x, unit=False), rows, centers), size), budget)
        assert picks == expected[0][:budget]
        np.testing.assert_allclose(squares, expected[1][:budget], rtol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["gaussian", "far from the origin", "lengths of many sizes", "few directions", "tiny", "huge"])
def test_directions_against_the_definition(kind: str, dtype: npt.DTypeLike, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    x = cloud(kind, rng, 100, 30, dtype)
    x[(x == 0).all(axis=1)] = np.arange(30)
    strained(monkeypatch, rng)
    expected = by_definition(x, range(1, 100), [0], 60, unit=True)
    picks, squares = traversed(small(FarthestFirst(Points.of(x, unit=True), np.arange(1, 100), np.array([0])), 4), 60)
    if kind == "tiny" and dtype == np.float16:  # nothing but zeros: all the same direction
        assert picks == list(range(1, 61))
    else:
        assert picks == expected[0]
    np.testing.assert_allclose(squares, expected[1], rtol=1e-9, atol=1e-30)


@pytest.mark.parametrize("weights", ["of all sizes", "in three steps", "some zero"])
@pytest.mark.parametrize("kind", ["gaussian", "grid", "triplets", "few directions"])
def test_priorities_and_drops(kind: str, weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    x = cloud(kind, rng, 150, 20, np.float32)
    strained(monkeypatch, rng)
    weight = rng.random(150)
    weight = np.round(weight * 3) / 3 if weights == "in three steps" else np.where(rng.random(150) < 0.3, 0, weight) if weights == "some zero" else weight

    def priority(rows: npt.NDArray[np.int64], square: Doubles) -> Doubles:
        value: Doubles = weight[rows] * square
        return value

    dropped = np.flatnonzero(rng.random(100) < 0.3).tolist()
    expected = by_definition(x, range(3, 150), [0, 1, 2], 100, priority, dropped)
    for size in (4, 16):
        greedy = small(FarthestFirst(Points.of(x, unit=False), np.arange(3, 150), np.arange(3), priority), size)
        picks, squares = traversed(greedy, 100, dropped)
        assert picks == expected[0]
        np.testing.assert_allclose(squares, expected[1], rtol=1e-12)


def test_without_centers_the_lowest_row_comes_first_and_priorities_are_not_asked() -> None:
    x = np.array([[3.0], [0], [1], [5]])

    def priority(rows: npt.NDArray[np.int64], square: Doubles) -> Doubles:
        assert np.isfinite(square).all()
        return square

    assert traversed(FarthestFirst(Points.of(x, unit=False), np.arange(1, 4), np.array([], np.int64), priority), 3) == ([1, 3, 2], [np.inf, 25, 1])


def test_a_row_that_is_not_the_best_may_be_taken() -> None:
    x = np.random.default_rng(5).normal(size=(100, 10))
    greedy = small(FarthestFirst(Points.of(x, unit=False), np.arange(1, 100), np.array([0])), 8)
    greedy.best()
    for row in (57, 3, 99):
        greedy.take(row)
    rest = sorted(set(range(100)) - {0, 57, 3, 99})
    assert traversed(greedy, 50)[0] == by_definition(x, rest, [0, 57, 3, 99], 50)[0]


def test_nothing_is_open_in_the_end() -> None:
    greedy = FarthestFirst(Points.of(np.zeros((3, 2)), unit=False), np.array([1, 2]), np.array([0]))
    assert greedy.best() == (1, 0.0)
    greedy.take(1)
    greedy.drop(2)
    assert greedy.best() == (-1, -1.0)


@pytest.mark.parametrize("scale", [1e-140, 1e-60, 1e60, 1e140])
def test_float64_at_its_limits(scale: float) -> None:
    x = np.random.default_rng(6).normal(size=(80, 12)) * np.exp2(np.round(np.log2(scale)))
    expected = by_definition(x, range(1, 80), [0], 79)
    picks, squares = traversed(FarthestFirst(Points.of(x, unit=False), np.arange(1, 80), np.array([0])), 79)
    assert picks == expected[0]
    np.testing.assert_allclose(squares, expected[1], rtol=1e-12)


@pytest.mark.parametrize("directions", [5, 300])
def test_sketches_are_made_where_they_pay_and_change_nothing(directions: int) -> None:
    rng = np.random.default_rng(7)
    x = rng.normal(size=(1500, directions)) @ rng.normal(size=(directions, 300)) + 0.3 * rng.normal(size=(1500, 300))
    plain, hasty = (FarthestFirst(Points.of(x.astype(np.float32), unit=False), np.arange(1, 1500), np.array([0])) for _ in range(2))
    plain.patience, hasty.patience = np.inf, 0.0
    assert traversed(hasty, 700) == traversed(plain, 700)
    assert plain.sketches is None
    assert (hasty.sketches is not None) == (directions == 5)  # 64 numbers tell little of points that lie in 300 directions alike


def test_centers_that_float32_cannot_tell_apart() -> None:
    x = cloud("bundles in the middle", np.random.default_rng(8), 200, 70, np.float64)
    expected = by_definition(x, range(60, 200), range(60), 50)
    picks, squares = traversed(FarthestFirst(Points.of(x, unit=False), np.arange(60, 200), np.arange(60)), 50)
    assert picks == expected[0]
    np.testing.assert_allclose(squares, expected[1], rtol=1e-12)


@pytest.mark.parametrize("kind", ["gaussian", "grid", "tight clusters"])
def test_pairs_within_a_distance(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(8)
    x = cloud(kind, rng, 90, 5, np.float32)
    strained(monkeypatch, rng)
    rows, others = np.arange(0, 90, 2), np.arange(30, 90)
    square = ((x[rows, None].astype(np.float64) - x[others]) ** 2).sum(axis=2)
    limit = float(np.sort(square.ravel())[700])
    found = list(Points.of(x, unit=False).within(rows, others, limit))
    row, other, distance = (np.concatenate([part[i] for part in found]) for i in range(3))
    assert sorted(zip(row.tolist(), other.tolist(), strict=True)) == [tuple(pair) for pair in np.argwhere(square <= limit).tolist()]
    np.testing.assert_allclose(distance, square[row, other], rtol=1e-12)


@pytest.mark.parametrize("kind", CLOUDS)
def test_nearest_to_the_mean(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(9)
    x = cloud(kind, rng, 150, 12, np.float64)
    strained(monkeypatch, rng)
    rows = np.sort(rng.permutation(150)[:140])
    apart = ((x[rows] - x[rows].mean(axis=0)) ** 2).sum(axis=1)
    found = Points.of(x, unit=False).nearest_mean(rows)
    assert apart[rows == found][0] <= apart.min() * (1 + 1e-9)  # one of the nearest; means summed in another order differ


def test_memory_maps_are_not_copied(tmp_path: Path) -> None:
    x = np.memmap(tmp_path / "x", np.float16, "w+", shape=(300, 20))
    x[:] = np.random.default_rng(10).normal(size=x.shape)
    x.flush()
    x = np.memmap(tmp_path / "x", np.float16, "r", shape=(300, 20))
    made = Points.of(x, unit=False)
    assert made.resident is not None and made.resident.data_ptr() == x.ctypes.data
    picks, _, _ = farthest_first(made, np.arange(1, 300), np.array([0]), 100)
    assert picks.tolist() == by_definition(x, range(1, 300), [0], 100)[0]


@pytest.mark.parametrize("view", ["reversed", "columns first", "every other column"])
def test_however_embeddings_lie(view: str) -> None:
    x = np.random.default_rng(11).normal(size=(120, 30)).astype(np.float32)
    lying: dict[str, Any] = {"reversed": x[::-1], "columns first": np.asfortranarray(x), "every other column": x[:, ::2]}
    picks, _, _ = farthest_first(Points.of(lying[view], unit=False), np.arange(1, 120), np.array([0]), 60)
    assert picks.tolist() == by_definition(lying[view], range(1, 120), [0], 60)[0]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", CLOUDS)
def test_a_gpu_picks_what_the_cpu_picks(kind: str, dtype: npt.DTypeLike, gpu: str) -> None:
    x = cloud(kind, np.random.default_rng(12), 3000, 300, dtype)
    one, other = (small(FarthestFirst(Points.of(x, unit=False, device=device), np.arange(1, 3000), np.array([0])), 64) for device in ("cpu", gpu))
    assert traversed(one, 500) == traversed(other, 500)

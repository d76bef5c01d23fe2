"""Bounds on squared distances, against the distances themselves in extended precision, for vectors that make float32 err."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from al_core import bounds, sketches
from al_core.bounds import Bounded, Contest, pairs, product, smallest
from al_core.points import Points
from al_core.sketches import Sketching

RNG = np.random.default_rng(0)


def vectors(kind: str, n: int, d: int) -> npt.NDArray[np.float64]:
    """Rows whose distances float32 gets wrong in one way each."""
    x = RNG.normal(size=(n, d))
    if kind == "far from the origin":
        return x + 1e6
    if kind == "nearly coincident":
        return x[:1] + 1e-7 * x
    if kind == "lengths of many sizes":
        return x * 10.0 ** RNG.uniform(-24, 14, size=(n, 1))
    if kind == "some too long for float32":
        return np.where(np.arange(n)[:, None] % 4, x, 1e17 * x)
    if kind == "all of one sign":  # every rounding may go the same way
        return np.abs(x) + 1 / 3
    if kind == "coordinates of many sizes":
        return x * 10.0 ** RNG.uniform(-30, 6, size=(1, d))
    if kind == "subnormal":
        return x * 2e-39
    if kind == "twins":
        return np.repeat(x[: n // 2 + 1], 2, axis=0)[:n]
    return x


KINDS = [
    "gaussian",
    "far from the origin",
    "nearly coincident",
    "lengths of many sizes",
    "some too long for float32",
    "all of one sign",
    "coordinates of many sizes",
    "subnormal",
    "twins",
]


def points(kind: str, d: int, dtype: npt.DTypeLike, *, unit: bool) -> tuple[Points, npt.NDArray[np.float64]]:
    """As points, and their coordinates as these are measured."""
    with np.errstate(over="ignore", under="ignore"):
        x = np.clip(vectors(kind, 40, d), -6e4, 6e4).astype(dtype) if dtype == np.float16 else vectors(kind, 40, d).astype(dtype)
    x[(x == 0).all(axis=1)] = 1  # no direction
    made = Points.of(x, unit=unit)
    return made, made[np.arange(40)]


def squares(x: npt.NDArray[np.float64]) -> npt.NDArray[np.longdouble]:
    """(n, n), each difference rounded once in extended precision."""
    wide = x.astype(np.longdouble)
    return np.array([((wide - row) ** 2).sum(axis=1) for row in wide])


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("d", [1, 63, 700])
@pytest.mark.parametrize("kind", KINDS)
def test_squared_distances_lie_between_the_bounds(kind: str, d: int, dtype: npt.DTypeLike, unit: bool) -> None:
    made, x = points(kind, d, dtype, unit=unit)
    mine = made.bounded(np.arange(40))
    lean = product(mine, mine)
    lower = mine.lower(lean.numpy())
    exact = squares(x) * made.unit
    assert (lower <= exact).all()
    row, other = (each.ravel() for each in np.indices((40, 40)))
    upper = mine[row].upper(lean.numpy().ravel().astype(np.float64), mine, other).reshape(40, 40)
    assert (exact <= upper).all()
    low, high = (each.reshape(40, 40) for each in mine.alone(row, mine, other))
    assert (low <= exact).all() and (exact <= high).all()
    limit = np.median(exact, axis=1).astype(np.float64)
    assert mine.within(lean, np.arange(40), limit).numpy()[exact <= limit[:, None]].all()


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("d", [5, 300])
@pytest.mark.parametrize("kind", KINDS)
def test_sketches_are_never_farther_apart_than_points(kind: str, d: int, dtype: npt.DTypeLike, unit: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sketches, "SKETCH", 5)
    made, x = points(kind, d, dtype, unit=unit)
    sketched = Sketching.of(made)(np.arange(40))
    assert (sketched.lower(product(sketched, sketched).numpy()) <= squares(x) * made.unit).all()


def test_sketches_tell_points_of_few_dimensions_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sketches, "SKETCH", 8)
    x = RNG.normal(size=(60, 4)) @ RNG.normal(size=(4, 200)) + 0.3 * RNG.normal(size=(60, 200))
    made = Points.of(x, unit=False)
    sketched = Sketching.of(made)(np.arange(60))
    exact = squares(x) * made.unit
    assert (sketched.lower(product(sketched, sketched).numpy()) >= 0.98 * exact - 0.02 * exact.max()).all()


def test_bounds_are_close_where_float32_is() -> None:
    x = RNG.normal(size=(50, 300)).astype(np.float32)
    made = Points.of(x, unit=False)
    mine = made.bounded(np.arange(50))
    lower = mine.lower(product(mine, mine).numpy())
    exact = squares(x.astype(np.float64)) * made.unit
    off = ~np.eye(50, dtype=bool)
    assert (lower[off] >= 0.99 * exact[off]).all()


@pytest.mark.parametrize("kind", ["gaussian", "all of one sign"])
@pytest.mark.usefixtures("fewer_bits")
def test_bounds_hold_where_torch_is_told_to_multiply_with_fewer_bits(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sketches, "SKETCH", 5)
    made, x = points(kind, 300, np.float32, unit=False)
    exact = squares(x) * made.unit
    for mine in (made.bounded(np.arange(40)), Sketching.of(made)(np.arange(40))):
        assert (mine.lower(product(mine, mine).numpy()) <= exact).all()


def test_contests() -> None:
    row = np.array([7, 3, 7, 3, 7])
    low, high = np.array([1.0, 5, 2, 9, 8]), np.array([4.0, 6, 3, 10, 9])
    contest = Contest(row, low, high)
    assert contest.leader.tolist() == [1, 2]  # of row 3 and of row 7 the lowest upper bound
    assert contest.open.tolist() == [True, True, True, False, False]
    assert contest.rivals.tolist() == [1, 2]


def test_pairs_and_smallest() -> None:
    mask = torch.tensor([[True, False, True], [False, True, False]])
    assert [each.tolist() for each in pairs(mask)] == [[0, 0, 1], [0, 2, 1]]
    assert [each.tolist() for each in pairs(mask, but=np.array([2, 1]))] == [[0], [0]]
    assert [each.tolist() for each in smallest(torch.tensor([[3.0, 1, 1], [0, 2, 0]]))] == [[1, 0], [1, 0]]


def test_growing_centers() -> None:
    x = RNG.normal(size=(30, 6)).astype(np.float32)
    made = Points.of(x, unit=False)
    centers = bounds.Centers(made.bounded, np.array([4]))
    for row in (9, 2, 7):
        centers.add(row)
        assert centers[0 : len(centers)].v.numpy().tolist() == made.bounded(centers.rows).v.numpy().tolist()
    assert centers.rows.tolist() == [4, 9, 2, 7]
    assert isinstance(centers[1:3], Bounded) and len(centers[1:100].low) == 3


def test_many_new_centers_are_read_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "REACH", 16)
    made = Points.of(vectors("lengths of many sizes", 100, 6), unit=False)
    asked = list[int]()

    def of(rows: npt.NDArray[np.int64]) -> Bounded:
        asked.append(len(rows))
        return made.bounded(rows)

    centers, expected = bounds.Centers(of, np.arange(80)), made.bounded(np.arange(100))
    for count in (80, 100):
        for row in range(len(centers), count):
            centers.add(row)
        held = centers[0:count]
        for one, other in ((held.v.numpy(), expected.v.numpy()), (held.low, expected.low), (held.high, expected.high)):
            np.testing.assert_array_equal(one, other[:count])
        assert centers.doubt == expected.doubt[:count].max()
    assert sum(asked) == 100 and max(asked) == 16

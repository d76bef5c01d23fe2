"""Robust k-center against all choices of a small pool, one by one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from al_core import Pool, Selection, select
from al_core.methods import robust_coreset
from al_core.methods.robust_coreset import Search, filled
from al_core.points import Points

Doubles = npt.NDArray[np.float64]


def robust(x: Doubles, budget: int, labeled: Sequence[int] = (), excluded: Sequence[int] = (), **params: object) -> Selection:
    return select("robust-coreset", Pool(embeddings=x, labeled=labeled, excluded=excluded), budget=budget, seed=0, **params)


def radius(x: Doubles, available: Sequence[int], centers: Sequence[int], spare: int) -> float:
    """Distance from the centres within which all available rows but `spare` lie."""
    nearest = [min(float(np.sqrt(((x[row] - x[center]) ** 2).sum())) for center in centers) for row in available]
    return sorted(nearest, reverse=True)[spare]


def pool_of(seed: int) -> tuple[Doubles, list[int], list[int], int, int]:
    """Ten rows, some labelled, some excluded; a budget, and how many may be left aside."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 4, size=(10, 2)).astype(np.float64) if seed % 5 == 0 else rng.normal(size=(10, 2)) * np.exp(rng.normal(size=(10, 1)))
    return x, list(range(int(rng.integers(3)))), [9] if seed % 3 == 0 else [], int(rng.integers(1, 5)), int(rng.integers(3))


@pytest.mark.parametrize("seed", range(60))
def test_no_choice_is_better(seed: int) -> None:
    x, labeled, excluded, budget, spare = pool_of(seed)
    available = [row for row in range(10) if row not in labeled and row not in excluded]
    best = min(radius(x, available, [*labeled, *choice], spare) for choice in combinations(available, budget))
    selection = robust(x, budget, labeled, excluded, outliers=spare / len(available))
    assert radius(x, available, [*labeled, *selection.rows], spare) == pytest.approx(best, rel=1e-12)
    info = dict(selection.info)
    assert (info["result"], info["outliers"]) == ("optimal", spare)
    assert (info["radius"], info["bound"]) == (pytest.approx(best, rel=1e-12), pytest.approx(best, rel=1e-12))
    greedy = select("coreset", Pool(embeddings=x, labeled=labeled, excluded=excluded), budget=budget, seed=0).rows
    assert info["greedy_radius"] == pytest.approx(radius(x, available, [*labeled, *greedy], spare), rel=1e-12)


@pytest.mark.parametrize("seed", range(0, 60, 7))
def test_picks_come_farthest_first(seed: int) -> None:
    x, labeled, excluded, budget, spare = pool_of(seed)
    selection = robust(x, budget, labeled, excluded, outliers=spare / 10)
    seen, left = list(labeled), set(selection.rows.tolist())
    for row, score in zip(selection.rows.tolist(), selection.scores.tolist(), strict=True):
        if seen:
            far = {other: radius(x, [other], seen, 0) for other in left}
            assert score == pytest.approx(max(far.values()), rel=1e-12) and row == min(each for each, value in far.items() if value == max(far.values()))
        else:
            assert np.isnan(score)
        seen.append(row)
        left.remove(row)


LINE = np.array([[0.0], [1], [2], [10], [11], [12], [100]])


def test_by_hand() -> None:
    """Greedy begins in the middle and goes for the outlier; the best choice leaves it aside."""
    selection = robust(LINE, 2, outliers=0.15)
    assert selection.rows.tolist() == [1, 4]  # both as near to their mean: the lower row first
    assert selection.info == {"result": "optimal", "radius": 1.0, "bound": 1.0, "greedy_radius": 11.0, "outliers": 1}
    assert robust(LINE, 2, labeled=[1], outliers=0).rows.tolist() == [6, 4]
    assert robust(LINE, 1, labeled=[1], outliers=0.2).rows.tolist() == [4]


def test_more_picks_than_are_needed_leave_outliers_to_the_last() -> None:
    points, pool = Points.of(LINE, unit=False), Pool(embeddings=LINE)
    assert filled(points, pool, np.array([1, 4]), 4, square=1.0).tolist() == [1, 4, 0, 2]
    assert filled(points, pool, np.array([1, 4]), 7, square=1.0).tolist() == [1, 4, 0, 2, 3, 5, 6]
    assert sorted(robust(LINE, 7, outliers=0.15).rows.tolist()) == list(range(7))


def test_identical_rows() -> None:
    selection = robust(np.ones((20, 3)), 4, labeled=[5])
    assert selection.rows.tolist() == [0, 1, 2, 3]
    assert selection.info == {"result": "optimal", "radius": 0.0, "bound": 0.0, "greedy_radius": 0.0, "outliers": 0}


def test_directions() -> None:
    x = np.array([[1.0, 0], [50, 1], [0, 2], [1, 40], [3, 3]])
    assert sorted(robust(x, 2, labeled=[4], normalize=True).rows.tolist()) in ([0, 2], [0, 3], [1, 2], [1, 3])
    with pytest.raises(ValueError, match="embeddings hold only zeros in row 1"):
        robust(np.array([[1.0], [0], [2]]), 1, normalize=True)


@pytest.mark.parametrize("alike", [0, 20])
def test_the_order_of_the_rows_changes_no_pick(alike: int) -> None:
    x = np.hstack([np.ones((30, alike)), np.random.default_rng(0).normal(size=(30, 2))])  # so many coordinates in which all rows agree
    order = np.random.default_rng(100).permutation(30)
    there, here = robust(x[order], 5, outliers=0.05), robust(x, 5, outliers=0.05)
    assert here.info["result"] == "optimal" and here.info["radius"] < here.info["greedy_radius"]  # type: ignore[operator]
    assert order[there.rows].tolist() == here.rows.tolist()


def test_no_time_gives_the_greedy_picks() -> None:
    x = np.random.default_rng(0).normal(size=(40, 3))
    selection = robust(x, 6, labeled=[0], time_limit=1e-9)
    assert selection.rows.tolist() == select("coreset", Pool(embeddings=x, labeled=[0]), budget=6, seed=0).rows.tolist()
    info = dict(selection.info)
    assert info["result"] == "greedy" and "why" not in info
    assert info["radius"] == info["greedy_radius"] == 2 * info["bound"]  # type: ignore[operator]


def test_what_is_found_before_time_runs_out_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).normal(size=(40, 3))
    best = robust(x, 6, labeled=[0]).info["radius"]
    real, asked = Search.cover, list[float]()

    def cover(self: Search, square: float) -> object:
        chosen = real(self, square)
        asked.append(square)
        if len(asked) > 1 and self.best < greedy**2:
            raise TimeoutError
        return chosen

    greedy = float(robust(x, 6, labeled=[0]).info["greedy_radius"])  # type: ignore[arg-type]
    monkeypatch.setattr(Search, "cover", cover)
    info = dict(robust(x, 6, labeled=[0]).info)
    assert info["result"] == "time limit"
    assert info["bound"] <= best <= info["radius"] < info["greedy_radius"] == greedy  # type: ignore[operator]


@pytest.mark.parametrize("solved_before", [0, 1])
def test_a_solver_that_gives_up_is_quoted(solved_before: int, monkeypatch: pytest.MonkeyPatch) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    x = np.random.default_rng(0).normal(size=(40, 3))
    best = robust(x, 6, labeled=[0], outliers=0.05).info["radius"]
    real, chosen = optimize.milp, list[object]()

    def milp(*arguments: Any, **options: Any) -> Any:
        solved = real(*arguments, **options)
        if len(chosen) < solved_before:
            chosen.extend([solved] if solved.status == 0 else [])
            return solved
        return optimize.OptimizeResult(status=4, message="numerical difficulties encountered", x=None)

    monkeypatch.setattr(optimize, "milp", milp)
    info = dict(robust(x, 6, labeled=[0], outliers=0.05).info)
    assert (info["result"], info["why"]) == (("greedy", "unfinished")[solved_before], "the solver gave up: numerical difficulties encountered")
    assert info["bound"] <= best <= info["radius"] <= info["greedy_radius"]  # type: ignore[operator]
    assert (info["radius"] < info["greedy_radius"]) == bool(solved_before)  # type: ignore[operator]


@pytest.mark.parametrize(("pairs", "number"), [(100, "about "), (None, "more than ")])
def test_too_many_pairs_are_left_to_greedy(pairs: int | None, number: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).normal(size=(40, 3))
    if pairs is None:  # just too few: they are counted
        greedy = float(robust(x, 6, labeled=[0]).info["greedy_radius"])  # type: ignore[arg-type]
        pairs = int((((x[1:, None] - x[1:]) ** 2).sum(axis=2) <= greedy**2).sum()) - 1
        number += f"{pairs:,}"
    monkeypatch.setattr(robust_coreset, "PAIRS", pairs)
    selection = robust(x, 6, labeled=[0])
    assert selection.rows.tolist() == select("coreset", Pool(embeddings=x, labeled=[0]), budget=6, seed=0).rows.tolist()
    assert selection.info["result"] == "greedy"
    why = str(selection.info["why"])
    assert why.startswith(number)
    assert why.endswith(f" pairs of rows lie within the greedy radius, and the program is made for {pairs:,} at most; use partitions")


@pytest.mark.parametrize("outliers", [-0.1, 1.0])
def test_shares_of_outliers(outliers: float) -> None:
    with pytest.raises(ValueError, match=rf"robust-coreset: outliers is {outliers}; expected a share from 0, below 1"):
        robust(LINE, 1, outliers=outliers)


@pytest.mark.parametrize("time_limit", [0.0, -1.0])
def test_time_limits(time_limit: float) -> None:
    with pytest.raises(ValueError, match=rf"robust-coreset: time_limit is {time_limit}; expected seconds above 0"):
        robust(LINE, 1, time_limit=time_limit)


def test_without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robust_coreset, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="robust-coreset solves its programs with scipy, which is not installed; pip install scipy, or use coreset"):
        robust(LINE, 1)

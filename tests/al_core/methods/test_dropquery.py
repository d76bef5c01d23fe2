"""DropQuery against its definition: dropout row by row, candidates counted, k-means' clusters looked through one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from al_core import Pool, Selection, select
from al_core.kmeans import kmeans
from al_core.methods.dropquery import DropQuery

Doubles = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]


def times_changed(x: Doubles, weight: Doubles, bias: Doubles, passes: int, dropout: float, rng: np.random.Generator) -> Int:
    """(n,) passes in which the class is another: each coordinate is 0 with probability `dropout`, or scaled up so that its mean stays."""

    def predicted(row: Doubles) -> int:
        return int(np.argmax([float(np.dot(each, row)) + shift for each, shift in zip(weight, bias, strict=True)]))

    changed = np.zeros(len(x), dtype=np.int64)
    for _ in range(passes):
        for i in range(len(x)):
            kept = [0.0 if rng.random() < dropout else value / (1 - dropout) for value in x[i]]
            changed[i] += predicted(np.array(kept)) != predicted(x[i])
    return changed


def threshold(changed: Int, passes: int, budget: int) -> int:
    """Of passes that a candidate changes in: more than half, then fewer while there are not 25 candidates a pick, but at least one."""
    tried = range(passes // 2 + 1, 0, -1)
    return next((least for least in tried if (changed >= least).sum() >= 25 * budget), 1)


def signals(seed: int, rows: int = 150) -> tuple[Doubles, Doubles, Doubles]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, 8)) + 1, rng.normal(size=(4, 8)), rng.normal(size=4)


@pytest.mark.parametrize(("passes", "dropout"), [(3, 0.75), (1, 0.3), (6, 0.5)])
@pytest.mark.parametrize("budget", [1, 3, 20])
@pytest.mark.parametrize("seed", range(2))
def test_picks_against_the_definition(seed: int, budget: int, passes: int, dropout: float) -> None:
    x, weight, bias = signals(seed)
    given = np.random.default_rng(seed).permutation(150)
    pool = Pool(embeddings=x, head=(weight, bias), labeled=given[: 10 * seed], excluded=given[100:110])
    rows = pool.available
    found = DropQuery(passes=passes, dropout=dropout)(pool, budget, np.random.default_rng(4))
    rng = np.random.default_rng(4)
    changed = times_changed(x[rows], weight, bias, passes, dropout, rng)
    least = threshold(changed, passes, budget)
    candidates = rows[changed >= least]
    assert found.info == {"candidates": len(candidates), "changes_of_a_candidate": least}
    clusters = kmeans(x, candidates, budget, rng, unit=True, iterations=100)
    unit = x[candidates] / np.sqrt((x[candidates] ** 2).sum(axis=1, keepdims=True))
    nearest = []
    for number in sorted(range(budget), key=lambda number: (-clusters.counts[number], number)):
        members = np.flatnonzero(clusters.assignment == number)
        away = [float(((unit[member] - clusters.centers[number]) ** 2).sum()) for member in members]
        nearest.append(int(candidates[min(member for member, gap in zip(members, away, strict=True) if gap < min(away) + 1e-12)]))
    np.testing.assert_array_equal(found.rows, nearest)
    np.testing.assert_array_equal(found.scores, changed[np.searchsorted(rows, found.rows)] / passes)


def query(x: Doubles, head: tuple[Doubles, Doubles], budget: int, labeled: Sequence[int] = (), seed: int = 0, **params: Any) -> Selection:
    return select("dropquery", Pool(embeddings=x, head=head, labeled=labeled), budget=budget, seed=seed, **params)


def one_coordinate_decides(rows: int) -> tuple[Doubles, tuple[Doubles, Doubles]]:
    """Of even rows the class is 1 while coordinate 0 is not dropped; of odd rows it is 0 whatever is dropped."""
    x = np.random.default_rng(6).normal(size=(rows, 3))
    x[:, 0] = np.where(np.arange(rows) % 2 == 0, 2.0, -2.0)
    return x, (np.array([[0.0, 0, 0], [1, 0, 0]]), np.array([0.0, -1]))


def test_only_rows_that_change_are_candidates() -> None:
    """An even row changes in a pass with probability 0.75, so in two of three or more with 27/32."""
    x, head = one_coordinate_decides(4000)
    found = query(x, head, 20, labeled=range(1000))
    assert (found.rows % 2 == 0).all() and (found.scores >= 2 / 3).all()
    assert found.info["changes_of_a_candidate"] == 2
    assert found.info["candidates"] == pytest.approx(1500 * 27 / 32, abs=5 * np.sqrt(1500 * 27 / 32 * 5 / 32))


def test_too_few_candidates_bring_in_those_that_change_less() -> None:
    x, head = one_coordinate_decides(2000)
    assert query(x, head, 30).info["changes_of_a_candidate"] == 2  # some 840 of 1000, and 750 are plenty
    wider = query(x, head, 38)  # 950 are plenty; some 984 of 1000 change at least once
    assert wider.info["changes_of_a_candidate"] == 1
    assert wider.info["candidates"] == pytest.approx(1000 * 63 / 64, abs=20)


def test_where_candidates_run_out_others_are_drawn() -> None:
    x, head = one_coordinate_decides(40)
    found = query(x, head, 30)
    number = found.info["candidates"]
    assert isinstance(number, int) and number <= 20
    assert (found.rows[:number] % 2 == 0).all() and (found.scores[:number] > 0).all()
    assert (found.scores[number:] == 0).all()
    assert not np.array_equal(found.rows[number:], query(x, head, 30, seed=1).rows[number:])


def test_a_head_that_nothing_changes_draws_at_random() -> None:
    x = np.random.default_rng(0).normal(size=(50, 3))
    head = np.zeros((2, 3)), np.array([1.0, 0])
    found = query(x, head, 10)
    assert found.info == {"candidates": 0, "changes_of_a_candidate": 1}
    np.testing.assert_array_equal(found.scores, 0.0)
    assert not np.array_equal(found.rows, query(x, head, 10, seed=1).rows)


def test_candidates_in_fewer_places_than_picks() -> None:
    """Each place gives one first, the rest is drawn from the other candidates."""
    x, head = one_coordinate_decides(300)
    x[:, 1:] = np.arange(300)[:, None] % 4 // 2 * np.array([3.0, 0])
    found = query(x, head, 12)
    assert set((found.rows[:2] % 4).tolist()) == {0, 2}
    assert (found.rows % 2 == 0).all()


def test_the_largest_cluster_comes_first() -> None:
    x, head = one_coordinate_decides(400)
    x[:, 1:] = np.where(np.arange(400)[:, None] < 300, np.array([20.0, 0]), np.array([0, 20.0]))
    found = query(x, head, 2)
    assert [row < 300 for row in found.rows] == [True, False]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"passes": 0}, "dropquery: passes is 0; expected at least 1"),
        ({"dropout": 0.0}, "dropquery: dropout is 0.0; expected above 0 and below 1"),
        ({"dropout": 1.0}, "dropquery: dropout is 1.0; expected above 0 and below 1"),
    ],
)
def test_parameters_that_cannot_be(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        query(*one_coordinate_decides(10), 1, **params)
    assert str(error.value) == message


def test_one_class_is_refused() -> None:
    with pytest.raises(ValueError) as error:
        query(np.ones((3, 2)), (np.ones((1, 2)), np.ones(1)), 1)
    assert str(error.value) == "head has 1 class; a model needs at least 2 for its prediction to change"

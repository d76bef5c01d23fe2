"""BatchBALD against the mutual information of all answers and the pass, summed over every combination of answers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from al_core import Pool, Selection, select

Doubles = npt.NDArray[np.float64]


def information(p: Doubles, rows: Sequence[int]) -> float:
    """I(y_rows; pass) = H(y_rows) - E H(y_rows | pass), the joint distribution written out."""
    passes, _, classes = p.shape
    joint, within = 0.0, 0.0
    for answer in itertools.product(range(classes), repeat=len(rows)):
        of_pass = [math.prod(float(p[k, row, c]) for row, c in zip(rows, answer, strict=True)) for k in range(passes)]
        mean = math.fsum(of_pass) / passes
        joint -= mean * math.log(mean) if mean else 0
        within -= math.fsum(each * math.log(each) for each in of_pass if each) / passes
    return joint - within


def greedy(p: Doubles, rest: Sequence[int], budget: int) -> tuple[list[int], list[float]]:
    """Each pick raises the information of the batch most; ties by lowest row."""
    picks: list[int] = []
    total = [0.0]
    for _ in range(budget):
        value = {row: round(information(p, [*picks, row]), 11) for row in rest if row not in picks}
        picks.append(max(value, key=lambda row: (value[row], -row)))
        total.append(information(p, picks))
    return picks, np.diff(total).tolist()


def softmax(logits: Doubles) -> Doubles:
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(exp / exp.sum(axis=-1, keepdims=True))


def choose(p: npt.NDArray[np.floating], budget: int, seed: int = 0, **params: Any) -> Selection:
    where = {key: params.pop(key) for key in ("labeled", "excluded") if key in params}
    return select("batchbald", Pool(mc_probs=p, **where), budget=budget, seed=seed, **params)


RNG = np.random.default_rng(0)
CASES: dict[str, Doubles] = {
    "ordinary": softmax(RNG.normal(size=(5, 14, 3)) * 2),
    "two classes": softmax(RNG.normal(size=(8, 14, 2)) * 2),
    "one-hot": np.eye(3)[RNG.integers(3, size=(6, 14))],
    "with zeros": softmax(np.where(RNG.uniform(size=(5, 14, 3)) < 0.3, -np.inf, RNG.normal(size=(5, 14, 3))) + np.log([1, 1e-9, 1e-9])),
    "twins": np.repeat(softmax(RNG.normal(size=(5, 7, 3)) * 2), 2, axis=1),
}
CASES["with zeros"][np.isnan(CASES["with zeros"])] = 1 / 3


@pytest.mark.parametrize("case", CASES)
def test_against_the_joint_distribution(case: str) -> None:
    p = CASES[case]
    rows, gains = greedy(p, range(2, 13), budget=4)
    selection = choose(p, 4, labeled=[0, 13], excluded=[1])
    assert selection.rows.tolist() == rows
    np.testing.assert_allclose(selection.scores, gains, rtol=1e-9, atol=1e-10)
    assert selection.info["information"] == pytest.approx(information(p, rows), rel=1e-9)
    assert selection.info["exact"] == 4 and selection.info["candidates"] == 11 and selection.info["most"] == math.log(len(p))


def test_the_first_pick_is_that_of_bald_and_gains_never_rise() -> None:
    p = softmax(np.random.default_rng(1).normal(size=(10, 200, 4)) * 2)
    first = select("bald", Pool(mc_probs=p), budget=1, seed=0)
    selection = choose(p, 5, samples=4**4)
    assert selection.rows[0] == first.rows[0] and selection.scores[0] == pytest.approx(first.scores[0], rel=1e-12)
    assert (np.diff(selection.scores) < 0).all() and selection.info["exact"] == 5


HALVES = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [0, 1, 0, 1], [0, 1, 0, 1], [0, 0, 0, 0]])  # what four passes say of five rows


def test_rows_that_split_the_passes_otherwise_come_before_twins() -> None:
    p = np.eye(2)[HALVES.T]
    selection = choose(p, 5)
    assert selection.rows.tolist() == [0, 2, 1, 3, 4]
    np.testing.assert_allclose(selection.scores, [math.log(2), math.log(2), 0, 0, 0], atol=1e-15)
    assert select("bald", Pool(mc_probs=p), budget=2, seed=0).rows.tolist() == [0, 1]


@pytest.mark.parametrize("samples", [1, 4000])
def test_a_pool_of_duplicates_is_not_bought_twice(samples: int) -> None:
    """As in Repeated-MNIST: every row five times. The highest BALD scores are all copies of few rows."""
    once = softmax(np.random.default_rng(2).normal(size=(10, 40, 3)) * 5)
    p = np.repeat(once, 5, axis=1)
    bald = select("bald", Pool(mc_probs=p), budget=6, seed=0)
    assert len(set((bald.rows // 5).tolist())) == 2
    assert len(set((choose(p, 6, samples=samples).rows // 5).tolist())) == 6
    assert choose(p, 6).scores.sum() > information(p, bald.rows.tolist()) * 1.2


def test_how_many_picks_are_exact() -> None:
    p = softmax(np.random.default_rng(3).normal(size=(4, 20, 3)))
    for samples, exact in ((1, 1), (2, 1), (3, 2), (8, 2), (9, 3), (26, 3), (27, 4), (81, 5), (1000, 6)):
        selection = choose(p, 6, samples=samples)
        assert selection.info["exact"] == exact
        np.testing.assert_allclose(selection.scores[:exact], choose(p, exact, samples=10**6).scores, rtol=1e-12)


def test_drawn_answers_err_only_by_chance() -> None:
    """Over many seeds the mean of the last pick's gain is the exact one; there is only one row left to pick."""
    p = softmax(np.random.default_rng(4).normal(size=(6, 4, 3)) * 2)
    rows, gains = greedy(p, range(4), budget=4)
    drawn = [choose(p, 4, seed=seed, samples=24) for seed in range(400)]
    assert all(one.rows.tolist() == rows and one.info["exact"] == 3 for one in drawn)
    last = np.array([one.scores[3] for one in drawn])
    assert last.std() > 0
    assert abs(last.mean() - gains[3]) < 4 * last.std() / math.sqrt(400)


def test_many_drawn_answers_come_close_to_all() -> None:
    p = softmax(np.random.default_rng(5).normal(size=(8, 60, 4)) * 2)
    exact, drawn = choose(p, 6, samples=4**5), choose(p, 6, samples=4**5 - 1)
    assert exact.info["exact"] == 6 and drawn.info["exact"] == 5
    assert drawn.scores[5] == pytest.approx(exact.scores[5], abs=0.02)
    few = choose(p, 6, samples=1)
    assert information(p, few.rows.tolist()) > 0.9 * information(p, exact.rows.tolist())


def test_where_each_pass_is_sure_drawing_loses_nothing() -> None:
    p = np.eye(3)[np.random.default_rng(6).integers(3, size=(9, 40))]
    exact = choose(p, 5)
    for seed in (0, 1):
        drawn = choose(p, 5, seed=seed, samples=1)
        assert drawn.rows.tolist() == exact.rows.tolist() and drawn.info["exact"] == 1
        np.testing.assert_allclose(drawn.scores, exact.scores, atol=1e-12)


def test_gains_are_never_negative_and_0_where_passes_agree() -> None:
    p = softmax(np.random.default_rng(7).normal(size=(20, 40, 5)) / 2)
    p[:, 20:] = p[:1, 20:]
    selection = choose(p, 40, samples=100)
    assert set(selection.rows[:20].tolist()) == set(range(20)) and (selection.scores[:20] > 0.01).all()
    assert selection.rows[20:].tolist() == list(range(20, 40))
    np.testing.assert_allclose(selection.scores[20:], 0, atol=1e-12)


def test_long_batches_of_sure_passes_stay_finite_and_below_the_logarithm_of_passes() -> None:
    p = softmax(np.random.default_rng(8).normal(size=(12, 150, 3)) * 300)
    selection = choose(p, 150, samples=60)
    assert np.isfinite(selection.scores).all()
    assert selection.info["most"] == math.log(12)
    assert selection.info["information"] == pytest.approx(math.log(12), abs=1e-6)


def test_only_candidates_are_looked_at() -> None:
    p = softmax(np.random.default_rng(9).normal(size=(6, 100, 3)) * 2)
    best = np.sort(select("bald", Pool(mc_probs=p), budget=10, seed=0).rows)
    among = choose(p[:, best], 5)
    selection = choose(p, 5, candidates=10)
    assert selection.rows.tolist() == best[among.rows].tolist() and selection.info["candidates"] == 10
    assert choose(p, 5, candidates=None).info["candidates"] == choose(p, 5, candidates=5000).info["candidates"] == 100
    with pytest.raises(ValueError) as error:
        choose(p, 11, candidates=10)
    assert str(error.value) == "budget is 11 but the method looks at only 10 rows; lower the budget or let it look at more"


def test_half_precision_is_stretched_to_add_up_to_1() -> None:
    half = softmax(np.random.default_rng(10).normal(size=(6, 50, 7))).astype(np.float16)
    double = half.astype(np.float64)
    stretched = choose(double / double.sum(axis=2, keepdims=True), 3)
    selection = choose(half, 3)
    assert selection.rows.tolist() == stretched.rows.tolist()
    np.testing.assert_allclose(selection.scores, stretched.scores, rtol=1e-12)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"samples": 0}, "batchbald: samples is 0; expected at least 1"),
        ({"candidates": 0}, "batchbald: candidates is 0; expected at least 1, or null to look at all rows"),
        ({"candidates": 2.5}, "batchbald.candidates is 2.5; expected int | None"),
        ({"stochastic": "power"}, "batchbald picks whole batches, so stochastic cannot be laid over it; methods that rank row by row: "),
    ],
)
def test_mistakes_are_named(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        choose(CASES["ordinary"], 1, **params)
    assert str(error.value) == message if not message.endswith(": ") else str(error.value).startswith(message)


def test_one_class_and_one_pass_are_refused() -> None:
    with pytest.raises(ValueError, match="mc_probs have 1 class; a model needs at least 2 to be unsure between"):
        choose(np.ones((3, 5, 1)), 1)
    with pytest.raises(ValueError, match="mc_probs have 1 pass; passes can disagree only if there are at least 2"):
        choose(CASES["ordinary"][:1], 1)


def test_another_device_picks_the_same(device: str) -> None:
    p = softmax(np.random.default_rng(11).normal(size=(12, 3000, 6)) * 2).astype(np.float32)
    there, here = (select("batchbald", Pool(mc_probs=p, device=each), budget=8, seed=0, samples=1500, candidates=200) for each in (device, "cpu"))
    np.testing.assert_array_equal(there.rows, here.rows)
    np.testing.assert_allclose(there.scores, here.scores, rtol=1e-9)
    assert there.info["exact"] == 5

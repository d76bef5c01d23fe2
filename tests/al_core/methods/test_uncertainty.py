"""Confidence, margin and entropy against softmax written out in fifty decimal digits."""

from __future__ import annotations

from decimal import Decimal, localcontext
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest

from al_core import Pool, Selection, select
from al_core.softmax import confidence, entropy, margin

Logits = npt.NDArray[np.floating]


def by_definition(row: Logits) -> tuple[float, float, float]:
    """Largest softmax probability, its lead over the second, and -sum p log p."""
    with localcontext() as context:
        context.prec = 400  # so that 1 + e^-700 is not yet 1
        weights = [Decimal(float(z) - float(row.max())).exp() for z in row]
        probabilities = sorted((weight / sum(weights) for weight in weights), reverse=True)
        nats = -sum(p * p.ln() for p in probabilities if p)
        return float(probabilities[0]), float(probabilities[0] - probabilities[1]), float(nats)


def choose(name: str, logits: Logits, budget: int, **where: list[int]) -> Selection:
    return select(name, Pool(logits=logits, **where), budget=budget, seed=0)  # type: ignore[arg-type]


LOGITS = {
    "ordinary": np.random.default_rng(0).normal(size=(12, 5)) * 3,
    "two classes": np.random.default_rng(1).normal(size=(12, 2)),
    "far from zero": np.random.default_rng(2).integers(-4, 4, size=(6, 4)) + 5000.0,
    "nearly level": np.array([[1, 1 + 1e-9, 0.5], [3, 3, 3], [0, 0, -800]]),
    "saturated": np.array([[0, -40.0], [0, -700], [50, -50], [-690, 0]]),
}


@pytest.mark.parametrize("case", LOGITS)
def test_measures_against_the_definition(case: str) -> None:
    expected = np.array([by_definition(row) for row in LOGITS[case]])
    np.testing.assert_allclose(confidence(LOGITS[case]), expected[:, 0], rtol=1e-14)
    np.testing.assert_allclose(margin(LOGITS[case]), expected[:, 1], rtol=1e-13)
    np.testing.assert_allclose(entropy(LOGITS[case]), expected[:, 2], rtol=1e-13)


def test_values_known_by_heart() -> None:
    level, even, three_to_one = np.zeros((1, 4)), np.array([[2.0, 2, -2000]]), np.log([[0.75, 0.25]])
    assert confidence(level) == [0.25] and margin(level) == [0] and entropy(level) == pytest.approx(np.log(4))
    assert confidence(even) == [0.5] and margin(even) == [0] and entropy(even) == pytest.approx(np.log(2))
    assert confidence(three_to_one) == pytest.approx(0.75) and margin(three_to_one) == pytest.approx(0.5)
    assert entropy(three_to_one) == pytest.approx(0.75 * np.log(4 / 3) + 0.25 * np.log(4))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_largest_numbers_make_neither_nan_nor_warnings(dtype: npt.DTypeLike) -> None:
    most = np.finfo(dtype).max
    logits = np.array([[most, -most, 0], [most, most, -most], [-most, -most, -most], [0, 0, 0]], dtype=dtype)
    with np.errstate(all="raise", under="ignore"):
        np.testing.assert_allclose(confidence(logits), [1, 0.5, 1 / 3, 1 / 3])
        np.testing.assert_array_equal(margin(logits), [1, 0, 0, 0])
        np.testing.assert_allclose(entropy(logits), [0, np.log(2), np.log(3), np.log(3)])


PROBABILITIES = np.array(
    [
        [0.50, 0.49, 0.01],  # least margin
        [0.98, 0.01, 0.01],  # surest by all
        [0.40, 0.30, 0.30],  # least confidence, most entropy
        [0.60, 0.20, 0.20],
    ]
)


@pytest.mark.parametrize(("name", "rows", "first"), [("confidence", [2, 0, 3, 1], 0.4), ("margin", [0, 2, 3, 1], 0.01), ("entropy", [2, 3, 0, 1], 1.0889)])
def test_which_come_first(name: str, rows: list[int], first: float) -> None:
    selection = choose(name, np.log(PROBABILITIES), budget=4)
    assert selection.rows.tolist() == rows
    assert selection.scores[0] == pytest.approx(first, abs=1e-4)
    assert choose(name, np.log(PROBABILITIES), budget=2).rows.tolist() == rows[:2]
    assert choose(name, np.log(PROBABILITIES), budget=2, labeled=[rows[0]], excluded=[rows[2]]).rows.tolist() == [rows[1], rows[3]]


@pytest.mark.parametrize(("name", "sign"), [("confidence", 1), ("margin", 1), ("entropy", -1)])
@pytest.mark.parametrize("budget", [1, 7, 300, 999, 1000])
def test_picks_are_the_head_of_the_sorted_pool(name: str, sign: int, budget: int) -> None:
    """Against Python's sort by (score, row); coarse logits make hundreds of ties."""
    logits = np.random.default_rng(4).integers(0, 4, size=(1000, 3)).astype(np.float32)
    scores = {"confidence": confidence, "margin": margin, "entropy": entropy}[name](logits)
    order = sorted(range(1000), key=lambda row: (sign * scores[row], row))
    selection = choose(name, logits, budget)
    assert selection.rows.tolist() == order[:budget]
    np.testing.assert_array_equal(selection.scores, scores[order[:budget]])
    assert selection.info == {"tied": sum(scores[row] == scores[order[budget - 1]] for row in order[budget:])}


def test_saturated_rows_tie_by_row_in_confidence_and_margin_but_not_in_entropy() -> None:
    logits = np.array([[0, -600.0], [0, -500], [-400, 0], [0, -300], [1, 0]])
    assert choose("confidence", logits, 5).rows.tolist() == [4, 0, 1, 2, 3]
    assert choose("margin", logits, 5).rows.tolist() == [4, 0, 1, 2, 3]
    assert choose("entropy", logits, 5).rows.tolist() == [4, 3, 2, 1, 0]
    assert all(one > other > 0 for one, other in pairwise(choose("entropy", logits, 5).scores))


@pytest.mark.parametrize("name", ["confidence", "margin", "entropy"])
def test_two_classes_give_all_three_the_same_order(name: str) -> None:
    logits = np.random.default_rng(5).normal(size=(200, 2))
    assert choose(name, logits, 200).rows.tolist() == np.argsort(np.abs(logits[:, 0] - logits[:, 1])).tolist()


@pytest.mark.parametrize("name", ["confidence", "margin", "entropy"])
def test_a_single_class_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="logits have 1 class; a model needs at least 2 to be unsure between"):
        choose(name, np.zeros((5, 1)), 1)

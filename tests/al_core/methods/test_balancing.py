"""Balancing against its definition, worked out from nothing for every pick; what it draws at random is checked for being a free row."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from al_core import Pool, Selection, select
from al_core.registry import card

Doubles = npt.NDArray[np.float64]


def expected_pick(x: Doubles, known: dict[int, int], open_rows: list[int], classes: list[int], left: int) -> tuple[int, float] | None:
    """The pick and its score, or None for a pick at random: the steps of the released code, in float64 and with plain means."""
    counts = {number: sum(label == number for label in known.values()) for number in classes}
    mean_count = sum(counts.values()) / len(classes)
    majority = [number for number in classes if counts[number] > mean_count]
    others = [number for number in classes if counts[number] <= mean_count]
    if not majority:
        return None
    difference = np.mean([counts[number] for number in majority]) - np.mean([counts[number] for number in others])
    if left > len(others) * difference + 1e-9:
        return None
    means = {number: np.mean([x[row] for row, label in known.items() if label == number], axis=0) for number in classes if counts[number]}
    rarest = min(classes, key=lambda number: (counts[number], number))
    best = None
    for row in open_rows:
        near = ((x[row] - means[rarest]) ** 2).sum() if counts[rarest] else 1.0
        ratio = float(near / max(((x[row] - means[number]) ** 2).sum() for number in majority))
        if best is None or ratio < best[1]:
            best = row, ratio
    return best


def replay(x: npt.NDArray[np.floating], truth: npt.NDArray[np.int64], labeled: list[int], excluded: list[int], found: Selection) -> int:
    """Check every pick of a selection; how many were made for balance."""
    known = {row: int(truth[row]) for row in labeled}
    open_rows = [row for row in range(len(x)) if row not in labeled and row not in excluded]
    classes = sorted({int(truth[row]) for row in (*labeled, *open_rows)})
    for_balance = 0
    for i, (row, score) in enumerate(zip(found.rows.tolist(), found.scores.tolist(), strict=True)):
        expected = expected_pick(x.astype(np.float64), known, open_rows, classes, len(found) - i)
        if expected is None:
            assert row in open_rows and np.isnan(score)
        else:
            assert row == expected[0]
            assert score == pytest.approx(expected[1], rel=1e-9)
            for_balance += 1
        open_rows.remove(row)
        known[row] = int(truth[row])
    assert found.info["for_balance"] == for_balance
    assert found.info["labels"] == {str(number): sum(label == number for label in known.values()) for number in classes}
    return for_balance


def balancing(x: npt.NDArray[np.floating], truth: npt.ArrayLike, labeled: list[int], budget: int, seed: int = 0, **more: Any) -> Selection:
    truth = np.asarray(truth)
    return select("balancing", Pool(embeddings=x, truth=truth, labeled=labeled, labels=truth[labeled], **more), budget=budget, seed=seed)


def test_by_hand() -> None:
    x = np.array([[0.0], [1], [2], [10], [9], [4], [12], [5]])
    truth = [0, 0, 0, 1, 1, 0, 1, 0]
    selection = balancing(x, truth, [0, 1, 2, 3], budget=3)  # 3 labels to 1, and 3 picks are more than 1 * (3 - 1)
    assert np.isnan(selection.scores[0])
    selection = balancing(x, truth, [0, 1, 2, 3], budget=2)
    # means 1 and 10: (9 - 10)^2 / (9 - 1)^2 = 1/64, (12 - 10)^2 / 11^2 = 4/121; then 3 to 2, and 1 <= 1 * 1: means 1 and 9.5
    assert selection.rows.tolist() == [4, 6]
    np.testing.assert_allclose(selection.scores, [1 / 64, 2.5**2 / 11**2])
    assert selection.info == {"for_balance": 2, "labels": {"0": 3, "1": 3}}


def test_a_class_without_labels_is_looked_for_far_from_the_majority() -> None:
    x = np.array([[0.0], [1], [2], [10], [-7], [4]])
    truth = [0, 0, 1, 2, 2, 1]
    selection = balancing(x, truth, [0, 1, 2], budget=1)  # counts 2, 1, 0; the mean is 1; others have 0.5 on average
    assert selection.rows.tolist() == [3]
    np.testing.assert_allclose(selection.scores, [1 / 9.5**2])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("seed", range(8))
def test_against_the_definition(seed: int, dtype: npt.DTypeLike) -> None:
    """Many classes, some never labelled, in lumps that overlap; budgets that begin at random, and labels that are uneven from the start."""
    rng = np.random.default_rng(seed)
    classes = int(rng.integers(2, 9))
    truth = rng.choice(classes, size=150, p=rng.dirichlet(np.full(classes, 0.7)))
    truth[:classes] = range(classes)
    x = (rng.normal(size=(classes, 6))[truth] + rng.normal(size=(150, 6)) * rng.uniform(0.2, 2)).astype(dtype)
    order = rng.permutation(150).tolist()
    labeled, excluded = order[:40], order[130:]
    if seed % 2:
        labeled = [row for row in labeled if truth[row] != 1]
    made = 0
    for budget in (5, 30, 90):
        made += replay(x, truth, labeled, excluded, balancing(x, truth, labeled, budget, seed, excluded=excluded))
    assert made > 20


def test_far_from_the_origin_and_with_twins() -> None:
    rng = np.random.default_rng(0)
    truth = np.arange(100) % 5
    x = np.repeat(1000 + rng.normal(size=(50, 4)), 2, axis=0).astype(np.float32)
    labeled = [row for row in range(60) if truth[row] in (0, 1) or row < 10]
    assert replay(x, truth, labeled, [], balancing(x, truth, labeled, 20)) > 10


def test_rows_that_coincide_with_every_mean_have_no_ratio() -> None:
    x = np.ones((10, 3))
    selection = balancing(x, [0, 0, 0, 1, 1, 1, 0, 1, 0, 1], [0, 1, 2, 3], budget=2)
    assert selection.rows.tolist() == [4, 5] and np.isnan(selection.scores).all()
    assert selection.info["for_balance"] == 2


def test_nothing_labelled_or_nothing_uneven_is_a_uniform_draw() -> None:
    x = np.arange(6.0)[:, None]
    truth = [0, 1, 0, 1, 0, 1]
    first = [int(balancing(x, truth, [], 1, seed).rows[0]) for seed in range(300)]
    assert np.bincount(first, minlength=6).min() > 25
    assert np.isnan(balancing(x, truth, [0, 1], 1).scores).all()
    assert len(balancing(x, [3] * 6, [0], 5)) == 5  # one class alone


def test_it_evens_out_what_chance_would_not() -> None:
    rng = np.random.default_rng(1)
    truth = np.where(rng.random(3000) < 0.03, 1, 0)
    x = (4 * truth[:, None] + rng.normal(size=(3000, 5))).astype(np.float32)
    labeled = np.flatnonzero(truth == 0)[:100].tolist()
    selection = balancing(x, truth, labeled, 60)
    assert (truth[selection.rows] == 1).sum() == 60


def test_it_is_for_backtests_alone() -> None:
    assert "truth" in card("balancing").needs and "backtests alone" in card("balancing").when
    with pytest.raises(ValueError, match="balancing reads truth, which this pool does not have; nobody knows it before the images are labelled"):
        select("balancing", Pool(embeddings=np.zeros((3, 1)), labeled=[0], labels=[0]), budget=1, seed=0)

"""Learned scores are sorted, and learning-loss looks at a uniform sub-pool; what they mean is their networks' affair."""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest

from al_core import Pool, select

LOSS = np.array([0.5, -2.0, 3.0, 3.0, 0.1, 9.0, 1.5], dtype=np.float32)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_highest_predicted_loss_first(dtype: npt.DTypeLike) -> None:
    pool = Pool(predicted_loss=LOSS.astype(dtype), labeled=[5], excluded=[0])
    selection = select("learning-loss", pool, budget=4, seed=0)
    assert selection.rows.tolist() == [2, 3, 6, 4]  # 2 and 3 tie: the lower row first
    np.testing.assert_allclose(selection.scores, [3, 3, 1.5, 0.1], rtol=1e-3)
    assert selection.info == {"looked_at": 5, "tied": 0}


def test_lowest_discriminator_score_first() -> None:
    pool = Pool(discriminator=np.array([0.9, 0.2, 0.1, 0.7, 0.2]), labeled=[2])
    selection = select("vaal", pool, budget=3, seed=0)
    assert selection.rows.tolist() == [1, 4, 3]
    assert selection.scores.tolist() == [0.2, 0.2, 0.7]
    assert selection.info == {"tied": 0}


def test_a_row_that_surely_looks_labelled_is_of_no_use() -> None:
    pool = Pool(discriminator=np.array([1.0, 0.5, 1.0, 0.0]))
    for seed in range(20):
        assert set(select("vaal", pool, budget=2, seed=seed, stochastic="power").rows.tolist()) == {1, 3}


def test_the_sub_pool_is_drawn_evenly_and_the_best_of_it_are_picked() -> None:
    pool = Pool(predicted_loss=np.arange(12.0), labeled=[11], excluded=[0])
    times: Counter[int] = Counter()
    for seed in range(2000):
        selection = select("learning-loss", pool, budget=4, seed=seed, subpool=4)
        assert selection.rows.tolist() == sorted(selection.rows.tolist(), reverse=True) and selection.info["looked_at"] == 4
        times.update(selection.rows.tolist())
    assert set(times) == set(range(1, 11))
    variance = 2000 * 0.4 * 0.6  # of each count; they add up to 8000: hence 9 / 10
    assert sum((count - 800) ** 2 for count in times.values()) / variance * 9 / 10 < 21.7  # 99th percentile, 9 degrees of freedom


def test_picks_are_the_best_of_the_sub_pool_alone() -> None:
    loss = np.random.default_rng(0).permutation(1000).astype(np.float64)
    top = [select("learning-loss", Pool(predicted_loss=loss), budget=1, seed=seed, subpool=100).scores[0] for seed in range(200)]
    assert np.mean(top) == pytest.approx(1001 * 100 / 101 - 1, abs=3)  # the expected maximum of 100 of 0..999, within 4 standard errors


def test_a_pool_no_larger_than_the_sub_pool_is_looked_at_whole() -> None:
    loss = np.random.default_rng(1).normal(size=300)
    for params in ({}, {"subpool": 300}, {"subpool": None}):
        for seed in (0, 1):
            selection = select("learning-loss", Pool(predicted_loss=loss), budget=20, seed=seed, **params)
            assert selection.rows.tolist() == np.argsort(-loss).tolist()[:20] and selection.info == {"looked_at": 300, "tied": 0}
    whole = np.random.default_rng(2).normal(size=20_000)
    assert select("learning-loss", Pool(predicted_loss=whole), budget=5, seed=0).info["looked_at"] == 10_000
    assert select("learning-loss", Pool(predicted_loss=whole), budget=5, seed=0, subpool=None).rows.tolist() == np.argsort(-whole).tolist()[:5]


def test_mistakes_are_named() -> None:
    pool = Pool(predicted_loss=LOSS)
    with pytest.raises(ValueError) as error:
        select("learning-loss", pool, budget=1, seed=0, subpool=0)
    assert str(error.value) == "learning-loss: subpool is 0; expected at least 1, or null to look at all rows"
    with pytest.raises(ValueError) as error:
        select("learning-loss", pool, budget=5, seed=0, subpool=4)
    assert str(error.value) == "budget is 5 but the method looks at only 4 rows; lower the budget or let it look at more"

"""The random draws against the laws of drawing without replacement, and class balance against dealing picks out one by one."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import numpy as np
import pytest

from al_core import Pool, select


def test_every_ordered_pair_of_available_rows_is_equally_likely() -> None:
    pool = Pool(embeddings=np.zeros((8, 1)), labeled=[2], excluded=[0, 7])
    drawn = Counter(tuple(select("random", pool, budget=2, seed=seed).rows.tolist()) for seed in range(4000))
    pairs = list(permutations([1, 3, 4, 5, 6], 2))
    assert set(drawn) <= set(pairs)
    assert sum((drawn[pair] - 200) ** 2 / 200 for pair in pairs) < 36.2  # 99th percentile of chi-squared with 19 degrees of freedom


def test_a_control_arm_and_then_a_method_share_the_pool() -> None:
    """Each available row has the same chance to be in the control arm, whatever the method would pick."""
    logits = np.random.default_rng(0).normal(size=(30, 3))
    pool = Pool(logits=logits, labeled=[1, 2], excluded=[3])
    times: Counter[int] = Counter()
    for seed in range(1000):
        control = select("random", pool, budget=6, seed=seed)
        acquired = select("margin", pool.without(control.rows), budget=6, seed=seed)
        assert not set(control.rows.tolist()) & set(acquired.rows.tolist())
        times.update(control.rows.tolist())
    assert set(times) == set(pool.available.tolist())
    variance = 1000 * (6 / 27) * (21 / 27)  # of each count; the counts are correlated, since they add up to 6000: hence 26 / 27
    assert sum((count - 1000 * 6 / 27) ** 2 for count in times.values()) / variance * 26 / 27 < 45.6  # 99th percentile, 26 degrees of freedom


def test_a_draw_has_no_score() -> None:
    selection = select("random", Pool(embeddings=np.zeros((8, 1))), budget=3, seed=0)
    assert np.isnan(selection.scores).all() and selection.info == {}


def dealt(counts: dict[int, int], budget: int) -> Counter[int]:
    """Picks dealt out one by one to the class that has fewest, then to the one with most rows remaining, then to the lowest."""
    shares: Counter[int] = Counter()
    for _ in range(budget):
        open_classes = [number for number in counts if shares[number] < counts[number]]
        shares[min(open_classes, key=lambda number: (shares[number], shares[number] - counts[number], number))] += 1
    return shares


@pytest.mark.parametrize("seed", range(20))
def test_classes_share_the_budget_as_evenly_as_their_rows_allow(seed: int) -> None:
    rng = np.random.default_rng(seed)
    classes = rng.choice([0, 2, 3, 7, 1000], size=80, p=[0.5, 0.3, 0.1, 0.05, 0.05])
    labeled, excluded = np.arange(0, 80, 7), np.arange(1, 80, 9)
    labeled = np.setdiff1d(labeled, excluded)
    pool = Pool(embeddings=np.zeros((80, 1)), truth=classes, labeled=labeled, excluded=excluded)
    counts = dict(sorted(Counter(classes[pool.available].tolist()).items()))
    for budget in (1, 2, 4, 5, 17, 40, len(pool.available)):
        selection = select("balanced-random", pool, budget=budget, seed=seed)
        shares = dealt(counts, budget)
        assert Counter(classes[selection.rows].tolist()) == shares
        each = max(level for level in range(budget + 1) if sum(min(count, level) for count in counts.values()) <= budget and level <= max(counts.values()))
        assert selection.info == {"each": each} and np.isnan(selection.scores).all()


def test_left_over_picks_go_to_the_largest_classes() -> None:
    pool = Pool(embeddings=np.zeros((12, 1)), truth=[0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 3])
    shares = Counter(np.asarray(pool.truth)[select("balanced-random", pool, budget=9, seed=0).rows].tolist())
    assert shares == {0: 2, 1: 3, 2: 3, 3: 1}  # two of each and one of class 3 are 7
    assert Counter(np.asarray(pool.truth)[select("balanced-random", pool, budget=8, seed=0).rows].tolist()) == {0: 2, 1: 2, 2: 3, 3: 1}


def test_within_a_class_and_in_the_order_of_picks_all_is_equally_likely() -> None:
    """Two classes of 3 and 2 rows, two picks: every row of one class with every row of the other, in both orders."""
    pool = Pool(embeddings=np.zeros((7, 1)), truth=[0, 0, 1, 0, 1, 0, 1], labeled=[0], excluded=[6])
    drawn = Counter(tuple(select("balanced-random", pool, budget=2, seed=seed).rows.tolist()) for seed in range(3600))
    expected = {order for one in (1, 3, 5) for other in (2, 4) for order in ((one, other), (other, one))}
    assert set(drawn) == expected
    assert sum((count - 300) ** 2 / 300 for count in drawn.values()) < 24.7  # 99th percentile, 11 degrees of freedom


def test_only_a_backtest_has_the_truth() -> None:
    with pytest.raises(ValueError) as error:
        select("balanced-random", Pool(embeddings=np.zeros((8, 1))), budget=3, seed=0)
    assert str(error.value) == (
        "balanced-random reads truth, which this pool does not have; nobody knows it before the images are labelled: only a backtest over labelled data has it"
    )

"""The random draw against the law of drawing without replacement."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import numpy as np

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

"""Compositions, against hand-worked cases, brute force and the laws they state."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from al_core import Pool, methods, select
from al_core.registry import build, needs, parameters

RNG = np.random.default_rng(3)
EMBEDDINGS = RNG.normal(size=(40, 5)).astype(np.float32)
LOGITS = RNG.normal(size=(40, 3)).astype(np.float32)
LABELED = np.arange(0, 40, 8)
RANKING = [card.name for card in methods() if card.ranks]


def pool(labeled: np.typing.ArrayLike = LABELED, **more: object) -> Pool:
    return Pool(embeddings=EMBEDDINGS, logits=LOGITS, labeled=np.asarray(labeled, dtype=np.int64), **more)  # type: ignore[arg-type]


def margins() -> np.typing.NDArray[np.float64]:
    exp = np.exp(LOGITS.astype(np.float64))
    p = np.sort(exp / exp.sum(axis=1, keepdims=True), axis=1)
    return np.asarray(p[:, -1] - p[:, -2])


@pytest.mark.parametrize("labeled", [LABELED, []])
@pytest.mark.parametrize("strength", [0.3, 1.0, 4.0])
def test_diversify_is_its_definition(labeled: object, strength: float) -> None:
    found = select("margin", pool(labeled), budget=12, seed=0, diversify={"strength": strength})  # type: ignore[arg-type]
    seen, picks = list(np.asarray(labeled, dtype=int)), []
    for _ in range(12):
        best, best_value = -1, -1.0
        for row in range(40):
            if row in seen:
                continue
            away = min((float(np.linalg.norm(EMBEDDINGS[row].astype(float) - EMBEDDINGS[other].astype(float))) for other in seen), default=1.0)
            value = (1 - margins()[row]) * away**strength
            if value > best_value:
                best, best_value = row, value
        seen.append(best)
        picks.append(best)
    assert found.rows.tolist() == picks
    np.testing.assert_allclose(found.scores, margins()[picks])  # scores stay the method's own


def test_a_strength_near_0_is_the_ranking_alone() -> None:
    plain = select("entropy", pool(), budget=10, seed=0)
    assert select("entropy", pool(), budget=10, seed=0, diversify={"strength": 1e-9}).rows.tolist() == plain.rows.tolist()


def test_min_distance_skips_what_is_too_near_to_a_better_pick() -> None:
    x = np.array([[0.0], [0.1], [1.0], [1.05], [2.0]])
    z = np.array([[0.0, 0.0], [0.0, 0.1], [0.0, 0.3], [0.0, 0.2], [0.0, 0.4]])
    line = Pool(embeddings=x, logits=z)
    assert select("margin", line, budget=3, seed=0).rows.tolist() == [0, 1, 3]
    assert select("margin", line, budget=3, seed=0, min_distance=0.5).rows.tolist() == [0, 3, 4]
    assert select("margin", line, budget=2, seed=0, min_distance=1.0).rows.tolist() == [0, 3]
    with pytest.raises(ValueError, match="the rules leave only 3 picks of a budget of 4; loosen them"):
        select("margin", line, budget=4, seed=0, min_distance=0.5)


def test_max_similarity_leaves_near_duplicates_out_whatever_their_length() -> None:
    x = np.array([[1.0, 0.0], [5.0, 0.1], [0.0, 1.0]])
    duplicated = Pool(embeddings=x, logits=np.array([[0.0, 0.0], [0.0, 0.1], [0.0, 5.0]]))
    assert select("margin", duplicated, budget=2, seed=0, max_similarity=0.9).rows.tolist() == [0, 2]
    assert select("margin", duplicated, budget=2, seed=0, max_similarity=0.9999).rows.tolist() == [0, 1]


@pytest.mark.parametrize("by", ["prediction", "groups"])
def test_quota_caps_each_class_and_otherwise_follows_the_ranking(by: str) -> None:
    groups = np.arange(40) % 4
    of = LOGITS.argmax(axis=1) if by == "prediction" else groups
    found = select("margin", pool(groups=groups), budget=9, seed=0, quota={"by": by, "share": 0.4})
    order = [row for row in np.argsort(margins(), kind="stable") if row not in LABELED]
    expected: list[int] = []
    for row in order:
        if sum(of[row] == of[other] for other in expected) < 4 and len(expected) < 9:  # ceil(0.4 * 9)
            expected.append(int(row))
    assert found.rows.tolist() == expected


def test_rules_hold_together_with_diversity() -> None:
    found = select("margin", pool(), budget=8, seed=0, diversify={"strength": 1.0}, min_distance=1.5, quota={"share": 0.5})
    x = EMBEDDINGS[found.rows].astype(np.float64)
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(x, 2)) >= 1.5
    assert max(Counter(LOGITS[found.rows].argmax(axis=1).tolist()).values()) <= 4


@pytest.mark.parametrize(
    ("kind", "weight"),
    [
        ("power", lambda u, t: u ** (1 / t)),
        ("softmax", lambda u, t: np.exp(u / t)),
        ("softrank", lambda u, t: (1.0 + np.argsort(np.argsort(-u))) ** (-1 / t)),
    ],
)
def test_stochastic_draws_by_the_stated_law(kind: str, weight: object) -> None:
    """The first two picks against the exact law of a weighted draw without replacement, by chi-squared at one in ten thousand."""
    z = np.array([[0.0, 0.2], [0.0, 0.7], [0.0, 1.5], [0.0, 2.5]])
    small = Pool(logits=z)
    p = 1 / (1 + np.exp(-z[:, 1]))
    w = weight(1 - (2 * p - 1), 0.5)  # type: ignore[operator]  # utility of a margin is 1 - margin
    draws = 4000
    seen = Counter(tuple(select("margin", small, budget=2, seed=seed, stochastic=kind, temperature=0.5).rows.tolist()) for seed in range(draws))
    statistic = 0.0
    for a, b in itertools.permutations(range(4), 2):
        expected = draws * w[a] / w.sum() * w[b] / (w.sum() - w[a])
        statistic += (seen[a, b] - expected) ** 2 / expected
    assert statistic < 38  # 11 degrees of freedom


def test_partitions_share_the_budget_and_see_their_own_part_alone() -> None:
    found = select("coreset", pool(), budget=10, seed=1, partitions=3)
    assert len(set(found.rows.tolist())) == 10 and not set(found.rows.tolist()) & set(LABELED.tolist())
    assert len(found.info["partitions"]) == 3  # type: ignore[arg-type]
    whole = select("coreset", pool(), budget=10, seed=1)
    assert set(found.rows.tolist()) != set(whole.rows.tolist())
    assert select("coreset", pool(), budget=2, seed=1, partitions=50).rows.shape == (2,)  # never more parts than picks


@pytest.mark.parametrize("name", [card.name for card in methods()])
def test_every_method_bears_partitions(name: str) -> None:
    from tests.al_core.methods.test_contract import make_pool, make_signals

    found = select(name, make_pool(make_signals()), budget=12, seed=0, partitions=3)
    assert len(set(found.rows.tolist())) == 12


@pytest.mark.parametrize("name", RANKING)
def test_every_ranking_bears_every_composition(name: str) -> None:
    from tests.al_core.methods.test_contract import make_pool, make_signals

    whole = make_pool(make_signals())
    composed = {"stochastic": "power", "diversify": {"strength": 0.5}, "quota": {"share": 0.6}, "min_distance": 0.1, "max_similarity": 0.999}
    found = select(name, whole, budget=12, seed=0, partitions=2, **composed)
    assert len(set(found.rows.tolist())) == 12
    assert np.isfinite(found.scores).all()


def test_params_yaml_holds_what_was_asked_for_and_needs_follow() -> None:
    built = build("margin", {"quota": {"by": "groups"}, "diversify": {}, "partitions": 2})
    assert parameters(built) == {
        "name": "margin",
        "partitions": 2,
        "diversify": {"by": "embeddings", "strength": 1.0},
        "quota": {"by": "groups", "share": 0.5},
    }
    assert build("margin", {key: value for key, value in parameters(built).items() if key != "name"}) == built
    assert needs(built) == ("logits", "embeddings", "groups")
    with pytest.raises(ValueError, match="margin reads groups, which this pool does not have; no stage makes them"):
        select("margin", pool(), budget=3, seed=0, quota={"by": "groups"})

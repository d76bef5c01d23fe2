"""Living implementations of the same methods, where they are installed: scikit-activeml (1.0.1 when this was written) and baal (2.1.0).

Each test says where the two differ and why. DropQuery of scikit-activeml is not compared: it draws other random numbers, does not scale up what
dropout leaves, clusters lengths as well as directions, and joins no candidates below half of the passes.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from al_core import Pool, select

Doubles = npt.NDArray[np.float64]

RNG = np.random.default_rng(0)
X = RNG.normal(size=(80, 5))
LABELED = np.arange(0, 80, 9)
NOISY = RNG.normal(size=(80, 4)) + RNG.normal(size=(6, 80, 4))
MC = np.exp(2 * NOISY) / np.exp(2 * NOISY).sum(axis=2, keepdims=True)


def scores_by_row(name: str, pool: Pool, **params: Any) -> Doubles:
    """(n,) scores of a method that ranks, where all rows are available."""
    found = select(name, pool, budget=pool.size, seed=0, **params)
    return found.scores[np.argsort(found.rows)]


def answers(known: npt.NDArray[np.int64], size: int = 80) -> Doubles:
    """(n,) classes as scikit-activeml takes them: NaN for what is not labelled."""
    y = np.full(size, np.nan)
    y[known] = np.arange(len(known)) % 2
    return y


@pytest.mark.parametrize(
    ("name", "peer", "params", "ours"),
    [("bald", "BALD", {}, (0, 1)), ("max-entropy", "Entropy", {}, (0, 1)), ("variation-ratios", "Certainty", {"kind": "mean"}, (1, -1))],
)
def test_scores_of_baal(name: str, peer: str, params: dict[str, Any], ours: tuple[int, int]) -> None:
    """Equal but for rounding. What baal calls certainty is the largest mean probability, lowest first: 1 minus our ratio of the mean."""
    heuristics = pytest.importorskip("baal.active.heuristics")
    theirs = getattr(heuristics, peer)().compute_score(np.moveaxis(MC, 0, 2))
    np.testing.assert_allclose(scores_by_row(name, Pool(mc_probs=MC), **params), ours[0] + ours[1] * theirs, rtol=1e-10)


def test_bald_of_scikit_activeml() -> None:
    """Their mean divergence from the committee's mean is the same quantity. They lift probabilities to 1e-7 first, which ours does not."""
    peer = pytest.importorskip("skactiveml.pool")
    theirs = peer.average_kl_divergence(MC.copy())
    np.testing.assert_allclose(scores_by_row("bald", Pool(mc_probs=MC)), theirs, atol=1e-5)


def test_votes_of_scikit_activeml() -> None:
    peer = pytest.importorskip("skactiveml.pool")
    theirs = peer.variation_ratios(MC.argmax(axis=2).T)
    np.testing.assert_allclose(scores_by_row("variation-ratios", Pool(mc_probs=MC), kind="vote"), theirs)


def test_coreset_of_scikit_activeml() -> None:
    """Equal with labelled rows. Without, they begin with a random row and we with the one nearest to the mean."""
    peer = pytest.importorskip("skactiveml.pool")
    theirs = peer.CoreSet(random_state=0).query(X, answers(LABELED), batch_size=30)
    found = select("coreset", Pool(embeddings=X, labeled=LABELED), budget=30, seed=0)
    np.testing.assert_array_equal(found.rows, theirs)


def test_badge_of_scikit_activeml() -> None:
    """They write the gradients out. The longest comes first, as here.

    After that they take a gradient's squared length for its distance where it is the lesser, as if one of length 0 had been picked too. That is neither
    in the paper nor in its authors' code, where distances are those to the picks alone.
    """
    peer, classifier = pytest.importorskip("skactiveml.pool"), pytest.importorskip("skactiveml.classifier")
    linear = pytest.importorskip("sklearn.linear_model")
    y = np.full(80, np.nan)
    y[LABELED] = np.arange(len(LABELED)) % 3
    model = classifier.SklearnClassifier(linear.LogisticRegression(), classes=[0, 1, 2], random_state=0)
    picks, laws = peer.Badge(random_state=0).query(X, y, clf=model, batch_size=2, return_utilities=True)
    logits = np.log(model.fit(X, y).predict_proba(X))
    found = select("badge", Pool(embeddings=X, logits=logits, labeled=LABELED), budget=2, seed=0, draw="farthest")
    gradients = (np.exp(logits) - np.eye(3)[logits.argmax(axis=1)])[:, :, None] * X[:, None]
    long, away = (((gradients - origin) ** 2).sum(axis=(1, 2)) for origin in (0.0, gradients[picks[0]]))
    available = np.setdiff1d(np.arange(80), LABELED)
    capped = np.minimum(long, away)[available]
    np.testing.assert_allclose(np.delete(laws[1, available], available == picks[0]), np.delete(capped / capped.sum(), available == picks[0]), atol=1e-12)
    assert found.rows[0] == picks[0]
    assert found.rows[1] == available[away[available].argmax()]
    np.testing.assert_allclose(found.scores, [long[picks[0]], away[available].max()], rtol=1e-9)


def test_probcover_of_scikit_activeml() -> None:
    """Each of our picks is among their best. They draw among those that tie, and cover what lies exactly at the radius too."""
    peer = pytest.importorskip("skactiveml.pool")
    found = select("probcover", Pool(embeddings=X, labeled=LABELED), budget=20, seed=0, delta=1.3, normalize=False)
    assert found.info["times_lowered"] == 0
    known = LABELED
    for row, score in zip(found.rows, found.scores, strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a single radius has no purity
            _, covers = peer.ProbCover(deltas=[1.3], random_state=0).query(X, answers(known), return_utilities=True)
        assert covers[0, row] == np.nanmax(covers) == round(score * (80 - len(LABELED)))
        known = np.append(known, row)


def test_the_radius_of_probcover_of_scikit_activeml() -> None:
    """They take the largest of a list of radii, we the largest of all."""
    peer = pytest.importorskip("skactiveml.pool")
    x = 4 * np.repeat(np.eye(3), 25, axis=0) + 0.7 * RNG.normal(size=(75, 3))
    theirs = peer.ProbCover(n_classes=3, deltas=np.arange(0.05, 6, 0.05), random_state=0)
    theirs.query(x, np.full(75, np.nan))
    ours = select("probcover", Pool(embeddings=x), budget=1, seed=0, clusters=3, normalize=False).info["delta"]
    assert isinstance(ours, float) and theirs.delta_max_ <= ours < theirs.delta_max_ + 0.05


def test_typiclust_of_scikit_activeml() -> None:
    """In clusters of 10 and 11 rows our half of the cluster is their 5 neighbours. They average distances, as the formula does and our default does not.

    They take one row of each cluster without a label and any row after that; of clusters of one size, a random one first. Small clusters count.
    """
    peer = pytest.importorskip("skactiveml.pool")
    x = 30 * RNG.normal(size=(8, 4))[np.arange(84) % 8] + RNG.normal(size=(84, 4))
    known = np.array([0, 1])
    theirs = peer.TypiClust(random_state=0).query(x, answers(known, 84), batch_size=6)
    found = select("typiclust", Pool(embeddings=x, labeled=known), budget=6, seed=0, distance="euclidean", normalize=False)
    assert found.info["clusters"] == 8
    assert set(found.rows.tolist()) == set(theirs.tolist())


@pytest.mark.parametrize("known", [LABELED, LABELED[:0]])
def test_maxherding_of_scikit_activeml(known: npt.NDArray[np.int64]) -> None:
    """Each of our picks is among their best: they draw among those that tie, as two rows that only cover each other do.

    Their mean runs over the rows still unlabelled, ours over all, so scores differ by a factor.
    """
    peer = pytest.importorskip("skactiveml.pool")
    found = select("maxherding", Pool(embeddings=X, labeled=known), budget=25, seed=0, sigma=0.8)
    theirs = peer.MaxHerding(metric_dict={"gamma": 1 / 0.8**2}, random_state=0)
    for row, score in zip(found.rows, found.scores, strict=True):
        _, rises = theirs.query(X, answers(known), return_utilities=True)
        assert rises[0, row] == pytest.approx(np.nanmax(rises), abs=1e-10)
        assert rises[0, row] == pytest.approx(score * 80 / (80 - len(known)), rel=1e-9)
        known = np.append(known, row)

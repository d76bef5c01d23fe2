import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from al_core import Pool, select
from al_core.ensemble import linear_ensemble, resampled
from al_core.linear import fit
from al_core.seeds import generator

RNG = np.random.default_rng(0)
LABELS = np.repeat([0, 1, 3], [12, 9, 30])  # class 2 has no examples
X = (RNG.normal(size=(51, 6)) + RNG.normal(size=(4, 6))[LABELS]).astype(np.float32)


def test_draws_keep_the_number_of_each_class_and_are_with_replacement() -> None:
    draws = [resampled(LABELS, generator(seed, "test")) for seed in range(200)]
    for rows in draws:
        assert np.bincount(LABELS[rows], minlength=4).tolist() == [12, 9, 0, 30]
    distinct = np.mean([len(np.unique(rows)) for rows in draws])
    expected = sum(n * (1 - (1 - 1 / n) ** n) for n in (12, 9, 30))  # of a bootstrap, about 63% of the examples
    assert abs(distinct - expected) < 0.5
    counts = np.bincount(np.concatenate(draws), minlength=51)
    assert counts.min() > 140 and counts.max() < 270  # each about as often as any other


def test_members_are_the_regressions_on_their_examples() -> None:
    weight, bias = linear_ensemble(X, LABELS, 4, members=3, l2=0.05, seed=4)
    assert (weight.shape, bias.shape) == ((3, 4, 6), (3, 4))
    for number in range(3):
        rows = resampled(LABELS, generator(4, "ensemble", number))
        x = X[rows].astype(np.float64)
        mean, spread = x.mean(0), x.std(0)
        theirs = LogisticRegression(C=1 / (0.05 * len(rows)), tol=1e-10, max_iter=5000).fit((x - mean) / spread, LABELS[rows])
        probs = theirs.predict_proba((X - mean) / spread)  # of the classes that have examples
        logits = X @ weight[number].T + bias[number]
        ours = np.exp(logits[:, [0, 1, 3]])
        np.testing.assert_allclose(ours / ours.sum(1, keepdims=True), probs, atol=1e-4)


def test_members_weigh_classes_as_the_head_does() -> None:
    weights = np.array([3.0, 1.0, 1.0, 0.2])
    weight, bias = linear_ensemble(X, LABELS, 4, members=2, l2=0.05, seed=4, weights=weights)
    for number in range(2):
        rows = resampled(LABELS, generator(4, "ensemble", number))
        head = fit(X[rows], LABELS[rows], 4, l2=0.05, weights=weights)
        assert (head.weight == weight[number]).all() and (head.bias == bias[number]).all()
    assert not np.allclose(weight, linear_ensemble(X, LABELS, 4, members=2, l2=0.05, seed=4)[0], atol=1e-3)


def test_members_agree_where_labels_are_dense_and_differ_between_classes() -> None:
    centres = 5 * np.eye(4, 6, dtype=np.float32)
    weight, bias = linear_ensemble(centres[LABELS] + X, LABELS, 4, members=20, l2=0.05, seed=0)
    between = (centres[0] + centres[1]) / 2
    pool = Pool(embeddings=np.stack([*centres[[0, 1, 3]], between]), mc_heads=(weight, bias))
    assert select("bald", pool, budget=1, seed=0).rows.tolist() == [3]


def test_equal_seeds_give_equal_members_and_one_member_is_refused() -> None:
    first, second, other = (linear_ensemble(X, LABELS, 4, members=2, l2=0.05, seed=seed)[0] for seed in (0, 0, 1))
    assert (first == second).all()
    assert not np.allclose(first, other)
    assert not np.allclose(first[0], fit(X, LABELS, 4, l2=0.05).weight)
    with pytest.raises(ValueError) as error:
        linear_ensemble(X, LABELS, 4, members=1, l2=0.05, seed=0)
    assert str(error.value) == "members is 1; an ensemble can disagree only if there are at least 2"

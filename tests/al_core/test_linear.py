import math

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_class_weight

from al_core import linear
from al_core.linear import Linear, balanced, fit

Floats = npt.NDArray[np.float64]


def blobs(n: int = 90, dim: int = 6, classes: int = 4) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Overlapping clusters in features of very different scales and offsets."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, n)
    centres = rng.normal(size=(classes, dim))
    scale = 10.0 ** np.linspace(-1, 1, dim)
    return ((centres[labels] + rng.normal(size=(n, dim)) + 3) * scale).astype(np.float32), labels


def probabilities(head: Linear, features: npt.NDArray[np.float32]) -> Floats:
    logits = features.astype(np.float64) @ head.weight.astype(np.float64).T + head.bias
    odds: Floats = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: Floats = odds / odds.sum(axis=1, keepdims=True)
    return shares


@pytest.mark.parametrize("l2", [1e-3, 0.1])
def test_the_solution_is_scikit_learns(l2: float) -> None:
    """Its objective is C * sum of NLL + ||W||^2 / 2, so that C = 1 / (n l2)."""
    features, labels = blobs()
    standard = StandardScaler().fit(features.astype(np.float64))
    truth = LogisticRegression(C=1 / (len(labels) * l2), solver="newton-cholesky", tol=1e-8).fit(standard.transform(features), labels)
    expected = truth.predict_proba(standard.transform(features))
    head = fit(features, labels, 4, l2=l2)
    assert head.weight.dtype == head.bias.dtype == np.float32
    np.testing.assert_allclose(probabilities(head, features), expected, atol=2e-5)
    np.testing.assert_allclose(head.weight * standard.scale_, truth.coef_, atol=2e-4)


def test_the_gradient_vanishes() -> None:
    """The gradient by its formula: d/dW = (p - onehot)^T x / n + l2 W and d/db = mean of p - onehot, on standardised x."""
    features, labels = blobs()
    head = fit(features, labels, 4, l2=0.01)
    x = (features - features.mean(0, dtype=np.float64)) / features.std(0, dtype=np.float64)
    error = probabilities(head, features) - np.eye(4)[labels]
    assert np.abs(error.mean(0)).max() < 1e-5
    assert np.abs(error.T @ x / len(x) + 0.01 * head.weight * features.std(0, dtype=np.float64)).max() < 1e-5


def test_more_features_than_examples() -> None:
    rng = np.random.default_rng(1)
    features, labels = rng.normal(size=(40, 300)).astype(np.float32), np.arange(40) % 10
    head = fit(features, labels, 10, l2=1e-3)
    assert (probabilities(head, features).argmax(1) == labels).all()


@pytest.mark.parametrize("l2", [1e-10, 1e-8, 1e-4])
def test_classes_that_a_plane_divides_are_solved_however_weak_the_ridge(l2: float) -> None:
    """Probabilities are then near 0 and 1, where float32 does not tell them from these."""
    rng = np.random.default_rng(0)
    labels = rng.integers(10, size=300)
    centres = 3 * rng.normal(size=(10, 128))
    features = (centres[labels] + rng.normal(size=(300, 128))).astype(np.float32)
    found = probabilities(fit(features, labels, 10, l2=l2), features)[np.arange(300), labels]
    assert found.min() > 1 - 100 * l2


def test_rows_are_taken_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = blobs()
    whole = fit(features, labels, 4, l2=1e-3)
    monkeypatch.setattr(linear, "BLOCK", 7)
    np.testing.assert_allclose(fit(features, labels, 4, l2=1e-3).weight, whole.weight, rtol=1e-5)


def test_a_ridge_without_bounds_leaves_the_frequencies() -> None:
    features, labels = blobs(classes=3)
    head = fit(features, labels, 3, l2=1e6)
    np.testing.assert_allclose(probabilities(head, features[:5]), np.tile(np.bincount(labels) / len(labels), (5, 1)), atol=1e-4)


def test_classes_without_examples_are_improbable_and_change_nothing_else() -> None:
    features, labels = blobs(classes=3)
    few, many = fit(features, labels, 3, l2=0.01), fit(features, np.array([1, 3, 4])[labels], 6, l2=0.01)
    np.testing.assert_array_equal(many.weight[[1, 3, 4]], few.weight)
    np.testing.assert_array_equal(many.bias[[1, 3, 4]], few.bias)
    assert (many.weight[[0, 2, 5]] == 0).all()
    log_odds = np.log(probabilities(many, features)[:, 0] / probabilities(many, features)[:, [1, 3, 4]].sum(1))
    assert log_odds.mean() == pytest.approx(-math.log(90 + 6), abs=1e-4)


def test_a_single_class() -> None:
    features, _ = blobs()
    head = fit(features, np.full(90, 2), 3, l2=0.01)
    np.testing.assert_allclose(probabilities(head, features), np.tile([1 / 95, 1 / 95, 93 / 95], (90, 1)), rtol=2e-2)
    assert head.bias[2] == 0
    assert (head.weight == 0).all()
    np.testing.assert_allclose(head.bias[:2], -math.log(93), rtol=1e-6)


def test_one_example() -> None:
    head = fit(np.ones((1, 4), np.float32), np.array([1]), 2, l2=0.01)
    assert head.weight.tolist() == [[0.0] * 4] * 2
    np.testing.assert_allclose(head.bias, [-math.log(3), 0], rtol=1e-6)


def test_constant_features_carry_no_weight_and_nearly_constant_ones_little() -> None:
    features, labels = blobs()
    constant = np.full((90, 1), 5, np.float32)
    flicker = np.where(np.arange(90) == 7, 1e-9, 0).astype(np.float32)[:, None]
    head = fit(np.hstack([features, constant, flicker]), labels, 4, l2=0.01)
    assert (head.weight[:, -2] == 0).all()
    assert np.abs(head.weight[:, -1]).max() < 1e-3, "a unit in the last place of one image may not decide about another"
    np.testing.assert_allclose(head.weight[:, :-2], fit(features, labels, 4, l2=0.01).weight, rtol=1e-3, atol=1e-6)


def test_weights_of_classes_are_scikit_learns() -> None:
    features, labels = blobs()
    labels = np.where((labels == 3) & (np.arange(90) % 4 > 0), 0, labels)  # class 3 is rare
    weights = balanced(labels, 5)
    each = compute_class_weight("balanced", classes=np.arange(4), y=labels)
    np.testing.assert_allclose(weights[:4] / weights[0], each / each[0])
    x = StandardScaler().fit_transform(features.astype(np.float64))
    shares = weights[labels] / weights[labels].sum()
    truth = LogisticRegression(C=1 / (len(labels) * 0.01), solver="newton-cholesky", tol=1e-8).fit(x, labels, sample_weight=shares * len(labels))
    few = fit(features, labels, 4, l2=0.01, weights=weights[:4])
    np.testing.assert_allclose(probabilities(few, features), truth.predict_proba(x), atol=2e-5)


def test_balanced_weights_are_total_by_count_and_sum_to_one() -> None:
    """Counts 6, 2 and none: 8/6, 8/2 and 1, as in the code of Emam et al., over their sum."""
    found = balanced(np.array([0] * 6 + [1] * 2), 3)
    np.testing.assert_allclose(found, np.array([8 / 6, 4, 1]) / (8 / 6 + 4 + 1))


def test_twice_the_same_bytes() -> None:
    features, labels = blobs()
    first, second = (fit(features, labels, 4, l2=1e-3) for _ in range(2))
    assert first.weight.tobytes() == second.weight.tobytes()
    assert first.bias.tobytes() == second.bias.tobytes()


def test_errors_say_what_was_got(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = blobs()
    with pytest.raises(ValueError, match="there are no labels to train on; label some images first"):
        fit(features[:0], labels[:0], 4, l2=0.01)
    with pytest.raises(ValueError, match="features are not finite in 1 of 90 rows; pretrain again, with a lower learning rate"):
        fit(np.where(np.arange(90)[:, None] == 5, np.nan, features), labels, 4, l2=0.01)
    with pytest.raises(ValueError, match="labels reach from 0 to 3, expected 0 to 2"):
        fit(features, labels, 3, l2=0.01)
    with pytest.raises(ValueError, match=r"got features of shape \(90, 6\) and labels of shape \(89,\); expected \(n, D\) and \(n,\)"):
        fit(features, labels[1:], 4, l2=0.01)
    with pytest.raises(ValueError, match=r"l2 is 0.0, expected above 0 and finite"):
        fit(features, labels, 4, l2=0.0)
    monkeypatch.setattr(linear, "NEWTON_STEPS", 2)
    with pytest.raises(ValueError, match=r"logistic regression has a gradient of .* after 2 Newton steps, expected 1e-07; raise retrain.l2 \(now 0.01\)"):
        fit(features, labels, 4, l2=0.01)

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from al_core import cross_validation
from al_core.calibration import temperature
from al_core.cross_validation import STRENGTHS, cross_validate, dealt, held_out
from al_core.metrics import nll
from al_core.seeds import generator


def blobs(n: int = 80, classes: int = 3) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, n)
    centres = rng.normal(size=(classes, 8))
    return (centres[labels] + 1.5 * rng.normal(size=(n, 8)) + 3).astype(np.float32), labels


def test_held_out_logits_are_scikit_learns() -> None:
    features, labels = blobs()
    found = cross_validate(features, labels, 3, seed=0, strengths=(0.1, 0.01))
    fold = dealt(labels, generator(0, "folds"))
    x = StandardScaler().fit_transform(features.astype(np.float64))
    expected = np.empty((80, 3))
    for number in range(5):
        train = fold != number
        model = LogisticRegression(C=1 / (train.sum() * found.l2), tol=1e-10, max_iter=1000).fit(x[train], labels[train])
        expected[~train] = model.decision_function(x[~train])
    centred = found.logits - found.logits.mean(1, keepdims=True)
    np.testing.assert_array_equal(found.rows, np.arange(80))
    np.testing.assert_allclose(centred, expected - expected.mean(1, keepdims=True), atol=2e-2)
    assert found.temperature == temperature(found.logits, labels)
    assert found.nll[found.l2] == pytest.approx(nll(found.logits / found.temperature, labels), rel=1e-6)
    assert found.nll[found.l2] == min(found.nll.values())


def test_noise_gets_a_strong_ridge_and_a_clear_case_a_weak_one() -> None:
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(60, 40)).astype(np.float32)
    assert cross_validate(noise, rng.integers(0, 3, 60), 3, seed=0).l2 >= 1
    assert cross_validate(noise, (noise[:, 0] > 0).astype(np.int64) + (noise[:, 1] > 0), 3, seed=0).l2 < 1


def test_folds_hold_every_class_as_evenly_as_it_goes() -> None:
    labels = np.repeat([0, 1, 2, 3], [23, 11, 5, 1])
    fold = dealt(labels, np.random.default_rng(0))
    sizes = np.bincount(fold, minlength=5)
    assert sizes.max() - sizes.min() <= 1
    for number in range(4):
        share = np.bincount(fold[labels == number], minlength=5)
        assert share.max() - share.min() <= 1
    assert sorted(dealt(np.zeros(3, np.int64), np.random.default_rng(0))) == [0, 1, 2], "fewer examples than folds: each is held out alone"


def test_many_examples_need_fewer_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_validation, "ENOUGH", 30)
    folds = held_out(dealt(np.zeros(100, np.int64), np.random.default_rng(0)))
    assert [len(rows) for rows in folds] == [20, 20]


def test_a_class_with_one_example_and_one_without() -> None:
    features, labels = blobs()
    labels[7] = 4
    found = cross_validate(features, labels, 5, seed=0)
    assert np.isfinite(found.logits).all()
    assert found.logits[7].argmax() < 3, "its only example was held out"


def test_nothing_to_choose_by() -> None:
    found = cross_validate(np.ones((1, 4), np.float32), np.array([1]), 2, seed=0)
    assert (found.l2, found.nll, found.temperature, len(found.rows)) == (STRENGTHS[0], {}, 1, 0)
    features, _ = blobs()
    assert cross_validate(features, np.full(80, 2), 3, seed=0).l2 in STRENGTHS


def test_weak_strengths_are_not_tried_once_two_were_worse() -> None:
    rng = np.random.default_rng(1)
    tried = list(cross_validate(rng.normal(size=(60, 40)).astype(np.float32), rng.integers(0, 3, 60), 3, seed=0).nll)
    assert tried == list(STRENGTHS[: len(tried)])
    assert len(tried) < len(STRENGTHS)


def test_twice_the_same_bytes_and_another_seed_other_folds() -> None:
    features, labels = blobs()
    first, second, other = (cross_validate(features, labels, 3, seed=seed) for seed in (0, 0, 1))
    assert first.logits.tobytes() == second.logits.tobytes() != other.logits.tobytes()
    assert first.nll == second.nll


def test_errors_say_what_was_got() -> None:
    features, labels = blobs()
    with pytest.raises(ValueError, match=r"the strengths are \(0.1, 1.0\), expected falling values"):
        cross_validate(features, labels, 3, seed=0, strengths=(0.1, 1.0))
    with pytest.raises(ValueError, match="there are no labels to train on; label some images first"):
        cross_validate(features[:0], labels[:0], 3, seed=0)

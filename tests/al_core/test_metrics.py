import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torchmetrics.functional.classification import binary_auroc, multiclass_accuracy, multiclass_calibration_error, multiclass_f1_score

from al_core.metrics import among_top, auc, balanced_accuracy, bootstrap, brier, ece, log_probabilities, macro_f1, nll, wilson

Logits = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]


@pytest.mark.parametrize(  # Newcombe 1998, Statistics in Medicine 17, table I, method 3
    ("successes", "n", "low", "high"), [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)]
)
def test_wilson_is_the_published_interval(successes: int, n: int, low: float, high: float) -> None:
    share = wilson(successes, n)
    assert share.value == successes / n
    assert (round(share.low, 4), round(share.high, 4)) == (low, high)


def test_wilson_bounds_solve_their_definition() -> None:
    """A bound is the share p from which the observed one is 1.96 standard errors away."""
    for bound in wilson(7, 30)[1:]:
        assert abs(7 / 30 - bound) / math.sqrt(bound * (1 - bound) / 30) == pytest.approx(1.959963984540054)


def test_wilson_reaches_the_ends_exactly() -> None:
    for n in (1, 7, 999):
        assert wilson(0, n).low == 0.0 < wilson(0, n).high < 1
        assert wilson(n, n).high == 1.0 > wilson(n, n).low > 0


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_what_is_no_share(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"got {successes} successes of {n}, expected 0 to n of at least 1"):
        wilson(successes, n)


def test_log_probabilities_stay_finite() -> None:
    logs = log_probabilities(np.array([[0.0, 1e4], [-3e38, 3e38], [np.log(3), 0]], dtype=np.float32))
    assert logs.dtype == np.float64
    assert logs[0].tolist() == [-1e4, 0]
    assert np.isfinite(logs).all()
    np.testing.assert_allclose(np.exp(logs[2]), [0.75, 0.25], rtol=1e-7)


def test_nll_by_hand() -> None:
    shift = np.array([[100], [-7]])  # of a row: changes nothing
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]])) + shift
    assert nll(logits, np.array([1, 1])) == pytest.approx((math.log(4) - math.log(0.8)) / 2)
    assert nll(np.array([[0.0, 5000.0]]), np.array([0])) == 5000


def test_ece_by_hand() -> None:
    """Of 15 bins, (9/15, 10/15] holds two images of confidence 0.62 and 0.66, one right; (13/15, 14/15] holds three of 0.9, all right."""
    top = np.array([0.62, 0.66, 0.9, 0.9, 0.9])
    logits = np.log(np.stack([top, 1 - top], axis=1))
    labels = np.array([0, 1, 0, 0, 0])
    assert ece(logits, labels) == pytest.approx(2 / 5 * abs(0.5 - 0.64) + 3 / 5 * abs(1 - 0.9))
    assert ece(logits, labels, bins=1) == pytest.approx(abs(0.8 - top.mean())), "one bin: gaps of both signs cancel"


def test_ece_of_certain_and_of_ignorant_predictions() -> None:
    certain = np.array([[1000.0, 0.0], [1000.0, 0.0]])
    assert ece(certain, np.array([0, 0])) == 0
    assert ece(certain, np.array([0, 1])) == pytest.approx(0.5)
    assert ece(np.zeros((4, 2)), np.array([0, 0, 1, 1])) == 0, "confidence 1/2 and accuracy 1/2"


@pytest.mark.parametrize("measure", [nll, ece])
def test_errors_say_what_was_got(measure: Callable[..., float]) -> None:
    labels = np.array([0, 0, 0, 2, 2])
    with pytest.raises(ValueError, match="got no labels, expected at least 1"):
        measure(np.zeros((0, 3)), labels[:0])
    with pytest.raises(ValueError, match=r"got labels of shape \(5,\) and logits of shape \(4, 3\), expected \(n,\) and \(n, classes\)"):
        measure(np.zeros((4, 3)), labels)
    with pytest.raises(ValueError, match=r"got labels of shape \(5,\) and logits of shape \(5,\), expected \(n,\) and \(n, classes\)"):
        measure(np.zeros(5), labels)
    with pytest.raises(ValueError, match="got classes 0 to 2, expected 0 to 1"):
        measure(np.zeros((5, 2)), labels)
    with pytest.raises(ValueError, match=r"got logits of shape \(5, 3\) with values that are not finite, expected \(n, classes\), finite"):
        measure(np.full((5, 3), np.nan), labels)


# ---- beside torchmetrics, and intervals -------------------------------------------------------------------------------------


def guesses(classes: int, n: int = 200) -> tuple[Logits, Rows]:
    rng = np.random.default_rng(0)
    labels = rng.choice(classes, n, p=np.arange(1, classes + 1) / np.arange(1, classes + 1).sum())
    logits = np.round(8 * rng.normal(size=(n, classes)) + 6 * np.eye(classes)[labels]) / 4  # there are ties
    return logits, labels


def test_measures_of_classes_are_torchmetrics() -> None:
    logits, labels = guesses(7)
    scores, truth = torch.from_numpy(logits).softmax(1), torch.from_numpy(labels)
    predicted = logits.argmax(1)
    assert balanced_accuracy(predicted, labels) == pytest.approx(multiclass_accuracy(torch.from_numpy(predicted), truth, 7, average="macro").item())
    assert macro_f1(predicted, labels) == pytest.approx(multiclass_f1_score(torch.from_numpy(predicted), truth, 7, average="macro").item())
    assert ece(logits, labels) == pytest.approx(multiclass_calibration_error(scores, truth, 7, n_bins=15).item(), abs=1e-6)
    untied = logits + np.random.default_rng(1).uniform(0, 1e-3, logits.shape)
    expected = multiclass_accuracy(torch.from_numpy(untied).softmax(1), truth, 7, average="micro", top_k=5).item()
    assert among_top(untied, labels, 5).mean() == pytest.approx(expected)


def test_auc_is_torchmetrics() -> None:
    logits, labels = guesses(2)
    assert auc(logits, labels) == pytest.approx(binary_auroc(torch.from_numpy(logits[:, 1] - logits[:, 0]).sigmoid(), torch.from_numpy(labels)).item())
    assert auc(np.zeros((4, 2)), np.array([0, 1, 1, 0])) == 0.5
    assert math.isnan(auc(np.zeros((2, 2)), np.array([1, 1])))
    with pytest.raises(ValueError, match="got 3 classes, expected 2"):
        auc(np.zeros((2, 3)), np.array([1, 1]))


def test_measures_of_a_split_without_some_classes() -> None:
    """Labels 0 0 1, predictions 0 2 1 of 4 classes: recalls 1/2 and 1; F1 2/3, 1 and 0."""
    predicted, labels = np.array([0, 2, 1]), np.array([0, 0, 1])
    assert balanced_accuracy(predicted, labels) == pytest.approx(3 / 4)
    assert macro_f1(predicted, labels) == pytest.approx((2 / 3 + 1 + 0) / 3)


def test_brier_by_hand() -> None:
    logits = np.log(np.array([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1]]))
    assert brier(logits, np.array([0, 2])) == pytest.approx((0.25 + 0.09 + 0.04 + 0.01 + 0.64 + 0.81) / 2)


def test_among_the_top_ties_go_to_the_lower_class() -> None:
    logits = np.array([[1.0, 1.0, 0.0]] * 3)
    for k in (1, 2, 3):
        assert among_top(logits, np.array([0, 1, 2]), k).tolist() == [k >= 1, k >= 2, k >= 3]


def test_the_bootstraps_interval_of_a_mean_is_the_normal_one() -> None:
    values = np.random.default_rng(0).exponential(size=400)
    found = bootstrap(lambda rows: float(values[rows].mean()), 400, np.random.default_rng(1))
    half = 1.96 * values.std() / 20
    assert found.value == values.mean()
    assert found.low == pytest.approx(values.mean() - half, abs=0.02)
    assert found.high == pytest.approx(values.mean() + half, abs=0.02)
    assert found == bootstrap(lambda rows: float(values[rows].mean()), 400, np.random.default_rng(1))
    with pytest.raises(ValueError, match="got 0 images, expected at least 1"):
        bootstrap(lambda rows: 0.0, 0, np.random.default_rng(1))

"""How good predictions are."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32] | npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

Z95 = 1.959963984540054  # 97.5% quantile of the normal distribution


DRAWS = 1000  # of the bootstrap


class Interval(NamedTuple):
    """A figure and its 95% interval, in the figure's unit."""

    value: float
    low: float
    high: float


def wilson(successes: int, n: int) -> Interval:
    """Share of successes with its 95% Wilson score interval, which stays within 0 to 1 and holds for small n.

    Wilson 1927; without continuity correction.

    Raises:
        ValueError: no trials, or successes outside of 0..n.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"got {successes} successes of {n}, expected 0 to n of at least 1")
    value, z2 = successes / n, Z95 * Z95
    centre = (value + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * ((value * (1 - value) + z2 / (4 * n)) / n) ** 0.5
    low = 0.0 if successes == 0 else centre - half  # exact there; the difference leaves rounding behind
    high = 1.0 if successes == n else centre + half
    return Interval(value, low, high)


def bootstrap(measure: Callable[[Labels], float], n: int, rng: np.random.Generator) -> Interval:
    """A figure of n images with its 95% percentile interval, over 1,000 samples of n drawn with replacement (Efron 1979).

    Args:
        measure: the figure of some rows (m,), each 0 to n-1, repeats counting; nan where they have none, such as AUC of one class: not counted.

    Raises:
        ValueError: no images.
    """
    if n < 1:
        raise ValueError(f"got {n} images, expected at least 1")
    drawn = [measure(rng.integers(0, n, n)) for _ in range(DRAWS)]
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return Interval(measure(np.arange(n)), float(low), float(high))


def log_probabilities(logits: Floats) -> npt.NDArray[np.float64]:
    """(n, classes) log-softmax in float64: no overflow, and no -inf from finite logits.

    Raises:
        ValueError: logits that are not finite.
    """
    if logits.ndim != 2 or not np.isfinite(logits).all():
        raise ValueError(
            f"got logits of shape {logits.shape}{'' if np.isfinite(logits).all() else ' with values that are not finite'}, expected (n, classes), finite"
        )
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    normalised: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return normalised


def nll(logits: Floats, labels: Labels) -> float:
    """Mean negative log-likelihood of the labels, nats; lower is better. logits: (n, classes)."""
    check(logits, labels)
    return float(-log_probabilities(logits)[np.arange(len(labels)), labels].mean())


def ece(logits: Floats, labels: Labels, bins: int = 15) -> float:
    """Expected calibration error, 0 to 1; lower is better. logits: (n, classes).

    Images are grouped by confidence (top softmax probability) into equal bins (0, 1/bins], ...; the gap between accuracy and mean confidence of
    each is averaged, weighted by its images (Guo et al. 2017).
    """
    check(logits, labels)
    logs = log_probabilities(logits)
    confidence = np.exp(logs.max(axis=1))
    correct = logs.argmax(axis=1) == labels
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = np.bincount(place, weights=correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


def brier(logits: Floats, labels: Labels) -> float:
    """Mean squared distance of the probabilities to the truth's 0 and 1, summed over classes (Brier 1950): 0 to 2; lower is better."""
    check(logits, labels)
    return float(np.square(np.exp(log_probabilities(logits)) - np.eye(logits.shape[1])[labels]).sum(axis=1).mean())


def among_top(logits: Floats, labels: Labels, k: int) -> npt.NDArray[np.bool_]:
    """(n,) whether the label is among the k most probable classes; of equal logits the lower class comes first, as in argmax."""
    check(logits, labels)
    own = logits[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(logits.shape[1]) < labels[:, None]
    ahead: npt.NDArray[np.bool_] = ((logits > own) | (logits == own) & earlier).sum(axis=1) < k
    return ahead


def balanced_accuracy(predicted: Labels, labels: Labels) -> float:
    """Mean recall over the classes that the labels have, 0 to 1: every class counts alike, however rare."""
    counts = np.bincount(labels)
    hits = np.bincount(labels[predicted == labels], minlength=len(counts))
    return float((hits[counts > 0] / counts[counts > 0]).mean())


def macro_f1(predicted: Labels, labels: Labels) -> float:
    """Mean over classes of F1 = 2 hits / (labels + predictions), 0 to 1; classes with neither do not count."""
    size = int(max(predicted.max(), labels.max())) + 1
    either = np.bincount(labels, minlength=size) + np.bincount(predicted, minlength=size)
    hits = np.bincount(labels[predicted == labels], minlength=size)
    return float((2 * hits[either > 0] / either[either > 0]).mean())


def auc(logits: Floats, labels: Labels) -> float:
    """Probability that an image of class 1 has a higher logit for it than one of class 0, ties half (area under the ROC curve); nan with one class alone.

    logits: (n, 2).
    """
    check(logits, labels)
    if logits.shape[1] != 2:
        raise ValueError(f"got {logits.shape[1]} classes, expected 2")
    positives = int(labels.sum())
    if positives in (0, len(labels)):
        return float("nan")
    _, place, counts = np.unique(logits[:, 1] - logits[:, 0], return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]  # of equal ones the mean
    return float((ranks[labels == 1].sum() - positives * (positives + 1) / 2) / (positives * (len(labels) - positives)))


def check(logits: Floats, labels: Labels) -> None:
    """Raise unless there are labels, one for each row of the logits, and they are among its classes."""
    if labels.ndim != 1 or logits.ndim != 2 or len(logits) != len(labels):
        raise ValueError(f"got labels of shape {labels.shape} and logits of shape {logits.shape}, expected (n,) and (n, classes)")
    if len(labels) == 0:
        raise ValueError("got no labels, expected at least 1")
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError(f"got classes {labels.min()} to {labels.max()}, expected 0 to {logits.shape[1] - 1}")

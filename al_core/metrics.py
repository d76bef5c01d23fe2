"""How good predictions are."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32] | npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

Z95 = 1.959963984540054  # 97.5% quantile of the normal distribution


class Proportion(NamedTuple):
    """A share and its 95% interval, all 0 to 1."""

    value: float
    low: float
    high: float


def wilson(successes: int, n: int) -> Proportion:
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
    return Proportion(value, low, high)


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


def check(logits: Floats, labels: Labels) -> None:
    """Raise unless there are labels, one for each row of the logits, and they are among its classes."""
    if labels.ndim != 1 or logits.ndim != 2 or len(logits) != len(labels):
        raise ValueError(f"got labels of shape {labels.shape} and logits of shape {logits.shape}, expected (n,) and (n, classes)")
    if len(labels) == 0:
        raise ValueError("got no labels, expected at least 1")
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError(f"got classes {labels.min()} to {labels.max()}, expected 0 to {logits.shape[1] - 1}")

"""Probabilities that mean what they say: temperature scaling."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from al_core.metrics import Floats, Labels, check, log_probabilities

LOWEST, HIGHEST = 0.1, 10.0
HALVINGS = 60


def temperature(logits: Floats, labels: Labels, shares: npt.NDArray[np.float64] | None = None) -> float:
    """The temperature T, 0.1 to 10, at which softmax(logits / T) gives held-out labels the lowest mean NLL (Guo et al. 2017); 1 where all T are alike.

    Of each label a share of 1 / (n + 2) is spread evenly over all classes, as in Platt 1999: were few labels all predicted right, no certainty would
    be too much otherwise. Above 1: the logits were too sure. The NLL is convex in 1 / T, so that its slope is 0 once: found by bisection, to the last bits.

    Args:
        logits: (n, classes) finite, of examples that the classifier was not trained on.
        labels: (n,) in 0..classes-1.
        shares: (n,) how much each example counts in the mean; None: all alike.

    Raises:
        ValueError: no labels, labels outside of the classes, or logits that are not finite.
    """
    check(logits, labels)
    logs = log_probabilities(logits)
    spread = 1 / (len(labels) + 2)
    own = (1 - spread) * logs[np.arange(len(labels)), labels] + spread * logs.mean(axis=1)

    def slope(inverse: float) -> float:
        """Of the mean NLL along 1 / T: what is expected of the logits less what the labels have."""
        return float(np.average((np.exp(log_probabilities(inverse * logs)) * logs).sum(axis=1) - own, weights=shares))

    if np.ptp(logs, axis=1).max() == 0:
        return 1.0
    low, high = 1 / HIGHEST, 1 / LOWEST
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 1 / high if slope(1 / LOWEST) > 0 else LOWEST

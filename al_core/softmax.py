"""Measures of how sure a softmax is of its class, from the logits.

All are written in the odds of the other classes against the likeliest one, in float64. So nothing overflows or becomes NaN, and the unsure end keeps
every digit where a difference of two rounded probabilities has none left. At the sure end confidence and margin round to exactly 1 when the other
classes together are below 1e-16. Entropy tells such rows apart down to 1e-300.
"""

from __future__ import annotations

import numpy as np

from al_core.pool import Floats
from al_core.selection import Scores

NEVER = -1000.0  # log-odds whose exp is 0 in float64, as of everything below -746


def log_odds(logits: Floats) -> Scores:
    """Log of each class's probability over the likeliest class's; at most 0, and NEVER for the likeliest itself (the first, of several).

    Args:
        logits: (n, classes), finite; at least 2 classes.

    Returns:
        (n, classes) float64 in [NEVER, 0].
    """
    z = logits.astype(np.float64)
    likeliest = z.argmax(axis=1, keepdims=True)
    with np.errstate(over="ignore"):
        against = np.maximum(z - np.take_along_axis(z, likeliest, axis=1), NEVER)
    np.put_along_axis(against, likeliest, NEVER, axis=1)
    return against


def confidence(logits: Floats) -> Scores:
    """Probability of the likeliest class, (n,) in [1/classes, 1]; low means unsure."""
    others: Scores = np.exp(log_odds(logits)).sum(axis=1)
    return 1 / (1 + others)


def margin(logits: Floats) -> Scores:
    """Probability of the likeliest class minus that of the second, (n,) in [0, 1]; low means unsure."""
    against = log_odds(logits)
    others: Scores = np.exp(against).sum(axis=1)
    second: Scores = against.max(axis=1)
    return (0.0 - np.expm1(second)) / (1 + others)


def entropy(logits: Floats) -> Scores:
    """Entropy of the class probabilities in nats, (n,) in [0, log(classes)]; high means unsure."""
    against = log_odds(logits)
    odds = np.exp(against)
    others: Scores = odds.sum(axis=1)
    surprise: Scores = -(odds * against).sum(axis=1)
    return np.log1p(others) + surprise / (1 + others)

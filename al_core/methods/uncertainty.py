"""Uncertainty sampling: the rows whose class the model is least sure of, by three measures of one softmax.

Rows of which the model is as good as certain, picked last, tie in confidence and margin; entropy tells them apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from al_core.pool import Floats, Pool, Rows, blocks
from al_core.progress import over
from al_core.ranking import Ranked, Ranking
from al_core.registry import method
from al_core.selection import Scores
from al_core.softmax import confidence, entropy, margin


def over_available(pool: Pool, measure: Callable[[Floats], Scores]) -> Ranked:
    """A measure of the logits of every available row."""
    logits = pool.logits
    if logits.shape[1] < 2:
        raise ValueError("logits have 1 class; a model needs at least 2 to be unsure between")

    def scores_of(rows: Rows) -> Scores:
        parts = over(blocks(rows, width=logits.shape[1]), "rows", len(rows))
        return np.concatenate([np.empty(0), *(measure(logits[rows[part]]) for part in parts)])

    return Ranked(pool.available, pool.processes.mapped(scores_of, pool.available))


@method(
    "confidence",
    family="uncertainty",
    needs=("logits",),
    direction="probability of the likeliest class, 1/classes to 1; lowest first",
    complexity="O(n classes)",
    memory="O(n)",
    source="Lewis & Gale 1994",
    when="with a model that is better than chance and not far too sure of itself; picks are often alike in large batches",
)
@dataclass(frozen=True)
class Confidence(Ranking):
    """The rows whose likeliest class is least likely."""

    highest_first = False
    worst = 1.0

    def rank(self, pool: Pool, rng: np.random.Generator) -> Ranked:
        return over_available(pool, confidence)


@method(
    "margin",
    family="uncertainty",
    needs=("logits",),
    direction="probability of the likeliest class minus that of the second, 0 to 1; lowest first",
    complexity="O(n classes)",
    memory="O(n)",
    source="Scheffer, Decomain & Wrobel 2001",
    when="first choice once there are some 20 to 50 labels a class; picks are often alike in very large batches",
)
@dataclass(frozen=True)
class Margin(Ranking):
    """The rows whose two likeliest classes are hardest to tell apart."""

    highest_first = False
    worst = 1.0

    def rank(self, pool: Pool, rng: np.random.Generator) -> Ranked:
        return over_available(pool, margin)


@method(
    "entropy",
    family="uncertainty",
    needs=("logits",),
    direction="entropy of the class probabilities in nats, 0 to log(classes); highest first",
    complexity="O(n classes)",
    memory="O(n)",
    source="Settles 2009, section 3.1",
    when="where doubt among many classes matters; with many classes it is the weakest of the three in most published comparisons",
)
@dataclass(frozen=True)
class Entropy(Ranking):
    """The rows over whose classes the probability is spread most evenly."""

    highest_first = True
    worst = 0.0

    def rank(self, pool: Pool, rng: np.random.Generator) -> Ranked:
        return over_available(pool, entropy)

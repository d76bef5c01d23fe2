"""Deep Bayesian active learning: rows on which several stochastic passes of a model, as under MC dropout, are unsure or at odds.

All four go once over the passes of a block of rows, and hold no more than that. Probabilities are taken as they are given, in float64: those stored
as float16 add up to 1 only within 0.001 and are not stretched. The passes of different rows need not share their dropout masks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from al_core.passes import Array, entropy, largest, mean, mutual_information, opened, over_available, vote
from al_core.pool import Pool
from al_core.ranking import Ranked, Ranking
from al_core.registry import method

COMPLEXITY = "O(passes n classes), one reading of mc_probs; O(passes n classes d) from mc_heads"
MEMORY = "O(n), and for each thread some blocks of 128 KB"


def entropy_of_mean(passes: Iterable[Array]) -> Array:
    """(rows,) entropy in nats of the mean over passes, in [0, log(classes)]."""
    return entropy(mean(passes))


def doubt_of_mean(passes: Iterable[Array]) -> Array:
    """(rows,) 1 minus the largest class probability of the mean over passes, in [0, 1 - 1/classes]."""
    return 1 - largest(mean(passes))


def dissent(passes: Iterable[Array]) -> Array:
    """(rows,) share of passes whose likeliest class is not the one most voted for: one of 0, 1/passes, ..., 1 - 1/passes."""
    first, rest = opened(passes)
    votes = vote(first)
    for p in rest:
        votes += vote(p)
    count: Array = votes.sum(1)
    against: Array = (count - largest(votes)) / count
    return against


def mean_deviation(passes: Iterable[Array]) -> Array:
    """(rows,) standard deviation of a class's probability over passes, averaged over classes, in [0, 1/2].

    The variance is Welford's, a sum of products that are never negative, so that no difference of squares loses digits.
    """
    average, rest = opened(passes)
    squares, count = average * 0, 1
    for count, p in enumerate(rest, 2):
        off = p - average
        average = average + off / count
        off *= p - average
        squares += off
    deviation: Array = ((squares / count) ** 0.5).sum(1) / average.shape[1]
    return deviation


@method(
    "bald",
    family="bayesian",
    needs=("mc_probs",),
    direction="mutual information of class and model in nats, 0 to the lower of log(classes) and log(passes); highest first",
    complexity=COMPLEXITY,
    memory=MEMORY,
    source="Gal, Islam & Ghahramani 2017; Houlsby et al. 2011",
    when="with a model that can be sampled, in small batches; where the pool holds duplicates its batches are worse than random ones: take batchbald",
)
@dataclass(frozen=True)
class Bald(Ranking):
    """The rows on which the passes are sure, each of another class: entropy of the mean over passes minus the mean of their entropies."""

    highest_first = True
    worst = 0.0

    def rank(self, pool: Pool, rng: np.random.Generator) -> Ranked:
        return Ranked(pool.available, over_available(pool, mutual_information, least_passes=2))


@method(
    "max-entropy",
    family="bayesian",
    needs=("mc_probs",),
    direction="entropy of the mean over passes in nats, 0 to log(classes); highest first",
    complexity=COMPLEXITY,
    memory=MEMORY,
    source="Gal, Islam & Ghahramani 2017; Shannon 1948",
    when="with a model that can be sampled; it also picks rows that are ambiguous to every pass, which no label makes clear",
)
@dataclass(frozen=True)
class MaxEntropy(Ranking):
    """The rows over whose classes the mean over passes is spread most evenly."""

    highest_first = True
    worst = 0.0

    def rank(self, pool: Pool, rng: np.random.Generator) -> Ranked:
        return Ranked(pool.available, over_available(pool, entropy_of_mean))


@method(
    "variation-ratios",
    family="bayesian",
    needs=("mc_probs",),
    direction="share of passes that vote against the commonest class, 0 to 1 - 1/passes, or 1 minus the largest mean probability; highest first",
    complexity=COMPLEXITY,
    memory=MEMORY,
    source="Gal, Islam & Ghahramani 2017; Freeman 1965",
    when="with a model that can be sampled and at least some tens of passes: votes of few passes tie in masses, and the lowest rows of a tie are picked",
)
@dataclass(frozen=True)
class VariationRatios(Ranking):
    """The rows whose commonest class has the fewest of the passes' votes.

    With `kind: vote` there are only as many scores as passes, so that most of a large batch is tied, and ties go to the lowest row: `info["tied"]`
    says how many rows as good as the last pick were left out. A pass that is itself tied votes for the lowest class.
    """

    kind: Literal["vote", "mean"] = field(
        default="vote", metadata={"meaning": "count the passes' likeliest classes, or take the largest probability of their mean, which hardly ever ties"}
    )
    highest_first = True
    worst = 0.0

    def rank(self, pool: Pool, rng: np.random.Generator) -> Ranked:
        return Ranked(pool.available, over_available(pool, dissent, least_passes=2) if self.kind == "vote" else over_available(pool, doubt_of_mean))


@method(
    "mean-std",
    family="bayesian",
    needs=("mc_probs",),
    direction="standard deviation over passes of a class's probability, averaged over classes, 0 to 1/2; highest first",
    complexity=COMPLEXITY,
    memory=MEMORY,
    source="Gal, Islam & Ghahramani 2017; Kampffmeyer et al. 2016",
    when="with a model that can be sampled, to compare with the other three; weakest of the four in the paper's table, though its published code has a fault",
)
@dataclass(frozen=True)
class MeanStd(Ranking):
    """The rows whose class probabilities vary most from pass to pass."""

    highest_first = True
    worst = 0.0

    def rank(self, pool: Pool, rng: np.random.Generator) -> Ranked:
        return Ranked(pool.available, over_available(pool, mean_deviation, least_passes=2))

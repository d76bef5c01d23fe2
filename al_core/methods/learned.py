"""Scores that a network was trained to give: the loss that it expects of an image, and how labelled an image looks. Both are only sorted here."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from al_core.pool import Floats, Pool, Rows
from al_core.ranking import Ranked, Ranking
from al_core.registry import method
from al_core.selection import Scores


@method(
    "learning-loss",
    family="learned",
    needs=("predicted_loss",),
    direction="loss that the model predicts for its own answer, without a scale; highest first",
    complexity="O(n)",
    memory="O(n)",
    source="Yoo & Kweon 2019",
    when="with a model trained together with a loss prediction module, whatever the task; the random sub-pool keeps a batch from being all alike",
    stochastic=True,
)
@dataclass(frozen=True)
class LearningLoss(Ranking):
    """The rows for which the model predicts the highest loss, among a random part of the pool.

    The draw of that part is all that is random: a pool with no more available rows than `subpool` is looked at whole, and the seed changes nothing.
    `info["looked_at"]` says how many rows that were. Predicted losses have an order and no scale, so no score means anything beside another round's.
    """

    subpool: int | None = field(default=10_000, metadata={"meaning": "look at so many rows drawn at random; null: at all"})

    highest_first = True
    worst = None

    def __post_init__(self) -> None:
        if self.subpool is not None and self.subpool < 1:
            raise ValueError(f"subpool is {self.subpool}; expected at least 1, or null to look at all rows")

    def rank(self, pool: Pool, rng: np.random.Generator) -> Ranked:
        rows = pool.available
        if self.subpool is not None and self.subpool < len(rows):
            rows = np.sort(rng.choice(rows, size=self.subpool, replace=False))
        return Ranked(rows, of_rows(pool.predicted_loss, rows), {"looked_at": len(rows)})


@method(
    "vaal",
    family="learned",
    needs=("discriminator",),
    direction="probability of being labelled, as the discriminator sees it, 0 to 1; lowest first",
    complexity="O(n)",
    memory="O(n)",
    source="Sinha, Ebrahimi & Darrell 2019",
    when="to compare with; in published reruns it is no better than random, and it needs a VAE and a discriminator trained every round",
)
@dataclass(frozen=True)
class Vaal(Ranking):
    """The rows that a discriminator between labelled and unlabelled images is surest are unlabelled."""

    highest_first = False
    worst = 1.0

    def rank(self, pool: Pool, rng: np.random.Generator) -> Ranked:
        return Ranked(pool.available, of_rows(pool.discriminator, pool.available))


def of_rows(signal: Floats, rows: Rows) -> Scores:
    """(rows,) what an (n,) signal says of them."""
    return np.asarray(signal[rows], dtype=np.float64)

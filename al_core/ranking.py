"""Methods that give each row a score of its own: the batch is the best of them, or what a composition makes of the scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from al_core.pool import Pool, Rows
from al_core.selection import Scores, Selection, lowest


@dataclass(frozen=True, eq=False)
class Ranked:
    """Candidates with their scores.

    Attributes:
        rows: (candidates,) available rows, ascending.
        scores: (candidates,) float64 score of each, finite.
        info: what the method says of its own run.
    """

    rows: Rows
    scores: Scores
    info: Mapping[str, object] = field(default_factory=dict)


class Ranking(ABC):
    """A method whose score of a row does not depend on which others are picked. Frozen dataclasses inherit from it and say what the score is."""

    highest_first: ClassVar[bool]  # which end of the scores is picked first
    worst: ClassVar[float | None]  # score of a row that is of no use at all; None: the worst score of the candidates stands for it

    @abstractmethod
    def rank(self, pool: Pool, rng: np.random.Generator) -> Ranked:
        """The available rows, or a random part of them, with their scores."""

    def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Selection:
        """The best scores; ties by lowest row. `info["tied"]`: candidates left out whose score is the last pick's."""
        ranked = self.rank(pool, rng)
        require(len(ranked.rows), budget)
        picks = lowest(-ranked.scores if self.highest_first else ranked.scores, budget)
        last = ranked.scores[picks[-1]]
        tied = int((ranked.scores == last).sum() - (ranked.scores[picks] == last).sum())
        return Selection(ranked.rows[picks], ranked.scores[picks], {**ranked.info, "tied": tied})

    def utility(self, scores: Scores) -> Scores:
        """(candidates,) how far each score lies from the worst; at least 0, higher is picked earlier."""
        sign = 1.0 if self.highest_first else -1.0
        worst = self.worst if self.worst is not None else (sign * scores).min() * sign
        return np.maximum(sign * (scores - worst), 0.0)


def require(candidates: int, budget: int) -> None:
    """Raise where a method looks at fewer rows than it is to pick."""
    if candidates < budget:
        raise ValueError(f"budget is {budget} but the method looks at only {candidates} rows; lower the budget or let it look at more")

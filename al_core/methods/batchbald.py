"""BatchBALD: the batch whose answers, all together, say most about which of the passes is right.

Mutual information of the answers y_1..y_b and the pass w is built up pick by pick, I(y_1..y_n; w) = I(y_1..y_n-1; w) + I(y_n; w | y_1..y_n-1). The
second term needs two things of the picks before: what they could be answered, with which probability, and how probable each pass is after such an
answer. `Answers` holds just that, (answers x passes), so that the term is one matrix product a candidate, and nothing under- or overflows however
many picks there are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from al_core.passes import IN_CACHE, Array, Stored, in_threads, moved, mutual_information, over_available, p_log_p, passes_of
from al_core.pool import Pool, Rows, blocks
from al_core.progress import counted
from al_core.ranking import require
from al_core.registry import method
from al_core.selection import Scores, Selection, lowest

TIE = 1e-10  # nats; gains that differ by less tie, since rounding alone tells them apart
CACHED = 2**16  # values at once on the CPU: 512 KB
ON_DEVICE = 2**22  # on another device: 32 MB
ALONE = 2**18  # multiplications of a matrix product for which BLAS starts no threads of its own


@method(
    "batchbald",
    family="bayesian",
    needs=("mc_probs",),
    direction="nats by which the answer adds to the mutual information of all the batch's answers with the model, at the moment of the pick; highest first",
    complexity="O(budget candidates classes passes samples), and O(passes n classes) for the candidates",
    memory="O(n + samples passes), and for each thread some blocks of 512 KB",
    source="Kirsch, van Amersfoort & Gal 2019",
    when="with a model sampled by the same masks for all rows, for batches of some tens at most; where the pool holds duplicates, bald is worse than random",
    stochastic=True,
)
@dataclass(frozen=True)
class BatchBald:
    """The batch with the highest mutual information of its answers and the model, built greedily; duplicates of a pick add little and are not picked again.

    Pass k of every row must come from one and the same model, which for dropout means one mask for the whole pool: joint probabilities are meaningless
    else, and nothing in the numbers shows it. Only the `candidates` with the highest BALD score are looked at. As long as the picks have no more than
    `samples` different answers all of them are counted, and nothing is random; from then on that many are drawn, an equal number from every pass.

    `info["exact"]` counts the picks that were made on all answers. `info["information"]` is the mutual information of the whole batch, which cannot
    exceed `info["most"]` = log(passes): near it, further picks are all but arbitrary, and only more passes help. Gains within 1e-10 nats tie, and ties
    go to the lowest row.
    """

    samples: int = field(default=4000, metadata={"meaning": "answers of the picks before that a gain is averaged over; up to so many it is exact"})
    candidates: int | None = field(default=1000, metadata={"meaning": "look at so many rows with the highest BALD score; null: at all"})

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples is {self.samples}; expected at least 1")
        if self.candidates is not None and self.candidates < 1:
            raise ValueError(f"candidates is {self.candidates}; expected at least 1, or null to look at all rows")

    def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Selection:
        informative = over_available(pool, mutual_information, least_passes=2)
        looked_at = min(self.candidates or len(informative), len(informative))
        require(looked_at, budget)
        rows = np.sort(pool.available[lowest(-informative, looked_at)])
        answers = Answers(pool, self.samples, rng)
        picks, scores, exact = np.empty(budget, dtype=np.int64), np.empty(budget), 0
        for i in counted(range(budget), "picks", budget):
            gain = answers.gains(rows)
            best = int(np.argmax(gain >= gain.max() - TIE))  # the first of those that tie
            picks[i], scores[i] = rows[best], max(gain[best], 0.0)
            exact += answers.exact
            rows = np.delete(rows, best)
            if i + 1 < budget:
                answers.extend(int(picks[i]))
        info = {"candidates": looked_at, "exact": exact, "information": float(scores.sum()), "most": math.log(answers.source.count)}
        return Selection(picks, scores, info)


class Answers:
    """What people could answer for the picks so far.

    Attributes:
        probability: (answers,) of each; adds up to 1.
        passes: (answers, passes) how probable each pass is after that answer; rows add up to 1.
        exact: whether these are all the answers that are possible; else they are drawn ones.
    """

    def __init__(self, pool: Pool, samples: int, rng: np.random.Generator) -> None:
        self.source, self.device, self.samples, self.rng = passes_of(pool), pool.device, samples, rng
        self.picked: list[int] = []
        self.exact = True
        self.start(1)

    def start(self, answers: int) -> None:
        """So many, before the first pick."""
        self.probability = np.full(answers, 1 / answers)
        self.passes = np.full((answers, self.source.count), 1 / self.source.count)

    def of(self, rows: Rows) -> Scores:
        """(passes, rows, classes) probabilities, stretched to add up to 1: those stored as float16 do so only within 0.001."""
        p = np.stack(list(self.source.of(rows)))
        stretched: Scores = p / p.sum(axis=2, keepdims=True)
        return stretched

    def gains(self, rows: Rows) -> Scores:
        """(rows,) mutual information of each row's answer and the pass, given the answer before, in nats, averaged over answers before."""
        import torch

        width = self.source.count * self.source.classes
        if self.device == "cpu":
            state = self.probability, self.passes, weighted(self.probability, self.passes)
            if isinstance(self.source, Stored):
                return in_threads(lambda part: gains(self.of(rows[part]), *state, CACHED), blocks(rows, width=IN_CACHE * width))

            def in_parts(p: Scores) -> Scores:  # that the cache holds, of what one product made for many rows
                return in_threads(lambda part: gains(p[:, part], *state, CACHED), blocks(p[0], width=IN_CACHE * width))

            return np.concatenate([in_parts(self.of(rows[block])) for block in blocks(rows, width=width)])
        on_device = moved(self.probability, self.device), moved(self.passes, self.device)
        there = *on_device, weighted(*on_device), ON_DEVICE
        every = (torch.stack([p.double() for p in self.source.on_device(rows[block])]) for block in blocks(rows, width=width))
        return np.concatenate([gains(p / p.sum(dim=2, keepdim=True), *there).cpu().numpy() for p in every])

    def extend(self, row: int) -> None:
        """A row has been picked."""
        if self.exact and len(self.probability) * self.source.classes <= self.samples:
            self.enumerate(row)
        else:
            if self.exact:
                self.exact = False
                self.start(max(1, self.samples // self.source.count) * self.source.count)
                for before in self.picked:
                    self.draw(before)
            self.draw(row)
        self.picked.append(row)

    def enumerate(self, row: int) -> None:
        """Every answer before with every answer for this row; impossible ones are left out."""
        p = self.of(np.array([row]))[:, 0]  # (passes, classes)
        joint = (self.passes[:, None] * p.T).reshape(-1, len(p))  # (answers * classes, passes)
        answer = joint.sum(axis=1)
        probability = np.repeat(self.probability, p.shape[1]) * answer
        possible = probability > 0
        self.probability, self.passes = probability[possible], joint[possible] / answer[possible, None]

    def draw(self, row: int) -> None:
        """Every answer before with one answer for this row, drawn from its own pass."""
        p = self.of(np.array([row]))[:, 0]
        up_to = p.cumsum(axis=1)
        drawn = self.rng.random((len(p), len(self.passes) // len(p))) * up_to[:, -1:]
        drawn = np.minimum(drawn, np.nextafter(up_to[:, -1:], 0))  # so that the class found has a positive probability
        answer = np.concatenate([np.searchsorted(own, below, side="right") for own, below in zip(up_to, drawn, strict=True)])
        joint = self.passes * p[:, answer].T
        self.passes = joint / joint.sum(axis=1, keepdims=True)


def gains(p: Array, probability: Array, passes: Array, weight: Array, values: int) -> Array:
    """(rows,) entropy of each row's answer, less its entropy within each pass, averaged over answers before.

    The passes are weighted as those answers weight them, which for drawn answers is not quite evenly. So the gain is an average of mutual
    informations: never negative, and 0 wherever all passes agree.

    Args:
        p: (passes, rows, classes).
        probability: (answers,) of the answers before.
        passes: (answers, passes) after them.
        weight: (passes,) averaged over answers.
        values: of the product of answers and classes, to hold at once.
    """
    shape = p.shape[1:]
    p = p.reshape(len(p), -1)  # (passes, rows * classes)
    nats = weighted(weight, p_log_p(p))
    step = max(16, values // p.shape[1])
    for start in range(0, len(passes), step):
        some = slice(start, start + step)
        nats -= weighted(probability[some], p_log_p(product(passes[some], p)))
    gained: Array = nats.reshape(shape).sum(1)
    return gained


def weighted(weight: Array, values: Array) -> Array:
    """(columns,) weighted sum of the rows of a matrix."""
    if isinstance(weight, np.ndarray):
        total: Scores = np.einsum("i,ij->j", weight, values)
        return total
    return weight @ values


def product(left: Array, right: Array) -> Array:
    """Matrix product. On the CPU in tiles that BLAS computes without threads of its own: under other threads those wait for each other."""
    if not isinstance(left, np.ndarray):
        return left @ right
    side = tile(len(right))
    out = np.empty((len(left), right.shape[1]))
    for i in range(0, len(left), side):
        for j in range(0, right.shape[1], side):
            np.matmul(left[i : i + side], right[:, j : j + side], out=out[i : i + side, j : j + side])
    return out


def tile(inner: int) -> int:
    """Rows and columns of a tile, for a product that sums over so many."""
    return max(8, math.isqrt(ALONE // inner) // 8 * 8)

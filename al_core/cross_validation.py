"""The strength of a head's ridge by cross-validation on the labels at hand, and what heads say of examples that they have not seen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

from al_core.calibration import temperature
from al_core.linear import Examples, Standard, check, solve, standardised
from al_core.metrics import log_probabilities
from al_core.seeds import generator

FOLDS = 5
ENOUGH = 10_000  # held-out examples after which no more folds are asked
STRENGTHS = tuple(10 ** (half / 2) for half in range(2, -9, -1))  # 10, 3.16, 1, ... 0.0001
TOLERANCE = 1e-3  # of the gradient within folds, in units of l2: held-out NLL does not see more
PATIENCE = 2  # weaker strengths in a row that are worse, after which none is tried


@dataclass(frozen=True)
class CrossValidated:
    """The strength chosen, and how it was."""

    l2: float
    nll: dict[float, float]  # held-out mean negative log-likelihood at its own temperature, by strength tried, the strongest first; lower is better
    temperature: float  # that suits the held-out logits at the strength chosen best; 1 where none are held out
    rows: npt.NDArray[np.int64]  # (m,) held-out examples, ascending
    logits: npt.NDArray[np.float32]  # (m, classes) of these, at the strength chosen, by heads that had not seen them


def cross_validate(
    features: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    classes: int,
    *,
    seed: int,
    strengths: tuple[float, ...] = STRENGTHS,
    weights: npt.NDArray[np.float64] | None = None,
    device: torch.device | None = None,
) -> CrossValidated:
    """The strength whose heads give held-out examples the lowest mean NLL, each at the temperature that suits it best; of equal ones the strongest.

    A temperature of its own, because the ridge does two things: it turns the head towards directions that hold, and it makes it less sure. A
    temperature does the second better, so that the strength need not.

    Examples are dealt into 5 folds, every class as evenly as it goes; each fold is held out once, or as many as hold `ENOUGH` examples between
    them. Each fold's heads are solved from the strongest to weaker, from where the one before ended, until two in a row are worse. With a single
    example nothing can be held out: the strongest is taken, and no row is held out.

    Args:
        features: (n, D) finite; standardised over all examples, held out or not, since that looks at no label.
        labels: (n,) in 0..classes-1.
        classes: how many there are, with or without examples.
        seed: of the folds.
        strengths: to choose among, in falling order; with one alone nothing is chosen, and `logits` are its.
        weights: (classes,) how much an example of each class counts, in training and in the mean; None: all alike.

    Raises:
        ValueError: as `linear.fit`, or strengths that do not fall.
    """
    check(features, labels, classes, min(strengths, default=math.nan))
    if any(stronger <= weaker for stronger, weaker in pairwise(strengths)):
        raise ValueError(f"the strengths are {strengths}, expected falling values")
    if len(labels) == 1:
        return CrossValidated(strengths[0], {}, 1.0, np.empty(0, np.int64), np.empty((0, classes), np.float32))
    standard = standardised(features, device)
    held = [Fold.of(standard, labels, classes, weights, rows) for rows in held_out(dealt(labels, generator(seed, "folds")))]
    rows = np.concatenate([fold.rows for fold in held])
    tried: dict[float, Tried] = {}
    for l2 in strengths:
        tried[l2] = Tried.of(np.concatenate([fold.logits(l2) for fold in held]), labels[rows], weights)
        since_best = len(tried) - 1 - list(tried).index(best(tried))
        if since_best == PATIENCE:
            break
    chosen, order = best(tried), np.argsort(rows)
    nll = {l2: one.nll for l2, one in tried.items()}
    return CrossValidated(chosen, nll, tried[chosen].temperature, rows[order], tried[chosen].logits[order])


@dataclass(frozen=True)
class Tried:
    """What a strength gives on the rows held out."""

    logits: npt.NDArray[np.float32]  # (m, classes)
    temperature: float
    nll: float  # at this temperature

    @classmethod
    def of(cls, logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], weights: npt.NDArray[np.float64] | None) -> Tried:
        """The logits at the temperature that suits them best."""
        shares = None if weights is None else weights[labels]
        suited = temperature(logits, labels, shares)
        logs = log_probabilities(logits / suited)[np.arange(len(labels)), labels]
        return cls(logits, suited, float(-np.average(logs, weights=shares)))


def best(tried: dict[float, Tried]) -> float:
    """The strength with the lowest NLL; of equal ones the first."""
    return min(tried, key=lambda l2: tried[l2].nll)


def dealt(labels: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """(n,) fold of each example: shuffled, then dealt out class by class without a break, so that folds differ by one in each class and in all."""
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    fold = np.empty(len(labels), np.int64)
    fold[order] = np.arange(len(labels)) % min(FOLDS, len(labels))
    return fold


def held_out(fold: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    """Rows of each fold, as many folds as it takes to hold out `ENOUGH`."""
    folds: list[npt.NDArray[np.int64]] = []
    for number in range(fold.max() + 1):
        if sum(map(len, folds)) < ENOUGH:
            folds.append(np.flatnonzero(fold == number))
    return folds


class Fold:
    """Rows held out, and the head on all others as it stands at the strength solved last."""

    def __init__(self, standard: Standard, examples: Examples, rows: npt.NDArray[np.int64]) -> None:
        self.standard, self.examples, self.rows = standard, examples, rows
        self.w = examples.start()

    @classmethod
    def of(cls, standard: Standard, labels: npt.NDArray[np.int64], classes: int, weights: npt.NDArray[np.float64] | None, rows: npt.NDArray[np.int64]) -> Fold:
        """The fold that holds out `rows`."""
        others = torch.as_tensor(np.setdiff1d(np.arange(len(labels)), rows), device=standard.x.device)
        return cls(standard, Examples.of(standard, labels, classes, weights, others), rows)

    def logits(self, l2: float) -> npt.NDArray[np.float32]:
        """(rows, classes) of the rows held out, by the head at a strength; a class that no other row has gets the logit that `linear.fit` gives it."""
        self.w = solve(self.examples, l2, TOLERANCE, self.w)
        x = self.standard.x[torch.as_tensor(self.rows, device=self.w.device)].double()
        logits = self.examples.unseen(self.w).repeat(len(x), self.examples.classes)
        logits[:, self.examples.present] = x @ self.w.T
        return logits.float().cpu().numpy()

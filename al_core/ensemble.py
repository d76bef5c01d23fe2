"""Ensembles: several models in place of one that is sampled, as their members disagree where the data at hand do not settle the answer."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from al_core.linear import fit
from al_core.seeds import generator


def linear_ensemble(
    features: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    classes: int,
    *,
    members: int,
    l2: float,
    seed: int,
    weights: npt.NDArray[np.float64] | None = None,
    device: torch.device | None = None,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Heads that `linear.fit` solves for, each on examples drawn anew with replacement from those at hand (bagging, Breiman 1996).

    Networks of a deep ensemble (Lakshminarayanan et al. 2017, https://arxiv.org/abs/1612.01474) differ by where they start; logistic regression ends at one
    solution from anywhere, so that its members have to see different examples. They are drawn class by class, each as often as it is there, so that no
    member knows a class less.

    Args:
        features: (n, D) finite.
        labels: (n,) in 0..classes-1.
        classes: how many there are, with or without examples.
        members: how many heads.
        l2: ridge of each; see `linear.fit`.
        seed: equal seeds give equal draws.
        weights: (classes,) how much an example of each class counts, above 0; None: all alike.
        device: where to compute; None: CPU.

    Returns:
        weight (members, classes, D) and bias (members, classes), as `Pool` takes them for `mc_heads`.

    Raises:
        ValueError: fewer than 2 members, which could not disagree, or what `linear.fit` refuses.
    """
    if members < 2:
        raise ValueError(f"members is {members}; an ensemble can disagree only if there are at least 2")
    heads = []
    for number in range(members):
        rows = resampled(labels, generator(seed, "ensemble", number))
        heads.append(fit(features[rows], labels[rows], classes, l2=l2, weights=weights, device=device))
    return np.stack([head.weight for head in heads]), np.stack([head.bias for head in heads])


def resampled(labels: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """(n,) rows drawn with replacement within each class, classes in order."""
    of_class = (np.flatnonzero(labels == each) for each in np.unique(labels))
    return np.concatenate([np.empty(0, np.int64), *(rng.choice(rows, len(rows)) for rows in of_class)])

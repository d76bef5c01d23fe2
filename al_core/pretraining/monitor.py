"""Whether an encoder still tells images apart: what its embeddings of some images look like, and when they count as collapsed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from al_core.pool import Rows

LEAST_SPREAD, LEAST_RANK = 0.01, 1.5  # below either, embeddings count as collapsed
NEIGHBORS = 20  # that vote in the probe, at most


@dataclass(frozen=True)
class Health:
    """What the embeddings of some images look like."""

    spread: float  # standard deviation of the directions, mean over dimensions, times sqrt(d): 1 as different as can be, 0 all alike
    rank: float  # effective rank, 1 to d: along how many axes the embeddings differ
    head_spread: float = 1.0  # spread of what the method compares, behind its head: batch norm keeps embeddings apart where the method no longer does
    probe: float | None = None  # share of labelled images whose neighbours vote for their label, 0 to 1; None without labels

    @property
    def collapsed(self) -> bool:
        """Whether encoder or head makes the same of all images, or all but the same up to a factor; NaN counts."""
        return not (self.spread >= LEAST_SPREAD and self.head_spread >= LEAST_SPREAD and self.rank >= LEAST_RANK)


def health(embeddings: Tensor, compared: Tensor | None = None, labels: Rows | None = None) -> Health:
    """What embeddings look like.

    Effective rank is exp of the entropy of the singular values, as shares of their sum (Roy & Vetterli 2007; RankMe, Garrido et al. 2023), of embeddings
    around their mean.

    Args:
        embeddings: (n, d) with n of at least 2.
        compared: (n, k) what a head makes of them.
        labels: (n,) class numbers, -1 where there is none; None: no probe.
    """
    x = embeddings.double()  # (n, d)
    rank = effective_rank(x) if x.isfinite().all() else math.nan
    head_spread = 1.0 if compared is None else spread(compared.double())
    return Health(spread(x), rank, head_spread, None if labels is None else probe(normalize(x), labels))


def effective_rank(x: Tensor) -> float:
    """Of (n, d) vectors around their mean."""
    values = torch.linalg.svdvals(x - x.mean(dim=0))
    return float(torch.exp(torch.special.entr(values / values.sum()).sum()))


def spread(x: Tensor) -> float:
    """Of the directions of (n, d) vectors."""
    return float(normalize(x).std(dim=0, correction=0).mean()) * math.sqrt(x.shape[1])


def probe(directions: Tensor, labels: Rows) -> float | None:
    """Share of labelled images whose nearest labelled others, by cosine, vote for their label; None where fewer than 2 have one.

    As many vote as NEIGHBORS, at most as the rarest class of two or more has others; each counts alike, and of classes with as many votes the first wins.
    """
    known = np.flatnonzero(labels >= 0)
    classes, index, counts = np.unique(labels[known], return_inverse=True, return_counts=True)
    if len(classes) < 2 or counts.max() < 2:
        return None
    x = directions[torch.from_numpy(known)]
    likeness = x @ x.T
    likeness.fill_diagonal_(-torch.inf)
    k = int(min(NEIGHBORS, counts[counts >= 2].min() - 1))
    near = likeness.topk(k, dim=1).indices.cpu().numpy()
    votes = (index[near][:, :, None] == np.arange(len(classes))).sum(axis=1)  # (known, classes)
    return float((votes.argmax(axis=1) == index).mean())

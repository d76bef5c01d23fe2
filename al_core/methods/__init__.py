"""The acquisition methods, one idea a file. Importing one registers it; methods never import methods."""

from al_core.methods import (
    badge,
    balancing,
    base,
    batchbald,
    bayesian,
    cluster_margin,
    coreset,
    diffusion,
    dropquery,
    herding,
    learned,
    probcover,
    random,
    robust_coreset,
    typiclust,
    uncertainty,
)
from al_core.registry import methods

__all__ = [
    "badge",
    "balancing",
    "base",
    "batchbald",
    "bayesian",
    "cluster_margin",
    "coreset",
    "diffusion",
    "dropquery",
    "herding",
    "learned",
    "methods",
    "probcover",
    "random",
    "robust_coreset",
    "typiclust",
    "uncertainty",
]

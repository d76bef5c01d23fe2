"""Multinomial logistic regression on frozen features, solved to convergence."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

NEWTON_STEPS, CONJUGATE_STEPS = 100, 1000
EPSILON = 1e-14
SMALLEST_SPREAD = 1e-3


@dataclass(frozen=True)
class Linear:
    """A linear head: `logits = features @ weight.T + bias`."""

    weight: npt.NDArray[np.float32]  # (classes, D)
    bias: npt.NDArray[np.float32]  # (classes,)


def fit(
    features: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], classes: int, *, l2: float, device: torch.device | None = None, tolerance: float = 1e-8
) -> Linear:
    """The head that minimises mean NLL + l2 / 2 * ||W||^2, with W on features standardised over these examples, and the bias left free.

    A class without examples gets weight 0 and the bias that gives it about the probability 1 / (n + classes) at these examples.
    Deterministic: float64 from a start at zero, until every component of the gradient is at most `tolerance`. Time O(n D classes) an iteration.

    Args:
        features: (n, D) finite.
        labels: (n,) in 0..classes-1.
        classes: how many there are, with or without examples.
        l2: strength of the ridge, above 0.
        device: where to compute; None: CPU.
        tolerance: largest component of the gradient that counts as solved.

    Raises:
        ValueError: no examples, features that are not finite, labels outside of the classes, or no convergence.
    """
    check(features, labels, classes, l2)
    x = torch.as_tensor(np.asarray(features, np.float64), device=device)  # (n, D)
    mean, spread = x.mean(0), deviations(x)
    x = (x - mean) / spread
    present, index = torch.unique(torch.as_tensor(np.asarray(labels, np.int64), device=device), return_inverse=True)  # ascending
    w, b = solve(x, index, len(present), l2, tolerance)
    unseen = torch.logsumexp(x @ w.T + b, 1).mean() - math.log(len(x) + classes)
    weight = torch.zeros(classes, x.shape[1], dtype=torch.float64, device=device)
    bias = unseen.repeat(classes)
    weight[present] = w / spread
    bias[present] = b - weight[present] @ mean
    return Linear(weight.float().cpu().numpy(), bias.float().cpu().numpy())


def check(features: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], classes: int, l2: float) -> None:
    """Raise on what cannot be fitted."""
    if features.ndim != 2 or labels.shape != (len(features),):
        raise ValueError(f"got features of shape {features.shape} and labels of shape {labels.shape}; expected (n, D) and (n,)")
    if len(labels) == 0:
        raise ValueError("there are no labels to train on; label some images first")
    if not np.isfinite(features).all():
        raise ValueError(
            f"features are not finite in {int((~np.isfinite(features)).any(1).sum())} of {len(features)} rows; pretrain again, with a lower learning rate"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels reach from {labels.min()} to {labels.max()}, expected 0 to {classes - 1}")
    if not 0 < l2 < math.inf:
        raise ValueError(f"l2 is {l2}, expected above 0 and finite: without a ridge separable classes have no solution")


def deviations(x: Tensor) -> Tensor:
    """(D,) standard deviations, none below a thousandth of their root mean square, since a nearly constant feature would be blown up; 1 where all are 0."""
    spread = x.std(0, correction=0)
    floor = SMALLEST_SPREAD * spread.square().mean().sqrt()
    return spread.clamp(min=floor) if floor > 0 else torch.ones_like(spread)


def solve(x: Tensor, labels: Tensor, classes: int, l2: float, tolerance: float) -> tuple[Tensor, Tensor]:
    """Weight (classes, D) and bias (classes,) by Newton's method, each step found by conjugate gradients and shortened where it would overshoot."""
    x = torch.cat([x, x.new_ones(len(x), 1)], 1)  # (n, D + 1): the last column carries the bias
    ridge = torch.full_like(x[0], l2)
    ridge[-1] = 0
    target = one_hot(labels, classes).to(x)  # (n, classes)
    w = x.new_zeros(classes, x.shape[1])
    slope = math.inf
    for _ in range(NEWTON_STEPS):
        p = (x @ w.T).softmax(1)  # (n, classes)
        gradient = (p - target).T @ x / len(x) + ridge * w
        slope = gradient.abs().max().item()
        if slope <= tolerance:
            return w[:, :-1], w[:, -1] - w[:, -1].mean()
        w = descend(w, newton_step(x, p, ridge, gradient), gradient, lambda w: cross_entropy(x @ w.T, labels) + (ridge * w.square()).sum() / 2)
    raise ValueError(
        f"logistic regression has a gradient of {slope:.1e} after {NEWTON_STEPS} Newton steps, expected {tolerance:.0e}; raise retrain.l2 (now {l2})"
    )


def newton_step(x: Tensor, p: Tensor, ridge: Tensor, gradient: Tensor) -> Tensor:
    """-H^-1 gradient, by conjugate gradients that stop early while the gradient is large; H is never built."""

    def curvature(v: Tensor) -> Tensor:
        q = x @ v.T  # (n, classes)
        return (p * (q - (p * q).sum(1, keepdim=True))).T @ x / len(x) + ridge * v

    scale = (p * (1 - p)).mean(0)[:, None] + ridge + EPSILON  # about H's diagonal, as the columns of x have variance 1
    step, residual = torch.zeros_like(gradient), -gradient
    direction = residual / scale
    size = first = (residual * direction).sum().item()
    goal = first * min(0.01, math.sqrt(first))  # squared: a factor of 10 at first, more and more towards the end
    for _ in range(CONJUGATE_STEPS):
        bent = curvature(direction)
        stride = size / (direction * bent).sum().item()
        step, residual = step + stride * direction, residual - stride * bent
        before, size = size, (residual * residual / scale).sum().item()
        if size <= goal:
            break
        direction = residual / scale + size / before * direction
    return step


def descend(w: Tensor, step: Tensor, gradient: Tensor, objective: Callable[[Tensor], Tensor]) -> Tensor:
    """w after the longest of step, step / 2, step / 4, ... that lowers the objective enough (Armijo), rounding forgiven."""
    start, fall = objective(w).item(), (gradient * step).sum().item()
    share = 1.0
    while objective(w + share * step).item() > start + 1e-4 * share * fall + EPSILON * abs(start) and share > EPSILON:
        share /= 2
    return w + share * step

"""Multinomial logistic regression on frozen features, solved to convergence."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

NEWTON_STEPS, CONJUGATE_STEPS = 100, 1000
TOLERANCE = 1e-5  # largest component of the gradient that counts as solved, in units of l2, at most of 1
ROUNDING = 1e-12  # of the gradient's components in float64: less cannot be asked for
STALLED = 3  # Newton steps without a smaller gradient, after which float32 is no longer enough to find them
EPSILON = 1e-14
BLOCK = 4096  # rows that are turned to float64 at a time
SMALLEST_SPREAD = 1e-3


@dataclass(frozen=True)
class Linear:
    """A linear head: `logits = features @ weight.T + bias`."""

    weight: npt.NDArray[np.float32]  # (classes, D)
    bias: npt.NDArray[np.float32]  # (classes,)

    def layer(self) -> nn.Linear:
        """The head as a layer with weights of its own, on the CPU."""
        made: nn.Linear = nn.utils.skip_init(nn.Linear, self.weight.shape[1], self.weight.shape[0])  # type: ignore[no-untyped-call]
        with torch.no_grad():
            made.weight.copy_(torch.from_numpy(self.weight))
            made.bias.copy_(torch.from_numpy(self.bias))
        return made


def fit(
    features: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    classes: int,
    *,
    l2: float,
    weights: npt.NDArray[np.float64] | None = None,
    device: torch.device | None = None,
) -> Linear:
    """The head that minimises mean NLL + l2 / 2 * ||W||^2, with W on features standardised over these examples, and the bias left free.

    A class without examples gets weight 0 and the bias that gives it about the probability 1 / (n + classes) at these examples.
    Deterministic: from a start at zero, until every component of the gradient, in float64, is at most 1e-5 l2 (1e-5 where l2 is above 1, never less
    than 1e-12), which for the usual strengths takes 50 to 500 products with the features. Time O(n D classes) a product; memory: a copy of the features,
    and some ten numbers in float64 an example and class.

    Args:
        features: (n, D) finite.
        labels: (n,) in 0..classes-1.
        classes: how many there are, with or without examples.
        l2: strength of the ridge, above 0.
        weights: (classes,) how much an example of each class counts in the mean, above 0; None: all alike.
        device: where to compute; None: CPU.

    Raises:
        ValueError: no examples, features that are not finite, labels outside of the classes, or no convergence.
    """
    check(features, labels, classes, l2)
    standard = standardised(features, device)
    examples = Examples.of(standard, labels, classes, weights)
    return standard.head(examples, solve(examples, l2, TOLERANCE))


def balanced(labels: npt.NDArray[np.int64], classes: int) -> npt.NDArray[np.float64]:
    """(classes,) weights of an example of each class, their sum 1, by which all classes with examples count alike: total / count, 1 without examples.

    As in the code of Emam et al. 2021, which divides by the sum as here.
    """
    counts = np.bincount(labels, minlength=classes)
    weights: npt.NDArray[np.float64] = np.where(counts > 0, len(labels) / np.maximum(counts, 1), 1.0)
    weights /= weights.sum()
    return weights


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


@dataclass(frozen=True)
class Standard:
    """Features with mean 0 and standard deviation 1."""

    x: Tensor  # (n, D + 1) float32: the last column is 1 and carries the bias
    mean: Tensor  # (D,)
    spread: Tensor  # (D,)

    def head(self, examples: Examples, w: Tensor) -> Linear:
        """The head on features as they were given, from weights (present classes, D + 1) on standardised ones."""
        weight = w.new_zeros(examples.classes, len(self.mean))
        bias = examples.unseen(w).repeat(examples.classes)
        weight[examples.present] = w[:, :-1] / self.spread
        bias[examples.present] = w[:, -1] - weight[examples.present] @ self.mean
        return Linear(weight.float().cpu().numpy(), bias.float().cpu().numpy())


def standardised(features: npt.NDArray[np.float32], device: torch.device | None = None) -> Standard:
    """Features (n, D) ready for `solve`. Their moments are summed in float64."""
    given = torch.as_tensor(features)
    mean = torch.stack([block.sum(0, dtype=torch.float64) for block in blocks(given)]).sum(0) / len(given)
    square = torch.stack([(block - mean).square().sum(0) for block in blocks(given)]).sum(0) / len(given)
    spread = floored(square.sqrt())
    x = torch.ones(len(given), given.shape[1] + 1, device=device)
    for block, out in zip(blocks(given), blocks(x), strict=True):
        out[:, :-1] = (block - mean) / spread
    return Standard(x, mean.to(device), spread.to(device))


def blocks(x: Tensor) -> Sequence[Tensor]:
    """BLOCK rows at a time."""
    cut: Sequence[Tensor] = x.split(BLOCK)  # type: ignore[no-untyped-call]
    return cut


def floored(spread: Tensor) -> Tensor:
    """(D,) standard deviations, none below a thousandth of their root mean square, since a nearly constant feature would be blown up; 1 where all are 0."""
    floor = SMALLEST_SPREAD * spread.square().mean().sqrt()
    return spread.clamp(min=floor) if floor > 0 else torch.ones_like(spread)


@dataclass(frozen=True)
class Examples:
    """A problem to solve: labelled rows of standardised features."""

    x: Tensor  # (n, D + 1) float32
    labels: Tensor  # (n,) index into the present classes
    shares: Tensor  # (n,) of each example in the mean, float64; their sum is 1
    present: Tensor  # (c,) classes with examples, ascending
    classes: int  # with or without examples

    @classmethod
    def of(
        cls, standard: Standard, labels: npt.NDArray[np.int64], classes: int, weights: npt.NDArray[np.float64] | None, rows: Tensor | None = None
    ) -> Examples:
        """All rows, or some, with the labels (n,) of all."""
        truth = torch.as_tensor(np.asarray(labels, np.int64), device=standard.x.device)
        x, truth = (standard.x, truth) if rows is None else (standard.x[rows], truth[rows])
        each = torch.ones(classes, dtype=torch.float64) if weights is None else torch.as_tensor(weights, dtype=torch.float64)
        shares = each.to(x.device)[truth]
        present, index = torch.unique(truth, return_inverse=True)
        return cls(x, index, shares / shares.sum(), present, classes)

    def start(self) -> Tensor:
        """Weights (c, D + 1) of zero."""
        return self.shares.new_zeros(len(self.present), self.x.shape[1])

    def logits(self, w: Tensor) -> Tensor:
        """(n, c) float64 that w (c, D + 1) gives."""
        return torch.cat([block.double() @ w.T for block in blocks(self.x)])

    def slope(self, errors: Tensor) -> Tensor:
        """(c, D + 1) float64: how the mean loss changes with the weights, from how each example's loss changes with its logits (n, c)."""
        terms = blocks(self.shares[:, None] * errors)
        total = self.start()
        for term, block in zip(terms, blocks(self.x), strict=True):
            total += term.T @ block.double()
        return total

    def unseen(self, w: Tensor) -> Tensor:
        """Logit of a class without examples, beside those that w (c, D + 1) gives: about the probability 1 / (n + classes) at these examples."""
        return torch.logsumexp(self.logits(w), 1).mean() - math.log(len(self.x) + self.classes)


def solve(examples: Examples, l2: float, tolerance: float, start: Tensor | None = None) -> Tensor:
    """Weights (c, D + 1), the last the bias, by Newton's method, each step found by conjugate gradients and shortened where it would overshoot.

    Loss and gradient are float64. Steps are found in float32, which takes half the time, as long as they lead on: they need not be right in all digits.

    Args:
        examples: what to fit.
        l2: strength of the ridge.
        tolerance: largest component of the gradient that counts as solved, in units of l2, at most of 1.
        start: weights to begin with; None: zero.

    Raises:
        ValueError: no convergence.
    """
    goal = max(tolerance * min(l2, 1), ROUNDING)
    ridge = examples.shares.new_full((examples.x.shape[1],), l2)
    ridge[-1] = 0
    target = one_hot(examples.labels, len(examples.present)).double()  # (n, c)
    w = examples.start() if start is None else start
    logits = examples.logits(w)
    least, stalled = math.inf, 0
    for _ in range(NEWTON_STEPS):
        p = logits.softmax(1)
        gradient = examples.slope(p - target) + ridge * w
        steepest = gradient.abs().max().item()
        if steepest <= goal:
            return torch.cat([w[:, :-1], w[:, -1:] - w[:, -1:].mean()], 1)
        stalled = 0 if steepest < least and stalled < STALLED else stalled + 1
        least = min(least, steepest)
        step = newton_step(examples, p, ridge, gradient, rough=stalled < STALLED)
        change = examples.logits(step)

        def loss(stride: float, w: Tensor = w, logits: Tensor = logits, step: Tensor = step, change: Tensor = change) -> float:
            losses = cross_entropy(logits + stride * change, examples.labels, reduction="none")
            return (examples.shares @ losses + (ridge * (w + stride * step).square()).sum() / 2).item()

        stride = descending(loss, (gradient * step).sum().item())
        w, logits = w + stride * step, logits + stride * change
    raise ValueError(f"logistic regression has a gradient of {least:.1e} after {NEWTON_STEPS} Newton steps, expected {goal:.0e}; raise retrain.l2 (now {l2})")


def newton_step(examples: Examples, p: Tensor, ridge: Tensor, gradient: Tensor, *, rough: bool) -> Tensor:
    """-H^-1 gradient, by conjugate gradients that stop early while the gradient is large; H is never built. `rough`: products are float32."""
    curvature = (rough_curvature if rough else exact_curvature)(examples, p, ridge)
    scale = (examples.shares[:, None] * p * (1 - p)).sum(0)[:, None] + ridge + EPSILON  # about H's diagonal, as the columns of x have variance 1
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


def rough_curvature(examples: Examples, p: Tensor, ridge: Tensor) -> Callable[[Tensor], Tensor]:
    """What H makes of weights, in float32."""
    x, odds, weighted, damping = examples.x, p.float(), (examples.shares[:, None] * p).float(), ridge.float()

    def curvature(v: Tensor) -> Tensor:
        v = v.float()
        q = x @ v.T  # (n, c)
        return ((weighted * (q - (odds * q).sum(1, keepdim=True))).T @ x + damping * v).double()

    return curvature


def exact_curvature(examples: Examples, p: Tensor, ridge: Tensor) -> Callable[[Tensor], Tensor]:
    """The same in float64."""

    def curvature(v: Tensor) -> Tensor:
        q = examples.logits(v)  # (n, c)
        return examples.slope(p * (q - (p * q).sum(1, keepdim=True))) + ridge * v

    return curvature


def descending(loss: Callable[[float], float], slope: float) -> float:
    """The longest of 1, 1/2, 1/4, ... that lowers the loss enough for its slope at 0 (Armijo), rounding forgiven."""
    start, stride = loss(0.0), 1.0
    while loss(stride) > start + 1e-4 * stride * slope + EPSILON * abs(start) and stride > EPSILON:
        stride /= 2
    return stride

"""A linear head on frozen features by stochastic gradient descent, as published linear evaluations train it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import cross_entropy, dropout

from al_core.encoders import deterministic
from al_core.linear import Linear, check
from al_core.loading import OnEpoch
from al_core.seeds import derive, drawing, generator


@dataclass(frozen=True)
class Descent:
    """How; the defaults are those of Emam et al. 2021 (https://arxiv.org/abs/2111.12880) for ImageNet, features of MoCo v2 and 30,000 labels and more."""

    epochs: int = 60
    batch_size: int = 128
    learning_rate: float = 15.0  # of the first epochs
    momentum: float = 0.9
    weight_decay: float = 1e-4  # of weight and bias
    step_epochs: int = 20  # after so many epochs, and again, the rate is multiplied
    step_factor: float = 0.1  # by this
    dropout: float = 0.0  # share of a feature vector's coordinates that a step sets to 0, the others scaled by 1 / (1 - dropout)
    start: float = 1e-3  # standard deviation of the weights at the start; the bias starts at 0


def descend(
    features: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    classes: int,
    *,
    how: Descent,
    seed: int,
    weights: npt.NDArray[np.float64] | None = None,
    device: torch.device | None = None,
    on_epoch: OnEpoch = lambda epoch, loss, rate: None,
) -> Linear:
    """The head that SGD on the cross-entropy ends at, from random weights, over features as they are: not standardised.

    The head of the last epoch is taken; Emam et al. take that of the epoch with the best accuracy on validation labels beyond the budget.

    Args:
        features: (n, D) finite.
        labels: (n,) in 0..classes-1.
        classes: how many there are, with or without examples.
        how: the recipe.
        seed: of the start, of the order of examples and of what is dropped.
        weights: (classes,) how much an example of each class counts in a batch's mean, above 0; None: all alike.
        device: where to compute; None: CPU.
        on_epoch: called after each epoch.

    Raises:
        ValueError: no examples, features that are not finite, labels outside of the classes, or a loss that is not finite.
    """
    check(features, labels, classes, l2=1)  # has no ridge
    x, truth = torch.as_tensor(features, device=device), torch.as_tensor(labels, device=device)
    counts = None if weights is None else torch.as_tensor(weights, dtype=torch.float32, device=device)
    start = how.start * generator(seed, "start").standard_normal((classes, x.shape[1]))
    head = Linear(start.astype(np.float32), np.zeros(classes, np.float32)).layer().to(x.device)
    optimizer = torch.optim.SGD(head.parameters(), lr=how.learning_rate, momentum=how.momentum, weight_decay=how.weight_decay)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, how.step_epochs, how.step_factor)
    with deterministic(1), drawing(derive(seed, "dropout"), x.device):
        for epoch in range(1, how.epochs + 1):
            total = torch.zeros((), device=device)
            order = torch.from_numpy(generator(seed, "order", epoch).permutation(len(truth))).to(x.device)
            for rows in torch.split(order, how.batch_size):
                loss = cross_entropy(head(dropout(x[rows], how.dropout)), truth[rows], counts)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                total += loss.detach() * len(rows)
            mean, rate = total.item() / len(truth), float(schedule.get_last_lr()[0])
            schedule.step()
            if not math.isfinite(mean):
                raise ValueError(f"the loss of epoch {epoch} is {mean}; lower retrain.sgd.learning_rate (now {how.learning_rate:g})")
            on_epoch(epoch, mean, rate)
    return Linear(head.weight.detach().cpu().numpy(), head.bias.detach().cpu().numpy())

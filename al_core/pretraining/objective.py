"""What a self-supervised method adds to an encoder: heads, and the loss of a batch of views."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from al_core.encoders import Encoder
from al_core.pretraining.augment import Augment, Views

ROUNDING = 1e-6  # epochs: 1 / 49 of 49 is a little less than 1
LOCAL_AREA = 0.05  # smallest share of the image that a small crop keeps, as DINO and SwAV have it


class Objective(nn.Module):
    """A method over an encoder.

    Attributes:
        encoder: what is trained, and kept in the end.
        head: from embeddings to what is compared.
        share: of the training that is done, 0 to 1; set before each batch. What follows a schedule follows it.
    """

    encoder: Encoder
    head: nn.Module
    share: float = 0.0

    def epochs_done(self, epochs: int) -> int:
        """Of so many, those that are over."""
        return int(self.share * epochs + ROUNDING)

    def forward(self, views: Sequence[Tensor]) -> Tensor:
        """The loss.

        With several processes of torch.distributed's default group each gives a loss of its own views, whose mean is that of one process with all views,
        and so is its gradient.

        Args:
            views: (b, 3, s, s) float in [0, 1] each, in the order of the method's `views`.
        """
        raise NotImplementedError(type(self))

    def before_step(self) -> None:
        """Called when the gradients are known and the weights are about to be moved."""

    def after_step(self) -> None:
        """Called when the weights have been moved."""


class Method:
    """A self-supervised method: its fields are its parameters."""

    def check(self, *, epochs: int, processes: int) -> None:
        """Raise ValueError on parameters that would have no effect in so many epochs, or that so many processes cannot share."""

    def views(self, size: int, min_crop: float, augment: Augment) -> list[Views]:
        """What it is shown of each image.

        Args:
            size: pixels of a side of a whole view.
            min_crop: smallest share of the image that a crop keeps.
            augment: how views differ beside the crop.
        """
        raise NotImplementedError(type(self))

    def over(self, encoder: Encoder, *, epochs: int, seed: int) -> Objective:
        """The method over an encoder, its heads made from the seed, to be trained for so many epochs.

        Raises:
            ValueError: see `check`.
        """
        raise NotImplementedError(type(self))


def require(least: float, **values: float) -> None:
    """Raise ValueError where one of these parameters is below the least that it may be."""
    for name, value in values.items():
        if value < least:
            raise ValueError(f"{name} is {value}; expected at least {least:g}")


def require_above_0(**values: float) -> None:
    """Raise ValueError where one of these parameters is not above 0."""
    for name, value in values.items():
        if value <= 0:
            raise ValueError(f"{name} is {value}; expected above 0")


def require_share(**values: float) -> None:
    """Raise ValueError where one of these parameters is not within 0 to 1."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}; expected 0 to 1")


def two_kinds(size: int, area: tuple[float, float], augment: Augment) -> list[Views]:
    """Two whole views, of which the second alone is solarised."""
    return [Views(size, area, replace(augment, solarize=0.0)), Views(size, area, augment)]


def local_views(count: int, local_size: int | None, size: int, min_crop: float, augment: Augment) -> list[Views]:
    """Small crops of a small part of the image: LOCAL_AREA of it at least, and at most what a whole view keeps at least."""
    area = (min(LOCAL_AREA, min_crop), min_crop)
    return [Views(local_size or max(1, round(size * 3 / 7)), area, replace(augment, solarize=0.0), count)] if count else []


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Run a block in float32 whatever the encoder runs in: logarithms and small differences need it."""
    with torch.autocast(device.type, enabled=False):
        yield


def of_all_processes(values: Tensor) -> Tensor:
    """(b * processes, d) what every process of torch.distributed's default group has, in their order; gradients go back to where values came from."""
    from lightly.utils import dist

    return torch.cat(dist.gather(values)) if dist.world_size() > 1 else values


@torch.no_grad()
def enter(queue: Tensor, entered: Tensor, rows: Tensor) -> None:
    """Put rows in place of the oldest of a queue, and count them in `entered`; of more than it holds, the last."""
    rows = rows[-len(queue) :]
    queue[(entered + torch.arange(len(rows), device=rows.device)) % len(queue)] = rows
    entered += len(rows)


def at_once(network: Callable[[Tensor], Tensor], views: Sequence[Tensor]) -> list[Tensor]:
    """What a network makes of each view, views of one size in one pass: batch norm sees them together."""
    made: dict[int, Iterator[Tensor]] = {}
    for size in dict.fromkeys(view.shape[-1] for view in views):
        alike = [view for view in views if view.shape[-1] == size]
        made[size] = iter(network(torch.cat(alike)).float().chunk(len(alike)))
    return [next(made[view.shape[-1]]) for view in views]

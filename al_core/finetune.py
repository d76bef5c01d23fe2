"""Training of encoder and classifier together on the labels at hand."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from al_core.encoders import Encoder, deterministic
from al_core.linear import Linear
from al_core.loading import BILINEAR, Images, load, pixels, resized, shuffled, unit
from al_core.seeds import derive, seeded

if TYPE_CHECKING:
    from PIL.Image import Image

OnEpoch = Callable[[int, float, float], None]  # epoch from 1, mean loss, learning rate of the epoch's last step

HEAD_SPREAD = 1e-3


@dataclass(frozen=True)
class Finetuned:
    """An encoder with the linear head that was trained on it."""

    encoder: Encoder
    head: Linear


@dataclass(frozen=True)
class Jitter:
    """A random crop that keeps most of the image, and its mirror image half of the time: (3, size, size) uint8."""

    size: int
    min_crop: float  # smallest share of the side
    flip: bool

    def __call__(self, image: Image) -> Tensor:
        share, x, y, mirror = torch.rand(4).tolist()
        share = self.min_crop + (1 - self.min_crop) * share
        width, height = share * image.width, share * image.height
        left, top = x * (image.width - width), y * (image.height - height)
        tensor = pixels(image.resize((self.size, self.size), BILINEAR, box=(left, top, left + width, top + height)))
        return tensor.flip(2) if self.flip and mirror < 0.5 else tensor


def finetune(
    images: Images,
    labels: npt.NDArray[np.int64],
    encoder: Encoder,
    *,
    classes: int,
    image_size: int,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    workers: int,
    device: torch.device,
    min_crop: float = 0.8,
    flip: bool = False,
    on_epoch: OnEpoch = lambda epoch, loss, rate: None,
    threads: int = 2,
) -> Finetuned:
    """All weights trained on the labels, from a copy of the encoder and a fresh head; the encoder given is left as it is.

    Cross-entropy by AdamW, whose rate falls to 0 along a cosine. Batch norm keeps the statistics of pretraining, as few labels give poor ones; its
    scales and shifts are trained.

    Args:
        images: the labelled images (`loading.Rows` picks them out of a pool).
        labels: (n,) in 0..classes-1, one for each image.
        classes: how many there are, with or without examples.
        min_crop: smallest share of the side that a random crop keeps.
        flip: mirror left-right half of the time.
        on_epoch: called after each epoch.
        threads: of the CPU; see `deterministic`.

    Raises:
        ValueError: no labels, labels that do not fit the images or the classes, or a loss that is not finite.
    """
    check(images, labels, classes)
    encoder = copy.deepcopy(encoder)
    head = nn.Linear(encoder.dim, classes)
    with seeded(seed, "finetune", "head"):
        nn.init.normal_(head.weight, std=HEAD_SPREAD)
        nn.init.zeros_(head.bias)
    network = nn.Sequential(encoder, head).to(device).eval()  # eval: of its layers only batch norm minds
    steps = math.ceil(len(labels) / batch_size) * epochs
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    seed = derive(seed, "finetune")
    truth = torch.as_tensor(labels, device=device)
    held = resized(images, image_size, workers=workers)
    picks = list(shuffled(range(len(labels)), batch_size, epochs, seed, drop_last=False))
    batches = load(held, picks, Jitter(image_size, min_crop, flip), seed=seed, workers=workers)
    with deterministic(threads):
        total = 0.0
        for step, (batch, views) in enumerate(zip(picks, batches, strict=True), start=1):
            rows = torch.tensor([row for _, row in batch], device=device)
            loss = cross_entropy(network(unit(views, device)), truth[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            rate = float(schedule.get_last_lr()[0])
            schedule.step()
            total += loss.item() * len(batch)
            if not math.isfinite(total):
                raise ValueError(f"the loss of step {step} is {loss.item()}; lower retrain.learning_rate (now {learning_rate})")
            if step * epochs % steps == 0:
                on_epoch(step * epochs // steps, total / len(labels), rate)
                total = 0.0
    return Finetuned(encoder, Linear(head.weight.detach().cpu().numpy(), head.bias.detach().cpu().numpy()))


def check(images: Images, labels: npt.NDArray[np.int64], classes: int) -> None:
    """Raise on what cannot be trained on."""
    if len(labels) == 0:
        raise ValueError("there are no labels to train on; label some images first")
    if labels.shape != (len(images),):
        raise ValueError(f"got labels of shape {labels.shape} for {len(images)} images, expected one for each")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels reach from {labels.min()} to {labels.max()}, expected 0 to {classes - 1}")

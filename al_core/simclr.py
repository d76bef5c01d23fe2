"""SimCLR: an encoder trained so that two views of one image lie close together and views of different images apart.

Chen et al. 2020, https://arxiv.org/abs/2002.05709, with lightly's loss, projection head and transforms; AdamW in place of LARS, which large
batches need and small ones do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from al_core.encoders import Encoder, deterministic
from al_core.loading import Images, OnEpoch, View, load, resized, shuffled, unit
from al_core.seeds import seeded

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Augment:
    """How the two views of an image differ."""

    min_crop: float = 0.4  # smallest share of the area that a random crop keeps
    color: float = 0.5  # strength of colour jitter, with 0.2 probability of grey; 0: neither
    flip: bool = True  # mirror left-right half of the time
    rotate: float = 0.0  # largest rotation, degrees


@dataclass(frozen=True)
class TwoViews:
    """lightly's SimCLR transform of an image: (2, 3, size, size) uint8."""

    transform: Callable[[Image], list[Tensor] | list[Image]]

    def __call__(self, image: Image) -> Tensor:
        return torch.stack(cast(list[Tensor], self.transform(image))).mul_(255).round_().to(torch.uint8)


def two_views(augment: Augment, size: int) -> View:
    """The view that `augment` describes."""
    from lightly.transforms.simclr_transform import SimCLRTransform

    return TwoViews(
        SimCLRTransform(
            input_size=size,
            cj_prob=0.8 if augment.color else 0.0,
            cj_strength=augment.color,
            random_gray_scale=0.2 if augment.color else 0.0,
            min_scale=augment.min_crop,
            gaussian_blur=0.0,  # the paper's 0.5 is for large images
            hf_prob=0.5 if augment.flip else 0.0,
            rr_prob=1.0 if augment.rotate else 0.0,
            rr_degrees=augment.rotate or None,
            normalize=None,
        )
    )


def train(
    images: Images,
    encoder: Encoder,
    *,
    image_size: int,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    temperature: float,
    augment: Augment,
    seed: int,
    workers: int,
    device: torch.device,
    on_epoch: OnEpoch,
) -> None:
    """Train the encoder in place, on the device.

    Args:
        images: the pool; a batch larger than it is cut to its size. The rest of an epoch that does not fill a batch waits for the next epoch's order.
        image_size: images are resized to a square of it, then augmented.
        learning_rate: AdamW's, rising over the first epoch and then falling to 0 along a cosine.
        weight_decay: of matrices and convolutions; biases and batch norm are left free.
        temperature: divides the cosine similarities; lower = harder negatives.
        on_epoch: called after each epoch.

    Raises:
        ValueError: fewer than 2 images, or a loss that is not finite.
    """
    if len(images) < 2:
        raise ValueError(f"SimCLR contrasts images with each other and got {len(images)}; give at least 2, or set pretrain.method to none")
    from lightly.loss import NTXentLoss
    from lightly.models.modules.heads import SimCLRProjectionHead

    batch_size = min(batch_size, len(images))
    steps = len(images) // batch_size
    with seeded(seed, "simclr", "head"):
        head = SimCLRProjectionHead(encoder.dim, encoder.dim, min(encoder.dim, 128))
    network = nn.Sequential(encoder, head).to(device).train()
    criterion = NTXentLoss(temperature)
    optimizer = adamw(network, learning_rate, weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(step, steps, steps * epochs))
    held = resized(images, image_size, workers=workers)
    batches = load(held, shuffled(range(len(images)), batch_size, epochs, seed, drop_last=True), two_views(augment, image_size), seed=seed, workers=workers)
    with deterministic(1):
        for epoch in range(1, epochs + 1):
            total = torch.zeros((), device=device)
            for _ in range(steps):
                views = unit(next(batches), device)  # (B, 2, 3, S, S)
                first, second = network(torch.cat([views[:, 0], views[:, 1]])).chunk(2)
                loss = criterion(first, second)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                rate = float(schedule.get_last_lr()[0])
                schedule.step()
                total += loss.detach()
            mean = total.item() / steps
            if not math.isfinite(mean):
                raise ValueError(
                    f"the loss of epoch {epoch} is {mean}; lower pretrain.learning_rate (now {learning_rate}) or raise pretrain.temperature (now {temperature})"
                )
            on_epoch(epoch, mean, rate)
    encoder.eval()


def adamw(network: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW that decays matrices and convolutions alone."""
    matrices = [p for p in network.parameters() if p.ndim > 1]
    vectors = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate)


def warm_cosine(step: int, warm: int, steps: int) -> float:
    """Share of the peak learning rate at a step (from 0): rises linearly over the first `warm`, then falls along a cosine that would reach 0 at `steps`."""
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1)))

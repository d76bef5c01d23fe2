"""Training of encoder and classifier together on the labels at hand."""

from __future__ import annotations

import copy
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from al_core.cross_validation import cross_validate
from al_core.encoders import Encoder, deterministic
from al_core.features import features
from al_core.linear import Linear, fit
from al_core.loading import BILINEAR, Images, OnEpoch, load, pixels, resized, shuffled, unit
from al_core.loss_prediction import LossPrediction, Recipe, Teacher
from al_core.seeds import derive, drawing

if TYPE_CHECKING:
    from PIL.Image import Image

MIN_CROP = 0.8  # smallest share of the side that a random crop keeps


@dataclass(frozen=True)
class Tuning:
    """How encoder and classifier are trained together."""

    epochs: int
    batch_size: int  # images a step
    learning_rate: float  # of AdamW at the start; it falls to 0 along a cosine
    flip: bool = False  # mirror left-right half of the time
    loss_prediction: Recipe | None = None  # of a module beside that learns to predict the loss of an image; None: none is trained


@dataclass(frozen=True)
class Finetuned:
    """An encoder with the linear head that was trained on it."""

    encoder: Encoder
    head: Linear
    loss_prediction: LossPrediction | None = None


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


def regression(
    images: Images,
    labels: npt.NDArray[np.int64],
    encoder: Encoder,
    *,
    classes: int,
    batch_size: int,
    seed: int,
    workers: int,
    device: torch.device,
    l2: float | None = 1e-3,
    weights: npt.NDArray[np.float64] | None = None,
) -> Linear:
    """What a head starts from that is trained together with the encoder: the logistic regression on the encoder's own features.

    One that starts at random distorts them before it has learned anything (Kumar et al. 2022, https://arxiv.org/abs/2202.10054).

    Args:
        images: the labelled images.
        labels: (n,) in 0..classes-1, one for each image.
        classes: how many there are, with or without examples.
        batch_size: images that the encoder sees at a time.
        seed: of the folds of cross-validation.
        l2: ridge, see `linear.fit`; None: by cross-validation.
        weights: (classes,) how much an example of each class counts, above 0; None: all alike.

    Raises:
        ValueError: no labels, or labels that do not fit the images or the classes.
    """
    check(images, labels, classes)
    x = np.concatenate(list(features(images, encoder, image_size=encoder.image_size, batch_size=batch_size, workers=workers, device=device)))
    strength = cross_validate(x, labels, classes, seed=seed, weights=weights, device=device).l2 if l2 is None else l2
    return fit(x, labels, classes, l2=strength, weights=weights, device=device)


def finetune(
    images: Images,
    labels: npt.NDArray[np.int64],
    encoder: Encoder,
    head: Linear,
    how: Tuning,
    *,
    classes: int,
    seed: int,
    workers: int,
    device: torch.device,
    weights: npt.NDArray[np.float64] | None = None,
    on_epoch: OnEpoch = lambda epoch, loss, rate: None,
) -> Finetuned:
    """All weights trained on the labels, from copies of the encoder and of a linear head; what is given is left as it is.

    Cross-entropy by AdamW. Batch norm keeps the statistics of pretraining, as few labels give poor ones; its scales and shifts are trained.

    Args:
        images: the labelled images.
        labels: (n,) in 0..classes-1, one for each image.
        head: of a model before, or `regression`.
        classes: how many there are, with or without examples.
        seed: of order and views.
        weights: (classes,) how much an example of each class counts in the loss, above 0; None: all alike.
        on_epoch: called after each epoch.

    Raises:
        ValueError: no labels, labels that do not fit the images or the classes, or a loss that is not finite.
    """
    check(images, labels, classes)
    encoder, last = copy.deepcopy(encoder), head.layer()
    held = resized(images, encoder.image_size, workers=workers)
    nn.Sequential(encoder, last).to(device).eval()  # eval: of its layers only batch norm and dropout mind
    knob = "retrain.learning_rate"
    return train(encoder, last, held, labels, how, knob=knob, seed=seed, workers=workers, device=device, weights=weights, on_epoch=on_epoch)


def train(
    encoder: Encoder,
    head: nn.Linear,
    images: Images,
    labels: npt.NDArray[np.int64],
    how: Tuning,
    *,
    knob: str,
    seed: int,
    workers: int,
    device: torch.device,
    weights: npt.NDArray[np.float64] | None,
    on_epoch: OnEpoch,
    drop_last: bool = False,
) -> Finetuned:
    """Encoder and head, trained in place as `finetune` says; in training or evaluation mode and on the device as they are given.

    Args:
        images: the labelled images, best of the encoder's size already.
        knob: name of the learning rate's, for errors.
        drop_last: leave out what does not fill the last batch of an epoch.
    """
    network = nn.Sequential(encoder, head)
    size, recipe = encoder.image_size, how.loss_prediction
    teacher = recipe and Teacher(encoder, recipe, image_size=size, epochs=how.epochs, seed=seed, device=device)
    optimizer = torch.optim.AdamW([*network.parameters(), *(teacher.module.parameters() if teacher else ())], lr=how.learning_rate)
    seed = derive(seed, "finetune")
    picks = list(shuffled(range(len(labels)), how.batch_size, how.epochs, seed, drop_last=drop_last))
    per_epoch = len(picks) // how.epochs
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(picks))
    truth = torch.as_tensor(labels, device=device)
    counts = None if weights is None else torch.as_tensor(weights, dtype=torch.float32, device=device)
    batches = load(images, picks, Jitter(size, MIN_CROP, how.flip), seed=seed, workers=workers)
    watching: AbstractContextManager[list[Tensor]] = teacher.watched.seen() if teacher else nullcontext([])
    with deterministic(1), watching as stages:
        total = seen = 0.0
        for step, (batch, views) in enumerate(zip(picks, batches, strict=True), start=1):
            rows = torch.tensor([row for _, row in batch], device=device)
            with drawing(derive(seed, "forward", step), device):
                logits = network(unit(views, device))
            loss = cross_entropy(logits, truth[rows], counts)
            if teacher:
                loss = loss + teacher.loss(stages, cross_entropy(logits.detach(), truth[rows], reduction="none"), (step - 1) // per_epoch + 1)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            rate = float(schedule.get_last_lr()[0])
            schedule.step()
            total, seen = total + loss.item() * len(batch), seen + len(batch)
            if not math.isfinite(total):
                raise ValueError(f"the loss of step {step} is {loss.item()}; lower {knob} (now {how.learning_rate})")
            epoch, rest = divmod(step, per_epoch)
            if rest == 0:
                on_epoch(epoch, total / seen, rate)
                total = seen = 0.0
    module = teacher.module if teacher else None
    return Finetuned(encoder, Linear(head.weight.detach().cpu().numpy(), head.bias.detach().cpu().numpy()), module)


def check(images: Images, labels: npt.NDArray[np.int64], classes: int) -> None:
    """Raise on what cannot be trained on."""
    if len(labels) == 0:
        raise ValueError("there are no labels to train on; label some images first")
    if labels.shape != (len(images),):
        raise ValueError(f"got labels of shape {labels.shape} for {len(images)} images, expected one for each")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels reach from {labels.min()} to {labels.max()}, expected 0 to {classes - 1}")

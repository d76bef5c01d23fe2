"""Training of encoder and classifier from random weights on the labels at hand: what pretraining is compared with."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from al_core.encoders import Encoder, build
from al_core.finetune import Finetuned, Tuning, check, train
from al_core.loading import Images, OnEpoch, resized
from al_core.seeds import derive, seeded


def scratch(
    images: Images,
    labels: npt.NDArray[np.int64],
    encoder: Encoder,
    how: Tuning,
    *,
    classes: int,
    seed: int,
    workers: int,
    device: torch.device,
    weights: npt.NDArray[np.float64] | None = None,
    on_epoch: OnEpoch = lambda epoch, loss, rate: None,
) -> Finetuned:
    """All weights trained on the labels, from random ones drawn for the seed; of the encoder given only the architecture is used.

    Cross-entropy by AdamW on the views that `finetune` takes. Batch norm and dropout are in training mode, and an epoch leaves out what does not fill its
    last batch, since batch norm takes its statistics from it.

    Args:
        images: the labelled images.
        labels: (n,) in 0..classes-1, one for each image.
        classes: how many there are, with or without examples.
        how: for its epochs see `enough_epochs`.
        seed: of the weights at the start, of order and views.
        weights: (classes,) how much an example of each class counts in the loss, above 0; None: all alike.
        on_epoch: called after each epoch.

    Raises:
        ValueError: batches of fewer than 2 images, labels that do not fit the images or the classes, or a loss that is not finite.
    """
    check(images, labels, classes)
    how = replace(how, batch_size=min(how.batch_size, len(labels)))
    if how.batch_size < 2:
        raise ValueError(f"a batch holds {how.batch_size} of {len(labels)} labelled images, expected at least 2, which batch norm takes its statistics from")
    made = build(encoder.name, derive(seed, "scratch"), image_size=encoder.image_size, stem=encoder.stem)
    with seeded(seed, "scratch head"):
        head = nn.Linear(made.dim, classes)
    nn.Sequential(made, head).to(device).train()
    held, knob = resized(images, encoder.image_size, workers=workers), "retrain.scratch.learning_rate"
    trained = train(made, head, held, labels, how, knob=knob, seed=seed, workers=workers, device=device, weights=weights, on_epoch=on_epoch, drop_last=True)
    made.eval()
    return trained


def enough_epochs(labels: int, batch_size: int, *, epochs: int, min_steps: int) -> int:
    """Epochs, or as many more as it takes to come to so many steps: few labels make short epochs, and a network learns by steps."""
    per_epoch = max(1, labels // batch_size)
    return max(epochs, math.ceil(min_steps / per_epoch))

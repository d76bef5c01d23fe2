"""How the model in use looks at images: one network, whose output holds all that embed streams of an image, side by side."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tasks.models import Model
from tasks.params import Embed

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Look:
    """A network and what its output holds."""

    network: nn.Module  # (B, 3, S, S) to (B, sum of sizes)
    shapes: dict[str, tuple[int, ...]]  # of what a row holds, by signal, in the order of the output's columns

    def parts(self, batch: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.float32]]:
        """(B, sum of sizes) as one array (B, ...) a signal."""
        ends = np.cumsum([math.prod(shape) for shape in self.shapes.values()])
        columns = np.split(batch, ends[:-1], axis=1)
        return {name: part.reshape(len(batch), *shape) for (name, shape), part in zip(self.shapes.items(), columns, strict=True)}


def look(model: Model, params: Embed, seed: int) -> Look:
    """What the params ask of the model for each image: embeddings, predicted losses, and passes of its own ensemble or with its own dropout."""
    from al_core.features import Beside
    from al_core.mc_dropout import McDropout

    losses = "predicted_loss" in params.signals
    network: nn.Module = model.with_predicted_loss() if losses else model.network()
    shapes: dict[str, tuple[int, ...]] = {"embeddings": (model.dim,), **({"predicted_loss": ()} if losses else {})}
    if "mc_probs" not in params.signals or drawn(model):
        return Look(network, shapes)
    if others := model.others():
        return Look(Beside([network, *map(sure, others)]), shapes | {"mc_probs": (len(others), len(model.classes))})
    classifier = model.whole()
    passes = McDropout(classifier, passes=params.passes, seed=seed)
    return Look(Beside([network, passes]), shapes | {"mc_probs": (params.passes, len(model.classes))})


def drawn(model: Model) -> bool:
    """Whether draws of the head stand for the model's passes: an ensemble's heads, or its one under masks where the encoder itself drops nothing."""
    from al_core.mc_dropout import dropout_layers

    return not model.members.encoders if model.members else not dropout_layers(model.network())


def sure(model: Model) -> nn.Module:
    """The model as a network that gives class probabilities (B, classes)."""
    from torch import nn

    return nn.Sequential(model.whole(), nn.Softmax(1))

"""The loss prediction module: a small network beside a classifier that learns from its stages how large its loss will be.

Yoo & Kweon 2019 (https://arxiv.org/abs/1905.03677). Losses fall while the classifier learns, so that the module is taught their order within a
batch alone: its output has no scale, and means nothing beside that of another model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from al_core.encoders import Encoder
from al_core.seeds import seeded

WIDTH = 128  # of what each stage becomes


@dataclass(frozen=True)
class Recipe:
    """How the module is taught beside a classifier; the defaults are the paper's."""

    weight: float = field(default=1.0, metadata={"meaning": "of the module's loss beside the classifier's"})
    margin: float = field(default=1.0, metadata={"meaning": "by which the larger of two losses has to be predicted larger"})
    cut: float = field(default=0.6, metadata={"meaning": "share of the epochs after which the encoder learns from the module no more: 120 of the paper's 200"})

    def __post_init__(self) -> None:
        if not 0 <= self.cut <= 1:
            raise ValueError(f"cut is {self.cut}; expected 0 to 1, a share of the epochs")
        if self.weight <= 0 or self.margin <= 0:
            raise ValueError(f"weight is {self.weight} and margin {self.margin}; expected both above 0")


class LossPrediction(nn.Module):
    """Predicted loss (B,) from the outputs of a classifier's stages: each is averaged over places and mapped to 128 features, which a line then weighs.

    Args:
        widths: channels of each stage's output.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(width, WIDTH) for width in widths)
        self.line = nn.Linear(WIDTH * len(widths), 1)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each stage's output."""
        return tuple(int(each.in_features) for each in self.maps if isinstance(each, nn.Linear))

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        """(B,) from each stage's output: (B, C, H, W), (B, H, W, C) with H = W, tokens (B, N, C) or (B, C)."""
        parts = [each(pooled(stage)).relu() for each, stage in zip(self.maps, stages, strict=True)]
        predicted: Tensor = self.line(torch.cat(parts, 1)).squeeze(1)
        return predicted


def pooled(stage: Tensor) -> Tensor:
    """(B, C) mean over places. Of (B, H, W, C) and (B, C, H, W) it is the former if H = W does not hold of the latter; images here are square."""
    if stage.ndim == 4:
        last = stage.shape[1] == stage.shape[2] != stage.shape[3]
        return stage.mean((1, 2) if last else (2, 3))
    return stage.mean(1) if stage.ndim == 3 else stage


class Watched(nn.Module):
    """A network whose stages' outputs are looked at as it runs.

    Args:
        network: what runs.
        stages: dotted names of modules in it, each of which gives a tensor once a run.

    Raises:
        ValueError: no stages, or a name that the network does not have.
    """

    def __init__(self, network: nn.Module, stages: Sequence[str]) -> None:
        super().__init__()
        if not stages:
            raise ValueError("the network names no stages whose outputs a loss could be predicted from; choose another encoder")
        missing = [name for name in stages if name not in dict(network.named_modules())]
        if missing:
            raise ValueError(f"the network has no module {missing[0]!r}; it has {', '.join(name for name, _ in network.named_children())} and what is in them")
        self.network, self.stages = network, tuple(stages)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """What the network gives, and the outputs of its stages."""
        with self.seen() as stages:
            return self.network(x), stages

    @contextmanager
    def seen(self) -> Iterator[list[Tensor]]:
        """Run a block in which each run of the network puts the outputs of its stages, in their order, into the list."""
        stages: list[Tensor] = [torch.empty(0) for _ in self.stages]
        modules = dict(self.network.named_modules())
        hooks = [
            modules[name].register_forward_hook(lambda module, inputs, output, place=place: stages.__setitem__(place, output))
            for place, name in enumerate(self.stages)
        ]
        try:
            yield stages
        finally:
            for hook in hooks:
                hook.remove()


def watched(encoder: Encoder) -> Watched:
    """An encoder whose own stages are looked at."""
    return Watched(encoder, [f"body.{name}" for name in encoder.stages])


def widths_of(watched: Watched, x: Tensor) -> list[int]:
    """Channels of each stage's output, found out by a run in evaluation mode on images such as x."""
    training = watched.network.training
    watched.network.eval()
    with torch.no_grad():
        _, stages = watched(x)
    watched.network.train(training)
    return [int(pooled(stage).shape[1]) for stage in stages]


def ranking_loss(predicted: Tensor, losses: Tensor, *, margin: float = 1.0) -> Tensor:
    """How far the order of the predictions is from that of the losses: (2/B) times the sum over pairs of max(0, margin - s (p_i - p_j)).

    Pairs are (i, B - 1 - i), and s is 1 where loss i is the larger one, -1 where loss j is. An odd batch drops its last image. A pair whose losses are
    equal has no order to learn and counts 0.

    Args:
        predicted: (B,).
        losses: (B,) float32 or wider; nothing is learned through them.
        margin: by which the larger loss has to be predicted larger, xi in the paper.
    """
    even = len(predicted) // 2 * 2
    if even == 0:
        return predicted.sum() * 0
    predicted, losses = predicted[:even], losses[:even].detach()
    gap, order = (each - each.flip(0) for each in (predicted, losses))
    lacking = (margin - order.sign() * gap).clamp(min=0) * (order != 0)
    return lacking[: even // 2].sum() * 2 / even


class WithPredictedLoss(nn.Module):
    """An encoder with its loss prediction module: (B, 3, S, S) to (B, dim + 1), embeddings and behind them the predicted loss."""

    def __init__(self, watched: Watched, module: LossPrediction) -> None:
        super().__init__()
        self.watched, self.module = watched, module

    def forward(self, images: Tensor) -> Tensor:
        embeddings, stages = self.watched(images)
        return torch.cat([embeddings, self.module(stages)[:, None]], 1)


class Teacher:
    """Teaches a module beside the classifier whose stages it looks at.

    Args:
        encoder: of the classifier.
        recipe: how.
        image_size: pixels of a side.
        epochs: of the training.
        seed: of the module's weights.
        device: where the encoder is.
    """

    def __init__(self, encoder: Encoder, recipe: Recipe, *, image_size: int, epochs: int, seed: int, device: torch.device) -> None:
        self.watched, self.recipe = watched(encoder), recipe
        self.last_epoch = round(recipe.cut * epochs)  # in which the encoder learns from the module
        widths = widths_of(self.watched, torch.zeros(1, 3, image_size, image_size, device=device))
        with seeded(seed, "loss prediction"):
            self.module = LossPrediction(widths).to(device)

    def loss(self, stages: Sequence[Tensor], losses: Tensor, epoch: int) -> Tensor:
        """What the module's predictions add to the training's loss.

        Args:
            stages: outputs for the batch.
            losses: (B,) of the classifier.
            epoch: from 1.
        """
        if epoch > self.last_epoch:
            stages = [stage.detach() for stage in stages]
        return self.recipe.weight * ranking_loss(self.module(stages), losses, margin=self.recipe.margin)

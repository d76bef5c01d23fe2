"""Encoders: networks that turn images into vectors, built by name and from a seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call

from al_core.backbones import IMAGENET, backbone, position_embeddings, shapes
from al_core.errors import first_line
from al_core.seeds import seeded

MEAN, STD = IMAGENET


class Encoder(nn.Module):
    """Images to embeddings. Takes (B, 3, S, S) float in [0, 1] and normalises the channels itself; gives (B, dim).

    Args:
        name: of the architecture; see `build`.
        dim: length of an embedding.
        body: gives (B, dim) for (B, 3, S, S) with normalised channels.
        stem: of the architecture.
        image_size: pixels of a side that it is made for; some architectures take no other.
        stages: dotted names inside `body` of modules whose outputs are feature maps (B, C, H, W), (B, H, W, C) of Swin transformers, or tokens
            (B, N, C), low to high; at most four.
        mean: of the three channels.
        std: of the three channels.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        dim: int,
        body: nn.Module,
        *,
        stem: str = "standard",
        image_size: int = 224,
        stages: Sequence[str] = (),
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
    ) -> None:
        super().__init__()
        self.name, self.dim, self.body = name, dim, body
        self.stem, self.image_size, self.stages = stem, image_size, tuple(stages)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:  # (B, 3, S, S) -> (B, dim)
        normalised = (images - self.mean) / self.std
        replaced = position_embeddings(self.body, images.shape[-1])
        embeddings: Tensor = functional_call(self.body, replaced, (normalised,)) if replaced else self.body(normalised)
        return embeddings


def build(name: str, seed: int, *, image_size: int = 224, stem: str = "standard") -> Encoder:
    """An encoder with random weights: equal arguments give equal weights.

    Args:
        name: `small`, `bayesian-cnn`, a classifier of torchvision (`resnet50`), or a model of timm (`timm/vit_small_patch16_224`).
        seed: of the weights.
        image_size: pixels of a side. Networks that take any size are as good for others; ViTs and their like are made for this one.
        stem: `cifar` gives a ResNet a first convolution of 3x3 with stride 1 and no max-pooling, for images of some 32 px.

    Raises:
        ValueError: unknown name or stem, a stem that the network cannot have, or an image size that it does not take.
    """
    with seeded(seed, "encoder", name):
        made = backbone(name, image_size, stem)
    dim = output_dim(made.body, name, image_size)
    return Encoder(name, dim, made.body, stem=stem, image_size=image_size, stages=made.stages, mean=made.mean, std=made.std)


def output_dim(body: nn.Module, name: str, image_size: int) -> int:
    """Length of the embedding of an image of that size."""
    try:
        shape = shapes(body, [""], image_size)[""]
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ValueError(f"encoder {name!r} does not take images of {image_size} px: {first_line(error)}") from error
    if len(shape) != 2:
        raise ValueError(f"encoder {name!r} gives {tuple(shape)} for one image, expected one vector; choose another")
    return shape[1]


def check_size(encoder: Encoder, size: int) -> None:
    """Raise ValueError unless it takes images of that size, which need not be the one that it is made for. Nothing is computed."""
    try:
        shapes(encoder, [""], size)
    except (AssertionError, RuntimeError, ValueError) as error:
        made_for = f"encoder {encoder.name!r}, made for images of {encoder.image_size} px,"
        raise ValueError(f"{made_for} does not take views of {size} px: {first_line(error)}") from error


def n_parameters(module: nn.Module) -> int:
    """Numbers that training sets, batch norm's running statistics not counted."""
    return sum(parameter.numel() for parameter in module.parameters())


@contextmanager
def deterministic(threads: int | None = None) -> Iterator[None]:
    """Run a block with torch's deterministic algorithms alone, then put the switches back.

    Args:
        threads: of the CPU. Gradients are summed in parts, one a thread, so that another number gives other last bits, whatever the number of
            cores; None leaves it as it is, for blocks without gradients, which give the same bytes with any number.

    On CUDA the process must have been started with CUBLAS_WORKSPACE_CONFIG=:4096:8; torch says so otherwise.

    Raises:
        ValueError: the block needs something that torch computes on this device in no fixed order.
    """
    before = torch.get_deterministic_debug_mode(), torch.backends.cudnn.benchmark
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads or threads_before)
    torch.set_deterministic_debug_mode("error")  # as use_deterministic_algorithms(True), which would import the compiler: seconds
    torch.backends.cudnn.benchmark = False
    try:
        yield
    except RuntimeError as error:
        if "does not have a deterministic implementation" not in str(error):
            raise
        what = str(error).split(" does not have")[0]
        raise ValueError(
            f"torch computes {what} on this device in no fixed order, so that what is made would not come again: take another encoder, or no views smaller "
            "than it is made for"
        ) from error
    finally:
        torch.set_num_threads(threads_before)
        torch.set_deterministic_debug_mode(before[0])
        torch.backends.cudnn.benchmark = before[1]

"""Encoders: networks that turn images into vectors, built by name and from a seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from al_core.seeds import seeded

Name = Literal["small", "resnet18"]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's channels, as most published weights expect


class Encoder(nn.Module):
    """Images to embeddings. Takes (B, 3, S, S) float in [0, 1] and normalises the channels itself; gives (B, dim)."""

    mean: Tensor
    std: Tensor

    def __init__(self, name: Name, dim: int, body: nn.Module) -> None:
        super().__init__()
        self.name: Name = name
        self.dim, self.body = dim, body
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:  # (B, 3, S, S) -> (B, dim)
        embeddings: Tensor = self.body((images - self.mean) / self.std)
        return embeddings


def build(name: Name, seed: int) -> Encoder:
    """An encoder with random weights: equal name and seed give equal weights.

    Raises:
        ValueError: unknown name.
    """
    if name not in BODIES:
        raise ValueError(f"unknown encoder {name!r}; the encoders are {', '.join(BODIES)}")
    dim, body = BODIES[name]
    with seeded(seed, "encoder", name):
        return Encoder(name, dim, body())


def n_parameters(module: nn.Module) -> int:
    """Numbers that training sets, batch norm's running statistics not counted."""
    return sum(parameter.numel() for parameter in module.parameters())


def small() -> nn.Module:
    """Four 3x3 convolutions with batch norm, each but the first halving the sides, then the mean over places: for images of about 8 to 32 px."""
    widths = (3, 16, 32, 64, 128)
    layers: list[nn.Module] = []
    for index, (width_in, width_out) in enumerate(pairwise(widths)):
        convolution = nn.Conv2d(width_in, width_out, 3, stride=1 if index == 0 else 2, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(width_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def resnet18() -> nn.Module:
    """torchvision's ResNet-18 up to its pooled features."""
    from torchvision.models import resnet18

    network: nn.Module = resnet18(weights=None)
    network.fc = nn.Identity()
    return network


BODIES: dict[str, tuple[int, Callable[[], nn.Module]]] = {"small": (128, small), "resnet18": (512, resnet18)}  # dim, body


@contextmanager
def deterministic(threads: int | None = None) -> Iterator[None]:
    """Run a block with torch's deterministic algorithms alone, then put the switches back.

    Args:
        threads: of the CPU. Gradients are summed in parts, one a thread, so that another number gives other last bits, whatever the number of
            cores; None leaves it as it is, for blocks without gradients, which give the same bytes with any number.

    On CUDA the process must have been started with CUBLAS_WORKSPACE_CONFIG=:4096:8; torch says so otherwise.
    """
    before = torch.get_deterministic_debug_mode(), torch.backends.cudnn.benchmark
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads or threads_before)
    torch.set_deterministic_debug_mode("error")  # as use_deterministic_algorithms(True), which would import the compiler: seconds
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.set_num_threads(threads_before)
        torch.set_deterministic_debug_mode(before[0])
        torch.backends.cudnn.benchmark = before[1]

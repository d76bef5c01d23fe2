"""Published schedules: what each method was trained with by those who published it, as the section `pretrain` of `params.yaml` says it.

Two things hold for all: here crops are cut out of images that have been resized to a square, and colours are jittered in a fixed order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from al_core.registry import nearest

REFERENCE = 256  # images, for which learning rates are stated; they grow with the batch


@dataclass(frozen=True)
class Published:
    """One method's schedule on one kind of images."""

    source: str
    departs: str  # what its source does and `params.yaml` cannot say
    batch_size: int
    rate: float  # learning rate at its peak for REFERENCE images
    rate_end: float  # share of the peak that the cosine falls to
    schedule: Mapping[str, object]  # other keys of the section
    objective: Mapping[str, object] = field(default_factory=dict)  # parameters of the method

    def section(self, method: str, batch_size: int | None = None) -> dict[str, object]:
        """The section `pretrain`, for another batch with the learning rate in proportion (Goyal et al. 2017).

        Args:
            method: whose schedule this is.
            batch_size: images a step; None: as published.
        """
        size = batch_size or self.batch_size
        rate = self.rate * size / REFERENCE
        rates = {"batch_size": size, "learning_rate": rate, "learning_rate_end": rate * self.rate_end}
        return {"method": method, **self.schedule, **rates, "objective": dict(self.objective)}


SGD = {"optimizer": "sgd", "momentum": 0.9}
LARS = {"optimizer": "lars", "momentum": 0.9}
STRONG = {"color": 1.0, "grey": 0.2, "flip": True, "rotate": 0.0}  # colours as SimCLR has them
MILD = STRONG | {"color": 0.5}
RESNET50 = {"encoder": "resnet50", "image_size": 224}
CIFAR_RESNET18 = {"encoder": "resnet18", "stem": "cifar", "image_size": 32, "blur": 0.0, "solarize": 0.0}
LIGHTLY = CIFAR_RESNET18 | MILD | SGD | {"epochs": 800, "warmup_epochs": 0.0, "weight_decay": 5e-4, "min_crop": 0.08}
LIGHTLY_SOURCE = "cifar10_benchmark.py of lightly's documentation, https://github.com/lightly-ai/lightly"
ALL_DECAY = "biases and batch norm decay, too"
TWO_BLURS = "the first view is always blurred and the second in 1 of 10, and saturation is jittered half as much"

IMAGENET = {
    "simclr": Published(
        source="Chen et al. 2020; README of https://github.com/google-research/simclr",
        departs="",
        batch_size=4096,
        rate=0.3,
        rate_end=0.0,
        schedule=RESNET50 | STRONG | LARS | {"epochs": 100, "warmup_epochs": 10.0, "weight_decay": 1e-6, "min_crop": 0.08, "blur": 0.5, "solarize": 0.0},
        objective={"temperature": 0.1},
    ),
    "mocov2": Published(
        source="Chen, Fan, Girshick & He 2020; README of https://github.com/facebookresearch/moco, whose 800 epochs Emam et al. 2021 start from",
        departs=f"{ALL_DECAY}; keys are shuffled between GPUs, each of which has batch statistics of its own",
        batch_size=256,
        rate=0.03,
        rate_end=0.0,
        schedule=RESNET50 | MILD | SGD | {"epochs": 800, "warmup_epochs": 0.0, "weight_decay": 1e-4, "min_crop": 0.2, "blur": 0.5, "solarize": 0.0},
        objective={"temperature": 0.2, "queue": 65_536, "momentum": 0.999},
    ),
    "vicreg": Published(
        source="Bardes et al. 2022; README of https://github.com/facebookresearch/vicreg",
        departs="saturation is jittered half as much, and the first view is solarised as well",
        batch_size=2048,
        rate=0.2,
        rate_end=0.001,
        schedule=RESNET50 | MILD | LARS | {"epochs": 1000, "warmup_epochs": 10.0, "weight_decay": 1e-6, "min_crop": 0.08, "blur": 0.5, "solarize": 0.1},
        objective={"invariance": 25.0, "variance": 25.0, "covariance": 1.0, "projection": 8192},
    ),
    "barlow-twins": Published(
        source="Zbontar et al. 2021; README of https://github.com/facebookresearch/barlowtwins",
        departs=TWO_BLURS,
        batch_size=2048,
        rate=0.2,
        rate_end=0.001,
        schedule=RESNET50 | MILD | LARS | {"epochs": 1000, "warmup_epochs": 10.0, "weight_decay": 1e-6, "min_crop": 0.08, "blur": 0.5, "solarize": 0.2},
        objective={"redundancy": 0.0051, "scale": 0.024, "projection": 8192},
    ),
    "dino": Published(
        source="Caron et al. 2021; 300 epochs of ViT-S/16 in the README of https://github.com/facebookresearch/dino",
        departs=f"{TWO_BLURS}; stochastic depth of 0.1; each layer's gradient is clipped by itself; the last layer's norm is free",
        batch_size=1024,
        rate=0.0005,
        rate_end=0.0005,
        schedule={"encoder": "timm/vit_small_patch16_224", "image_size": 224}
        | MILD
        | {"optimizer": "adamw", "epochs": 300, "warmup_epochs": 10.0, "weight_decay": 0.04, "weight_decay_end": 0.4, "clip": 3.0}
        | {"min_crop": 0.4, "blur": 0.5, "solarize": 0.2},
        objective={"teacher_temperature": 0.07, "teacher_warmup_epochs": 30, "momentum": 0.996, "prototypes": 65_536, "local_views": 8, "local_size": 96},
    ),
    "swav": Published(
        source="Caron et al. 2020; scripts/swav_800ep_pretrain.sh of https://github.com/facebookresearch/swav",
        departs=f"{ALL_DECAY}, and their rate adapts; the rise starts from 0.3",
        batch_size=4096,
        rate=0.3,
        rate_end=0.001,
        schedule=RESNET50 | STRONG | LARS | {"epochs": 800, "warmup_epochs": 10.0, "weight_decay": 1e-6, "min_crop": 0.14, "blur": 0.5, "solarize": 0.0},
        objective={"prototypes": 3000, "temperature": 0.1, "epsilon": 0.05, "iterations": 3, "local_views": 6, "local_size": 96},
    ),
}
CIFAR = {
    "simclr": Published(
        source="Chen et al. 2020; README of https://github.com/google-research/simclr",
        departs="",
        batch_size=512,
        rate=1.0,
        rate_end=0.0,
        schedule=CIFAR_RESNET18 | MILD | LARS | {"epochs": 1000, "warmup_epochs": 10.0, "weight_decay": 1e-6, "min_crop": 0.08},
        objective={"temperature": 0.5},
    ),
    "mocov2": Published(
        source=LIGHTLY_SOURCE,
        departs=f"{ALL_DECAY}; each view is both query and key; batch statistics of 8 parts, keys shuffled between them",
        batch_size=512,
        rate=0.12,
        rate_end=0.0,
        schedule=LIGHTLY,
        objective={"temperature": 0.1, "queue": 8192, "momentum": 0.99},
    ),
    "vicreg": Published(
        source="imagenette_benchmark.py of lightly's documentation, https://github.com/lightly-ai/lightly, where images have 128 px",
        departs=f"half of the views are blurred; {ALL_DECAY}, and their rate adapts",
        batch_size=256,
        rate=0.3,
        rate_end=0.0,
        schedule=LIGHTLY | LARS | {"warmup_epochs": 40.0, "weight_decay": 1e-4},
        objective={"projection": 2048},
    ),
    "barlow-twins": Published(
        source=LIGHTLY_SOURCE,
        departs=f"{ALL_DECAY}; a head of two layers",
        batch_size=512,
        rate=0.12,
        rate_end=0.0,
        schedule=LIGHTLY,
        objective={"projection": 2048},
    ),
    "dino": Published(
        source=LIGHTLY_SOURCE,
        departs=f"{ALL_DECAY}; a head of two layers; the teacher's momentum stays, and saturation is jittered half as much",
        batch_size=128,
        rate=0.12,
        rate_end=0.0,
        schedule=LIGHTLY | {"epochs": 200, "min_crop": 0.4, "solarize": 0.2},
        objective={"prototypes": 2048, "hidden": 2048, "momentum": 0.99, "local_views": 0},
    ),
    "swav": Published(
        source=LIGHTLY_SOURCE,
        departs="Adam, whose decay is part of the gradient",
        batch_size=512,
        rate=0.002,
        rate_end=0.0,
        schedule=LIGHTLY | {"optimizer": "adamw", "weight_decay": 1e-6, "color": 1.0, "min_crop": 0.14},
        objective={"prototypes": 512, "local_views": 0, "frozen_epochs": 0},
    ),
}
PRESETS: Mapping[str, Mapping[str, Published]] = MappingProxyType({"imagenet": IMAGENET, "cifar": CIFAR})


def published(preset: str, method: str) -> Published:
    """The schedule of a method on images as large as ImageNet's (`imagenet`) or as small as CIFAR's (`cifar`).

    Raises:
        ValueError: unknown preset or method.
    """
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; {nearest(preset, PRESETS, 'the presets are')}")
    if method not in PRESETS[preset]:
        raise ValueError(f"unknown self-supervised method {method!r}; {nearest(method, PRESETS[preset], 'the methods are')}")
    return PRESETS[preset][method]

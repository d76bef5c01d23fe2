"""Published schedules: figures as the papers and their code state them, and that what runs here takes them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from al_core.pretraining import METHODS, build
from al_core.pretraining.augment import Augment
from al_core.pretraining.recipes import PRESETS, published
from al_core.pretraining.train import Recipe

ALL = [(preset, method) for preset in PRESETS for method in PRESETS[preset]]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_method_has_a_schedule(preset: str) -> None:
    assert list(PRESETS[preset]) == list(METHODS)
    assert all(each.source for each in PRESETS[preset].values())


@pytest.mark.parametrize(
    ("method", "batch_size", "rate", "end"),
    [
        ("simclr", 4096, 4.8, 0.0),  # "4.8 (= 0.3 x BatchSize / 256)"
        ("mocov2", 256, 0.03, 0.0),  # --lr 0.03 --batch-size 256 --cos
        ("vicreg", 2048, 1.6, 0.0016),  # --base-lr 0.2 --batch-size 2048, end_lr = base_lr * 0.001
        ("barlow-twins", 2048, 1.6, 0.0016),  # --learning-rate 0.2 --batch-size 2048, likewise
        ("dino", 1024, 0.002, 1e-6),  # --lr 0.0005 for 256, --min_lr 1e-6, 16 GPUs of 64 images
        ("swav", 4096, 4.8, 0.0048),  # --base_lr 4.8 --final_lr 0.0048, 64 GPUs of 64 images
    ],
)
def test_rates_are_those_of_the_commands_that_the_authors_give(method: str, batch_size: int, rate: float, end: float) -> None:
    section = published("imagenet", method).section(method)
    assert section["batch_size"] == batch_size
    assert (section["learning_rate"], section["learning_rate_end"]) == pytest.approx((rate, end))


def test_the_rate_grows_with_the_batch() -> None:
    """Barlow Twins' biases, whose rate the authors give as 0.0048 for 256 images, as their gradient is as long as the loss is large."""
    section = published("imagenet", "barlow-twins").section("barlow-twins", 512)
    assert section["batch_size"] == 512
    assert (section["learning_rate"], section["learning_rate_end"]) == pytest.approx((0.4, 0.0004))
    objective: Any = section["objective"]
    assert section["learning_rate"] * objective["scale"] == pytest.approx(0.0048 * 512 / 256)


@pytest.mark.parametrize(("preset", "method"), ALL)
def test_what_is_published_runs_here(preset: str, method: str) -> None:
    section: dict[str, Any] = published(preset, method).section(method)
    trained, augmented = ({each.name for each in fields(kind)} for kind in (Recipe, Augment))
    assert set(section) - trained - augmented == {"method", "objective", "encoder", "image_size", "min_crop"} | ({"stem"} if preset == "cifar" else set())
    recipe = Recipe(**{key: value for key, value in section.items() if key in trained})
    augment = Augment(**{key: value for key, value in section.items() if key in augmented})
    assert recipe.warmup_epochs < recipe.epochs
    views = build(section["method"], section["objective"]).views(section["image_size"], section["min_crop"], augment)
    assert sum(each.count for each in views) == {"dino": 10, "swav": 8}.get(method, 2) if preset == "imagenet" else 2


@pytest.mark.parametrize(("method", "count", "area"), [("dino", 8, (0.05, 0.4)), ("swav", 6, (0.05, 0.14))])
def test_small_crops_are_the_authors(method: str, count: int, area: tuple[float, float]) -> None:
    section: dict[str, Any] = published("imagenet", method).section(method)
    *_, local = build(method, section["objective"]).views(224, section["min_crop"], Augment())
    assert (local.count, local.size, local.area) == (count, 96, area)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError) as caught:
        published("imagnet", "simclr")
    assert str(caught.value) == "unknown preset 'imagnet'; did you mean 'imagenet'?"
    with pytest.raises(ValueError) as caught:
        published("cifar", "byol")
    assert str(caught.value) == "unknown self-supervised method 'byol'; the methods are barlow-twins, dino, mocov2, simclr, swav, vicreg"

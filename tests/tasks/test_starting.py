"""What `rondo init` chooses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from al_core.pretraining.recipes import PRESETS, published
from tasks.errors import ParamsError
from tasks.params import Params, Pretrain
from tasks.starting import departures, starting_params
from tests.conftest import run_rondo


def pretrain(source: str = "photos", **options: Any) -> Pretrain:
    return starting_params(source, **options).pretrain


@pytest.mark.parametrize(("preset", "method"), [(preset, method) for preset in PRESETS for method in PRESETS[preset]])
def test_every_published_schedule_is_a_section_of_params(preset: str, method: str) -> None:
    section = published(preset, method).section(method)
    assert Params.check({"pretrain": section}, "test").pretrain.model_dump(include=set(section)) == section


def test_presets_are_the_schedules_that_the_imagenet_study_used() -> None:
    """Emam et al. 2021: ResNet-50 by MoCo v2 for 800 epochs, and ResNet-18 with a small stem by SimCLR."""
    imagenet, cifar = pretrain(preset="imagenet"), pretrain(preset="cifar")
    assert (imagenet.method, imagenet.encoder, imagenet.epochs, imagenet.image_size) == ("mocov2", "resnet50", 800, 224)
    assert (cifar.method, cifar.encoder, cifar.stem, cifar.image_size) == ("simclr", "resnet18", "cifar", 32)


def test_digits_are_not_mirrored_whatever_the_preset() -> None:
    assert pretrain("example://digits", preset="cifar").model_dump(include={"color", "grey", "flip", "rotate"}) == {
        "color": 0.0,
        "grey": 0.0,
        "flip": False,
        "rotate": 15.0,
    }
    assert pretrain("example://digits", preset="tiny") == pretrain("example://digits")


def test_what_departs_from_a_published_schedule_is_said() -> None:
    """MoCo v2 and SimCLR jitter colours and mirror; digits stay grey and are turned instead."""
    said = "pretrain departs from the published schedule (in brackets), for small grey images: "
    for preset in ("cifar", "imagenet"):
        assert departures(preset, pretrain("example://digits", preset=preset)) == (
            f"{said}color 0.0 (0.5), grey 0.0 (0.2), flip false (true), rotate 15.0 (0.0)."
        )
        assert departures(preset, pretrain("photos", preset=preset)) == ""
    assert departures("tiny", pretrain("example://digits", preset="tiny")) == departures(None, pretrain("example://digits")) == ""


def test_an_encoder_may_be_named_beside_a_preset() -> None:
    other = pretrain(preset="cifar", encoder="wide_resnet50_2")
    assert (other.encoder, other.stem, other.epochs) == ("wide_resnet50_2", "cifar", 1000)
    assert pretrain(preset="cifar", encoder="small").stem == "standard", "which has no such stem"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "huge"}, "--preset is 'huge'; the presets are tiny, cifar, imagenet"),
        ({"encoder": "resnet19"}, "--encoder: unknown encoder 'resnet19'; did you mean resnet18 or resnet152 or resnet101?"),
    ],
)
def test_what_there_is_not_is_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(ParamsError) as caught:
        pretrain(**options)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no/such/folder", "source 'no/such/folder' does not exist (looked at "),
        ("example://digit", "source 'example://digit' is unknown; the example is example://digits"),
        ("torchvision://mnist", "source 'torchvision://mnist' is unknown; this version reads MNIST, "),
        ("ftp://host/photos", "source 'ftp://host/photos' has the unknown scheme 'ftp'; "),
        ("s3://bucket/photos", "source 's3://bucket/photos': S3 is not read directly in this version; copy it into a folder"),
    ],
)
def test_no_workspace_is_made_over_a_source_that_is_not_there(tmp_path: Path, source: str, message: str) -> None:
    done = run_rondo("init", str(tmp_path / "made"), "--source", source, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {message}")
    assert list(tmp_path.iterdir()) == []

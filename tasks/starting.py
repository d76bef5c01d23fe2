"""What `rondo init` writes into a new `params.yaml`: every value explicit, chosen once by the kind of source, then the user's to edit."""

from __future__ import annotations

import json
from pathlib import Path

from tasks.errors import ParamsError
from tasks.params import Acquire, ImportLabels, Ingest, Params, Pretrain, Programme, Retrain

# digits and letters: no colour, no mirror images. On the 1,797 digits 15 epochs take half a minute on 2 cores, and more gain little
GREY = Pretrain(
    encoder="small", image_size=16, epochs=15, batch_size=64, objective={"temperature": 0.5}, min_crop=0.5, color=0.0, grey=0.0, flip=False, rotate=15.0
)
# MNIST's 60,000 of them: larger batches and a higher temperature, as linear probes on 200 labels had it (docs/encoders.md)
MNIST = GREY.model_copy(
    update={"image_size": 20, "epochs": 18, "batch_size": 256, "learning_rate": 0.006, "min_crop": 0.4, "blur": 0.5}
    | {"objective": {"temperature": 1.0, "projection": 512}}
)
# photographs: stronger colour jitter and crops and a lower temperature than the defaults, as linear probes on 100 to 300 labels of 2,003 clothes had it
SMALL = Pretrain(encoder="small", image_size=32, epochs=40, batch_size=64, objective={"temperature": 0.2}, min_crop=0.2, color=0.8)
PHOTOS = SMALL.model_copy(update={"encoder": "resnet18", "image_size": 64, "epochs": 20, "batch_size": 128, "learning_rate": 0.001})
PHOTOS_L2 = 0.03  # their features are noisier than those of digits: at 100 to 300 labels less overfits
TINY_SETS = {"torchvision://cifar10": SMALL, "torchvision://cifar100": SMALL}
PUBLISHED = {"cifar": "simclr", "imagenet": "mocov2"}  # presets: the method whose published schedule they are, as Emam et al. 2021 use them
PRESETS = ("tiny", *PUBLISHED)
BORNE = ("color", "grey", "flip", "rotate")  # keys of `pretrain` that say what may change in an image
DIGITS = list("0123456789")
GREY_SETS = {"example://digits": GREY, "torchvision://mnist": MNIST, "torchvision://fashionmnist": MNIST, "torchvision://kmnist": MNIST}


def starting_params(
    source: str,
    *,
    labels: str = "keep",
    labeller: str = "files",
    budget: int = 100,
    programme: int | None = None,
    classes: list[str] | None = None,
    encoder: str | None = None,
    preset: str | None = None,
) -> Params:
    """The params that a workspace begins with.

    Raises:
        ParamsError: an argument is not what `params.yaml` allows.
    """
    pretrain = pretrain_for(source, preset)
    if encoder is not None:
        check_encoder(encoder)
    if encoder is not None and preset is not None:
        pretrain = pretrain.model_copy(update={"encoder": encoder, "stem": pretrain.stem if "resnet" in encoder else "standard"})
    elif encoder is not None and encoder != pretrain.encoder:
        other = SMALL if encoder == "small" else PHOTOS.model_copy(update={"encoder": encoder})
        pretrain = other.model_copy(update={key: getattr(pretrain, key) for key in BORNE})  # which does not depend on the encoder
    return Params.check(
        {
            "classes": classes or (DIGITS if source == "example://digits" else None),
            "programme": Programme(budget=programme).model_dump(),
            "ingest": Ingest(source=settled(source)).model_dump() | {"labels": labels},
            "pretrain": pretrain.model_dump(),
            "acquire": Acquire(budget=budget).model_dump(),
            "retrain": (Retrain(flip=pretrain.flip, l2=PHOTOS_L2) if pretrain.color else Retrain(flip=pretrain.flip)).model_dump(),
            "import-labels": ImportLabels().model_dump() | {"labeller": labeller},
        },
        "rondo init",
    )


def check_encoder(name: str) -> None:
    """Raise unless there is such an encoder."""
    from al_core.backbones import maker

    try:
        maker(name)
    except ValueError as error:
        raise ParamsError(f"--encoder: {error}") from error


def pretrain_for(source: str, preset: str | None) -> Pretrain:
    """Pretraining for a kind of images, or as a preset has it; what they bear is left as it is for digits and letters.

    Raises:
        ParamsError: unknown preset.
    """
    grey = GREY_SETS.get(source.lower())
    if preset is None:
        return grey or TINY_SETS.get(source.lower(), PHOTOS)
    if preset not in PRESETS:
        raise ParamsError(f"--preset is {preset!r}; the presets are {', '.join(PRESETS)}")
    if preset == "tiny":
        return grey or SMALL
    return Pretrain.model_validate(published_section(preset) | ({key: getattr(grey, key) for key in BORNE} if grey else {}))


def published_section(preset: str) -> dict[str, object]:
    """The section `pretrain` that a preset other than tiny was published as."""
    from al_core.pretraining.recipes import published

    method = PUBLISHED[preset]
    return published(preset, method).section(method)


def departures(preset: str | None, pretrain: Pretrain) -> str:
    """What small grey images do not bear of a published schedule, and what stands in its place, in words; empty where nothing does."""
    theirs = published_section(preset) if preset in PUBLISHED else {}
    ours = {key: getattr(pretrain, key) for key in BORNE if key in theirs}
    other = [f"{key} {json.dumps(value)} ({json.dumps(theirs[key])})" for key, value in ours.items() if value != theirs[key]]
    return f"pretrain departs from the published schedule (in brackets), for small grey images: {', '.join(other)}." if other else ""


def settled(source: str) -> str:
    """A path made absolute, since the workspace lies elsewhere; `kind://name` as it is."""
    return source if "://" in source else str(Path(source).expanduser().resolve())

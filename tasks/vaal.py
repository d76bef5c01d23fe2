"""VAAL's signal: how labelled each image looks to a discriminator that is trained for the round."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tasks.artifacts import Labels, Manifest
from tasks.errors import ParamsError
from tasks.images import Images
from tasks.pack import RawImages
from tasks.params import Embed
from tasks.progress import Told, progress
from tasks.signals import Signals

if TYPE_CHECKING:
    from al_core.vaal import Recipe

Rows = npt.NDArray[np.int64]


def recipe_of(knobs: dict[str, Any]) -> Recipe:
    """What `embed.vaal` says, and defaults for the rest.

    Raises:
        ParamsError: an unknown parameter, or a value that it cannot have.
    """
    from al_core.registry import filled
    from al_core.vaal import Recipe

    try:
        return filled("embed.vaal", Recipe, knobs)
    except ValueError as error:
        raise ParamsError(str(error)) from error


def members(manifest: Manifest, known: Labels) -> tuple[Rows, Rows]:
    """Rows of the train images that have a label, and of those that nobody has answered for."""
    frame = manifest.frame[["id", "split"]].merge(known.frame[["id", "label"]].assign(answered=True), on="id", how="left")
    train = frame["split"] == "train"
    return np.flatnonzero(train & frame["label"].notna()), np.flatnonzero(train & frame["answered"].isna())


def discriminate(signals: Signals, images: Images | RawImages, labeled: Rows, unlabeled: Rows, recipe: Recipe, params: Embed, seed: int) -> None:
    """Write how labelled every image looks to a discriminator that is trained first.

    Raises:
        ParamsError: nothing is labelled, nothing is unlabelled, or the training does not go well.
    """
    from al_core.devices import best_device
    from al_core.features import features
    from al_core.vaal import train

    device, told = best_device(), Told("embed")
    told("epochs of VAAL", 0, recipe.epochs)

    def on_epoch(epoch: int, loss: float, rate: float) -> None:
        told("epochs of VAAL", epoch, recipe.epochs, f"loss {loss:.4f}")

    try:
        network = train(images, labeled, unlabeled, recipe, seed=seed, workers=params.workers, device=device, on_epoch=on_epoch)
    except ValueError as error:
        raise ParamsError(f"embed: {error}") from error
    batches = features(images, network, image_size=recipe.image_size, batch_size=params.batch_size, workers=params.workers, device=device)
    with signals.write("discriminator", (len(images),)) as array:
        for batch in progress(batches, -(-len(images) // params.batch_size), f"embed: batches through VAAL ({params.batch_size} images each)"):
            array.append(batch[:, 0])

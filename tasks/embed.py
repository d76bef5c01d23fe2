"""Embed: what the model in use makes of every image of the pool."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import numpy.typing as npt

from tasks.artifacts import Manifest, Shards
from tasks.errors import ParamsError
from tasks.images import Images
from tasks.models import CurrentModel, Model
from tasks.params import Embed
from tasks.progress import progress
from tasks.signals import Signals
from tasks.stage import Run, stage


@stage()
def embed(manifest: Manifest, shards: Shards, model: CurrentModel, params: Embed, run: Run) -> Signals:
    """Compute the signals that the round's method reads, for every image of the pool."""
    if "logits" in params.signals and model.head is None:
        raise ParamsError("embed.signals names logits, but the model in use has none: before the first round there is only the encoder; take logits out")
    signals = Signals.begin(run.scratch / "signals", manifest, model)
    images = Images(manifest, shards.path)
    with ExitStack() as files:
        embeddings = files.enter_context(signals.write("embeddings", len(images), model.dim))
        head = model.head if "logits" in params.signals else None
        logits = files.enter_context(signals.write("logits", len(images), len(head.classes))) if head else None
        for batch in features(images, model, params.batch_size, params.workers):
            embeddings.append(batch)
            if head and logits:
                logits.append(head.logits(batch))
    return signals


def features(images: Images, model: Model, batch_size: int, workers: int) -> Iterator[npt.NDArray[np.float32]]:
    """(B, d) embeddings of the images in order, with progress."""
    from al_core.devices import best_device
    from al_core.features import features as stream

    batches = stream(images, model.network(), image_size=model.image_size, batch_size=batch_size, workers=workers, device=best_device())
    return progress(batches, total=-(-len(images) // batch_size), what=f"embed: batches of {batch_size}")

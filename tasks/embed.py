"""Embed: what the model in use makes of every image of the pool."""

from __future__ import annotations

import json
import shutil
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from al_core.processes import ALONE, Processes
from tasks import environment
from tasks.artifacts import Manifest, Shards
from tasks.errors import ParamsError
from tasks.images import Images
from tasks.launch import launched
from tasks.launch import processes as group
from tasks.models import CurrentModel, Model
from tasks.pack import Pack, RawImages, images_for
from tasks.params import Embed, Launch
from tasks.progress import progress, say
from tasks.signals import ArrayWriter, Signals
from tasks.stage import Run, stage

if TYPE_CHECKING:
    from al_core.features import Precision

ROWS = ".embed.rows.partial"  # beside the signals: what is embedded so far; it outlives the stage's process, and ends with its success
SECONDS = 5.0  # between two notes of how far it has come


@stage()
def embed(manifest: Manifest, shards: Shards, pack: Pack, model: CurrentModel, params: Embed, run: Run) -> Signals:
    """Compute the signals that the round's method reads, for every image of the pool."""
    if "logits" in params.signals and model.head is None:
        raise ParamsError("embed.signals names logits, but the model in use has none: before the first round there is only the encoder; take logits out")
    images = images_for("embed", model.image_size, manifest, Shards(shards.path.resolve()), Pack(pack.path.resolve()))
    kept = Kept.of(run.scratch.with_name(ROWS).resolve(), inputs(manifest, pack, model, params, run.params.code))
    signals = Signals(kept.folder / "signals")
    if kept.rows:
        say(f"embed: goes on behind {kept.rows:,} images that an earlier run embedded")
    else:
        kept.begin()
        Signals.begin(signals.path, manifest, model)
    launched(write, (signals, images, model, params, kept), Launch(processes=params.processes))
    signals.save(run.scratch / "signals")
    kept.drop()
    return Signals(run.scratch / "signals")


def write(signals: Signals, images: Images | RawImages, model: Model, params: Embed, kept: Kept) -> None:
    """Fill the arrays of the signals, from the rows that are kept on; as a member of a group the share of this process, and the first one writes."""
    processes = group()
    start = processes.first(kept.rows)
    batches = features("embed", images, model, params.batch_size, params.workers, params.precision, start, processes)
    if processes.rank:
        deque(batches, maxlen=0)  # its own go to the first process
        return
    head = model.head if "logits" in params.signals else None
    with ExitStack() as files:
        embeddings = files.enter_context(signals.write("embeddings", len(images), model.dim, start))
        logits = files.enter_context(signals.write("logits", len(images), len(head.classes), start)) if head else None
        for batch in batches:
            embeddings.append(batch)
            if head and logits:
                logits.append(head.logits(batch))
            kept.note(len(batch), [array for array in (embeddings, logits) if array])


def features(
    stage: str,
    images: Images | RawImages,
    model: Model,
    batch_size: int,
    workers: int,
    precision: Precision = "float32",
    start: int = 0,
    processes: Processes = ALONE,
) -> Iterator[npt.NDArray[np.float32]]:
    """(B, d) embeddings of the images in order, with progress; see `al_core.features`.

    Raises:
        ParamsError: a batch takes more memory than there is.
    """
    from al_core.devices import best_device, short_of_memory
    from al_core.features import features as stream

    batches = stream(
        images,
        model.network(),
        image_size=model.image_size,
        batch_size=batch_size,
        workers=workers,
        device=best_device(),
        precision=precision,
        start=start,
        processes=processes,
    )
    try:
        with short_of_memory(f"lower {stage}.batch_size (now {batch_size}) to {max(1, batch_size // 2)}"):
            total = -(-(len(images) - start) // batch_size)
            yield from batches if processes.rank else progress(batches, total, f"{stage}: batches of {batch_size}")
    except MemoryError as error:
        raise ParamsError(f"{stage}: {error}") from error


# ---- what outlives the stage's process ---------------------------------------------------------------------------------------------


@dataclass
class Kept:
    """Rows that an earlier run of the same inputs embedded, in a folder with a note of how many are safely on the disk."""

    folder: Path
    inputs: str
    rows: int = 0
    noted: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, folder: Path, inputs: str) -> Kept:
        """What the folder holds of these inputs; no rows where it was made from others, which is said, or is not there."""
        kept = cls(folder, inputs)
        if kept.file.exists() and (folder / "signals").exists():
            note = json.loads(kept.file.read_text("utf-8"))
            if note["inputs"] == inputs:
                kept.rows = note["rows"]
            else:
                say("embed: what an earlier run embedded was of other images, by another model, with other params or on another machine; begins anew")
        return kept

    @property
    def file(self) -> Path:
        """The note, replaced as a whole."""
        return self.folder / "rows.json"

    def begin(self) -> None:
        """Make the folder, empty."""
        self.drop()
        self.folder.mkdir(parents=True)

    def drop(self) -> None:
        """Take the folder away."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def note(self, more: int, arrays: Iterable[ArrayWriter]) -> None:
        """So many more rows were appended to the arrays; noted every few seconds, once they are on the disk."""
        self.rows += more
        if time.monotonic() - self.noted < SECONDS:
            return
        for array in arrays:
            array.settle()
        beside = self.file.with_suffix(".new")
        beside.write_text(json.dumps({"inputs": self.inputs, "rows": self.rows}), "utf-8")
        beside.replace(self.file)
        self.noted = time.monotonic()


def inputs(manifest: Manifest, pack: Pack, model: Model, params: Embed, code: str) -> str:
    """sha256 of all that a row depends on, the machine included."""
    cache, classes = pack.cache, model.head.classes if model.head else None
    said = [
        params.model_dump(mode="json", exclude={"workers", "processes"}),
        cache and cache.model_dump(),
        model.digest(),
        classes,
        code,
        environment.describe(),
    ]
    total = sha256(json.dumps(said, sort_keys=True).encode())
    total.update(manifest.ids.tobytes())
    if model.head:
        total.update(model.head.weight.tobytes() + model.head.bias.tobytes())
    return total.hexdigest()

"""Embed: what the model in use makes of every image of the pool."""

from __future__ import annotations

import json
import shutil
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from al_core.processes import ALONE, Processes
from al_core.seeds import derive
from tasks import environment
from tasks.artifacts import Manifest, PreviousLabels, Shards, StartLabels
from tasks.errors import ParamsError
from tasks.fingerprint import fingerprint
from tasks.images import Images
from tasks.launch import launched
from tasks.launch import processes as group
from tasks.looking import drawn, look
from tasks.models import CurrentModel, Model
from tasks.pack import Pack, RawImages, images_for
from tasks.params import Embed, Launch
from tasks.progress import progress, say
from tasks.signals import ArrayWriter, Signals, check_without_model
from tasks.stage import Run, stage
from tasks.vaal import discriminate, members, recipe_of

if TYPE_CHECKING:
    from torch import nn

    from al_core.features import Precision

ROWS = ".embed.rows.partial"  # beside the signals: what is embedded so far; it outlives the stage's process, and ends with its success
SECONDS = 5.0  # between two notes of how far it has come


@stage("round", "seed")
def embed(
    manifest: Manifest, shards: Shards, pack: Pack, model: CurrentModel, previous: PreviousLabels, start: StartLabels, params: Embed, run: Run
) -> Signals:
    """Compute the signals that the round's method reads, for every image of the pool."""
    check(params, model)
    images = images_for("embed", model.image_size, manifest, Shards(shards.path.resolve()), Pack(pack.path.resolve()))
    seed = derive(run.seed, run.round, "embed", "dropout")
    kept = Kept.of(run.scratch.with_name(ROWS).resolve(), inputs(manifest, pack, model, params, run.params.code, seed))
    signals = Signals(kept.folder / "signals")
    if kept.rows:
        say(f"embed: goes on behind {kept.rows:,} images that an earlier run embedded")
    else:
        kept.begin()
        Signals.begin(signals.path, manifest, model)
    _, run.elsewhere.processes = launched(write, (signals, images, model, params, kept, seed), Launch(processes=params.processes))
    if "mc_probs" in params.signals and drawn(model):
        signals.write_draws(*draws(model, params, seed))
    if "discriminator" in params.signals:
        recipe = recipe_of(params.vaal)
        squares = images_for("embed", recipe.image_size, manifest, shards, pack)
        discriminate(signals, squares, *members(manifest, previous.joined(start)), recipe, params, derive(run.seed, run.round, "embed", "vaal"))
    signals.save(run.scratch / "signals")
    kept.drop()
    return Signals(run.scratch / "signals")


def check(params: Embed, model: Model) -> None:
    """Raise where the model in use cannot give what is asked of it."""
    if model.head is None:
        check_without_model(params.signals)
    if "predicted_loss" in params.signals and model.loss is None:
        raise ParamsError("embed.signals names predicted_loss, but the model in use was trained without retrain.loss_prediction; take it out")


def draws(model: Model, params: Embed, seed: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """What stands for several passes of the model, weight (passes, classes, d) and bias (passes, classes): an ensemble's heads, or its one under masks."""
    from al_core.mc_dropout import mc_heads

    if model.members:
        return model.members.weight, model.members.bias
    assert model.head is not None
    return mc_heads(model.head.weight, model.head.bias, passes=params.passes, dropout=params.dropout, seed=seed)


def write(signals: Signals, images: Images | RawImages, model: Model, params: Embed, kept: Kept, seed: int) -> None:
    """Fill the arrays of the signals, from the rows that are kept on; as a member of a group the share of this process, and the first one writes."""
    processes = group()
    start, seen = processes.first(kept.rows), look(model, params, seed)
    batches = features("embed", images, model, params.batch_size, params.workers, params.precision, start, processes, network=seen.network)
    if processes.rank:
        deque(batches, maxlen=0)  # its own go to the first process
        return
    head = model.head if "logits" in params.signals else None
    shapes = seen.shapes | ({"logits": (len(head.classes),)} if head else {})
    with ExitStack() as files:
        arrays = {name: files.enter_context(signals.write(name, (len(images), *shape), start)) for name, shape in shapes.items()}
        for batch in batches:
            parts = seen.parts(batch)
            for name, array in arrays.items():
                array.append(head.logits(parts["embeddings"]) if head and name == "logits" else parts[name])
            kept.note(len(batch), arrays.values())


def features(
    stage: str,
    images: Images | RawImages,
    model: Model,
    batch_size: int,
    workers: int,
    precision: Precision = "float32",
    start: int = 0,
    processes: Processes = ALONE,
    *,
    network: nn.Module | None = None,
) -> Iterator[npt.NDArray[np.float32]]:
    """(B, d) embeddings of the images in order, or what another network makes of them, with progress; see `al_core.features`.

    Raises:
        ParamsError: a batch takes more memory than there is.
    """
    from al_core.devices import best_device, short_of_memory
    from al_core.features import features as stream

    batches = stream(
        images,
        network or model.network(),
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
            yield from batches if processes.rank else progress(batches, total, f"{stage}: batches ({batch_size} images each)")
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


def inputs(manifest: Manifest, pack: Pack, model: Model, params: Embed, code: str, seed: int) -> str:
    """Fingerprint of all that a row depends on, the machine included."""
    asked, machine = params.model_dump_json(exclude={"workers", "processes"}), json.dumps(environment.describe(), sort_keys=True)
    parts: list[str | bytes] = [asked, machine, code, str(seed), repr(pack.cache), manifest.ids.tobytes(), model.digest()]
    if model.head:
        parts += [model.head.weight.tobytes(), model.head.bias.tobytes(), *model.head.classes]
    for name, values in sorted((model.loss or {}).items()):
        parts += [name, values.tobytes()]
    for each in model.others():
        assert each.head is not None
        parts += [each.digest(), each.head.weight.tobytes(), each.head.bias.tobytes()]
    return fingerprint(*parts)

"""Pretrain: an encoder that has seen the pool's images but no label."""

from __future__ import annotations

import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from tasks import environment
from tasks.artifacts import Line, Manifest, PretrainCurve, PretrainReport, Shards, StartLabels
from tasks.environment import Description
from tasks.errors import ParamsError
from tasks.fingerprint import fingerprint
from tasks.images import Images
from tasks.models import PoolEncoder
from tasks.pack import Pack, RawImages, images_for
from tasks.params import Pretrain
from tasks.progress import line, say
from tasks.stage import Run, stage
from tasks.weights import TIMM, load_weights

if TYPE_CHECKING:
    from al_core.pretraining.train import Epoch

CHECKPOINT = ".pretrain.checkpoint.partial"  # beside what the stage writes; it outlives the stage's process, until DVC has what came of it

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Pretrained:
    """What the stage writes."""

    encoder: PoolEncoder
    report: PretrainReport
    curve: PretrainCurve


@dataclass(frozen=True)
class Job:
    """What every process of a training needs to know."""

    params: Pretrain
    begin: PoolEncoder  # what training starts from
    images: Images | RawImages
    source_size: int  # pixels of a side that views are cut out of
    labels: Rows  # class numbers, -1 where unknown
    seed: int
    checkpoint: Path
    inputs: str  # fingerprint of all that the result depends on
    curve: Path  # where lines go as they come


@stage("round", "seed")
def pretrain(manifest: Manifest, shards: Shards, pack: Pack, start: StartLabels, params: Pretrain, run: Run) -> Pretrained:
    """Train the encoder on the pool's train images, without labels."""
    from al_core.encoders import build, n_parameters
    from al_core.seeds import derive
    from tasks.launch import launched

    seed = derive(run.seed, run.round, "pretrain")
    encoder = build(params.encoder, seed, image_size=params.image_size, stem=params.stem)
    if params.weights:
        load_weights(encoder, params.weights, params.weights_sha256)
    given = model = PoolEncoder.of(encoder)
    rows = np.flatnonzero(manifest.frame["split"] == "train")
    lines: list[Line] = []
    if params.method != "none":
        if params.batch_size > len(rows):
            say(f"pretrain: pretrain.batch_size is {params.batch_size:,} and there are {len(rows):,} train images: a step takes no more than these")
        job = Job(
            params,
            given,
            images_for("pretrain", params.image_size, manifest, Shards(shards.path.resolve()), Pack(pack.path.resolve())).only(rows),
            max(params.image_size, pack.cache.size if pack.cache else 0),
            class_numbers(manifest, start)[rows],
            seed,
            checkpoint=run.scratch.resolve().parent / CHECKPOINT,
            inputs=fingerprint(params.model_dump_json(), repr(pack.cache), given.digest(), str(seed), run.params.code, *manifest.ids[rows]),
            curve=run.scratch.resolve() / Path(PretrainCurve.file).name,
        )
        try:
            (model, lines, run.elsewhere.earlier), run.elsewhere.processes = launched(trained, (job,), params.launch)
        except (MemoryError, ValueError) as error:  # what other params may mend
            raise ParamsError(f"pretrain: {error}") from error
    report = PretrainReport(
        method=params.method,
        encoder=params.encoder,
        stem=params.stem,
        weights=given.digest() if params.weights == TIMM else params.weights_sha256 or params.weights,
        image_size=params.image_size,
        dim=encoder.dim,
        parameters=n_parameters(encoder),
        epochs=len(lines),
        images=len(rows),
        first_loss=lines[0].loss if lines else None,
        last_loss=lines[-1].loss if lines else None,
    )
    return Pretrained(model, report, PretrainCurve(lines))


def class_numbers(manifest: Manifest, start: StartLabels) -> Rows:
    """(n,) a number for each class that the source carries, -1 where there is none; for the probe alone."""
    known = manifest.frame[["id"]].merge(start.frame[["id", "label"]], on="id", how="left")
    return pd.Categorical(known["label"]).codes.astype(np.int64)


def trained(job: Job) -> tuple[PoolEncoder, list[Line], list[Description]]:
    """The encoder, the curve, and the environments of runs before this one that a part of both is from.

    By one process alone or as a member of a group; all members give the same.
    """
    import torch

    from al_core.devices import best_device
    from al_core.pretraining import build as build_method
    from al_core.pretraining.augment import Augment
    from al_core.pretraining.train import Recipe, train
    from tasks.checkpoint import Checkpoint
    from tasks.launch import processes

    params, group, device = job.params, processes(), best_device()
    if device.type == "cuda":
        torch.cuda.init()  # type: ignore[no-untyped-call]  # or else the environment, told before the training, says that no GPU was used
    method = build_method(params.method, params.objective)
    encoder = job.begin.network().train()
    store = Checkpoint(job.checkpoint, job.inputs, group.gathered(environment.describe()))
    curve = Curve(job.curve if group.rank == 0 else None, params.epochs)
    train(
        job.images,
        method.over(encoder, epochs=params.epochs, seed=job.seed),
        Recipe(**chosen(Recipe, params)),
        views=method.views(params.image_size, params.min_crop, Augment(**chosen(Augment, params))),
        source_size=job.source_size,
        seed=job.seed,
        workers=params.workers,
        device=device,
        labels=job.labels,
        processes=group,
        store=store,
        on_epoch=curve,
    )
    return PoolEncoder.of(encoder), curve.lines, group.first(store.earlier)


def chosen(kind: type[Any], params: Pretrain) -> dict[str, Any]:
    """The params that a dataclass has fields for."""
    return {each.name: getattr(params, each.name) for each in fields(kind)}


class Curve:
    """Lines as they come: kept, written to a file and printed.

    Args:
        path: of the file; None: neither written nor printed.
        epochs: how many there will be.
    """

    def __init__(self, path: Path | None, epochs: int) -> None:
        self.path, self.epochs = path, epochs
        self.lines: list[Line] = []
        self.started, self.before = time.monotonic(), 0

    def __call__(self, epoch: Epoch) -> None:
        if epoch.resumed:
            self.before = epoch.number
        new = Line(epoch=epoch.number, loss=epoch.loss, learning_rate=epoch.learning_rate, **vars(epoch.health))
        self.lines.append(new)
        if self.path is None:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(new.text())
        if not epoch.resumed:
            say(f"{line('pretrain: epochs', epoch.number, self.epochs, time.monotonic() - self.started, self.before)}, {words(epoch)}")


def words(epoch: Epoch) -> str:
    """What an epoch has brought."""
    probe = "" if epoch.health.probe is None else f", {100 * epoch.health.probe:.0f}% of neighbours agree"
    return f"loss {epoch.loss:.4f}, rank {epoch.health.rank:.1f}{probe}"

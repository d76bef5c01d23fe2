"""Pretrain: an encoder that has seen the pool's images but no label."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from tasks.artifacts import Line, Manifest, PretrainCurve, PretrainReport, Shards
from tasks.models import PoolEncoder
from tasks.pack import Pack, images_for
from tasks.params import Pretrain
from tasks.progress import line, say
from tasks.stage import Run, stage


@dataclass(frozen=True)
class Pretrained:
    """What the stage writes."""

    encoder: PoolEncoder
    report: PretrainReport
    curve: PretrainCurve


@stage("round", "seed")
def pretrain(manifest: Manifest, shards: Shards, pack: Pack, params: Pretrain, run: Run) -> Pretrained:
    """Train the encoder on the pool's train images, without labels."""
    from al_core import simclr
    from al_core.devices import best_device
    from al_core.encoders import build, n_parameters
    from al_core.seeds import derive

    seed = derive(run.seed, run.round, "pretrain")
    encoder = build(params.encoder, seed)
    rows = np.flatnonzero(manifest.frame["split"] == "train")
    lines: list[Line] = []
    started = time.monotonic()

    def on_epoch(epoch: int, loss: float, learning_rate: float) -> None:
        lines.append(Line(epoch=epoch, loss=loss, learning_rate=learning_rate))
        say(f"{line('pretrain: epochs', epoch, params.epochs, time.monotonic() - started)}, loss {loss:.4f}")

    if params.method == "simclr":
        augment = simclr.Augment(min_crop=params.min_crop, color=params.color, flip=params.flip, rotate=params.rotate)
        simclr.train(
            images_for("pretrain", params.image_size, manifest, shards, pack).only(rows),
            encoder,
            image_size=params.image_size,
            epochs=params.epochs,
            batch_size=params.batch_size,
            learning_rate=params.learning_rate,
            weight_decay=params.weight_decay,
            temperature=params.temperature,
            augment=augment,
            seed=seed,
            workers=params.workers,
            device=best_device(),
            on_epoch=on_epoch,
        )
    report = PretrainReport(
        method=params.method,
        encoder=params.encoder,
        image_size=params.image_size,
        dim=encoder.dim,
        parameters=n_parameters(encoder),
        epochs=len(lines),
        images=len(rows),
        first_loss=lines[0].loss if lines else None,
        last_loss=lines[-1].loss if lines else None,
    )
    return Pretrained(PoolEncoder.of(encoder, params.image_size), report, PretrainCurve(lines))

"""Acquire: choose the images people should label next."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

import al_core
from al_core import registry
from al_core.metrics import log_probabilities
from al_core.seeds import derive
from tasks.artifacts import AcquireReport, Labels, Manifest, PreviousLabels, Selection, StartLabels
from tasks.models import Head
from tasks.params import Acquire
from tasks.progress import Told, say
from tasks.signals import Signals
from tasks.stage import Run, stage
from tasks.wording import counted

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Acquired:
    """What the stage writes."""

    selection: Selection
    report: AcquireReport


@stage("round", "seed", "classes")
def acquire(signals: Signals, manifest: Manifest, previous: PreviousLabels, start: StartLabels, params: Acquire, run: Run) -> Acquired:
    """Choose the images people should label next."""
    signals.check(manifest)
    pool = pool_of(signals, manifest, previous.joined(start), run.params.classes or [])
    picked, control = arms(pool, params, run.seed, run.round)
    name = params.method["name"]
    report = AcquireReport(
        method=params.method,
        direction=registry.card(name).direction,
        budget=params.budget,
        acquired=len(picked),
        control=len(control),
        unlabelled=len(pool.available),
        labelled=len(pool.labeled),
        info=dict(picked.info),
    )
    say(f"acquire: {summary(report)}")
    return Acquired(selection_of(picked, control.rows, signals, manifest, name), report)


def summary(report: AcquireReport) -> str:
    """`90 by margin, 10 for the control arm, of 1,338 unlabelled images`."""
    arms = [(report.acquired, f"by {report.method['name']}"), (report.control, "for the control arm")]
    return "".join(f"{count:,} {how}, " for count, how in arms if count) + f"of {counted(report.unlabelled, 'unlabelled image')}"


def arms(pool: al_core.Pool, params: Acquire, seed: int, round_name: str) -> tuple[al_core.Selection, al_core.Selection]:
    """The method's picks and the control arm, which is drawn first: whatever the method, it is the same."""
    num_control = round(params.budget * params.control)
    name, knobs = params.method["name"], {key: value for key, value in params.method.items() if key != "name"}
    control = draw("random", pool, num_control, {}, derive(seed, round_name, "acquire", "control"))
    picked = draw(name, pool.without(control.rows), params.budget - num_control, knobs, derive(seed, round_name, "acquire", "method"))
    return picked, control


def draw(name: str, pool: al_core.Pool, budget: int, knobs: dict[str, Any], seed: int) -> al_core.Selection:
    """A method's picks; none where the arm's share of the budget rounds to nothing."""
    if budget == 0:
        return al_core.Selection(np.empty(0, np.int64), np.empty(0))
    with al_core.listening(Told(f"acquire: {name}")):
        return al_core.select(name, pool, budget=budget, seed=seed, **knobs)


def pool_of(signals: Signals, manifest: Manifest, known: Labels, classes: list[str], logits: npt.NDArray[np.float32] | None = None) -> al_core.Pool:
    """The signals as the methods see them: labelled train images are known points; test, validation and unlabelable images are out of reach.

    Args:
        signals: of the round.
        manifest: of its pool.
        known: what is known before the round's own answers.
        classes: of the round.
        logits: (n, classes) in place of those that embed wrote, which it writes only for methods that read them.
    """
    frame = manifest.frame.merge(known.frame[["id", "label"]].assign(answered=True), on="id", how="left")
    answered = frame["answered"].notna() & (frame["split"] == "train")
    codes = np.asarray(pd.Categorical(frame["label"], categories=classes).codes, dtype=np.int64)
    labelled = answered & (codes >= 0)
    head, passes = signals.head(), signals.array_or_none("mc_probs")
    return al_core.Pool(
        embeddings=signals.array("embeddings"),
        logits=logits if logits is not None else signals.array_or_none("logits"),
        head=(head.weight, head.bias) if head else None,
        mc_heads=signals.draws(),
        mc_probs=None if passes is None else passes.transpose(1, 0, 2),
        predicted_loss=signals.array_or_none("predicted_loss"),
        discriminator=signals.array_or_none("discriminator"),
        labeled=np.flatnonzero(labelled),
        labels=codes[np.flatnonzero(labelled)],
        excluded=np.flatnonzero((frame["split"] != "train") | (answered & ~labelled)),
        device=device(),
    )


def device() -> str:
    """Where methods compute what is worth it; torch is asked only where there may be a GPU, since importing it takes a second."""
    if shutil.which("nvidia-smi") is None:
        return "cpu"
    from al_core.devices import best_device

    return str(best_device())


def selection_of(picked: al_core.Selection, control: Rows, signals: Signals, manifest: Manifest, method: str) -> Selection:
    """The table of picks. The control arm is spread evenly through the ranks: a batch half done has its share of it."""
    places = np.concatenate([(np.arange(len(arm)) + 0.5) / max(len(arm), 1) for arm in (picked.rows, control)])
    order = np.argsort(places, kind="stable")
    rows = np.concatenate([picked.rows, control])
    predictions, confidences = expectations(signals, rows)
    frame = pd.DataFrame(
        {
            "id": manifest.ids[rows],
            "score": np.concatenate([picked.scores, np.full(len(control), np.nan)]),  # NaN becomes null
            "arm": ["acquired"] * len(picked) + ["control"] * len(control),
            "reason": [method if np.isnan(score) else f"{method}: {score:.6g}" for score in picked.scores] + ["drawn uniformly at random"] * len(control),
            "prediction": predictions,
            "confidence": confidences,
        }
    )
    return Selection.of(frame.iloc[order].assign(rank=np.arange(len(rows))))


def expectations(signals: Signals, rows: Rows) -> tuple[list[str | None], list[float | None]]:
    """Class and softmax probability that the model in use expects of these rows; nulls without a model."""
    head: Head | None = signals.head()
    if head is None:
        return [None] * len(rows), [None] * len(rows)
    probabilities = np.exp(log_probabilities(head.logits(signals.array("embeddings")[rows])))
    best = probabilities.argmax(axis=1)
    return [head.classes[index] for index in best], [float(value) for value in probabilities.max(axis=1)]

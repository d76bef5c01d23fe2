"""Retrain: the round's classifier, and how good it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from al_core import metrics
from tasks.artifacts import Estimate, Labels, Manifest, Metrics, Plots, Predictions, Selection, Shards
from tasks.embed import features
from tasks.errors import AnswersError, ParamsError
from tasks.images import Images
from tasks.loss_prediction import loss_recipe
from tasks.models import Head, Members, Model, StartModel
from tasks.pack import Pack, RawImages, images_for
from tasks.params import Retrain
from tasks.progress import Told, say
from tasks.signals import Signals
from tasks.stage import Run, stage
from tasks.wording import counted

if TYPE_CHECKING:
    from al_core.finetune import Finetuned, Tuning
    from al_core.linear import Linear

TOP = 5
LINES = 30
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Retrained:
    """What the stage writes."""

    model: Model
    metrics: Metrics
    predictions: Predictions
    plots: Plots


@dataclass(frozen=True)
class Examples:
    """Rows of the pool with their classes."""

    rows: Rows  # (n,)
    classes: Rows  # (n,) index into the round's classes


@stage("round", "seed", "classes")
def retrain(
    labels: Labels, selection: Selection, manifest: Manifest, shards: Shards, pack: Pack, start: StartModel, signals: Signals, params: Retrain, run: Run
) -> Retrained:
    """Train the round's classifier on all labels known, and measure it."""
    signals.check(manifest)
    classes = run.params.classes or []
    train, validation, test = (examples(labels, manifest, classes, split) for split in ("train", "validation", "test"))
    if len(train.rows) == 0:
        raise AnswersError("no train image has a label yet; answers that say 'cannot be labelled' train nothing: open a round with other picks")
    images = images_for("retrain", start.image_size, manifest, shards, pack)
    trained = MODES[params.mode](train, images, start, signals, classes, params, run)
    trained = trained.calibrated(suiting(trained, validation))
    figures = measure(trained, train, test, classes, control(selection, labels), run)
    say(f"retrain: {summary(figures)}")
    if doubt := doubted(figures, len(classes), params):
        say(f"retrain: {doubt}")
    return Retrained(trained.model, figures, predictions(trained.logits, manifest, classes), plots(trained.logits, test, classes, run))


@dataclass(frozen=True)
class Trained:
    """A model and what it makes of the pool."""

    model: Model
    logits: Floats  # (n, classes) of the whole pool
    l2: float | None  # strength of the ridge; None where the head is no logistic regression
    temperature: float | None  # that suits labels held out of training best; None where there are none

    def calibrated(self, temperature: float | None) -> Trained:
        """At a temperature; as it is where that is unknown."""
        head, divisor = self.model.head, np.float32(temperature or 1)
        assert head is not None
        scaled = Head(head.weight / divisor, head.bias / divisor, head.classes, float(divisor))
        members = self.model.members and self.model.members.divided(divisor)
        return Trained(replace(self.model, head=scaled, members=members), self.logits / divisor, self.l2, temperature)


def suiting(trained: Trained, validation: Examples) -> float | None:
    """The temperature that labels held out of training ask for: the validation split's, else out-of-fold; never the test split's."""
    if len(validation.rows) == 0:
        return trained.temperature
    from al_core.calibration import temperature

    return temperature(trained.logits[validation.rows], validation.classes)


def examples(labels: Labels, manifest: Manifest, classes: list[str], split: str) -> Examples:
    """The images of a split whose class is known and among the round's classes."""
    known = manifest.frame[["id", "split"]].merge(labels.frame[["id", "label"]], on="id", how="left")
    index = pd.Categorical(known["label"], categories=classes).codes
    rows = np.flatnonzero((known["split"] == split) & (index >= 0))
    return Examples(rows, index[rows].astype(np.int64))


def linear(train: Examples, images: Images | RawImages, encoder: Model, signals: Signals, classes: list[str], params: Retrain, run: Run) -> Trained:
    """Logistic regression on the encoder's embeddings."""
    from al_core.cross_validation import STRENGTHS, cross_validate
    from al_core.linear import fit
    from al_core.seeds import derive

    embeddings = seen(images, encoder, signals, params)
    x, weights = embeddings[train.rows], weights_of(train, classes, params)
    strengths = STRENGTHS if params.l2 == "auto" else (params.l2,)
    held_out = cross_validate(x, train.classes, len(classes), seed=derive(run.seed, run.round, "retrain"), strengths=strengths, weights=weights)
    solved = fit(x, train.classes, len(classes), l2=held_out.l2, weights=weights)
    head = Head(solved.weight, solved.bias, classes)
    temperature = held_out.temperature if len(held_out.rows) else None
    members = ensemble(x, train.classes, len(classes), held_out.l2, weights, params, run) if params.ensemble else None
    return Trained(encoder.classifier(head, members), head.logits(embeddings), held_out.l2, temperature)


def linear_sgd(train: Examples, images: Images | RawImages, encoder: Model, signals: Signals, classes: list[str], params: Retrain, run: Run) -> Trained:
    """A linear head on the encoder's embeddings, by a published recipe."""
    from al_core.devices import best_device
    from al_core.linear_sgd import Descent, descend
    from al_core.seeds import derive

    embeddings = seen(images, encoder, signals, params)
    x, weights, how = embeddings[train.rows], weights_of(train, classes, params), Descent(**params.sgd.model_dump())
    seed, told = derive(run.seed, run.round, "retrain"), Epochs(how.epochs)
    solved = descend(x, train.classes, len(classes), how=how, seed=seed, weights=weights, device=best_device(), on_epoch=told)
    head = Head(solved.weight, solved.bias, classes)
    return Trained(encoder.classifier(head), head.logits(embeddings), None, None)


def seen(images: Images | RawImages, encoder: Model, signals: Signals, params: Retrain) -> Floats:
    """(n, d) what the encoder makes of every image: as embed left it, unless the round looked with another one, such as a finetuned one."""
    if signals.encoder() == encoder.digest():
        return signals.array("embeddings")
    return np.concatenate(list(features("retrain", images, encoder, params.batch_size, params.workers)))


def ensemble(embeddings: Floats, labels: Rows, classes: int, l2: float, weights: Doubles | None, params: Retrain, run: Run) -> Members:
    """Heads on examples drawn anew."""
    from al_core.ensemble import linear_ensemble
    from al_core.seeds import derive

    assert params.ensemble is not None
    seed = derive(run.seed, run.round, "retrain")
    return Members(*linear_ensemble(embeddings, labels, classes, members=params.ensemble, l2=l2, weights=weights, seed=seed))


def weights_of(train: Examples, classes: list[str], params: Retrain) -> Doubles | None:
    """How much a label of each class counts; None: all alike."""
    from al_core.linear import balanced

    return balanced(train.classes, len(classes)) if params.class_weights == "balanced" else None


def tuned(train: Examples, images: Images | RawImages, start: Model, signals: Signals, classes: list[str], params: Retrain, run: Run) -> Trained:
    """All weights trained on the labelled images, from those of a model or from random ones."""
    from al_core.devices import best_device
    from al_core.finetune import Tuning, finetune, regression
    from al_core.scratch import enough_epochs, scratch
    from al_core.seeds import derive

    how = Tuning(params.epochs, params.batch_size, params.learning_rate, params.flip, loss_recipe(params.loss_prediction))
    seed, shown, encoder = derive(run.seed, run.round, "retrain"), images.only(train.rows), start.network()
    common: dict[str, Any] = {"classes": len(classes), "workers": params.workers, "device": best_device(), "weights": weights_of(train, classes, params)}
    if params.mode == "scratch":
        epochs = enough_epochs(len(train.rows), params.batch_size, epochs=params.epochs, min_steps=params.scratch.min_steps)
        how = replace(how, epochs=epochs, learning_rate=params.scratch.learning_rate)
        fit: Callable[..., Finetuned] = partial(scratch, shown, train.classes, encoder, **common)
    else:
        l2 = None if params.l2 == "auto" else params.l2
        if params.warm_start:
            head = start_head(start, classes)
        else:
            head = regression(shown, train.classes, encoder, batch_size=params.batch_size, seed=seed, l2=l2, **common)
        fit = partial(finetune, shown, train.classes, encoder, head, **common)
    result = fit(how, seed=seed, on_epoch=Epochs(how.epochs))
    model = Model.of(result.encoder, Head(result.head.weight, result.head.bias, classes))
    if result.loss_prediction:
        model = replace(model, loss={name: value.cpu().numpy() for name, value in result.loss_prediction.state_dict().items()})
    if params.ensemble:
        model = replace(model, members=networks(fit, replace(how, loss_prediction=None), params.ensemble, seed))
    assert model.head is not None
    batches = features("retrain", images, model, params.batch_size, params.workers)
    return Trained(model, np.concatenate([model.head.logits(batch) for batch in batches]), None, None)


def networks(fit: Callable[..., Finetuned], how: Tuning, members: int, seed: int) -> Members:
    """Encoders and heads that are trained alike, each from a seed of its own."""
    from al_core.seeds import derive

    weights, biases, encoders = [], [], []
    for number in range(members):
        say(f"retrain: member {number + 1} of {members} of the ensemble")
        trained = fit(how, seed=derive(seed, "ensemble", number), on_epoch=Epochs(how.epochs))
        weights.append(trained.head.weight)
        biases.append(trained.head.bias)
        encoders.append({name: value.cpu().numpy() for name, value in trained.encoder.state_dict().items()})
    return Members(np.stack(weights), np.stack(biases), tuple(encoders))


MODES = {"linear": linear, "linear-sgd": linear_sgd, "finetune": tuned, "scratch": tuned}


def start_head(start: Model, classes: list[str]) -> Linear:
    """The head that a warm start goes on from, as it was trained.

    Raises:
        ParamsError: the model has none, or one for other classes.
    """
    from al_core.linear import Linear

    if start.head is None:
        raise ParamsError("retrain.warm_start is true, but what training starts from is an encoder without a classifier; set it to false for this round")
    if start.head.classes != classes:
        raise ParamsError(
            f"retrain.warm_start is true, but the model that training starts from knows the classes {start.head.classes} and this round has {classes}; "
            "set it to false for this round"
        )
    scale = np.float32(start.head.temperature)
    return Linear(start.head.weight * scale, start.head.bias * scale)


class Epochs:
    """Says how training goes, in at most `LINES` lines and never in quick succession."""

    def __init__(self, total: int) -> None:
        self.total, self.told = total, Told("retrain")
        self.told("epochs", 0, total)

    def __call__(self, epoch: int, loss: float, rate: float) -> None:
        if epoch * LINES // self.total > (epoch - 1) * LINES // self.total:
            self.told("epochs", epoch, self.total, f"loss {loss:.4f}")


def control(selection: Selection, labels: Labels) -> tuple[int, int] | None:
    """Right and all predictions of the previous model on this round's control arm; None without a model or answers."""
    frame = selection.frame.query("arm == 'control'").merge(labels.frame[["id", "label"]], on="id").dropna(subset=["prediction", "label"])
    return (int((frame["prediction"] == frame["label"]).sum()), len(frame)) if len(frame) else None


def measure(trained: Trained, train: Examples, test: Examples, classes: list[str], on_control: tuple[int, int] | None, run: Run) -> Metrics:
    """The round's figures, of the calibrated model."""
    logits = trained.logits
    predicted = logits.argmax(axis=1)
    right = predicted[test.rows] == test.classes
    of_class = [right[test.classes == index] for index in range(len(classes))]
    return Metrics(
        labels=len(train.rows),
        accuracy=estimate(int(right.sum()), len(right)),
        control_accuracy=estimate(*on_control) if on_control else None,
        **resampled(logits[test.rows], trained.temperature, test, run),
        temperature=trained.temperature,
        l2=trained.l2,
        recall={name: estimate(int(hits.sum()), len(hits)) for name, hits in zip(classes, of_class, strict=True)},
        train_accuracy=float((predicted[train.rows] == train.classes).mean()),
    )


def summary(figures: Metrics) -> str:
    """`300 labels, 97.1% of 359 test images right (95% interval 94.9 to 98.3)`."""
    labels, found = counted(figures.labels, "label"), figures.accuracy
    if found is None:
        return f"{labels}; no test image has one, so there is no accuracy"
    interval = f"(95% interval {100 * found.low:.1f} to {100 * found.high:.1f})"
    return f"{labels}, {100 * found.value:.1f}% of {counted(found.n, 'test image')} right {interval}"


def doubted(figures: Metrics, classes: int, params: Retrain) -> str | None:
    """A warning where probabilities of test images are surely worse than equal ones, and what to do."""
    if figures.nll is None or figures.nll.low <= math.log(classes):
        return None
    rate = f"; lower retrain.sgd.learning_rate (now {params.sgd.learning_rate:g})" if params.mode == "linear-sgd" else ""
    return (
        f"this round's model gives test images probabilities that are worse than equal ones: a negative log-likelihood of {figures.nll.value:.2f}, "
        f"where {classes} equal ones have {math.log(classes):.2f}{rate}"
    )


def resampled(logits: Floats, temperature: float | None, test: Examples, run: Run) -> dict[str, Estimate | None]:
    """What is measured on the test split, with intervals; logits (n, classes) of its images."""
    from al_core.seeds import generator

    predicted, truth, uncalibrated = logits.argmax(axis=1), test.classes, logits * np.float32(temperature or 1)
    measures: dict[str, Callable[[Rows], float]] = {
        "balanced_accuracy": lambda rows: metrics.balanced_accuracy(predicted[rows], truth[rows]),
        "macro_f1": lambda rows: metrics.macro_f1(predicted[rows], truth[rows]),
        "nll": lambda rows: metrics.nll(logits[rows], truth[rows]),
        "brier": lambda rows: metrics.brier(logits[rows], truth[rows]),
        "ece": lambda rows: metrics.ece(logits[rows], truth[rows]),
        "ece_uncalibrated": lambda rows: metrics.ece(uncalibrated[rows], truth[rows]),
    }
    if logits.shape[1] == 2 and len(np.unique(truth)) == 2:
        measures["auc"] = lambda rows: metrics.auc(logits[rows], truth[rows])
    found: dict[str, Estimate | None] = dict.fromkeys(measures)
    if len(truth):
        for name, measure in measures.items():
            figure = metrics.bootstrap(measure, len(truth), generator(run.seed, run.round, "retrain", "bootstrap"))
            found[name] = Estimate(**figure._asdict(), n=len(truth))
    if logits.shape[1] > TOP:
        found["top5"] = estimate(int(metrics.among_top(logits, truth, TOP).sum()), len(truth)) if len(truth) else None
    return found


def estimate(right: int, total: int) -> Estimate | None:
    """The proportion with its interval; None of nothing."""
    if total == 0:
        return None
    value, low, high = metrics.wilson(right, total)
    return Estimate(value=value, low=low, high=high, n=total)


def predictions(logits: Floats, manifest: Manifest, classes: list[str]) -> Predictions:
    """What the model expects of every image."""
    ordered = np.sort(np.exp(metrics.log_probabilities(logits)), axis=1)
    names = np.asarray(classes, dtype=object)
    return Predictions.of(
        {
            "id": manifest.ids,
            "prediction": names[logits.argmax(axis=1)],
            "confidence": ordered[:, -1].astype(np.float32),
            "margin": (ordered[:, -1] - ordered[:, -2]).astype(np.float32),
        }
    )


def plots(logits: Floats, test: Examples, classes: list[str], run: Run) -> Plots:
    """CSV files for `dvc plots` of the test split: one row an image (actual, predicted)."""
    folder = run.scratch / "plots"
    folder.mkdir()
    names = np.asarray(classes, dtype=object)
    predicted = names[logits[test.rows].argmax(axis=1)]
    pd.DataFrame({"actual": names[test.classes], "predicted": predicted}).to_csv(folder / "confusion.csv", index=False, lineterminator="\n")
    return Plots(folder)

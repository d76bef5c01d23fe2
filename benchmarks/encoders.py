"""What self-supervised pretraining is worth: test accuracy of classifiers on few labels, with and without it, over seeds.

    python -m benchmarks.encoders [--programmes mnist clothing] [--seeds 3] [--data DIR] [--keep DIR]

`mnist`: a labelling programme of one round with 200 labels drawn at random, as `rondo init --preset tiny` begins it, through DVC and git as in production,
and its time from the images to the metrics; beside it the same labels learned from scratch (`retrain.mode: scratch`) over the same pool.

`clothing`: linear classifiers on all train labels, on embeddings of the trained encoder, of the same encoder with random weights, and on the pixels
themselves at the encoder's size; test accuracy of each with its 95% interval, and what pretraining gains over the others with the interval of that
gain (paired bootstrap over test images). `--encoder` and `--epochs` say what is trained.

DIR holds the data sets as `RONDO_DATA` does. Seeds set the encoder's start, the views, and which images are labelled.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from al_core.encoders import build
from al_core.features import features
from al_core.linear import fit
from al_core.metrics import wilson
from al_core.seeds import generator
from benchmarks.record import RESULTS, machine, write
from tasks import git, rounds
from tasks.artifacts import Manifest, Metrics, Shards
from tasks.images import Images
from tasks.models import PoolEncoder
from tasks.params import Params, render
from tasks.starting import starting_params
from tasks.workspace import Workspace, init

Singles = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

LABELS = 200
DRAWS = 2000  # of the bootstrap
RIDGES = (1e-3, 1e-2, 1e-1)  # of which the one that does best on a quarter of the train labels is taken


def main() -> None:
    """Measure and write benchmarks/results/encoders.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programmes", nargs="+", choices=list(PROGRAMMES), default=list(PROGRAMMES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("RONDO_DATA", ".")))
    parser.add_argument("--encoder", default="small", help="of clothing")
    parser.add_argument("--epochs", type=int, default=100, help="of clothing")
    parser.add_argument("--keep", type=Path, help="folder for the workspaces; default: a temporary one")
    asked = parser.parse_args()
    os.environ["RONDO_DATA"] = str(asked.data.resolve())
    path = RESULTS / "encoders.json"
    figures: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}  # other programmes stay, if measured alike
    alike = {"machine": machine(), "threads": torch.get_num_threads(), "seeds": asked.seeds}
    figures = (figures if all(figures.get(key) == value for key, value in alike.items()) else {}) | alike
    with tempfile.TemporaryDirectory() as scratch:
        for name in asked.programmes:
            figures[name] = PROGRAMMES[name]((asked.keep or Path(scratch)).resolve() / name, asked)
    print(write("encoders", figures).read_text())  # noqa: T201


# ---- MNIST: a whole programme ----------------------------------------------------------------------------------------------------


def mnist(folder: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Accuracy and seconds of each seed's programme, and accuracy from scratch with the same labels."""
    runs = [one_programme(folder / str(seed), seed) for seed in range(asked.seeds)]
    summary = {name: spread([run[name]["value"] for run in runs]) for name in ("accuracy", "from_scratch")}
    return {"labels": LABELS, "runs": runs, **summary, "median_seconds": statistics.median(run["seconds"] for run in runs)}


def one_programme(folder: Path, seed: int) -> dict[str, Any]:
    """From an empty folder to the metrics of a round with random labels; then the round's labels once more, from scratch."""
    started = time.perf_counter()
    base = starting_params("torchvision://MNIST", labels="ignore", labeller="oracle", budget=LABELS, programme=LABELS, preset="tiny")
    workspace = init(folder, base.model_copy(update={"seed": seed}))
    rounds.advance(workspace, rounds.run_stage, lambda _: None)
    seconds = time.perf_counter() - started
    found = metrics(workspace)
    assert found.labels == LABELS and found.accuracy
    began = time.perf_counter()
    again = from_scratch(workspace)
    assert again.labels == LABELS and again.accuracy
    return {
        "seed": seed,
        "accuracy": found.accuracy.model_dump(),
        "from_scratch": again.accuracy.model_dump(),
        "seconds": round(seconds, 1),
        "seconds_from_scratch": round(time.perf_counter() - began, 1),
        "seconds_a_stage": stage_seconds(workspace),
    }


def from_scratch(workspace: Workspace) -> Metrics:
    """The metrics of the same round when its classifier is trained from random weights. The round is made anew in place of the first."""
    git.git(workspace.root, "reset", "--hard", "--quiet", "pool-p001")
    git.git(workspace.root, "tag", "--delete", "round-r001")
    params = workspace.params
    changed = params.model_copy(update={"retrain": params.retrain.model_copy(update={"mode": "scratch"})})
    (workspace.root / "params.yaml").write_text(render(changed), "utf-8")
    git.commit(workspace.root, ["params.yaml"], "Train from scratch")
    shutil.rmtree(workspace.root / "rounds/r001")  # what DVC keeps of the first round is not in git
    rounds.advance(workspace, rounds.run_stage, lambda _: None)
    return metrics(workspace)


def metrics(workspace: Workspace) -> Metrics:
    """Of the first round."""
    return Metrics.load(workspace.root / "rounds/r001/metrics.json")


def stage_seconds(workspace: Workspace) -> dict[str, float]:
    """As the stages noted them."""
    from tasks import environment

    recorded = environment.load(workspace.root / "pools/p001") | environment.load(workspace.root / "rounds/r001")
    return {stage: float(each["seconds"]) for stage, each in recorded.items()}


def spread(values: list[float]) -> dict[str, float]:
    """Mean, least and most."""
    return {"mean": round(statistics.mean(values), 4), "least": round(min(values), 4), "most": round(max(values), 4)}


# ---- clothing: features beside features ------------------------------------------------------------------------------------------


def clothing(folder: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Accuracy of linear classifiers on each kind of features, seed by seed, and what pretraining gains."""
    runs = [one_pool(folder / str(seed), seed, asked) for seed in range(asked.seeds)]
    gains = {name: spread([run["gains"][name]["value"] for run in runs]) for name in runs[0]["gains"]}
    return {"encoder": asked.encoder, "epochs": asked.epochs, "runs": runs, "gains": gains}


def one_pool(folder: Path, seed: int, asked: argparse.Namespace) -> dict[str, Any]:
    """A pool with its encoder, and linear classifiers over it."""
    params = pool_params(asked, seed)
    workspace = init(folder, params)
    pool = rounds.open_pool(workspace)
    rounds.run_pool(pool, rounds.run_stage, lambda _: None)
    manifest, shards = Manifest.load(pool.path / "manifest.parquet"), Shards(pool.path / "shards")
    model = PoolEncoder.load(pool.path / "encoder.safetensors")
    images, size = Images(manifest, shards.path), model.image_size
    untrained = build(model.encoder, seed + 1000, image_size=size, stem=model.stem)
    kinds = {"pretrained": seen(images, model.network(), size), "random weights": seen(images, untrained, size), "pixels": pixels(images, size)}
    labels, split = truth(pool.path, manifest)
    right = {name: judged(x, labels, split, seed) for name, x in kinds.items()}
    return {
        "seed": seed,
        "accuracy": {name: wilson(int(each.sum()), len(each))._asdict() for name, each in right.items()},
        "gains": {f"over {name}": gain(right["pretrained"], each, seed) for name, each in right.items() if name != "pretrained"},
    }


def pool_params(asked: argparse.Namespace, seed: int) -> Params:
    """Of a pool of photos."""
    base = starting_params(str(asked.data / "clothing"), labels="keep", encoder=asked.encoder)
    return base.model_copy(update={"seed": seed, "pretrain": base.pretrain.model_copy(update={"epochs": asked.epochs})})


def seen(images: Images, encoder: Any, size: int) -> Singles:
    """(n, d) embeddings."""
    return np.concatenate(list(features(images, encoder, image_size=size, batch_size=256, workers=0, device=torch.device("cpu"))))


def pixels(images: Images, size: int) -> Singles:
    """(n, 3 size^2) values."""
    return np.stack([np.asarray(image.resize((size, size), 2), np.float32).ravel() / 255 for image in images])


def truth(folder: Path, manifest: Manifest) -> tuple[Rows, Any]:
    """(n,) class numbers and splits."""
    import pandas as pd

    known = pd.read_parquet(folder / "known.parquet")
    frame = manifest.frame[["id", "split"]].merge(known, on="id", how="left")
    return pd.Categorical(frame["label"]).codes.astype(np.int64), frame["split"].to_numpy()


def judged(x: Singles, labels: Rows, split: Any, seed: int) -> Bools:
    """(test,) whether a linear classifier on all train labels is right, its ridge chosen on a quarter of them."""
    train, test = np.flatnonzero(split == "train"), np.flatnonzero(split == "test")
    order = generator(seed, "ridge").permutation(train)
    held, rest = order[: len(order) // 4], order[len(order) // 4 :]
    classes = int(labels.max()) + 1

    def right(fitted_on: Rows, ridge: float, rows: Rows) -> Bools:
        head = fit(x[fitted_on], labels[fitted_on], classes, l2=ridge)
        hits: Bools = (x[rows] @ head.weight.T + head.bias).argmax(axis=1) == labels[rows]
        return hits

    best = max(RIDGES, key=lambda ridge: float(right(rest, ridge, held).mean()))
    return right(train, best, test)


def gain(one: Bools, other: Bools, seed: int) -> dict[str, float]:
    """How much more often one is right than the other, with its 95% interval over test images drawn anew."""
    difference = one.astype(float) - other
    draws = generator(seed, "gain").integers(len(difference), size=(DRAWS, len(difference)))
    low, high = np.quantile(difference[draws].mean(axis=1), (0.025, 0.975))
    return {"value": float(difference.mean()), "low": float(low), "high": float(high)}


PROGRAMMES = {"mnist": mnist, "clothing": clothing}


if __name__ == "__main__":
    main()

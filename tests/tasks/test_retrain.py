import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from al_core.metrics import log_probabilities
from tasks import git, rounds
from tasks.artifacts import Labels, Manifest, Metrics, Predictions, Shards
from tasks.embed import features
from tasks.errors import ParamsError
from tasks.images import Images
from tasks.models import Head, Model
from tasks.params import Retrain, render
from tasks.retrain import Epochs, doubted, start_head
from tasks.signals import Signals
from tasks.workspace import Workspace
from tests.conftest import CLASSES, advance, params_for


def figures(workspace: Workspace, name: str) -> Metrics:
    return Metrics.load(workspace.root / "rounds" / name / "metrics.json")


def test_predictions_are_the_calibrated_models(finished: Workspace) -> None:
    """What the head stored says of the embeddings; a round later embed gives just these logits to the method."""
    folder, metrics = finished.root / "rounds" / "r001", figures(finished, "r001")
    head, embeddings = Model.load(folder / "model.safetensors").head, Signals(folder / "signals").array("embeddings")
    assert head is not None
    assert head.temperature == pytest.approx(metrics.temperature)
    assert head.temperature != 1
    stored = Predictions.load(folder / "predictions.parquet").frame
    np.testing.assert_allclose(stored["confidence"], np.exp(log_probabilities(head.logits(embeddings)).max(1)), rtol=1e-5)
    seen = Signals(finished.root / "rounds" / "r002" / "signals")
    np.testing.assert_allclose(seen.array("logits"), head.logits(embeddings), rtol=1e-4, atol=1e-5)


def test_figures_have_intervals(finished: Workspace) -> None:
    metrics = figures(finished, "r002")
    assert metrics.accuracy is not None
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "nll", "brier", "ece", "ece_uncalibrated"):
        estimate = getattr(metrics, name)
        assert estimate.low <= estimate.high, name
        assert estimate.n == metrics.accuracy.n
    assert metrics.nll is not None
    assert metrics.nll.low < metrics.nll.value < metrics.nll.high
    assert (metrics.top5, metrics.auc, metrics.l2) == (None, None, 0.001), "three classes; the ridge as given"


def test_the_ridge_is_chosen_and_classes_are_balanced_where_asked(with_pool: Callable[..., Workspace]) -> None:
    workspace = with_pool(retrain={"workers": 0, "l2": "auto", "class_weights": "balanced"})
    advance(workspace, max_rounds=1)
    assert figures(workspace, "r001").l2 not in (None, 0.001)


def test_a_classifier_from_scratch(with_pool: Callable[..., Workspace]) -> None:
    workspace = with_pool(retrain={"workers": 0, "mode": "scratch", "scratch": {"min_steps": 60}, "epochs": 1})
    advance(workspace, max_rounds=1)
    found, pool = figures(workspace, "r001"), Model.load(workspace.root / "pools" / "p001" / "encoder.safetensors")
    model = Model.load(workspace.root / "rounds" / "r001" / "model.safetensors")
    assert found.train_accuracy == 1
    assert (model.encoder, model.image_size) == (pool.encoder, pool.image_size)
    assert not any(np.array_equal(value, pool.weights[name]) for name, value in model.weights.items())
    assert model.weights["body.1.num_batches_tracked"] == 60


def test_the_networks_of_an_ensemble_start_from_other_weights_and_learn_the_same(with_pool: Callable[..., Workspace]) -> None:
    once = {"workers": 0, "mode": "scratch", "scratch": {"min_steps": 60}, "epochs": 1}
    workspace = with_pool(retrain=once | {"ensemble": 2, "loss_prediction": {}})
    advance(workspace, max_rounds=1)
    folder, pool = workspace.root / "rounds" / "r001", workspace.root / "pools" / "p001"
    model, manifest = Model.load(folder / "model.safetensors"), Manifest.load(pool / "manifest.parquet")
    frame = manifest.frame[["id", "split"]].merge(Labels.load(folder / "labels.parquet").frame, on="id", how="left")
    rows = np.flatnonzero((frame["split"] == "train") & frame["label"].notna())
    images, known = Images(manifest, Shards.load(pool / "shards").path).only(rows), [model.classes.index(label) for label in frame["label"][rows]]
    networks = [model, *model.others()]
    assert len({each.digest() for each in networks}) == len(networks) == 3
    for each in networks:
        logits = np.concatenate(list(features("retrain", images, each, 64, 0, network=each.whole())))
        assert (logits.argmax(1) == known).mean() > 0.9


def test_a_head_by_sgd(with_pool: Callable[..., Workspace]) -> None:
    """On the pool's encoder, with the recipe that params name."""
    workspace = with_pool(retrain={"workers": 0, "mode": "linear-sgd", "sgd": {"learning_rate": 0.5, "weight_decay": 0.0}})
    advance(workspace, max_rounds=1)
    folder = workspace.root / "rounds" / "r001"
    model, pool = Model.load(folder / "model.safetensors"), Model.load(workspace.root / "pools" / "p001" / "encoder.safetensors")
    assert model.digest() == pool.digest()
    manifest = Manifest.load(workspace.root / "pools" / "p001" / "manifest.parquet").frame
    frame = manifest.merge(Labels.load(folder / "labels.parquet").frame, on="id", how="left")
    assert model.head
    predicted = np.array(CLASSES)[model.head.logits(Signals(folder / "signals").array("embeddings")).argmax(1)]
    train = (frame["split"] == "train") & frame["label"].notna()
    assert (predicted == frame["label"])[train].mean() == figures(workspace, "r001").train_accuracy > 0.8


def test_probabilities_that_are_surely_worse_than_equal_ones_are_doubted(finished: Workspace) -> None:
    found, high = figures(finished, "r002"), Retrain.model_validate({"mode": "linear-sgd", "sgd": {"learning_rate": 1000.0}})
    assert found.nll
    assert doubted(found, 3, high) is None
    maybe, surely = (found.model_copy(update={"nll": found.nll.model_copy(update={"value": 4.758, "low": low})}) for low in (1.09, 1.10))
    assert doubted(maybe, 3, high) is None
    told = "this round's model gives test images probabilities that are worse than equal ones: a negative log-likelihood of 4.76, where 3 equal ones have 1.10"
    assert doubted(surely, 3, high) == f"{told}; lower retrain.sgd.learning_rate (now 1000)"
    assert doubted(surely, 3, Retrain()) == told


@pytest.mark.parametrize(("seconds", "lines"), [(0.001, 0), (0.125, 15), (64.0, 30)])
def test_training_is_told_of_now_and_then(seconds: float, lines: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Three hundred epochs of so many seconds: every tenth is told, but none within two seconds of the one before."""
    now = [0.0]
    monkeypatch.setattr("tasks.progress.time.monotonic", lambda: now[0])
    told = Epochs(300)
    for epoch in range(1, 301):
        now[0] += seconds
        told(epoch, 1 / epoch, 0.1)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == lines
    if lines:
        taken = {0.125: "8/s, took 38 s", 64.0: "0.016/s, took 5 h 20 min"}[seconds]
        assert said[-1] == f"retrain: epochs 300 of 300, {taken}, loss 0.0033"


# ---- from the previous round's model ---------------------------------------------------------------------------------------------


def change(workspace: Workspace, **changes: object) -> None:
    """Give the next round other params."""
    params = params_for(Path(workspace.params.ingest.source), **{"programme": {"budget": 100}, **changes})
    (workspace.root / "params.yaml").write_text(render(params), "utf-8")
    git.commit(workspace.root, ["params.yaml"], "Change params")


def test_a_warm_start_goes_on_from_the_model_before(finished: Workspace) -> None:
    training = {"mode": "finetune", "epochs": 1, "workers": 0}
    change(finished, retrain=training)
    advance(finished, max_rounds=1)
    change(finished, retrain=training | {"warm_start": True, "learning_rate": 1e-12})
    advance(finished, max_rounds=1)
    params = finished.find_round("r004").params
    assert params.start == params.model == "../r003/model.safetensors"
    assert finished.find_round("r003").params.start == "../../pools/p001/encoder.safetensors"
    before, after = (Model.load(finished.root / "rounds" / name / "model.safetensors") for name in ("r003", "r004"))
    for name, value in before.weights.items():
        assert np.abs(after.weights[name].astype(float) - value.astype(float)).max() < 1e-9, name
    assert before.head and after.head
    assert before.digest() != Model.load(finished.root / "pools" / "p001" / "encoder.safetensors").digest()
    np.testing.assert_allclose(after.head.weight * after.head.temperature, before.head.weight * before.head.temperature, rtol=1e-5, atol=1e-8)


def refusal(workspace: Workspace, **changes: object) -> str:
    """Why the next round is not opened."""
    change(workspace, **changes)
    with pytest.raises(ParamsError) as error:
        rounds.open_round(workspace)
    return str(error.value)


WARM = {"mode": "finetune", "warm_start": True, "workers": 0}


def test_a_warm_start_without_a_model_is_refused(with_pool: Callable[..., Workspace]) -> None:
    assert refusal(with_pool(), retrain=WARM) == (
        "retrain.warm_start is true, but before the first round there is no model to start from; set it to false for this round"
    )


def test_a_warm_start_from_another_classifier_is_refused(finished: Workspace) -> None:
    assert refusal(finished, retrain=WARM | {"mode": "scratch"}) == (
        "retrain.warm_start is true, but only retrain.mode finetune starts from a model, and it is scratch; set it to false"
    )
    assert refusal(finished, retrain=WARM, classes=[*CLASSES, "none"]) == (
        f"retrain.warm_start is true, but the model of r002 knows the classes {CLASSES} and this round has {[*CLASSES, 'none']}; set it to false for this round"
    )
    last, pool = finished.find_round("r002"), finished.find_round("p001")
    shutil.copytree(pool.path, finished.root / "pools" / "p002")
    text = (pool.path / "params.yaml").read_text("utf-8").replace("image_size: 8", "image_size: 16")
    (finished.root / "pools" / "p002" / "params.yaml").write_text(text, "utf-8")
    rounds.check_warm_start(CLASSES, last, pool)
    with pytest.raises(ParamsError) as error:
        rounds.check_warm_start(CLASSES, last, finished.find_round("p002"))
    assert str(error.value) == (
        "retrain.warm_start is true, but the model of r002 is small at 8 px with the standard stem and the encoder of p002 is small at 16 px "
        "with the standard stem; set it to false for this round"
    )


def test_a_stage_that_finds_no_head_to_go_on_from_says_so() -> None:
    """As `dvc repro` with the workspace's own params would, which no opening checks."""
    encoder = Model("small", "standard", 8, {})
    with pytest.raises(ParamsError) as error:
        start_head(encoder, CLASSES)
    assert str(error.value) == ("retrain.warm_start is true, but what training starts from is an encoder without a classifier; set it to false for this round")
    ones = np.ones((2, 3), np.float32)
    with pytest.raises(ParamsError) as error:
        start_head(encoder.classifier(Head(ones, ones[:, 0], ["a", "b"])), CLASSES)
    assert str(error.value) == (
        f"retrain.warm_start is true, but the model that training starts from knows the classes ['a', 'b'] and this round has {CLASSES}; "
        "set it to false for this round"
    )
    warm = start_head(encoder.classifier(Head(ones, ones[:, 0], CLASSES, temperature=2.0)), CLASSES)
    assert (warm.weight == 2).all() and (warm.bias == 2).all()

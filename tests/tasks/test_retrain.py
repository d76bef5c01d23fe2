from collections.abc import Callable

import numpy as np
import pytest

from al_core.metrics import log_probabilities
from tasks.artifacts import Metrics, Predictions
from tasks.models import Model
from tasks.signals import Signals
from tasks.workspace import Workspace
from tests.conftest import advance


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

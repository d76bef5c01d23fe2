"""Rounds whose methods read what only a trained model can give beside logits: opened, run and picked under DVC."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tasks import git, rounds
from tasks.artifacts import AcquireReport, Manifest, Selection
from tasks.errors import ParamsError
from tasks.models import Model
from tasks.params import render
from tasks.signals import Signals
from tasks.vaal import recipe_of
from tasks.workspace import Round, Workspace
from tests.conftest import advance, params_for

Doubles = npt.NDArray[np.float64]


def third_round(workspace: Workspace, name: str = "r003", **changes: object) -> Round:
    """A round behind those that are closed, with changed params."""
    params = params_for(Path(workspace.params.ingest.source), **{"programme": {"budget": 36}, **changes})
    (workspace.root / "params.yaml").write_text(render(params), "utf-8")
    git.commit(workspace.root, ["params.yaml"], "Change params")
    assert advance(workspace).name == rounds.BUDGET_SPENT
    return workspace.find_round(name)


def information(probs: Doubles) -> Doubles:
    """(n,) BALD in nats of (passes, n, classes), by its definition."""
    average = probs.mean(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        of_mean, of_each = (-np.nan_to_num(p * np.log(p)).sum(-1) for p in (average, probs))
    result: Doubles = of_mean - of_each.mean(0)
    return result


def test_bald_picks_what_dropout_on_the_embeddings_leaves_in_doubt(finished: Workspace) -> None:
    this = third_round(finished, embed={"workers": 0, "passes": 20, "dropout": 0.3}, acquire={"method": {"name": "bald"}, "budget": 12, "control": 0.25})
    assert this.params.embed.signals == ("embeddings", "mc_probs")
    signals, manifest = Signals.load(this.file(Signals.file)), Manifest.load(this.file(Manifest.file))
    assert not signals.has("logits")
    draws, head = signals.draws(), signals.head()
    assert draws is not None and head is not None
    assert draws[0].shape == (20, 3, 128)
    scale = draws[0][:, head.weight != 0] / head.weight[head.weight != 0]
    np.testing.assert_allclose(np.unique(scale.round(4)), [0, 1.4286])

    logits = np.einsum("nd,tcd->tnc", signals.array("embeddings").astype(np.float64), draws[0].astype(np.float64)) + draws[1][:, None]
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    scores = information(probs / probs.sum(-1, keepdims=True))
    picks = Selection.load(this.file(Selection.file)).frame
    picked = picks[picks["arm"] == "acquired"]
    place = {image: row for row, image in enumerate(manifest.ids)}
    np.testing.assert_allclose(picked["score"], scores[[place[image] for image in picked["id"]]], atol=1e-5)
    assert picked["score"].min() > 0
    assert AcquireReport.load(this.file(AcquireReport.file)).method["name"] == "bald"
    known = {image for name in ("r001", "r002") for image in Selection.load(finished.find_round(name).path / "selection.parquet").frame["id"]}
    train = manifest.frame.query("split == 'train'")["id"]
    left = [place[image] for image in train if image not in known | set(picks["id"])]
    assert max(scores[left]) <= picked["score"].min() + 1e-5


def test_an_ensemble_stands_for_passes(finished: Workspace) -> None:
    acquire, retrain = {"method": {"name": "max-entropy"}, "budget": 6}, {"ensemble": 5, "workers": 0}
    last = third_round(finished, "r004", embed={"workers": 0}, acquire=acquire, retrain=retrain)
    model, signals = Model.load(finished.find_round("r003").path / "model.safetensors"), Signals.load(last.file(Signals.file))
    draws = signals.draws()
    assert model.members is not None and model.head is not None and draws is not None
    assert draws[0].shape == (5, 3, 128)
    assert (draws[0] == model.members.weight).all() and (draws[1] == model.members.bias).all()
    logits = signals.array("embeddings") @ model.members.weight.transpose(0, 2, 1) + model.members.bias[:, None]
    votes, own = logits.argmax(-1), model.head.logits(signals.array("embeddings")).argmax(-1)  # (5, n) and (n,)
    assert (votes == own).mean() > 0.6  # the same task, and
    assert (votes != votes[0]).any()  # not the same answer


@pytest.mark.slow
def test_an_ensemble_of_finetuned_networks_stands_for_passes(finished: Workspace) -> None:
    acquire, retrain = {"method": {"name": "max-entropy"}, "budget": 6}, {"ensemble": 2, "mode": "finetune", "epochs": 2, "workers": 0}
    last = third_round(finished, "r004", embed={"workers": 0}, acquire=acquire, retrain=retrain)
    model, signals = Model.load(finished.find_round("r003").path / "model.safetensors"), Signals.load(last.file(Signals.file))
    assert model.head is not None
    probs = signals.array("mc_probs")  # (n, 2, 3)
    assert signals.draws() is None and probs.shape[1:] == (2, 3)
    digests = {each.digest() for each in (model, *model.others())}
    assert len(digests) == 3, "each has weights of its own"
    votes, own = probs.argmax(-1), model.head.logits(signals.array("embeddings")).argmax(-1)
    assert (votes == own[:, None]).mean() > 0.6
    assert not np.allclose(probs[:, 0], probs[:, 1], atol=1e-3)


def test_vaal_asks_about_what_looks_unlabelled(finished: Workspace) -> None:
    tiny = {"image_size": 16, "width": 4, "latent": 4, "epochs": 2, "batch_size": 16}
    this = third_round(finished, embed={"workers": 0, "vaal": tiny}, acquire={"method": {"name": "vaal"}, "budget": 12, "control": 0.25})
    assert this.params.embed.signals == ("embeddings", "discriminator")
    assert this.params.embed.vaal == tiny | {"beta": 1.0, "adversary": 1.0, "vae_steps": 2, "learning_rate": 5e-4}
    scores, ids = Signals.load(this.file(Signals.file)).array("discriminator"), list(Manifest.load(this.file(Manifest.file)).ids)
    picks = Selection.load(this.file(Selection.file)).frame.query("arm == 'acquired'")
    assert picks["score"].tolist() == sorted(scores[[ids.index(image) for image in picks["id"]]].tolist())


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"latnet": 4}, "embed.vaal has no parameter 'latnet'; did you mean 'latent'?"),
        ({"latent": "4"}, "embed.vaal.latent is '4'; expected int"),
        ({"image_size": 28}, "embed.vaal: image_size is 28; expected a multiple of 16, as four convolutions halve the sides"),
    ],
)
def test_bad_parameters_of_vaal_are_refused_at_opening(knobs: dict[str, object], message: str) -> None:
    with pytest.raises(ParamsError) as error:
        recipe_of(knobs)
    assert str(error.value) == message


def test_learning_loss_picks_what_the_module_expects_most_of(finished: Workspace) -> None:
    with pytest.raises(ParamsError) as error:
        third_round(finished, acquire={"method": {"name": "learning-loss"}, "budget": 12, "control": 0.25})
    assert str(error.value) == (
        "predicted_loss is read, but the model of r002 was trained without a module that predicts it; for now take another method, "
        "and set retrain.loss_prediction to {} and retrain.mode to finetune: the round after can have it"
    )
    training = {"mode": "finetune", "loss_prediction": {"cut": 0.5}, "epochs": 2, "workers": 0}
    budget = {"budget": 6, "control": 0.0}
    third_round(finished, retrain=training, acquire={"method": {"name": "margin"}, **budget}, programme={"budget": 30})
    this = third_round(finished, retrain=training, acquire={"method": {"name": "learning-loss"}, **budget}, programme={"budget": 36}, name="r004")
    assert this.params.retrain.loss_prediction == {"weight": 1.0, "margin": 1.0, "cut": 0.5}
    losses, manifest = Signals.load(this.file(Signals.file)).array("predicted_loss"), Manifest.load(this.file(Manifest.file))
    picks = Selection.load(this.file(Selection.file)).frame
    place = {image: row for row, image in enumerate(manifest.ids)}
    assert picks["score"].tolist() == losses[[place[image] for image in picks["id"]]].tolist()
    known = {image for name in ("r001", "r002", "r003") for image in Selection.load(finished.find_round(name).path / "selection.parquet").frame["id"]}
    left = [place[image] for image in manifest.frame.query("split == 'train'")["id"] if image not in known]
    assert sorted(picks["score"], reverse=True) == sorted(losses[left].tolist(), reverse=True)[:6]


@pytest.mark.parametrize("mode", ["linear", "linear-sgd"])
def test_a_module_beside_a_head_alone_is_refused(finished: Workspace, mode: str) -> None:
    with pytest.raises(ParamsError) as error:
        third_round(finished, retrain={"loss_prediction": {}, "mode": mode, "workers": 0})
    assert str(error.value) == (
        f"retrain.loss_prediction is trained together with an encoder, and retrain.mode {mode} trains none; take mode finetune or scratch, or set it to null"
    )

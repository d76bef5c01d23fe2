"""What embed streams of an image beside its embedding: passes of an encoder with dropout, and predicted losses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from al_core.encoders import Encoder, build
from al_core.features import features
from al_core.loss_prediction import LossPrediction, Recipe, Teacher
from al_core.mc_dropout import mc_passes
from al_core.seeds import derive
from tasks.acquire import pool_of
from tasks.artifacts import Labels, Manifest, Shards
from tasks.errors import ParamsError
from tasks.images import Images
from tasks.models import Head, Members, Model
from tasks.params import Embed, Params
from tasks.signals import Signals
from tasks.stage import execute
from tests.tasks.test_ingest import make, picture, write

N, SIZE = 11, 12


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pool")
    make(root / "pool", write(root / "photos", {f"{i}.png": picture(i) for i in range(N)}))
    return root / "pool"


def model_of(name: str) -> Model:
    encoder = build(name, 1, image_size=SIZE)
    rng = np.random.default_rng(0)
    return Model.of(encoder, Head(rng.normal(size=(3, encoder.dim)).astype(np.float32), np.zeros(3, np.float32), ["a", "b", "c"]))


def embedded(pool: Path, folder: Path, model: Model, *signals: str) -> Signals:
    """What the stage writes."""
    folder.mkdir()
    model.save(folder / "model.safetensors")
    section = Embed.model_validate({"batch_size": 4, "workers": 0, "signals": ("embeddings", *signals), "passes": 5})
    params = Params(embed=section, round="r003", seed=7, pool=str(pool), previous=str(pool), model="model.safetensors", here=".")
    (folder / "params.yaml").write_text(params.dump(), "utf-8")
    execute("embed", folder)
    return Signals.load(folder / "signals")


def pixels(pool: Path) -> torch.Tensor:
    images = Images(Manifest.load(pool / "manifest.parquet"), Shards.load(pool / "shards").path)
    return torch.from_numpy(np.stack([np.asarray(images[row].resize((SIZE, SIZE), 2)) for row in range(N)])).permute(0, 3, 1, 2).float() / 255


def test_an_encoder_with_dropout_gives_passes(pool: Path, tmp_path: Path) -> None:
    model = model_of("bayesian-cnn")
    signals = embedded(pool, tmp_path / "round", model, "mc_probs", "logits")
    assert signals.draws() is None
    array = signals.array("mc_probs")
    assert array.shape == (N, 5, 3)
    with torch.no_grad():
        passes = list(mc_passes(model.whole(), pixels(pool), passes=5, seed=derive(7, "r003", "embed", "dropout")))
    expected = torch.stack([logits.softmax(1) for logits in passes], 1)
    np.testing.assert_allclose(array, expected.numpy(), atol=1e-4)
    with torch.no_grad():
        np.testing.assert_allclose(signals.array("embeddings"), model.network()(pixels(pool)).numpy(), atol=1e-4)
    assert np.abs(array[:, 0] - array[:, 1]).max() > 0.01
    seen = pool_of(signals, Manifest.load(pool / "manifest.parquet"), Labels.load(pool / "labels.parquet"), ["a", "b", "c"])
    assert seen.mc_probs.shape == (5, N, 3)
    assert "mc_probs" in seen.signals and "mc_heads" not in seen.signals


def test_an_ensemble_comes_before_the_encoders_dropout(pool: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    members = Members(rng.normal(size=(4, 3, 128)).astype(np.float32), np.zeros((4, 3), np.float32))
    signals = embedded(pool, tmp_path / "round", replace(model_of("bayesian-cnn"), members=members), "mc_probs")
    draws = signals.draws()
    assert draws is not None and not signals.has("mc_probs")
    assert (draws[0] == members.weight).all()


def test_networks_of_an_ensemble_give_passes_beside_the_models_own_embeddings(pool: Path, tmp_path: Path) -> None:
    model, rng = model_of("bayesian-cnn"), np.random.default_rng(0)
    encoders = [build("bayesian-cnn", seed, image_size=SIZE) for seed in (5, 6)]
    weight = rng.normal(size=(2, 3, 128)).astype(np.float32)
    states = tuple(Model.of(each).weights for each in encoders)
    signals = embedded(pool, tmp_path / "round", replace(model, members=Members(weight, np.zeros((2, 3), np.float32), states)), "mc_probs", "logits")
    assert signals.draws() is None
    with torch.no_grad():
        expected = [(each.eval()(pixels(pool)) @ torch.from_numpy(head).T).softmax(1) for each, head in zip(encoders, weight, strict=True)]
        own = model.network()(pixels(pool))
    np.testing.assert_allclose(signals.array("mc_probs"), torch.stack(expected, 1).numpy(), atol=1e-4)
    np.testing.assert_allclose(signals.array("embeddings"), own.numpy(), atol=1e-4)
    assert model.head is not None
    np.testing.assert_allclose(signals.array("logits"), model.head.logits(own.numpy()), atol=1e-3)


def with_module(encoder: Encoder) -> LossPrediction:
    return Teacher(encoder, Recipe(), image_size=SIZE, epochs=1, seed=3, device=torch.device("cpu")).module


def test_a_model_with_a_module_gives_predicted_losses(pool: Path, tmp_path: Path) -> None:
    model = model_of("small")
    module = with_module(model.network())
    state: dict[str, npt.NDArray[np.generic]] = {name: value.numpy() for name, value in module.state_dict().items()}
    signals = embedded(pool, tmp_path / "round", replace(model, loss=state), "predicted_loss")
    encoder = model.network()
    maps, x = [], (pixels(pool) - encoder.mean) / encoder.std
    with torch.no_grad():
        for number, layer in enumerate(encoder.body.children()):
            x = layer(x)
            if number in (2, 5, 8, 11):
                maps.append(x)
        expected = module(maps).numpy()
    np.testing.assert_allclose(signals.array("predicted_loss"), expected, atol=1e-4)
    images = Images(Manifest.load(pool / "manifest.parquet"), Shards.load(pool / "shards").path)
    alone = np.concatenate(list(features(images, encoder, image_size=SIZE, batch_size=4, workers=0, device=torch.device("cpu"))))
    assert (signals.array("embeddings") == alone).all()


def test_a_model_without_a_module_is_refused(pool: Path, tmp_path: Path) -> None:
    with pytest.raises(ParamsError) as error:
        embedded(pool, tmp_path / "round", model_of("small"), "predicted_loss")
    assert str(error.value) == "embed.signals names predicted_loss, but the model in use was trained without retrain.loss_prediction; take it out"

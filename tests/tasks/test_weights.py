"""Weights from files: what is understood, what is refused and in which words."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from al_core.encoders import Encoder, build
from tasks.errors import ArtifactError, ParamsError
from tasks.models import PoolEncoder
from tasks.params import Pretrain
from tasks.weights import load_weights, positions, settle_weights, sha256


def same(one: Encoder, other: Encoder) -> bool:
    """Whether two encoders have the same weights."""
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in one.state_dict().items())


def test_a_safetensors_file_gives_its_weights(tmp_path: Path) -> None:
    source, target = build("small", 1), build("small", 2)
    save_file(source.body.state_dict(), tmp_path / "small.safetensors")
    load_weights(target, str(tmp_path / "small.safetensors"), sha256(tmp_path / "small.safetensors"))
    assert same(source, target)


@pytest.mark.parametrize("levels", [(), ("state_dict",), ("model",), ("teacher",), ("model", "state_dict")])
@pytest.mark.parametrize("prefix", ["", "module.", "module.encoder_q.", "backbone.", "body."])
def test_usual_levels_and_prefixes_are_understood_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str], levels: tuple[str, ...], prefix: str) -> None:
    source, target = build("small", 1), build("small", 2)
    content: dict[str, object] = {f"{prefix}{name}": value for name, value in source.body.state_dict().items()}
    content |= {f"{prefix}fc.0.weight": torch.zeros(3, 128), "queue": torch.zeros(2, 2)} if prefix else {f"{prefix}fc.weight": torch.zeros(3, 128)}
    for level in reversed(levels):
        content = {level: content, "epoch": 3}
    torch.save(content, tmp_path / "small.pth")
    load_weights(target, str(tmp_path / "small.pth"), None)
    assert same(source, target)
    said = "".join(capsys.readouterr())
    assert all(f"its {level!r}" in said for level in levels)
    assert (f"names less {prefix!r}" in said) == bool(prefix)


def test_of_the_query_and_the_key_encoder_the_first_is_taken(tmp_path: Path) -> None:
    query, key, target = build("small", 1), build("small", 2), build("small", 3)
    both = {f"module.encoder_q.{name}": value for name, value in query.body.state_dict().items()}
    both |= {f"module.encoder_k.{name}": value for name, value in key.body.state_dict().items()}
    torch.save({"state_dict": both}, tmp_path / "moco.pth")
    load_weights(target, str(tmp_path / "moco.pth"), None)
    assert same(query, target)


class Attack:
    """Pickles as a call of os.system."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("kind", ["torch", "plain"])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path, kind: str) -> None:
    mark, path = tmp_path / "ran", tmp_path / "attack.pth"
    content = {"state_dict": build("small", 1).body.state_dict(), "more": Attack(mark)}
    if kind == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(ArtifactError, match=r"attack\.pth is damaged, or holds more than tensors and plain values, .* it was not read"):
        load_weights(build("small", 0), str(tmp_path / "attack.pth"), None)
    assert not mark.exists()
    if kind == "plain":
        pickle.loads(path.read_bytes())  # noqa: S301
        assert mark.exists(), "the attack is a real one"


@pytest.mark.parametrize("name", ["cut.pth", "cut.safetensors", "noise.pt", "noise.safetensors", "empty.pth"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    weights, path = build("small", 1).body.state_dict(), tmp_path / name
    if name.startswith("cut"):
        save_file(weights, path) if path.suffix == ".safetensors" else torch.save(weights, path)
        path.write_bytes(path.read_bytes()[:-5000])
    else:
        path.write_bytes(b"" if name.startswith("empty") else bytes(range(256)) * 8)
    with pytest.raises(ArtifactError, match=rf"{name} is damaged"):
        load_weights(build("small", 0), str(tmp_path / name), None)


def test_another_architecture_is_told_by_counts_and_examples(tmp_path: Path) -> None:
    save_file(build("bayesian-cnn", 1, image_size=28).body.state_dict(), tmp_path / "gal.safetensors")
    with pytest.raises(ArtifactError) as caught:
        load_weights(build("small", 0), str(tmp_path / "gal.safetensors"), None)
    assert str(caught.value).startswith(
        f"the weights {tmp_path}/gal.safetensors are not those of encoder 'small' (stem standard, 224 px): of its 24 tensors "
        "17 (1.weight; 1.bias; 1.running_mean; ...) missing, "
    )
    assert "0.weight is (32, 3, 4, 4), expected (16, 3, 3, 3)" in str(caught.value)


def test_a_file_that_changed_since_the_pool_was_opened_is_refused(tmp_path: Path) -> None:
    save_file(build("small", 1).body.state_dict(), tmp_path / "small.safetensors")
    with pytest.raises(ArtifactError, match=rf"small\.safetensors has sha256 [0-9a-f]{{64}}, but {'0' * 64} when the pool was opened"):
        load_weights(build("small", 0), str(tmp_path / "small.safetensors"), "0" * 64)


def test_what_cannot_be_a_file_of_weights(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"the weights .*gone\.pth cannot be read: No such file or directory"):
        load_weights(build("small", 0), str(tmp_path / "gone.pth"), None)
    (tmp_path / "a.onnx").write_bytes(b"x")
    with pytest.raises(ArtifactError, match=r"a\.onnx is no file of weights by its name; expected \.safetensors, \.pth, \.pt or \.ckpt"):
        load_weights(build("small", 0), str(tmp_path / "a.onnx"), None)
    with pytest.raises(ParamsError, match=r"pretrain\.weights is 'timm', but encoder 'small' is none of timm's"):
        load_weights(build("small", 0), "timm", None)


def test_positions_for_another_size_are_torchvisions() -> None:
    from torchvision.models.vision_transformer import interpolate_embeddings

    given = torch.rand(1, 1 + 14 * 14, 8)
    expected = interpolate_embeddings(96, 16, {"encoder.pos_embedding": given.clone()})["encoder.pos_embedding"]
    torch.testing.assert_close(positions(given, (1, 1 + 6 * 6, 8)), expected)
    assert positions(given, (1, 1 + 14 * 14, 8)) is given


def test_a_path_is_frozen_as_the_stage_finds_it_and_with_its_sha256(tmp_path: Path) -> None:
    root = tmp_path / "workspace"
    root.mkdir()
    for path in (root / "in.safetensors", tmp_path / "out.safetensors"):
        save_file({"a": torch.zeros(1)}, path)
    frozen = settle_weights(Pretrain(weights="in.safetensors"), root, "pools/p001")
    assert (frozen.weights, frozen.weights_sha256) == ("../../in.safetensors", sha256(root / "in.safetensors"))
    frozen = settle_weights(Pretrain(weights="../out.safetensors"), root, "pools/p001")
    assert frozen.weights == str(tmp_path / "out.safetensors")


def test_an_encoder_of_an_earlier_pool_gives_its_weights(tmp_path: Path) -> None:
    """Rondo's own files, whose counters of batches have an axis."""
    source, target = build("small", 1, image_size=16), build("small", 2, image_size=16)
    PoolEncoder.of(source).save(tmp_path / "encoder.safetensors")
    load_weights(target, str(tmp_path / "encoder.safetensors"), None)
    assert same(source, target)


def test_a_hash_that_is_not_the_files_is_refused_and_one_of_no_file_is_dropped(tmp_path: Path) -> None:
    save_file(build("small", 1).body.state_dict(), tmp_path / "small.safetensors")
    found = sha256(tmp_path / "small.safetensors")
    with pytest.raises(
        ParamsError, match=rf"^pretrain.weights_sha256 is abc, but .*small.safetensors has {found}; name the file that is meant, or set it to null$"
    ):
        settle_weights(Pretrain(weights="small.safetensors", weights_sha256="abc"), tmp_path, "pools/p001")
    assert settle_weights(Pretrain(weights="small.safetensors", weights_sha256=found), tmp_path, "pools/p001").weights_sha256 == found
    assert settle_weights(Pretrain(weights_sha256="abc"), tmp_path, "pools/p001").weights_sha256 is None

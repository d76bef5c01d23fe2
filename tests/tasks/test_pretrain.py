"""The stage as DVC runs it: killed and run again, shared by processes, and what it says."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from al_core.encoders import build
from tasks import environment, git, rounds
from tasks.artifacts import PretrainCurve, PretrainReport
from tasks.checkpoint import Checkpoint
from tasks.errors import ArtifactError, ParamsError
from tasks.launch import LaunchError, launched
from tasks.models import PoolEncoder
from tasks.params import Launch
from tasks.pretrain import CHECKPOINT
from tasks.stage import execute
from tasks.weights import sha256
from tasks.workspace import Round, Workspace

SHORT: dict[str, Any] = {"method": "simclr", "image_size": 8, "epochs": 3, "batch_size": 16, "workers": 0, "objective": {"projection": 8}}


@pytest.fixture
def opened(digits_folder: Path, begun: Callable[..., Workspace]) -> Callable[..., Round]:
    """Makes a pool of real digits with their labels, ready to pretrain."""

    def make(**changes: object) -> Round:
        workspace = begun(pretrain=SHORT | changes, ingest={"source": str(digits_folder), "workers": 1})
        this = rounds.open_pool(workspace)
        execute("ingest", this.path)
        return this

    return make


def lines(this: Round) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (this.path / "pretrain.jsonl").read_text("utf-8").splitlines()]


def test_the_stage_writes_an_encoder_its_report_and_its_curve(opened: Callable[..., Round], capsys: pytest.CaptureFixture[str]) -> None:
    this = opened()
    execute("pretrain", this.path)
    curve, report = PretrainCurve.load(this.path / "pretrain.jsonl").lines, PretrainReport.load(this.path / "encoder.json")
    assert [line.epoch for line in curve] == [1, 2, 3]
    assert (report.method, report.epochs, report.first_loss, report.last_loss) == ("simclr", 3, curve[0].loss, curve[-1].loss)
    assert all(line.probe is not None and line.probe > 0.5 for line in curve), "three digits are easily told apart"
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pretrain: ")]
    assert [line.split(" (")[0].split(",")[0] for line in said] == [f"pretrain: epochs {epoch} of 3" for epoch in (1, 2, 3)]
    assert said[0].endswith(f"loss {curve[0].loss:.4f}, rank {curve[0].rank:.1f}, {100 * (curve[0].probe or 0):.0f}% of neighbours agree")
    assert (this.path / CHECKPOINT).exists(), "it goes when DVC has the encoder, not before"


def test_a_batch_that_the_pool_cannot_fill_is_said(opened: Callable[..., Round], capsys: pytest.CaptureFixture[str]) -> None:
    this = opened(batch_size=128, epochs=1)
    execute("pretrain", this.path)
    images = PretrainReport.load(this.path / "encoder.json").images
    assert images < 128
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pretrain: pretrain.batch_size")]
    assert said == [f"pretrain: pretrain.batch_size is 128 and there are {images} train images: a step takes no more than these"]


def test_the_state_goes_when_dvc_has_the_encoder_and_git_never_sees_it(opened: Callable[..., Round]) -> None:
    this = opened()
    workspace = Workspace(this.root)
    Checkpoint(this.path / CHECKPOINT, "others").save({"part": 1})
    with patch("os.fsync", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        Checkpoint(this.path / CHECKPOINT, "others").save({"part": 2})
    assert len(list(this.path.glob(".pretrain*"))) == 2
    assert (
        git.git(workspace.root, "status", "--porcelain", "--untracked-files=all", f"{this.folder}/")
        == f"?? {this.folder}/environment.json\n?? {this.folder}/ingest.json"
    )
    for stage in this.stages:
        rounds.run_stage(this, stage)
    assert not (this.path / CHECKPOINT).exists()


def test_a_frozen_pool_says_every_parameter_of_its_method(opened: Callable[..., Round]) -> None:
    assert opened().params.pretrain.objective == {"temperature": 0.5, "projection": 8}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": {"temprature": 0.1}}, "pretrain.objective: simclr has no parameter 'temprature'; did you mean 'temperature'?"),
        (
            {"method": "swav", "objective": {"queue": 8, "queue_from": 3}},
            "pretrain.objective: queue_from is 3 and there are 3 epochs, so that the queue would never count; lower it, or set queue to 0",
        ),
        (
            {"method": "swav", "objective": {"queue": 9, "queue_from": 1}, "launch": {"processes": 2, "nodes": 2}},
            "pretrain.objective: queue is 9, which 4 processes cannot share evenly; make it a multiple of 4",
        ),
        (
            {"batch_size": 10, "launch": {"processes": 2, "nodes": 2}},
            "pretrain.batch_size is 10, which 1 parts (pretrain.accumulate) of 4 processes (pretrain.launch) cannot share evenly; make it a multiple of 4",
        ),
        (
            {"stem": "cifar"},
            "pretrain: stem 'cifar' replaces the first convolution and the max-pooling of a ResNet; encoder 'small' has no such pair: use stem 'standard'",
        ),
        ({"encoder": "resnet19"}, "pretrain: unknown encoder 'resnet19'; did you mean resnet18 or resnet152 or resnet101?"),
        (
            {"method": "none", "objective": {}, "encoder": "timm/test_vit", "image_size": 30},
            "pretrain: encoder 'timm/test_vit' does not take images of 30 px: Input height (30) should be divisible by patch size (16).",
        ),
        (
            {"method": "dino", "objective": {"local_size": 24}, "encoder": "vit_b_16", "image_size": 32},
            "encoder 'vit_b_16', made for images of 32 px, does not take views of 24 px: Wrong image height! Expected 32 but got 24!; "
            "set local_size in pretrain.objective to what it takes (a ViT of timm's: a multiple of its patch), or local_views to 0",
        ),
    ],
)
def test_what_cannot_train_is_refused_before_anything_starts(begun: Callable[..., Workspace], changes: dict[str, object], message: str) -> None:
    workspace = begun(pretrain=SHORT | changes)
    with pytest.raises(ParamsError) as caught:
        rounds.check_ahead(workspace)
    assert str(caught.value) == message


def test_killed_again_and_again_it_ends_with_the_same_bytes(opened: Callable[..., Round], monkeypatch: pytest.MonkeyPatch) -> None:
    """A real process, killed as soon as it has kept a state; then once more with nothing in its way."""
    this = opened(epochs=40)
    execute("pretrain", this.path)
    encoder, curve = (this.path / "encoder.safetensors").read_bytes(), (this.path / "pretrain.jsonl").read_bytes()
    for name in ("encoder.safetensors", CHECKPOINT):
        (this.path / name).unlink()
    for deaths in (1, 2):
        kill_when_kept(this)
        assert not (this.path / "encoder.safetensors").exists(), deaths
    execute("pretrain", this.path)
    assert (this.path / "encoder.safetensors").read_bytes() == encoder
    assert (this.path / "pretrain.jsonl").read_bytes() == curve


def start(this: Round, threads: int = 1) -> subprocess.Popen[bytes]:
    """The stage in a process of its own."""
    return subprocess.Popen([sys.executable, "-m", "tasks", "pretrain", str(this.path)], env=os.environ | {"OMP_NUM_THREADS": str(threads)})


def kill_when_kept(this: Round, threads: int = 1) -> None:
    """Start the stage and kill it as soon as it has kept a state."""
    before, process = kept_at(this), start(this, threads)
    deadline = time.monotonic() + 120
    while kept_at(this) == before:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()


def kept_at(this: Round) -> int:
    """When the checkpoint was written last."""
    path = this.path / CHECKPOINT
    return path.stat().st_mtime_ns if path.exists() else 0


def test_a_checkpoint_of_other_params_is_not_gone_on_from(opened: Callable[..., Round], capsys: pytest.CaptureFixture[str]) -> None:
    this = opened()
    with pytest.raises(ParamsError, match=r"^pretrain: the loss of epoch 1 is nan; lower pretrain.learning_rate \(now 1e\+30\)$"):
        rewrite(this, learning_rate=1e30, epochs=3)
        execute("pretrain", this.path)
    rewrite(this, learning_rate=0.001, epochs=3)
    execute("pretrain", this.path)
    clean = PoolEncoder.load(this.path / "encoder.safetensors").digest()
    rewrite(this, learning_rate=0.002, epochs=3)
    execute("pretrain", this.path)
    assert PoolEncoder.load(this.path / "encoder.safetensors").digest() != clean


def rewrite(this: Round, **changes: object) -> None:
    """Change the frozen params, as nobody should."""
    params = this.params
    section = params.pretrain.model_copy(update=changes)
    (this.path / "params.yaml").write_text(params.model_copy(update={"pretrain": section}).dump(), "utf-8")


def test_two_processes_train_together(opened: Callable[..., Round], monkeypatch: pytest.MonkeyPatch) -> None:
    this = opened()
    execute("pretrain", this.path)
    alone = lines(this)
    rewrite(this, launch=Launch(processes=2))
    monkeypatch.setattr(environment, "threads", lambda: 99)  # here, not in the processes
    execute("pretrain", this.path)
    monkeypatch.undo()
    noted = environment.load(this.path)["pretrain"]
    assert (noted["threads"], noted["others"], noted["level"]) == (99, [{"threads": environment.threads()}], "bitwise")
    together = lines(this)
    assert [line["loss"] for line in together] == pytest.approx([line["loss"] for line in alone], rel=2e-3)
    weights = PoolEncoder.load(this.path / "encoder.safetensors").weights
    assert all(np.isfinite(value).all() for value in weights.values())


def test_what_a_process_of_several_says_when_it_fails_is_passed_on(opened: Callable[..., Round]) -> None:
    this = opened()
    rewrite(this, batch_size=9, launch=Launch(processes=2))
    with pytest.raises(
        LaunchError, match=r"process \d of 2 failed: ValueError: pretrain.batch_size is 9, which 1 parts .* of 2 processes .* cannot share evenly"
    ):
        execute("pretrain", this.path)


def test_what_other_processes_ran_in_is_told() -> None:
    done, environments = launched(with_seven_threads, (), Launch(processes=2))
    assert done == "done"
    assert environments == [environment.describe() | {"threads": 7}] * 2


def with_seven_threads() -> str:
    """As a process whose environment is not that of its parent."""
    os.environ["OMP_NUM_THREADS"] = "7"
    return "done"


@pytest.mark.slow
def test_a_training_that_goes_on_with_other_threads_names_both_and_is_not_bitwise(opened: Callable[..., Round]) -> None:
    this = opened(epochs=40)
    kill_when_kept(this, threads=2)
    assert start(this, threads=2).wait() == 0
    once = environment.load(this.path)["pretrain"]
    assert (once["threads"], once["level"], once.get("others")) == (2, "bitwise", None)
    assert start(this, threads=1).wait() == 0  # goes on from the state that is left, in which all is done
    twice = environment.load(this.path)["pretrain"]
    assert (twice["threads"], twice["level"], twice["others"]) == (1, "statistical", [{"threads": 2}])


def test_several_nodes_need_a_place_to_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RONDO_RENDEZVOUS", raising=False)
    with pytest.raises(LaunchError, match=r"launch.nodes is 2, so RONDO_RENDEZVOUS has to say where they meet: HOST:PORT of one of them, the same on all"):
        launched(print, (), Launch(nodes=2))


@pytest.mark.slow
def test_two_machines_train_together(opened: Callable[..., Round], tmp_path: Path) -> None:
    """As far as one machine can show it: two copies of the pool, each with a stage of its own that meets the other."""
    this = opened(launch={"processes": 1, "nodes": 2})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meet = f"127.0.0.1:{free.getsockname()[1]}"
    other = tmp_path / "other"
    shutil.copytree(this.path, other)
    meeting = os.environ | {"OMP_NUM_THREADS": "1", "RONDO_RENDEZVOUS": meet}
    stages = [subprocess.Popen([sys.executable, "-m", "tasks", "pretrain", str(folder)], env=meeting) for folder in (this.path, other)]
    assert [stage.wait(240) for stage in stages] == [0, 0]
    assert (this.path / "encoder.safetensors").read_bytes() == (other / "encoder.safetensors").read_bytes()
    assert (this.path / "pretrain.jsonl").read_bytes() == (other / "pretrain.jsonl").read_bytes()


def test_without_a_method_the_pools_encoder_has_the_weights_that_were_given(opened: Callable[..., Round], tmp_path: Path) -> None:
    given = build("resnet18", 5, image_size=8, stem="cifar")
    path = tmp_path / "given.safetensors"
    save_file({f"backbone.{name}": value for name, value in given.body.state_dict().items()}, path)
    this = opened(method="none", objective={}, encoder="resnet18", stem="cifar", weights=str(path))
    execute("pretrain", this.path)
    model, report = PoolEncoder.load(this.path / "encoder.safetensors"), PretrainReport.load(this.path / "encoder.json")
    assert (model.encoder, model.stem, model.image_size) == ("resnet18", "cifar", 8)
    assert (report.stem, report.weights) == ("cifar", sha256(path))
    image = torch.rand(2, 3, 8, 8)
    assert torch.equal(model.network()(image), given.eval()(image))
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtifactError, match="when the pool was opened; put that file back, or open the pool again"):
        execute("pretrain", this.path)


@pytest.mark.slow
def test_other_weights_of_timm_are_told_by_the_report(opened: Callable[..., Round], tmp_path: Path) -> None:
    """timm's own way to a file in its hub's cache, as the hub's client lays it out; the weights in it are ours."""
    this = opened(method="none", objective={}, encoder="timm/test_resnet", image_size=32, weights="timm")
    hub = tmp_path / "hub"
    told, digests = [], []
    for seed in (1, 2):
        put_into_hub(hub, "timm/test_resnet.r160_in1k", seed)
        offline(this, hub)
        encoder = PoolEncoder.load(this.path / "encoder.safetensors")
        told.append(PretrainReport.load(this.path / "encoder.json").weights)
        digests.append(encoder.digest())
        body = encoder.network().body.state_dict()
        assert all(torch.equal(value, body[name]) for name, value in published(seed).state_dict().items() if not name.startswith("fc."))
    assert told == digests
    assert told[0] != told[1]


def test_weights_of_timm_that_cannot_be_had_are_an_error_that_says_what_to_do(opened: Callable[..., Round], tmp_path: Path) -> None:
    this = opened(method="none", objective={}, encoder="timm/test_resnet", image_size=32, weights="timm")
    with pytest.raises(subprocess.CalledProcessError) as failed:
        offline(this, tmp_path / "empty")
    assert "Traceback" not in failed.value.stderr
    assert "pretrain.weights is 'timm', but the weights of 'timm/test_resnet' cannot be had here (LocalEntryNotFoundError: " in failed.value.stderr
    assert "fetch them on a machine with network, save model.state_dict() as .safetensors, and name that file" in failed.value.stderr


def published(seed: int) -> torch.nn.Module:
    """A network of timm as it would be published, classifier and all."""
    import timm

    torch.manual_seed(seed)
    network: torch.nn.Module = timm.create_model("test_resnet")
    return network


def put_into_hub(hub: Path, name: str, seed: int) -> None:
    """Weights in a folder as huggingface_hub caches them: a revision of its own for each seed, and the name of the newest."""
    cached, revision = hub / "hub" / f"models--{name.replace('/', '--')}", str(seed) * 40
    (cached / "refs").mkdir(parents=True, exist_ok=True)
    (cached / "snapshots" / revision).mkdir(parents=True, exist_ok=True)
    (cached / "refs/main").write_text(revision, "utf-8")
    save_file(published(seed).state_dict(), cached / "snapshots" / revision / "model.safetensors")


def offline(this: Round, hub: Path) -> None:
    """The stage in a process of its own, with a hub's cache and no network."""
    surroundings = os.environ | {"HF_HOME": str(hub), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-m", "tasks", "pretrain", str(this.path)], env=surroundings, capture_output=True, text=True, check=True)

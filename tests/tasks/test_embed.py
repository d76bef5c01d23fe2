"""Embedding that is cut off goes on where it was, with the bytes of an undisturbed run; several processes share it."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from al_core.encoders import Encoder, build
from tasks import embed, environment
from tasks.embed import ROWS
from tasks.errors import ParamsError
from tasks.images import Images
from tasks.models import Head, Model
from tasks.params import Embed, Params
from tasks.signals import Signals
from tasks.stage import execute
from tests.tasks.test_ingest import make, picture, write

N = 50
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`plain` and `packed`, pools of the same images; a model beside them."""
    root = tmp_path_factory.mktemp("pools")
    source = write(root / "photos", {f"{i}.png": picture(i) for i in range(N)})
    make(root / "plain", source)
    make(root / "packed", source, cache={"size": 8, "format": "raw"})
    rng = np.random.default_rng(0)
    head = Head(rng.normal(size=(3, 128)).astype(np.float32), np.zeros(3, np.float32), ["a", "b", "c"])
    Model.of(build("small", 1, image_size=8), head).save(root / "model.safetensors")
    return root


def opened(pools: Path, folder: Path, pool: str = "plain", **knobs: object) -> Path:
    """A round's folder before embed."""
    folder.mkdir(exist_ok=True)
    section = Embed.model_validate({"batch_size": 4, "workers": 0, "signals": ("embeddings", "logits"), **knobs})
    params = Params(embed=section, round="r001", pool=str(pools / pool), previous=str(pools / pool), model=str(pools / "model.safetensors"), here=".")
    (folder / "params.yaml").write_text(params.dump(), "utf-8")
    return folder


def signals_of(folder: Path) -> dict[str, str]:
    """Hashes of the signals' files, and nothing else left."""
    assert sorted(path.name for path in folder.iterdir()) == ["environment.json", "params.yaml", "signals"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((folder / "signals").iterdir())}


@pytest.fixture
def undisturbed(pools: Path, tmp_path: Path) -> dict[str, str]:
    execute("embed", opened(pools, tmp_path / "undisturbed"))
    signals = signals_of(tmp_path / "undisturbed")
    assert sorted(signals) == ["embeddings.npy", "head.safetensors", "ids.npy", "logits.npy", "signals.json"]
    assert np.load(tmp_path / "undisturbed/signals/embeddings.npy").shape == (N, 128)
    return signals


def cut_off(folder: Path, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run embed until a row of the images is read, noting every batch."""

    def interrupted(self: Images, row: int) -> bytes:
        if row == at:
            raise KeyboardInterrupt
        return real(self, row)

    real = Images.bytes_of
    with monkeypatch.context() as patch:
        patch.setattr(embed, "SECONDS", 0.0)
        patch.setattr(Images, "bytes_of", interrupted)
        with pytest.raises(KeyboardInterrupt):
            execute("embed", folder)


def rows_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Run embed to its end; which rows it looked at."""
    seen: list[int] = []
    real = Images.bytes_of
    with monkeypatch.context() as patch:
        patch.setattr(Images, "bytes_of", lambda self, row: seen.append(row) or real(self, row))  # type: ignore[func-returns-value]
        execute("embed", folder)
    return seen


KILLED = """
import sys, time
from pathlib import Path
from tasks import embed, images, stage
embed.SECONDS = 0.0
real = images.Images.bytes_of
def slow(self, row):
    time.sleep(0.05)
    return real(self, row)
images.Images.bytes_of = slow
stage.execute("embed", Path(sys.argv[1]))
"""


def test_killed_it_goes_on_behind_the_rows_that_are_on_the_disk(
    pools: Path, tmp_path: Path, undisturbed: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = opened(pools, tmp_path / "round")
    child = subprocess.Popen([sys.executable, "-c", KILLED, folder], cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    note = folder / ROWS / "rows.json"
    while not (note.exists() and json.loads(note.read_text())["rows"] >= 12):
        assert child.poll() is None
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    done = json.loads(note.read_text())["rows"]
    assert 12 <= done < N
    capsys.readouterr()
    assert rows_read(folder, monkeypatch) == list(range(done, N))
    assert f"embed: goes on behind {done} images that an earlier run embedded" in capsys.readouterr().err
    assert signals_of(folder) == undisturbed


def test_what_was_written_after_the_note_is_written_anew(pools: Path, tmp_path: Path, undisturbed: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = opened(pools, tmp_path / "round")
    cut_off(folder, 21, monkeypatch)
    for name in ("embeddings", "logits"):
        with (folder / ROWS / f"signals/{name}.npy").open("ab") as file:
            file.write(b"half a row")
    assert rows_read(folder, monkeypatch) == list(range(16, N))  # the batch from 16 on was computed, but not waited for
    assert signals_of(folder) == undisturbed


def test_cut_off_when_all_rows_are_done(pools: Path, tmp_path: Path, undisturbed: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = opened(pools, tmp_path / "round")

    def broken(self: Signals, path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(embed, "SECONDS", 0.0)
        patch.setattr(Signals, "save", broken)
        with pytest.raises(KeyboardInterrupt):
            execute("embed", folder)
    assert rows_read(folder, monkeypatch) == []
    assert signals_of(folder) == undisturbed


@pytest.mark.parametrize("change", [{"precision": "bfloat16"}, {"batch_size": 5}, {"signals": ("embeddings",)}, {"pool": "packed"}], ids=str)
def test_rows_of_other_inputs_are_not_gone_on_from(
    pools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], change: dict[str, object]
) -> None:
    folder = opened(pools, tmp_path / "round")
    cut_off(folder, 21, monkeypatch)
    opened(pools, tmp_path / "round", **change)  # type: ignore[arg-type]
    opened(pools, tmp_path / "fresh", **change)  # type: ignore[arg-type]
    capsys.readouterr()
    execute("embed", folder)
    said = "embed: what an earlier run embedded was of other images, by another model, with other params or on another machine; begins anew\n"
    assert capsys.readouterr().err.startswith(said)
    execute("embed", tmp_path / "fresh")
    assert signals_of(folder) == signals_of(tmp_path / "fresh")


def test_more_workers_go_on_where_fewer_were(pools: Path, tmp_path: Path, undisturbed: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = opened(pools, tmp_path / "round")
    cut_off(folder, 21, monkeypatch)
    opened(pools, tmp_path / "round", workers=2)
    execute("embed", folder)
    assert signals_of(folder) == undisturbed


def test_a_raw_pack_of_the_models_size_gives_the_same_bytes(pools: Path, tmp_path: Path, undisturbed: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = opened(pools, tmp_path / "round", "packed", workers=2)
    assert rows_read(folder, monkeypatch) == []  # no image file was decoded
    assert signals_of(folder) == undisturbed


def test_two_processes_write_the_bytes_of_one(pools: Path, tmp_path: Path, undisturbed: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "threads", lambda: 99)  # here, not in the processes
    folder = opened(pools, tmp_path / "round")
    cut_off(folder, 21, monkeypatch)
    execute("embed", opened(pools, folder, processes=2))  # and go on with what one had done
    assert signals_of(folder) == undisturbed
    monkeypatch.undo()
    noted = environment.load(folder)["embed"]
    assert (noted["threads"], noted["others"]) == (99, [{"threads": environment.threads()}])


def test_out_of_memory_names_the_batch_size_to_try(pools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Encoder, images: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nmore")

    monkeypatch.setattr(Encoder, "forward", full)
    with pytest.raises(ParamsError) as caught:
        execute("embed", opened(pools, tmp_path / "round", batch_size=40))
    assert str(caught.value) == "embed: out of memory: lower embed.batch_size (now 40) to 20 (CUDA out of memory. Tried to allocate 20.00 GiB.)"


def test_logits_need_a_head(pools: Path, tmp_path: Path) -> None:
    bare = Model.of(build("small", 1, image_size=8))
    bare.save(tmp_path / "bare.safetensors")
    folder = opened(pools, tmp_path / "round")
    content = Params.load(folder / "params.yaml").model_copy(update={"model": str(tmp_path / "bare.safetensors")})
    (folder / "params.yaml").write_text(content.dump(), "utf-8")
    with pytest.raises(ParamsError) as caught:
        execute("embed", folder)
    told = "embed.signals names logits, which takes a trained model, and before the first round there is only the encoder; "
    assert str(caught.value) == f"{told}take logits out and put it back for the second round"

"""`rondo select` and `rondo acquire --what-if`: the command line against al_core itself."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from safetensors.numpy import save_file
from typer.testing import CliRunner

import al_core
from flows.cli import app
from tasks import git
from tasks.artifacts import Manifest, Selection
from tasks.errors import RondoError
from tasks.what_if import Picked, render
from tasks.workspace import Workspace
from tests.conftest import advance

Begun = Callable[..., Workspace]

RNG = np.random.default_rng(0)
X = RNG.normal(size=(200, 6)).astype(np.float32)
WEIGHT, BIAS = RNG.normal(size=(3, 6)).astype(np.float32), np.zeros(3, np.float32)
Z = X @ WEIGHT.T + BIAS
WEIGHTS, BIASES = RNG.normal(size=(4, 3, 6)).astype(np.float32), np.zeros((4, 3), np.float32)
LABELED = np.array([7, 3, 100])


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for name, array in {"e": X, "z": Z, "l": LABELED, "y": np.array([0, 2, 1]), "bad": np.full((200, 6), np.nan, np.float32)}.items():
        np.save(tmp_path / f"{name}.npy", array)
    save_file({"weight": WEIGHT, "bias": BIAS}, tmp_path / "head.safetensors")
    save_file({"weight": WEIGHTS, "bias": BIASES}, tmp_path / "heads.safetensors")
    save_file({"weight": WEIGHT}, tmp_path / "half.safetensors")
    (tmp_path / "text.npy").write_text("not an array", "utf-8")
    return tmp_path


def run(folder: Path, method: str, *arguments: str) -> str:
    """What the command prints; what it refuses is raised."""
    given = [str(folder / each) if each.endswith((".npy", ".safetensors", ".parquet")) else each for each in arguments]
    result = CliRunner().invoke(app, ["select", method, *given], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize(
    ("method", "arguments", "params"),
    [
        ("random", [], {}),
        ("coreset", ["--param", "normalize=true"], {"normalize": True}),
        ("bald", [], {}),
        ("margin", ["--param", "diversify={strength: 2}", "--param", "partitions=2"], {"diversify": {"strength": 2}, "partitions": 2}),
    ],
)
def test_picks_are_those_of_al_core_in_pick_order(files: Path, method: str, arguments: list[str], params: dict[str, object]) -> None:
    signals = [
        "--embeddings",
        "e.npy",
        "--logits",
        "z.npy",
        "--head",
        "head.safetensors",
        "--mc-heads",
        "heads.safetensors",
        "--labeled",
        "l.npy",
        "--labels",
        "y.npy",
    ]
    said = run(files, method, *signals, "--budget", "9", "--seed", "4", "--out", "picks.parquet", *arguments)
    pool = al_core.Pool(embeddings=X, logits=Z, head=(WEIGHT, BIAS), mc_heads=(WEIGHTS, BIASES), labeled=LABELED, labels=[0, 2, 1])
    expected = al_core.select(method, pool, budget=9, seed=4, **params)
    frame = pd.read_parquet(files / "picks.parquet")
    assert list(frame) == ["row", "score"]
    np.testing.assert_array_equal(frame["row"], expected.rows)
    np.testing.assert_array_equal(frame["score"], expected.scores)
    assert f"{method}: 9 of 197" in " ".join(said.split())
    assert pq.read_schema(files / "picks.parquet").field("score").metadata[b"meaning"].startswith(b"the method's score")


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("margn", ["--embeddings", "e.npy"], "unknown method 'margn'; did you mean 'margin'?"),
        ("margin", ["--embeddings", "e.npy"], "margin reads logits: give --logits; `rondo select --help` says what each file holds"),
        ("bald", ["--embeddings", "e.npy"], "bald reads mc_probs: give --mc-probs, or --mc-heads and --embeddings; "),
        ("diffusion", ["--embeddings", "e.npy"], "diffusion reads labels: give --labeled and --labels; "),
        ("margin", ["--logits", "none.npy"], "none.npy cannot be read as a .npy array: "),
        ("margin", ["--logits", "text.npy"], "text.npy cannot be read as a .npy array: "),
        ("margin", ["--logits", "z.npy", "--head", "half.safetensors"], "half.safetensors holds weight; expected weight and bias of a linear layer"),
        ("margin", ["--logits", "z.npy", "--head", "e.npy"], "e.npy cannot be read as a safetensors file: "),
        ("coreset", ["--embeddings", "bad.npy"], "embeddings holds nan in row 0; every value must be finite"),
        ("coreset", ["--embeddings", "e.npy", "--param", "normalize"], "--param 'normalize' has no value; write it as key=value"),
        ("coreset", ["--embeddings", "e.npy", "--param", "normalize=[1"], "--param 'normalize=[1': '[1' is no YAML value"),
        ("coreset", ["--embeddings", "e.npy", "--param", "normalize=true", "--param", "normalize=false"], "--param normalize is given twice"),
        ("coreset", ["--embeddings", "e.npy", "--param", "normalise=true"], "coreset has no parameter 'normalise'; did you mean 'normalize'?"),
        ("random", ["--embeddings", "e.npy", "--budget", "500"], "budget is 500 but only 200 images are unlabelled; lower it or ingest more"),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_written(files: Path, method: str, arguments: list[str], message: str) -> None:
    budget = [] if "--budget" in arguments else ["--budget", "5"]
    with pytest.raises(RondoError) as error:
        run(files, method, *arguments, *budget, "--out", "picks.parquet")
    assert message in str(error.value)
    assert not (files / "picks.parquet").exists()


@pytest.mark.slow
def test_processes_that_torchrun_starts_share_the_work_and_write_once(files: Path) -> None:
    signals = [f"--embeddings={files / 'e.npy'}", f"--logits={files / 'z.npy'}", f"--out={files / 'picks.parquet'}"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(Path(sys.executable).with_name("rondo"))]
    done = subprocess.run([*torchrun, "select", "badge", *signals, "--budget=9"], capture_output=True, text=True, check=True)
    assert done.stdout.count("badge: 9 of 200") == 1
    expected = al_core.select("badge", al_core.Pool(embeddings=X, logits=Z), budget=9, seed=0)
    np.testing.assert_array_equal(pd.read_parquet(files / "picks.parquet")["row"], expected.rows)


def test_a_folder_that_is_not_there_is_said_before_anything_is_computed(files: Path) -> None:
    with pytest.raises(RondoError, match="nowhere is no folder; make it, or name another --out"):
        run(files, "random", "--embeddings", "bad.npy", "--budget", "5", "--out", "nowhere/picks.parquet")


def test_what_if_shows_other_picks_and_touches_nothing(with_pool: Begun, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = with_pool(**{"import-labels": {"labeller": "files"}, "acquire": {"budget": 12, "control": 0.25, "method": {"name": "coreset"}}})
    advance(workspace)
    before = {path: path.stat().st_mtime_ns for path in workspace.root.glob("rounds/**/*") if path.is_file()}
    monkeypatch.setenv("COLUMNS", "120")

    def asked(*methods: str) -> str:
        arguments = [part for method in methods for part in ("--what-if", method)]
        return CliRunner().invoke(app, ["acquire", *arguments, "--workspace", str(workspace.root)], catch_exceptions=False).output

    lines = asked("coreset", "{name: coreset, normalize: true}").splitlines()
    assert lines[0] == "r001 picks 9 images by coreset, and 3 at random whatever the method"
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    assert cells[:2] == [["coreset", "its own", "no model yet"], ["coreset", "9 of 9", "no model yet"]]
    assert cells[2][0] == "coreset {normalize: true}"
    assert re.fullmatch(r"[0-9] of 9", cells[2][1])
    picks = Selection.load(workspace.root / "rounds/r001/selection.parquet").frame.query("arm == 'acquired'")["id"]
    uris = Manifest.load(workspace.root / "pools/p001/manifest.parquet").frame.set_index("id")["uri"]
    first = lines.index("First picks:") + 1
    assert lines[first].split() == lines[first + 1].split() == ["coreset", *", ".join(uris[picks.iloc[:4]]).split()]
    for methods, message in [
        (("margn",), "--what-if: unknown method 'margn'; did you mean 'margin'?"),
        (("coreset", "margin"), "--what-if: margin needs a model, and before the first round is closed there is none"),
        (("balancing",), "--what-if: balancing reads truth, which a round does not have: nobody knows it before the images are labelled"),
    ]:
        with pytest.raises(RondoError, match=re.escape(message)):
            asked(*methods)
    assert {path: path.stat().st_mtime_ns for path in workspace.root.glob("rounds/**/*") if path.is_file()} == before


def test_what_if_shows_names_with_brackets_whole(finished: Workspace) -> None:
    """Which are markup to what prints them."""
    console = Console(width=120, record=True, file=StringIO())
    console.print(render(finished.all("rounds")[-1], [Picked({"name": "margin"}, np.arange(2), ["cats [bold]/a.png", "[/]b.png"], Counter({"[x]": 2}))]))
    shown = console.export_text()
    assert "cats [bold]/a.png, [/]b.png" in shown
    assert "[x] (2)" in shown


def test_what_if_refuses_signals_that_the_round_did_not_compute(finished: Workspace) -> None:
    git.git(finished.root, "tag", "--delete", "round-r002")
    with pytest.raises(RondoError) as error:
        CliRunner().invoke(app, ["acquire", "--what-if", "bald", "--workspace", str(finished.root)], catch_exceptions=False)
    assert str(error.value) == (
        "--what-if: bald reads mc_probs, which r002 did not compute; a round does whose embed.signals names it, or whose own method reads it"
    )

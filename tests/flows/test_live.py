"""A curve in a real MLflow database, while a stage writes it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from flows import live
from tasks import rounds
from tasks.artifacts import Line, PretrainCurve
from tasks.stage import scratch_of
from tasks.workspace import Round, Workspace


def line(epoch: int, loss: float, probe: float | None = None) -> Line:
    return Line(epoch=epoch, loss=loss, learning_rate=0.1, spread=0.5, rank=7.0, head_spread=0.9, probe=probe)


@pytest.fixture
def opened(begun: Callable[..., Workspace], empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Workspace, Round, Path]:
    """A workspace with an open pool, and the file that its pretraining writes."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(live, "SECONDS", 0.05)
    workspace = begun()
    pool = rounds.open_pool(workspace)
    workspace.private.mkdir(exist_ok=True)
    shutil.copy(empty_database, workspace.private / "mlflow.db")
    scratch = scratch_of(pool.path, "pretrain")
    scratch.mkdir()
    return workspace, pool, scratch / "pretrain.jsonl"


def logged(workspace: Workspace) -> list[Run]:
    client = MlflowClient(f"sqlite:///{workspace.private / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(workspace.root.name)
    return list(client.search_runs([experiment.experiment_id])) if experiment else []


def curve(workspace: Workspace, run: Run, name: str) -> list[tuple[int, float]]:
    client = MlflowClient(f"sqlite:///{workspace.private / 'mlflow.db'}")
    return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def complain(text: str) -> None:
    raise AssertionError(text)


def test_lines_show_as_they_come_and_the_last_ones_at_the_end(opened: tuple[Workspace, Round, Path]) -> None:
    workspace, pool, growing = opened
    with live.followed(workspace, pool, "pretrain", complain):
        growing.write_text(line(1, 3.0).text() + line(2, 2.0, 0.5).text() + '{"epoch": 3, "lo', "utf-8")  # the third is being written
        until(lambda: [len(curve(workspace, run, "loss")) for run in logged(workspace)] == [2])
        (run,) = logged(workspace)
        assert run.info.status == "RUNNING"
        PretrainCurve([line(1, 3.0), line(2, 2.0, 0.5), line(3, 1.0)]).save(pool.path / "pretrain.jsonl")
        shutil.rmtree(growing.parent)
    (run,) = logged(workspace)
    assert (run.info.run_name, run.info.status) == ("p001 pretrain", "FINISHED")
    assert curve(workspace, run, "loss") == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert curve(workspace, run, "probe") == [(2, 0.5)]
    assert curve(workspace, run, "rank") == [(1, 7.0), (2, 7.0), (3, 7.0)]
    assert run.data.params["encoder"] == "small"
    assert run.data.tags["round"] == "p001"


def test_a_stage_that_fails_leaves_a_failed_run_and_the_next_try_replaces_it(opened: tuple[Workspace, Round, Path]) -> None:
    workspace, pool, growing = opened
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), live.followed(workspace, pool, "pretrain", complain):
            growing.write_text(line(1, 3.0).text(), "utf-8")
            until(lambda: [run for run in logged(workspace) if run.info.status == "RUNNING" and curve(workspace, run, "loss")])
            raise KeyboardInterrupt
        (run,) = logged(workspace)
        assert run.info.status == "FAILED"


def test_nothing_is_logged_where_nothing_runs(opened: tuple[Workspace, Round, Path]) -> None:
    workspace, pool, _ = opened
    PretrainCurve([line(1, 3.0)]).save(pool.path / "pretrain.jsonl")  # of an earlier run
    with live.followed(workspace, pool, "pretrain", complain):
        time.sleep(0.2)
    with live.followed(workspace, pool, "ingest", complain):
        pass
    assert logged(workspace) == []


def test_a_server_that_does_not_answer_hinders_nothing(opened: tuple[Workspace, Round, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    workspace, pool, growing = opened
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    said: list[str] = []
    growing.write_text(line(1, 3.0).text(), "utf-8")
    with live.followed(workspace, pool, "pretrain", said.append):
        until(lambda: said)
    (text,) = said
    assert text.startswith("MLflow does not show the curve of p001 pretrain (the MLflow server http://127.0.0.1:9 (MLFLOW_TRACKING_URI) does not answer;")
    assert text.endswith("); the stage goes on")

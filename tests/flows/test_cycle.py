"""The cycle as people and schedulers run it: `rondo cycle` on an embedded Prefect server, ending in a named state."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flows import cli
from tasks import git, rounds
from tasks.workspace import Workspace
from tests.conftest import run_rondo

ROOT = Path(__file__).parents[2]
STATES = """
import json, sys
from pathlib import Path
from flows.cli import servers_at_home
from tasks.workspace import Workspace
servers_at_home(Workspace(Path(sys.argv[1])))
from prefect.client.orchestration import get_client
with get_client(sync_client=True) as client:
    read = lambda kind: client.request("POST", f"/{kind}/filter", json={}).json()
    flows = [(run["state"]["type"], run["state"]["name"]) for run in read("flow_runs")]
    tasks = sorted(run["name"] for run in read("task_runs"))
    keys = sorted({each["key"] for each in read("artifacts") if each["key"]})
print(json.dumps({"flows": flows, "tasks": tasks, "keys": keys}))
"""


@pytest.fixture
def own_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded server that a user without any set-up gets."""
    for name in [name for name in os.environ if name.startswith(("PREFECT_", "MLFLOW_"))]:
        monkeypatch.delenv(name)


def seen_by_prefect(workspace: Workspace) -> dict[str, list[object]]:
    """What the server's database holds, read through its API."""
    done = subprocess.run([sys.executable, "-c", STATES, str(workspace.root)], capture_output=True, text=True, check=True, cwd=ROOT)
    content: dict[str, list[object]] = json.loads(done.stdout.splitlines()[-1])
    return content


@pytest.mark.usefixtures("own_home")
def test_a_cycle_ends_in_named_states_and_goes_on_when_answers_come(with_pool: Callable[..., Workspace]) -> None:
    workspace = with_pool(**{"import-labels": {"labeller": "files"}, "programme": {"budget": 12}})
    done = run_rondo("cycle", "--workspace", str(workspace.root))
    assert "AwaitingLabels: r001 waits for labels" in done.stdout
    assert "answers/r001/" in done.stdout

    answers = workspace.root / "answers/r001"
    answers.mkdir(parents=True)
    batch = (workspace.root / "rounds/r001/batch/batch.csv").read_text("utf-8-sig").splitlines()
    assert len(batch) == 13
    known = {row["id"]: row["label"] for row in truth(workspace)}
    lines = [f"{line.split(',')[0]},{known[line.split(',')[0]]}" for line in batch[1:]]
    (answers / "anna.csv").write_text("\n".join(["image_id,label", *lines]) + "\n", "utf-8")
    done = run_rondo("cycle", cwd=workspace.root / "rounds")  # from inside the workspace
    assert "BudgetSpent: all 12 labels of the programme are bought (for more, " in done.stdout
    assert "; this run closed r001" in done.stdout
    assert (workspace.root / "rounds/r001/report.html").exists()
    assert git.changes(workspace.root) == []

    before = git.git(workspace.root, "rev-parse", "HEAD")
    done = run_rondo("cycle", "--workspace", str(workspace.root))
    assert "nothing to do, nothing changed" in done.stdout
    assert git.git(workspace.root, "rev-parse", "HEAD") == before

    seen = seen_by_prefect(workspace)
    assert sorted(map(tuple, seen["flows"])) == [("COMPLETED", "AwaitingLabels"), ("COMPLETED", "BudgetSpent"), ("COMPLETED", "BudgetSpent")]  # type: ignore[arg-type]
    ours = [name for name in seen["tasks"] if str(name).startswith("r001")]
    assert set(ours) == {f"r001 {step}" for step in ("embed", "acquire", "export", "import-labels", "retrain", "report", "track")}
    assert {"acquire-selection", "retrain-metrics"} <= set(map(str, seen["keys"]))


def truth(workspace: Workspace) -> list[dict[str, str]]:
    from tasks.artifacts import Known

    rows: list[dict[str, str]] = Known.load(workspace.root / "pools/p001/known.parquet").table.to_pylist()
    return rows


@pytest.mark.usefixtures("own_home")
def test_an_error_that_a_user_can_act_on_is_said_without_a_traceback(with_pool: Callable[..., Workspace]) -> None:
    workspace = with_pool()
    (workspace.root / "notes.txt").write_text("x")
    done = run_rondo("cycle", "--workspace", str(workspace.root), check=False)
    assert done.returncode == 1
    assert "error: the work tree has changes that are not committed" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.usefixtures("own_home")
def test_params_that_cannot_open_a_round_are_refused_before_a_server_starts(begun: Callable[..., Workspace]) -> None:
    workspace = begun(acquire={"method": {"name": "margn"}})
    done = run_rondo("cycle", "--workspace", str(workspace.root), check=False)
    assert (done.returncode, done.stderr) == (1, "error: acquire.method: unknown method 'margn'; did you mean 'margin'?\n")
    assert not (workspace.private / "prefect").exists()


@pytest.mark.usefixtures("own_home")
@pytest.mark.slow
def test_a_stage_that_fails_stops_the_cycle_with_its_own_words(with_pool: Callable[..., Workspace]) -> None:
    workspace = with_pool()
    rounds.open_round(workspace)
    shard = next((workspace.root / "pools/p001/shards").iterdir())
    shard.chmod(0o644)
    shard.write_bytes(shard.read_bytes()[:600])
    done = run_rondo("cycle", "--workspace", str(workspace.root), check=False)
    assert done.returncode == 1
    assert "error: rounds/r001: embed failed\n" in done.stderr
    assert "the shard is too short" in done.stderr
    assert "Traceback" not in done.stderr.split("error:")[1]
    assert list(workspace.find_round("r001").lock) == []
    assert [path.name for path in workspace.root.glob("**/*.partial")] == [".embed.rows.partial"]  # from which the next run goes on
    assert "rounds/r001: embed failed" in run_rondo("status", "--workspace", str(workspace.root)).stdout
    assert rounds.drop(workspace) == "r001"
    rounds.open_round(workspace)
    assert "failed" not in run_rondo("status", "--workspace", str(workspace.root)).stdout


def test_a_second_writer_is_refused(finished: Workspace) -> None:
    from tasks.lock import locked

    with locked(finished):
        done = run_rondo("open", "--workspace", str(finished.root), check=False)
    assert done.returncode == 1
    assert f"process {os.getpid()} is at work in {finished.root}; wait for it to end" in done.stderr


def test_status_shows_rounds_and_what_comes_next(finished: Workspace) -> None:
    said = run_rondo("status", cwd=finished.root / "rounds/r001").stdout
    assert [line.split("│")[1].strip() for line in said.splitlines() if line.startswith("│")] == ["r001", "r002"]
    assert "next: nothing: all 24 labels of the programme are bought" in said


def test_outside_a_workspace_the_way_in_is_named(tmp_path: Path) -> None:
    done = run_rondo("status", "--workspace", str(tmp_path), check=False)
    assert done.returncode == 1
    assert "lies in no workspace; make one with `rondo init DIR --source SOURCE`" in done.stderr


def test_without_git_the_remedy_is_named(tmp_path: Path) -> None:
    code = "import os; os.environ['PATH'] = ''; from flows.cli import main; main()"
    command = [sys.executable, "-c", code, "init", str(tmp_path / "w"), "--source", "example://digits"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 1
    assert "git is not installed or not on the PATH; install it" in done.stderr


def test_help_imports_nothing_heavy() -> None:
    assert cli.app.info.name == "rondo"
    code = "import sys; from flows import cli; print({'torch', 'prefect', 'mlflow', 'pandas', 'pyarrow', 'numpy', 'dvc'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip() == "set()"

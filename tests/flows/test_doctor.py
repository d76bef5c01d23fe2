from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from flows import doctor
from flows.doctor import Finding
from tasks import dvc, rounds
from tasks.workspace import Workspace

GONE = 2**22 + 1  # larger than any process id


@pytest.fixture(autouse=True)
def no_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


def distribution(folder: Path, name: str, version: str, *needs: str) -> None:
    """An installed distribution, as far as its metadata goes."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", "Requires-Python: >=3.11", *(f"Requires-Dist: {need}" for need in needs)]
    (info / "METADATA").write_text("\n".join(lines) + "\n")


def named(findings: list[Finding], name: str) -> Finding:
    (found,) = (finding for finding in findings if finding.name == name)
    return found


def test_this_machine_outside_a_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3,1")
    findings = doctor.examine(tmp_path)
    assert [finding for finding in findings if not finding.fine and finding.name != "disk"] == []
    assert named(findings, "workspace").found == f"none at {tmp_path}"
    assert sys.executable in named(findings, "Python").found
    assert named(findings, "devices").found.startswith("3 CPU threads; ")
    for name in ("prefect", "dvc", "mlflow", "torch"):
        assert f"{name} " in named(findings, "packages").found
    assert named(findings, "Prefect server").found.startswith("can start")


def test_a_sound_workspace(finished: Workspace) -> None:
    findings = list(doctor.of_workspace(finished))
    assert [finding.name for finding in findings] == ["workspace", "params.yaml", "dvc.yaml", "work tree", "DVC remote", "locks"]
    assert all(finding.fine for finding in findings)
    assert findings[0].found == f"{finished.root}: 1 pool, 2 rounds"
    assert findings[3].found == "clean"
    assert findings[4].found == f"beside: {finished.root.parent / 'remote'}"


# ---- the machine's problems --------------------------------------------------------------------------------------------------


def test_packages_out_of_range_or_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distribution(tmp_path, "rondo-al", "0.1.0", "prefect>=99", "no-such-package>=2", "numpy>=1", "pywin32>=1; sys_platform == 'win32'")
    monkeypatch.syspath_prepend(str(tmp_path))
    findings = list(doctor.packages())
    assert [finding.fine for finding in findings] == [False, False, True]
    assert findings[0].found.endswith(", expected >=99")
    assert findings[0].remedy == "pip install 'prefect>=99' (or make setup, which installs the lock)"
    assert findings[1].found == "not installed, expected >=2"
    assert findings[2].found.startswith("numpy ")


def test_python_out_of_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distribution(tmp_path, "rondo-al", "0.1.0")
    metadata = next(tmp_path.glob("*/METADATA"))
    metadata.write_text(metadata.read_text().replace(">=3.11", ">=4"))
    monkeypatch.syspath_prepend(str(tmp_path))
    finding = doctor.python()
    assert not finding.fine
    assert finding.remedy.startswith("Rondo needs >=4: ")


def test_two_distributions_of_faiss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.faiss().fine
    for name in ("faiss-cpu", "faiss-gpu"):
        distribution(tmp_path, name, "1.15.1")
    monkeypatch.syspath_prepend(str(tmp_path))
    finding = doctor.faiss()
    assert (finding.fine, finding.found) == (False, "faiss-cpu and faiss-gpu together")
    assert finding.remedy.startswith("pip uninstall --yes faiss-cpu faiss-gpu && pip install faiss-")


def test_torch_and_torchvision_that_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    finding, devices = doctor.torch()
    assert (finding.fine, finding.found) == (False, "RuntimeError: operator torchvision::nms does not exist")
    assert finding.remedy.startswith("install both from one source: pip install ")
    assert devices.found.endswith("CUDA unknown, since torch does not import")


def test_a_prefect_server_that_cannot_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fastapi.py").write_text("raise TypeError(\"Body() got an unexpected keyword argument 'min_items'\")\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    finding = doctor.prefect_server()
    assert not finding.fine
    assert finding.found == "does not start: TypeError: Body() got an unexpected keyword argument 'min_items'"
    assert finding.remedy.startswith("pip install 'fastapi<0.155'")


def test_git_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    finding = doctor.git_program(tmp_path)
    assert (finding.fine, finding.found) == (False, "not on the PATH")
    assert finding.remedy.startswith("apt-get install git")


def test_git_without_a_user_is_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    finding = doctor.git_program(tmp_path)
    assert finding.fine
    assert "git config --global user.email EMAIL" in finding.remedy


def test_servers_that_do_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@127.0.0.1:9")
    prefect, mlflow = doctor.addresses()
    assert (prefect.fine, prefect.remedy) == (False, "start that server, or: unset PREFECT_API_URL")
    assert mlflow.found == "http://***@127.0.0.1:9 does not answer"


def test_little_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LEAST_FREE", 1e18)
    finding = doctor.disk(tmp_path / "not" / "made" / "yet")
    assert not finding.fine
    assert finding.remedy.endswith("dvc gc --all-commits")


# ---- a workspace's problems --------------------------------------------------------------------------------------------------


def test_wrong_params(finished: Workspace) -> None:
    path = finished.root / "params.yaml"
    path.write_text(path.read_text().replace("  budget: 12", "  buget: 12"))
    finding = doctor.params(finished)
    assert not finding.fine
    assert "did you mean 'budget'?" in finding.found
    assert finding.remedy == f"edit it: {path}"


def test_a_pipeline_of_another_version(finished: Workspace) -> None:
    path = finished.root / "dvc.yaml"
    path.write_text(path.read_text().replace("selection.parquet", "picks.parquet"))
    finding = doctor.pipeline(finished)
    assert not finding.fine
    assert "of acquire is not what this version of Rondo reads and writes" in finding.found
    assert "python -m tasks dvc > dvc.yaml" in finding.remedy
    path.unlink()
    assert not doctor.pipeline(finished).fine


def test_a_dirty_tree_but_not_what_the_open_round_makes(finished: Workspace) -> None:
    subprocess.run(["git", "tag", "--delete", "round-r002"], cwd=finished.root, check=True, capture_output=True)
    (finished.root / "rounds" / "r002" / "metrics.json").write_text("{}")
    (finished.root / "answers").mkdir()
    (finished.root / "answers" / "r002.dvc").write_text("outs: []")
    (finished.root / "dvc.lock").write_text("")  # of the example; `rondo open` does not mind either
    rounds.refuse_dirty(finished, besides=["rounds/r002", "answers/r002.dvc"])
    assert doctor.work_tree(finished).found == "clean"
    (finished.root / "notes.txt").write_text("mine")
    finding = doctor.work_tree(finished)
    assert (finding.fine, finding.found) == (False, "not committed: ?? notes.txt")
    assert "git add -A && git commit" in finding.remedy


def test_remotes(finished: Workspace) -> None:
    away = finished.root.parent / "remote"
    away.rename(away.with_name("moved"))
    finding = doctor.remote(finished)
    assert (finding.fine, finding.found) == (False, f"beside: {away} is not there")
    assert f"mkdir -p {away}" in finding.remedy
    dvc.dvc(finished.root, "remote", "add", "--force", "--default", "cloud", "s3://me:hunter2@bucket/path")
    assert doctor.remote(finished).found == "cloud: s3://***@bucket/path"
    (finished.root / ".dvc" / "config").write_text("[core]\n    remote = ghost\n")
    assert doctor.remote(finished).found == "ghost is the default but has no address"
    (finished.root / ".dvc" / "config").write_text("")
    finding = doctor.remote(finished)
    assert (finding.fine, finding.found) == (True, "none: outputs are on this machine alone")
    assert finding.remedy.startswith("dvc remote add --default storage ")


def test_locks_that_a_killed_program_left(finished: Workspace) -> None:
    assert doctor.locks(finished).found == "none"
    stale = finished.root / ".git" / "index.lock"
    stale.touch()
    finding = doctor.locks(finished)
    assert not finding.fine
    assert finding.remedy == f"if no git or dvc is at work there: rm {stale}"
    stale.unlink()
    rwlock = finished.root / ".dvc" / "tmp" / "rwlock"
    rwlock.write_text(json.dumps({"/x": {"write": {"pid": os.getpid(), "cmd": "dvc"}}}))
    assert doctor.locks(finished).fine
    rwlock.write_text(json.dumps({"/x": {"read": [{"pid": GONE, "cmd": "dvc"}]}}))
    assert str(rwlock) in doctor.locks(finished).remedy


def test_the_workspace_lock_says_who_is_at_work(finished: Workspace) -> None:
    from tasks.lock import locked

    with locked(finished):
        assert doctor.locks(finished).found == f"process {os.getpid()} is at work"
    (finished.private / "lock").write_text(str(GONE))
    finding = doctor.locks(finished)
    assert finding.found == f"process {GONE} was cut off at work"
    assert finding.remedy == "the next `rondo cycle` tidies up after it and goes on"


def test_the_table_shows_problems_with_their_remedy() -> None:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(doctor.render([Finding("git", "2.39 [ok]"), Finding("disk", "1.0 GB free", False, "dvc gc --all-commits")]))
    text = capture.get()
    assert "2.39 [ok]" in text
    (line,) = (line for line in text.splitlines() if "disk" in line)
    assert "problem" in line
    assert "dvc gc --all-commits" in line

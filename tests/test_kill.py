"""Killed at any moment, a round is completed by the next cycle with the lock of an undisturbed one."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tasks import git
from tasks.workspace import Workspace

CYCLE = """
import sys; from pathlib import Path
from tasks import rounds; from tasks.lock import locked; from tasks.workspace import Workspace
workspace = Workspace(Path(sys.argv[1]))
with locked(workspace):
    print(rounds.advance(workspace, rounds.run_stage, lambda _: None).name)
"""


def start(workspace: Workspace) -> subprocess.Popen[str]:
    """A cycle in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", CYCLE, str(workspace.root)], start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def locks(workspace: Workspace) -> dict[str, str]:
    """Text of every dvc.lock."""
    return {path.parent.name: path.read_text("utf-8") for path in sorted(workspace.root.glob("*/*/dvc.lock"))}


def at_work(root: Path) -> list[psutil.Process]:
    """Processes whose command line or working directory lies in the workspace."""
    found = []
    for each in psutil.process_iter():
        try:
            if each.pid != os.getpid() and each.status() != psutil.STATUS_ZOMBIE and str(root) in " ".join([each.cwd(), *each.cmdline()]):
                found.append(each)
        except psutil.Error:
            continue
    return found


def leftovers(workspace: Workspace) -> list[str]:
    """Half files and locks."""
    root = workspace.root
    found = [path for pattern in ("**/*.partial", "**/*.partial/", "**/*.tmp", ".git/*.lock", ".git/refs/**/*.lock") for path in root.glob(pattern)]
    rwlock = root / ".dvc/tmp/rwlock"
    if rwlock.exists() and any(json.loads(rwlock.read_text() or "{}").values()):  # DVC leaves {"write": {}} behind
        found.append(rwlock)
    if (workspace.private / "lock").read_text():
        found.append(workspace.private / "lock")
    return [str(path) for path in found]


def gone(root: Path, seconds: float = 10.0) -> bool:
    """Whether all processes end within some seconds."""
    until = time.monotonic() + seconds
    while at_work(root) and time.monotonic() < until:
        time.sleep(0.1)
    return not at_work(root)


def kill_and_resume(workspace: Workspace, delays: list[float]) -> None:
    """Kill a cycle's whole group after each delay, then let one run to its end."""
    for delay in delays:
        cycle = start(workspace)
        time.sleep(delay)
        os.killpg(cycle.pid, signal.SIGKILL)
        cycle.wait()
        assert gone(workspace.root), [each.cmdline() for each in at_work(workspace.root)]
    cycle = start(workspace)
    said, _ = cycle.communicate(timeout=300)
    assert said.strip().endswith("BudgetSpent"), said


def check_as_undisturbed(workspace: Workspace, undisturbed: dict[str, str]) -> None:
    assert locks(workspace) == undisturbed
    assert leftovers(workspace) == []
    assert at_work(workspace.root) == []
    assert git.changes(workspace.root) == []
    assert workspace.closed() == {"p001", "r001"}


@pytest.fixture
def undisturbed(with_pool: Callable[..., Workspace], tmp_path: Path) -> tuple[Workspace, dict[str, str], float]:
    """A workspace before its only round, the locks that the round ends with, and how long it takes."""
    workspace = with_pool(programme={"budget": 12})
    untouched = tmp_path / "untouched"
    shutil.copytree(workspace.root, untouched, symlinks=True)
    before = time.monotonic()
    kill_and_resume(workspace, [])
    return Workspace(untouched), locks(workspace), time.monotonic() - before


def test_killed_once_in_the_middle(undisturbed: tuple[Workspace, dict[str, str], float]) -> None:
    workspace, expected, seconds = undisturbed
    kill_and_resume(workspace, [seconds / 2])
    check_as_undisturbed(workspace, expected)


@pytest.mark.slow
def test_killed_at_ten_random_moments_across_a_round(undisturbed: tuple[Workspace, dict[str, str], float], tmp_path: Path) -> None:
    workspace, expected, seconds = undisturbed
    moments = random.Random(7)
    for number in range(10):
        copy = Workspace(tmp_path / f"copy{number}")
        shutil.copytree(workspace.root, copy.root, symlinks=True)
        kill_and_resume(copy, [moments.uniform(0.2, seconds)])
        check_as_undisturbed(copy, expected)
        shutil.rmtree(copy.root)


@pytest.mark.slow
def test_killed_again_and_again(undisturbed: tuple[Workspace, dict[str, str], float]) -> None:
    workspace, expected, seconds = undisturbed
    moments = random.Random(8)
    kill_and_resume(workspace, [moments.uniform(0.2, seconds / 2) for _ in range(10)])
    check_as_undisturbed(workspace, expected)

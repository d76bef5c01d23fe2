"""Who holds a workspace, and what is tidied up after whom."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import TextIO

import pytest

from tasks.lock import locked
from tasks.workspace import Workspace


def test_a_holder_that_ended_well_while_we_came_is_not_tidied_up_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace(tmp_path)
    index = tmp_path / ".git" / "index.lock"  # of a git that is at work now
    index.parent.mkdir()
    index.touch()
    workspace.private.mkdir()
    written = workspace.private / "lock"
    written.write_text("12345")
    take = fcntl.flock

    def let_go_then_take(file: TextIO, operation: int) -> None:
        written.write_text("")
        take(file, operation)

    monkeypatch.setattr(fcntl, "flock", let_go_then_take)
    with locked(workspace):
        assert index.exists()


def test_a_holder_that_was_killed_is_tidied_up_after(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    index = tmp_path / ".git" / "index.lock"
    index.parent.mkdir()
    index.touch()
    workspace.private.mkdir()
    (workspace.private / "lock").write_text("12345")
    with locked(workspace):
        assert not index.exists()

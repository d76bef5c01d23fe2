"""One writer a workspace: a lock that the kernel releases when its holder dies, and the clean-up after one that died."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import yaml

from tasks.errors import WorkspaceError
from tasks.git import git as run_git
from tasks.workspace import Workspace


@contextmanager
def locked(workspace: Workspace) -> Iterator[None]:
    """Hold the workspace for a block of work.

    Raises:
        WorkspaceError: another process holds it.
    """
    workspace.private.mkdir(exist_ok=True)
    with (workspace.private / "lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise WorkspaceError(f"process {written(file) or '?'} is at work in {workspace.root}; wait for it to end, or stop it, then try again") from error
        if written(file):
            clean_up(workspace)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)  # whoever finds a pid knows that its writer was killed


def written(file: TextIO) -> str:
    """The process id that the lock holds: of its holder or, under our own lock, of one that was killed."""
    file.seek(0)
    return file.read().strip()


def clean_up(workspace: Workspace) -> None:
    """Remove the locks of a holder that was cut off: its children died with it, so nobody holds them."""
    git = workspace.root / ".git"
    for path in [*git.glob("*.lock"), *git.glob("refs/**/*.lock")]:
        path.unlink(missing_ok=True)
    for path in [*workspace.root.glob("*/*/dvc.lock"), *workspace.root.glob("answers/*.dvc")]:
        if not readable(path):  # DVC writes it in place and was killed in the middle; what it recorded is done again
            path.unlink()
            if path.relative_to(workspace.root).as_posix() in git_files(workspace):
                run_git(workspace.root, "checkout", "--", str(path.relative_to(workspace.root)))
    for name in ("lock", "rwlock", "rwlock.lock"):
        (workspace.root / ".dvc" / "tmp" / name).unlink(missing_ok=True)


def readable(path: Path) -> bool:
    """Whether one of DVC's files is whole: every stage has its command, every file its path and hash."""
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
        stages = content["stages"].values() if "stages" in content else [{"cmd": "", "outs": content["outs"]}]
        files = [file for stage in stages for key in ("deps", "outs") for file in stage.get(key, [])]
        return all("cmd" in stage for stage in stages) and all("path" in file and len(file["md5"]) >= 32 for file in files)
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, KeyError, AttributeError):
        return False


def git_files(workspace: Workspace) -> set[str]:
    """What git holds at HEAD."""
    return set(run_git(workspace.root, "ls-tree", "-r", "--name-only", "HEAD").splitlines())

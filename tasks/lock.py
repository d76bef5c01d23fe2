"""One writer a workspace: a lock that the kernel releases when its holder dies, and the clean-up after one that died."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from tasks.errors import WorkspaceError
from tasks.workspace import Workspace


@contextmanager
def locked(workspace: Workspace) -> Iterator[None]:
    """Hold the workspace for a block of work.

    Raises:
        WorkspaceError: another process holds it.
    """
    workspace.private.mkdir(exist_ok=True)
    with (workspace.private / "lock").open("a+", encoding="utf-8") as file:
        file.seek(0)
        holder = file.read().strip()
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise WorkspaceError(f"process {holder or '?'} is at work in {workspace.root}; wait for it to end, or stop it, then try again") from error
        if holder:
            clean_up(workspace)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)  # whoever finds a pid knows that its writer was killed


def clean_up(workspace: Workspace) -> None:
    """Remove the locks of a holder that was cut off: its children died with it, so nobody holds them."""
    git = workspace.root / ".git"
    for path in [*git.glob("*.lock"), *git.glob("refs/**/*.lock")]:
        path.unlink(missing_ok=True)
    for name in ("lock", "rwlock", "rwlock.lock"):
        (workspace.root / ".dvc" / "tmp" / name).unlink(missing_ok=True)

"""What a stage of this workspace failed with, kept for those who come after the run: until a stage succeeds, or what it belongs to is dropped."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from tasks.workspace import Round, Workspace


def note(this: Round, error: str) -> None:
    """Keep it; not where that fails as well, as on a full disk."""
    path = kept(this.root)
    beside = path.with_suffix(".partial")
    with contextlib.suppress(OSError):
        path.parent.mkdir(exist_ok=True)
        beside.write_text(json.dumps({"name": this.name, "error": error}), "utf-8")
        beside.replace(path)


def forget(root: Path) -> None:
    """It is over."""
    kept(root).unlink(missing_ok=True)


def last(workspace: Workspace) -> str | None:
    """What is kept, if it is of a pool or round that is not closed; None: nothing."""
    try:
        content = json.loads(kept(workspace.root).read_text("utf-8"))
    except FileNotFoundError:
        return None
    return None if content["name"] in workspace.closed() else str(content["error"])


def kept(root: Path) -> Path:
    """Where."""
    return Workspace(root).private / "failed.json"

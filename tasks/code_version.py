"""Which code is running: rounds are frozen with it, so that history never says 'up to date' of something other code made."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
from pathlib import Path

from tasks.git import git

SOURCE = Path(__file__).resolve().parent.parent


@functools.cache
def code_version() -> str:
    """`0.1.0` where installed as a package; in a git checkout `0.1.0+<commit>`, and `.<hash of the edits>` where the stages' code was edited.

    Raises:
        WorkspaceError: the checkout cannot be asked: git is missing, or refuses a folder that belongs to somebody else.
    """
    version = importlib.metadata.version("rondo-al")
    if not (SOURCE / ".git").exists():
        return version
    commit = git(SOURCE, "rev-parse", "--short=10", "HEAD")
    edits = git(SOURCE, "diff", "--binary", "HEAD", "--", "al_core", "tasks").encode(errors="surrogateescape")
    for name in sorted(filter(None, git(SOURCE, "ls-files", "-z", "--others", "--exclude-standard", "--", "al_core", "tasks").split("\0"))):
        edits += name.encode(errors="surrogateescape") + (SOURCE / name).read_bytes()
    return f"{version}+{commit}" + (f".{hashlib.sha256(edits).hexdigest()[:8]}" if edits else "")

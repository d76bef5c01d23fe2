"""Which code is running: rounds are frozen with it, so that history never says 'up to date' of something other code made."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import subprocess
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent


@functools.cache
def code_version() -> str:
    """`0.1.0` where installed as a package; in a git checkout `0.1.0+<commit>`, and `.<hash of the edits>` where the stages' code was edited."""
    version = importlib.metadata.version("rondo-al")
    if not (SOURCE / ".git").exists():
        return version
    commit = _git("rev-parse", "--short=10", "HEAD").decode().strip()
    edits = _git("diff", "HEAD", "--", "al_core", "tasks")
    for name in sorted(_git("ls-files", "-z", "--others", "--exclude-standard", "--", "al_core", "tasks").decode().split("\0")):
        edits += name.encode() + ((SOURCE / name).read_bytes() if name else b"")
    return f"{version}+{commit}" + (f".{hashlib.sha256(edits).hexdigest()[:8]}" if edits else "")


def _git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=SOURCE, capture_output=True, check=False).stdout

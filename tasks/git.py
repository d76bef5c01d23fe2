"""The few things Rondo asks of git."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tasks.errors import WorkspaceError
from tasks.process import die_with_parent


def git(root: Path, *arguments: str) -> str:
    """What `git ARGUMENTS` prints in `root`; bytes that are no UTF-8 come as surrogates.

    Raises:
        WorkspaceError: git is missing or fails, in its own words.
    """
    if shutil.which("git") is None:
        raise WorkspaceError("git is not installed or not on the PATH; install it (https://git-scm.com) and try again")
    done = subprocess.run(
        ["git", *arguments],
        cwd=root,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        check=False,
        preexec_fn=die_with_parent,
    )
    if done.returncode:
        raise WorkspaceError(f"git {arguments[0]} failed in {root}: {(done.stderr or done.stdout).strip()}")
    return done.stdout.rstrip("\n")  # alone: warnings on stderr are no data


def changes(root: Path, *paths: str) -> list[str]:
    """What is not committed, a line each as `git status --porcelain` prints them."""
    return git(root, "-c", "core.quotePath=false", "status", "--porcelain", "--untracked-files=all", "--", *paths).splitlines()


def commit(root: Path, paths: Sequence[str], message: str) -> bool:
    """Commit these paths, gone ones as deletions, and nothing else; False if they are as in HEAD."""
    here = [path for path in paths if (root / path).exists()]
    if here:
        git(root, "add", "--all", "--", *here)
    if not changes(root, *paths):
        return False
    git(root, *_identity(root), "commit", "--quiet", "--message", message, "--", *paths)
    return True


def tag(root: Path, name: str, message: str) -> None:
    """An annotated tag at HEAD."""
    git(root, *_identity(root), "tag", "--annotate", name, "--message", message)


def tags(root: Path, pattern: str) -> list[str]:
    """Names of the tags that match."""
    return git(root, "tag", "--list", pattern).split()


def _identity(root: Path) -> list[str]:
    """Who commits where git does not know a user, as on a fresh machine or worker."""
    try:
        git(root, "config", "user.email")
    except WorkspaceError:
        return ["-c", "user.name=Rondo", "-c", "user.email=rondo@localhost"]
    return []

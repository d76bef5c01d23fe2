"""The few things Rondo asks of DVC, always as a child process: DVC is the only writer of results."""

from __future__ import annotations

import configparser
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from tasks import process
from tasks.errors import ArtifactError, WorkspaceError

OnLine = Callable[[str], None]

ADVICE = ("To track the changes with git", "git add ", "To enable auto staging", "dvc config core.autostage", "Use `dvc push`", "Having any troubles?")


def dvc(root: Path, *arguments: str, on_line: OnLine | None = None) -> str:
    """What `dvc ARGUMENTS` prints in `root`; its stages find the `python` that runs us."""
    if importlib.util.find_spec("dvc") is None:
        raise WorkspaceError("DVC is not installed beside Rondo; install it: pip install 'dvc[s3]'")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return process.run([sys.executable, "-m", "dvc", *arguments], root, on_line, {"PATH": path, "DVC_NO_ANALYTICS": "1"})


def repro(root: Path, folder: str, stage: str, *options: str, on_line: OnLine | None = None) -> None:
    """Bring one stage up to date: `dvc repro --single-item folder/dvc.yaml:stage`.

    Raises:
        WorkspaceError: the stage failed; the text is its own last words.
    """
    try:
        dvc(root, "repro", "--single-item", *options, f"{folder}/dvc.yaml:{stage}", on_line=to_the_point(on_line))
    except process.ChildError as error:
        raise WorkspaceError(f"{folder}: {stage} failed\n{last_words(error.output)}") from error


def to_the_point(on_line: OnLine | None) -> OnLine | None:
    """Without blank lines and DVC's advice, which is to do by hand what Rondo does."""
    return on_line and (lambda line: None if idle(line) else on_line(line))


def idle(line: str) -> bool:
    """Whether a line of DVC's is blank or advice."""
    return not line.strip() or line.strip().startswith(ADVICE)


def last_words(output: str) -> str:
    """What went wrong, out of all that DVC printed: the stage's own error (from its last line that begins with 'error:' on), else DVC's, else the end."""
    lines = [line for line in output.splitlines() if not idle(line)]
    for mark in ("error:", "ERROR:"):
        starts = [i for i, line in enumerate(lines) if line.startswith(mark)]
        if starts:
            first, *more = lines[starts[-1] :]
            return "\n".join([first.removeprefix(mark).strip(), *(line for line in more if not line.startswith("ERROR: failed to reproduce"))])
    return "\n".join(lines[-15:])


def add(root: Path, path: str) -> None:
    """Put data that no stage makes under DVC: writes `path.dvc`.

    Raises:
        WorkspaceError: DVC cannot take it.
    """
    try:
        dvc(root, "add", path)
    except process.ChildError as error:
        raise WorkspaceError(f"{path}: `dvc add` failed\n{last_words(error.output)}") from error


def push(root: Path, targets: Sequence[str], on_line: OnLine | None = None) -> None:
    """Send the targets to the default remote; nothing where none is configured.

    Raises:
        WorkspaceError: the remote does not take them.
    """
    if not has_remote(root):
        return
    try:
        dvc(root, "push", *targets, on_line=to_the_point(on_line))
    except process.ChildError as error:
        raise WorkspaceError(f"`dvc push` failed; check the remote with `dvc remote list`\n{last_words(error.output)}") from error


def fetch_missing(root: Path, paths: Sequence[str], on_line: OnLine | None = None) -> None:
    """Bring those of the paths that are not in the work tree, from the cache or else the remote.

    Raises:
        ArtifactError: neither has them.
    """
    missing = [path for path in paths if not (root / path).exists()]
    if not missing:
        return
    verb = "pull" if has_remote(root) else "checkout"
    try:
        dvc(root, verb, *missing, on_line=on_line)
    except process.ChildError as error:
        hint = "check the remote with `dvc remote list`" if verb == "pull" else "add a remote that has them: `dvc remote add -d NAME URL`"
        raise ArtifactError(f"{', '.join(missing)}: not in the work tree and not to be had by `dvc {verb}`; {hint}\n{last_words(error.output)}") from error


def configuration(root: Path) -> configparser.ConfigParser:
    """The workspace's `.dvc/config` under its `.dvc/config.local`."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read([root / ".dvc" / "config", root / ".dvc" / "config.local"], "utf-8")
    return parser


def share(root: Path, aside: Path) -> None:
    """Give a work tree aside the cache, the remotes and the local settings (credentials) of the repository at `root`."""
    ours = configuration(root)
    if not ours.has_section("cache"):
        ours.add_section("cache")
    ours["cache"]["dir"] = str(root / ".dvc" / ours["cache"].get("dir", "cache"))
    for name in ours.sections():
        url = ours[name].get("url", "")
        if "remote" in name and url and "://" not in url:
            ours[name]["url"] = str((root / ".dvc" / url).resolve())  # relative ones are relative to the file that names them
    with (aside / ".dvc" / "config.local").open("w", encoding="utf-8") as file:
        ours.write(file)


def has_remote(root: Path) -> bool:
    """Whether the workspace names a default remote."""
    return bool(configuration(root).get("core", "remote", fallback=""))


def lock(path: Path) -> dict[str, Any]:
    """The stages of a `dvc.lock`; empty where there is none."""
    if not path.exists():
        return {}
    content = yaml.safe_load(path.read_text("utf-8")) or {}
    stages: dict[str, Any] = content.get("stages", {})
    return stages

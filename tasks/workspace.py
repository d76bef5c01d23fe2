"""A workspace: one git + DVC repository per labelling programme. Where things lie in it, and how it is made."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tasks import git
from tasks.code_version import SOURCE
from tasks.dvc import dvc, lock
from tasks.errors import WorkspaceError
from tasks.params import Params, render
from tasks.stage import POOL_STAGES, ROUND_STAGES, all_stages, pipeline

HEADER = """\
# The seven stages that pools and rounds are frozen from; `dvc repro` here runs them once, in example/.
# Made by `python -m tasks dvc`. A `cmd` may be wrapped, such as in srun.
"""


@dataclass(frozen=True)
class Round:
    """One frozen folder: `pools/p001` or `rounds/r001`."""

    root: Path
    name: str

    @property
    def number(self) -> int:
        return int(self.name[1:])

    @property
    def is_pool(self) -> bool:
        return self.name.startswith("p")

    @property
    def folder(self) -> str:
        """Relative to the workspace, with forward slashes."""
        return f"{'pools' if self.is_pool else 'rounds'}/{self.name}"

    @property
    def path(self) -> Path:
        return self.root / self.folder

    @property
    def tag(self) -> str:
        """The git tag that closes it."""
        return f"{'pool' if self.is_pool else 'round'}-{self.name}"

    @property
    def stages(self) -> tuple[str, ...]:
        return POOL_STAGES if self.is_pool else ROUND_STAGES

    @property
    def params(self) -> Params:
        return Params.load(self.path / "params.yaml")

    @property
    def lock(self) -> dict[str, Any]:
        """What DVC recorded, by stage."""
        return lock(self.path / "dvc.lock")

    @property
    def unrun(self) -> list[str]:
        """Stages that DVC did not record yet, in order."""
        recorded = self.lock
        return [stage for stage in self.stages if stage not in recorded]

    @property
    def answers(self) -> str:
        """Where people's answers go, relative to the workspace."""
        return f"answers/{self.name}"

    def file(self, artifact: str) -> Path:
        """A file by its artifact's template, such as `Selection.file`."""
        from tasks.stage import resolve

        return Path(os.path.normpath(self.path / resolve(artifact, self.params)))


@dataclass(frozen=True)
class Workspace:
    """The repository at `root`."""

    root: Path

    @classmethod
    def find(cls, start: Path) -> Workspace:
        """The workspace that `start` lies in.

        Raises:
            WorkspaceError: it lies in none.
        """
        for folder in (start.resolve(), *start.resolve().parents):
            if folder == SOURCE:
                raise WorkspaceError(f"{folder} is Rondo's own source, no workspace; make one with `rondo init DIR --source SOURCE`")
            if (folder / "params.yaml").exists() and (folder / ".dvc").is_dir() and folder.parent.name not in ("rounds", "pools"):
                return cls(folder)
        raise WorkspaceError(f"{start.resolve()} lies in no workspace; make one with `rondo init DIR --source SOURCE`, or name one with --workspace DIR")

    @property
    def params(self) -> Params:
        """What the next round opens with."""
        return Params.load(self.root / "params.yaml")

    @property
    def private(self) -> Path:
        """What neither git nor DVC holds: lock, the last failure, servers' databases, scratch."""
        return self.root / ".rondo"

    def all(self, kind: str) -> list[Round]:
        """`pools` or `rounds`, by number; those that a crash left half open (not yet in git) included, other folders not."""
        names = [path.parent.name for path in (self.root / kind).glob("*/params.yaml")]
        ours = [Round(self.root, name) for name in names if re.fullmatch(f"{kind[0]}[0-9]{{3,}}", name)]
        return sorted(ours, key=lambda each: each.number)

    def closed(self) -> set[str]:
        """Names of pools and rounds that carry their closing tag."""
        return {tag.split("-", 1)[1] for tag in git.tags(self.root, "round-r*") + git.tags(self.root, "pool-p*")}

    def find_round(self, name: str) -> Round:
        """A pool or round by name.

        Raises:
            WorkspaceError: there is none of that name.
        """
        known = {each.name: each for each in self.all("pools") + self.all("rounds")}
        if name not in known:
            raise WorkspaceError(f"there is no {name!r} in {self.root}; there are: {', '.join(known) or 'no rounds yet (rondo open)'}")
        return known[name]


def init(root: Path, params: Params) -> Workspace:
    """Make a workspace: git, DVC, `params.yaml`, `dvc.yaml`, `.gitignore`, and a first commit of just these.

    Raises:
        WorkspaceError: the folder already is a workspace, or git or DVC is missing.
    """
    if (root / "params.yaml").exists() or (root / ".dvc").exists():
        raise WorkspaceError(f"{root} already is a workspace or DVC repository; choose an empty folder, or work on in it: rondo status --workspace {root}")
    root.mkdir(parents=True, exist_ok=True)
    if not (root / ".git").exists():
        git.git(root, "init", "--quiet")
    dvc(root, "init", "--quiet")
    (root / ".dvc" / "config").write_text("[core]\n    analytics = false\n    check_update = false\n    autostage = false\n", "utf-8")
    (root / "params.yaml").write_text(render(params), "utf-8")
    (root / "dvc.yaml").write_text(dvc_yaml(), "utf-8")
    (root / ".gitignore").write_text(ignored(), "utf-8")
    git.commit(root, [".dvc/config", ".dvc/.gitignore", ".dvcignore", "params.yaml", "dvc.yaml", ".gitignore"], "Begin the labelling programme")
    return Workspace(root)


def dvc_yaml(stages: Sequence[str] | None = None, source: dict[str, Any] | None = None) -> str:
    """The text of a `dvc.yaml`: all stages as the signatures say, or some of those of `source`."""
    content = source or pipeline()
    chosen = {name: content["stages"][name] for name in stages} if stages else content["stages"]
    text = yaml.safe_dump({"stages": chosen}, sort_keys=False, width=1000)
    return text if stages else HEADER + text


def ignored() -> str:
    """`.gitignore`: every output that DVC holds, written by hand so that a failing `dvc repro` cannot take entries back."""
    # not /answers/*/, which DVC takes to mean answers/ itself, and then overlooks answers/r001.dvc
    lines = {"/.rondo/", "/example/", "/answers/r*/", ".*.partial", "/rounds/*/report.html"}
    for stage in all_stages():
        for artifact in stage.writes.values():
            if not artifact.in_git:
                lines.add(artifact.file.replace("${pool}", "/pools/*").replace("${here}", "/rounds/*"))
    return "\n".join(sorted(lines)) + "\n"

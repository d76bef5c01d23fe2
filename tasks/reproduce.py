"""`rondo reproduce`: run a closed pool or round again from its tag, aside, and compare every output's hash with what was recorded."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from tasks import dvc, environment, git
from tasks.errors import WorkspaceError
from tasks.rounds import altered, inputs
from tasks.workspace import Round, Workspace

DIGITS = 8  # of a hash that are shown


@dataclass(frozen=True)
class Row:
    """One file of the round: an input that was read or an output that was made again."""

    stage: str
    role: str  # input | output
    path: str
    recorded: str  # md5
    now: str

    @property
    def same(self) -> bool:
        return self.recorded == self.now


@dataclass(frozen=True)
class Comparison:
    """All rows, and what differs in the machine where something does."""

    name: str
    rows: list[Row]
    environment: list[str] = field(default_factory=list)
    altered: list[str] = field(default_factory=list)  # files of the workspace itself that are not what the round read or wrote

    @property
    def identical(self) -> bool:
        return all(row.same for row in self.rows) and not self.altered


def reproduce(workspace: Workspace, name: str, on_line: Callable[[str], None]) -> Comparison:
    """Replay in a work tree of its own at the closing tag; the workspace itself is not touched.

    Raises:
        WorkspaceError: the round is not closed.
        RondoError: an input is not to be had, or a stage fails.
    """
    this = workspace.find_round(name)
    if this.name not in workspace.closed():
        raise WorkspaceError(
            f"{name} is not closed yet, so there is nothing fixed to compare with; closed are: {', '.join(sorted(workspace.closed())) or 'none'}"
        )
    root = workspace.private / "reproduce" / name
    remove(workspace, root)
    git.git(workspace.root, "worktree", "add", "--quiet", "--detach", str(root), this.tag)
    try:
        dvc.share(workspace.root, root)
        return replace(replay(Round(root, name), on_line), altered=altered(this))
    finally:
        remove(workspace, root)


def remove(workspace: Workspace, root: Path) -> None:
    """Take a work tree away, also one that a cut-off replay left."""
    shutil.rmtree(root, ignore_errors=True)
    git.git(workspace.root, "worktree", "prune")


def replay(this: Round, on_line: Callable[[str], None]) -> Comparison:
    """Every stage again, in order; nothing is taken from DVC's run cache and nothing is put into its cache."""
    recorded = this.lock
    then = environment.load(this.path)
    for stage in this.stages:
        on_line(f"{this.name} {stage}")
        dvc.fetch_missing(this.root, inputs(this, stage), on_line)
        dvc.repro(this.root, this.folder, stage, "--force", "--no-run-cache", "--no-commit", on_line=on_line)
    rows = compare(recorded, this.lock)
    here = environment.load(this.path)  # as the replayed stages noted it
    differing = sorted({line for stage, record in then.items() for line in environment.differences(here[stage], record)})
    return Comparison(this.name, rows, differing)


def compare(recorded: dict[str, Any], now: dict[str, Any]) -> list[Row]:
    """Inputs and outputs of two locks side by side."""
    rows = []
    for stage, entry in recorded.items():
        for role, key in (("input", "deps"), ("output", "outs")):
            again = {item["path"]: item["md5"] for item in now.get(stage, {}).get(key, [])}
            rows += [Row(stage, role, item["path"], item["md5"], again.get(item["path"], "missing")) for item in entry.get(key, [])]
    return rows


def render(comparison: Comparison) -> Group:
    """Outputs all, inputs where they differ; then the verdict. In 80 columns only the names of files are folded."""
    table = Table(title=f"{comparison.name} reproduced", title_justify="left")
    for heading in ("stage", "file", "recorded", "now", ""):
        table.add_column(heading, no_wrap=heading != "file", overflow="fold")
    for row in comparison.rows:
        if row.role == "output" or not row.same:
            verdict = Text("identical", "green") if row.same else Text(f"{row.role} differs", "bold red")
            table.add_row(row.stage, Text(row.path.removeprefix("./"), overflow="fold"), row.recorded[:DIGITS], row.now[:DIGITS], verdict)
    outputs = [row for row in comparison.rows if row.role == "output"]
    same = sum(row.same for row in outputs)
    lines = [f"{same} of {len(outputs)} outputs are identical"]
    if comparison.altered:
        lines.append(f"altered in this workspace since (the replay took what was recorded; `dvc checkout` restores): {', '.join(comparison.altered)}")
    if not comparison.identical and comparison.environment:
        lines.append("not the same machine as then: " + "; ".join(comparison.environment))
    return Group(table, Text("\n".join(lines)))

"""A stage is one typed function; from its signature come its command line, its entry in `dvc.yaml`, and what the Prefect task runs.

Argument types say which files it reads, the return type (an artifact, or a dataclass of artifacts) which it writes, and the one argument that
is a `Section` which part of `params.yaml` tunes it. An argument of type `Run` brings the round's name, seed and scratch folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import importlib
import re
import shutil
import time
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from tasks import environment
from tasks.artifacts import Artifact
from tasks.code_version import code_version
from tasks.environment import Elsewhere
from tasks.errors import ArtifactError, WorkspaceError
from tasks.params import Params, Section

POOL_STAGES = ("ingest", "pretrain")
ROUND_STAGES = ("embed", "acquire", "export", "import-labels", "retrain")
BEFORE_ANSWERS, AFTER_ANSWERS = ROUND_STAGES[:3], ROUND_STAGES[3:]

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True)
class Run:
    """Where and in which round a stage runs."""

    round: str  # r001, or p001 for a pool's stages
    seed: int
    scratch: Path  # emptied before the stage and removed after it; outputs that are folders are built in it
    params: Params  # of the whole round, for the wiring; a stage's own knobs come as its section
    elsewhere: Elsewhere = dataclasses.field(default_factory=Elsewhere)  # where other processes did a part of it: the stage notes them here


@dataclasses.dataclass(frozen=True)
class Stage:
    """What a signature says."""

    name: str
    function: Callable[..., Any]
    reads: Mapping[str, type[Artifact]]  # by argument
    writes: Mapping[str, type[Artifact]]  # by field of the returned dataclass; "" for a lone artifact
    section: tuple[str, type[Section]] | None  # argument and model
    takes_run: str | None  # argument

    def dvc(self) -> dict[str, Any]:
        """The stage's entry in `dvc.yaml`, with `${...}` left to DVC's templating."""
        entry: dict[str, Any] = {"cmd": f"python -m tasks {self.name}", "desc": (self.function.__doc__ or "").strip().split("\n")[0]}
        deps = [artifact.file for artifact in self.reads.values()]
        if deps:
            entry["deps"] = deps
        entry["params"] = ([self.name] if self.section else []) + ["code", *self.extra_params]
        for kind in ("outs", "metrics", "plots"):
            files = [{a.file: {"cache": False}} if a.in_git else a.file for a in self.writes.values() if a.kind == kind]
            if files:
                entry[kind] = files
        return entry

    @property
    def extra_params(self) -> tuple[str, ...]:
        """Top-level keys that change the result although they are in no section."""
        return getattr(self.function, "extra_params", ())


def stage(*extra_params: str) -> Callable[[Function], Function]:
    """Mark a function as a stage; `extra_params` are the top-level keys of `params.yaml` that it depends on beside its section."""

    def mark(function: Function) -> Function:
        function.extra_params = extra_params  # type: ignore[attr-defined]
        return function

    return mark


def find(name: str) -> Stage:
    """The stage of that name, read from the signature of `tasks.<name>.<name>`."""
    if name not in POOL_STAGES + ROUND_STAGES:
        raise WorkspaceError(f"unknown stage {name!r}; the stages are {', '.join(POOL_STAGES + ROUND_STAGES)}")
    identifier = name.replace("-", "_")
    function = getattr(importlib.import_module(f"tasks.{identifier}"), identifier)
    hints = typing.get_type_hints(function)
    result = hints.pop("return")
    reads = {argument: kind for argument, kind in hints.items() if issubclass(kind, Artifact)}
    sections = [(argument, kind) for argument, kind in hints.items() if issubclass(kind, Section)]
    runs = [argument for argument, kind in hints.items() if kind is Run]
    writes = {"": result} if issubclass(result, Artifact) else dict(typing.get_type_hints(result))
    return Stage(name, function, reads, writes, sections[0] if sections else None, runs[0] if runs else None)


def all_stages() -> Iterator[Stage]:
    """In pipeline order."""
    return (find(name) for name in POOL_STAGES + ROUND_STAGES)


def pipeline() -> dict[str, Any]:
    """The root `dvc.yaml`, of which a pool or a round takes its stages."""
    return {"stages": {each.name: each.dvc() for each in all_stages()}}


def execute(name: str, folder: Path) -> None:
    """Run one stage in a folder that holds `params.yaml`: load its inputs by type, call it, save all outputs or none, note what it ran on.

    Raises:
        RondoError: whatever a user can act on; nothing is written then.
    """
    started = time.monotonic()
    it = find(name)
    with contextlib.chdir(folder):
        params = Params.load(Path("params.yaml"))
        check_code(params)
        files = {field: Path(resolve(kind.file, params)) for field, kind in it.writes.items()}
        scratch = scratch_of(next(iter(files.values())).parent, name)
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        run = Run(params.round, params.seed, scratch, params)
        try:
            result = it.function(**arguments(it, run))
            outputs = {"": result} if "" in files else {field: getattr(result, field) for field in files}
            for field, artifact in outputs.items():
                artifact.save(scratch / files[field].name)
            for path in files.values():
                replace(scratch / path.name, path)
            environment.record(Path(), name, time.monotonic() - started, environment.level(name, params), run.elsewhere)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise full_disk(name, scratch.parent) from error
            raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def scratch_of(folder: Path, name: str) -> Path:
    """Where a stage builds what it writes into a folder."""
    return folder / f".{name}.partial"


def arguments(it: Stage, run: Run) -> dict[str, Any]:
    """What the stage's function is called with."""
    values: dict[str, Any] = {argument: kind.load(Path(resolve(kind.file, run.params))) for argument, kind in it.reads.items()}
    if it.section:
        values[it.section[0]] = getattr(run.params, it.name.replace("-", "_"))
    if it.takes_run:
        values[it.takes_run] = run
    return values


def check_code(params: Params) -> None:
    """Refuse to run a round under another version of Rondo than it was opened with."""
    running = code_version()
    if params.code not in ("unfrozen", running):
        again = "rondo open --again --new-pool" if params.round.startswith("p") else "rondo open --again"
        raise WorkspaceError(
            f"{params.round} was opened with Rondo {params.code}, this is {running}; "
            f"run it with that version; as long as it is open it can be opened again with this one: `{again}` (drops what it has computed)"
        )


def full_disk(name: str, folder: Path) -> ArtifactError:
    """What to say when there is no room for a stage's outputs."""
    free = shutil.disk_usage(folder).free
    return ArtifactError(f"{name}: the disk that holds {folder.resolve()} is full ({free / 1e6:.0f} MB left); free some space and run again: nothing was lost")


def resolve(file: str, params: Params) -> str:
    """A path with its `${...}` filled in from the wiring."""
    return re.sub(r"\$\{(\w+)\}", lambda match: str(getattr(params, match.group(1))), file)


def replace(source: Path, target: Path) -> None:
    """Move into place, in one step where the target is a file or absent."""
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    source.replace(target)

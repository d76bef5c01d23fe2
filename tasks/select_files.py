"""`rondo select`: a method's picks from files of signals, without a workspace."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import yaml
from rich.console import Group
from rich.table import Table
from safetensors import SafetensorError
from safetensors.numpy import load_file

import al_core
from al_core import registry
from al_core.pool import MissingSignalError
from al_core.processes import grouped
from tasks import artifacts
from tasks.artifacts import column
from tasks.errors import ArtifactError, ParamsError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

SHOWN = 10  # picks that are printed
OPTIONS = {"mc_probs": "--mc-probs, or --mc-heads and --embeddings", "labels": "--labeled and --labels"}  # that give a signal, where not the one of its name


class Picks(artifacts.Table):
    """The picks, first pick first."""

    schema = pa.schema(
        [
            column("row", pa.int64(), "row of the signals, from 0"),
            column("score", pa.float64(), "the method's score at the moment of the pick; `rondo methods NAME` says its direction; null: none", null=True),
        ]
    )

    @classmethod
    def of_selection(cls, selection: al_core.Selection) -> Picks:
        """In pick order; a score that is none becomes null."""
        return cls(pa.table({"row": selection.rows, "score": pa.array(selection.scores, from_pandas=True)}, schema=cls.schema))


@dataclass(frozen=True)
class Files:
    """Where the signals lie; each is optional, but a method needs those that its card names."""

    embeddings: Path | None = None  # (n, d)
    logits: Path | None = None  # (n, classes)
    head: Path | None = None  # safetensors: weight (classes, d), bias (classes,)
    mc_probs: Path | None = None  # (passes, n, classes)
    mc_heads: Path | None = None  # safetensors: weight (passes, classes, d), bias (passes, classes)
    predicted_loss: Path | None = None  # (n,)
    discriminator: Path | None = None  # (n,)
    labeled: Path | None = None  # (m,) row numbers
    labels: Path | None = None  # (m,) class numbers of those rows, in the same order
    excluded: Path | None = None  # (e,) row numbers
    groups: Path | None = None  # (n,) whole numbers from 0
    truth: Path | None = None  # (n,) class numbers of all rows

    def pool(self, device: str, process_group: ProcessGroup | None = None) -> al_core.Pool:
        """The pool that they make; arrays stay memory-mapped.

        Raises:
            ArtifactError: a file cannot be read.
            ParamsError: together they make no pool.
        """
        arrays: dict[str, Any] = {
            name: load_head(path) if name in ("head", "mc_heads") else load_array(path) for name, path in vars(self).items() if path is not None
        }
        try:
            return al_core.Pool(**arrays, device=device, process_group=process_group)
        except ValueError as error:
            raise ParamsError(str(error)) from error


@dataclass(frozen=True)
class Launch:
    """How this process was started: alone, or by torchrun as one of several."""

    group: ProcessGroup | None
    device: str
    speaks: bool  # writes and prints; the others only work


@contextmanager
def launched(device: str) -> Iterator[Launch]:
    """What torchrun's environment says; of several processes each has a GPU of its own where `device` is cuda."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield Launch(None, device, True)
        return
    import torch

    with grouped("gloo") as group:
        if os.environ.get("OMP_NUM_THREADS") == "1":  # torchrun says so, whatever the machine
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ["LOCAL_WORLD_SIZE"])))
        own = f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" else device
        yield Launch(group, own, group.rank() == 0)


def load_array(path: Path) -> npt.NDArray[Any]:
    """A `.npy` file, memory-mapped."""
    try:
        array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read as a .npy array: {error}") from error
    return array


def load_head(path: Path) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Weight and bias of a linear layer, or of several draws of it."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path} cannot be read as a safetensors file: {error}") from error
    if not {"weight", "bias"} <= tensors.keys():
        raise ArtifactError(f"{path} holds {', '.join(sorted(tensors)) or 'nothing'}; expected weight and bias of a linear layer")
    return tensors["weight"], tensors["bias"]


def parsed(params: Sequence[str]) -> dict[str, object]:
    """`key=value` pairs, each value as YAML has it: `draw=farthest`, `diversify={strength: 2}`.

    Raises:
        ParamsError: a pair has no `=` or a value is no YAML.
    """
    found: dict[str, object] = {}
    for pair in params:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise ParamsError(f"--param {pair!r} has no value; write it as key=value, such as draw=farthest")
        if key in found:
            raise ParamsError(f"--param {key} is given twice")
        try:
            found[key] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ParamsError(f"--param {pair!r}: {text!r} is no YAML value: {error}") from error
    return found


def writable(out: Path) -> None:
    """Raise where no file can be written, before anything is computed."""
    if not out.parent.is_dir():
        raise ArtifactError(f"{out.parent} is no folder; make it, or name another --out")
    if out.is_dir() or not os.access(out.parent, os.W_OK):
        raise ArtifactError(f"{out} cannot be written; name another --out")


def select(method: str, pool: al_core.Pool, budget: int, seed: int, params: Mapping[str, object]) -> al_core.Selection:
    """The picks.

    Raises:
        ParamsError: what `al_core.select` refuses, or a file that the method reads is not given.
    """
    try:
        return al_core.select(method, pool, budget=budget, seed=seed, **params)
    except MissingSignalError as error:
        options = OPTIONS.get(error.signal, f"--{error.signal.replace('_', '-')}")
        raise ParamsError(f"{method} reads {error.signal}: give {options}; `rondo select --help` says what each file holds") from error
    except (ValueError, ImportError) as error:
        raise ParamsError(str(error)) from error


def named(text: str) -> dict[str, Any]:
    """A method as one writes it on a command line: its name, or `{name: ..., parameter: ...}`.

    Raises:
        ParamsError: it is neither.
    """
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ParamsError(f"{text!r} is neither a method's name nor YAML: {error}") from error
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, dict):
        return value
    raise ParamsError(f"{text!r} is no method; write its name, or {{name: badge, draw: farthest}}")


def render(method: str, pool: al_core.Pool, selection: al_core.Selection, out: Path) -> Group:
    """What was picked, in a few lines."""
    shown = Table()
    for heading in ("pick", "row", "score"):
        shown.add_column(heading, justify="right")
    for place, (row, score) in enumerate(zip(selection.rows[:SHOWN].tolist(), selection.scores[:SHOWN].tolist(), strict=True)):
        shown.add_row(str(place), str(row), f"{score:.6g}")
    if len(selection) > SHOWN:
        shown.add_row("...", "", "")
    about = [f"score: {registry.card(method).direction}", *(f"{key}: {value}" for key, value in selection.info.items()), f"wrote {out}"]
    return Group(f"{method}: {len(selection)} of {len(pool.available)} available rows", shown, "\n".join(about))

"""`rondo acquire --what-if`: what other methods would pick for the open round, beside what its own picked. The round is not touched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from rich.console import Group
from rich.table import Table
from rich.text import Text

from al_core import Pool, registry
from al_core.pool import blocks
from tasks import dvc
from tasks.acquire import arms, expectations, pool_of
from tasks.artifacts import Manifest, PreviousLabels, Selection, StartLabels
from tasks.errors import ParamsError, WorkspaceError
from tasks.rounds import built, inputs, needs_model, settle_method
from tasks.signals import Signals
from tasks.wording import counted, some
from tasks.workspace import Round

SHOWN = 4  # uris and classes of a method that are spelled out


@dataclass(frozen=True)
class Picked:
    """What a method picks, control arm apart."""

    method: dict[str, Any]  # name and parameters
    rows: npt.NDArray[np.int64]  # of the manifest, first pick first
    uris: list[str]  # of the first picks
    classes: Counter[str]  # what the model in use expects of the picks; empty without one


def what_if(this: Round, methods: Sequence[dict[str, Any]]) -> list[Picked]:
    """The picks of the round's own method, then those of each other one with the round's budget, control arm and seed.

    Args:
        this: a round whose stage acquire has run.
        methods: `{name: ..., parameter: ...}` of each, as in `params.yaml`.

    Raises:
        WorkspaceError: acquire has not run yet.
        ParamsError: an unknown method or parameter, or a method that cannot pick here.
        ArtifactError: signals are neither here nor in the remote.
    """
    if "acquire" not in this.lock:
        raise WorkspaceError(f"{this.name} has no picks to compare with: its stage acquire did not run yet; `rondo run` goes on")
    params = this.params
    settled = [settle_method(each, "--what-if") for each in methods]
    dvc.fetch_missing(this.root, [*inputs(this, "acquire"), f"{this.folder}/signals", f"{this.folder}/selection.parquet"])
    signals, manifest = Signals.load(this.file(Signals.file)), Manifest.load(this.file(Manifest.file))
    known = PreviousLabels.load(this.file(PreviousLabels.file)).joined(StartLabels.load(this.file(StartLabels.file)))
    pool = pool_of(signals, manifest, known, params.classes or [], logits=logits_of(signals))
    for method in settled:
        check(method, pool, this)
    selection = Selection.load(this.file(Selection.file)).frame.query("arm == 'acquired'")
    found = [picked(params.acquire.method, np.searchsorted(manifest.ids, selection["id"].to_numpy(dtype=np.str_)), signals, manifest)]
    for method in settled:
        try:
            rows = arms(pool, params.acquire.model_copy(update={"method": method}), params.seed, this.name)[0].rows
        except ValueError as error:
            raise ParamsError(f"--what-if: {error}") from error
        found.append(picked(method, rows, signals, manifest))
    return found


def check(method: dict[str, Any], pool: Pool, this: Round) -> None:
    """Raise where a method reads what the round does not have."""
    lacking = [need for need in registry.needs(built(method)) if need not in pool.signals]
    if lacking and needs_model(method) and "head" not in pool.signals:
        raise ParamsError(f"--what-if: {method['name']} needs a model, and before the first round is closed there is none")
    if lacking:
        raise ParamsError(
            f"--what-if: {method['name']} reads {' and '.join(lacking)}, which {this.name} did not compute; a round does whose embed.signals names it, "
            "or whose own method reads it" + (", if the model before was trained with retrain.loss_prediction" if "predicted_loss" in lacking else "")
        )


def logits_of(signals: Signals) -> npt.NDArray[np.float32] | None:
    """The logits that embed wrote, or what the head makes of the embeddings; None without a model."""
    head = signals.head()
    if head is None or signals.has("logits"):
        return None
    embeddings = signals.array("embeddings")
    return np.concatenate([head.logits(embeddings[block]) for block in blocks(embeddings)])


def picked(method: dict[str, Any], rows: npt.NDArray[np.int64], signals: Signals, manifest: Manifest) -> Picked:
    """Picks with what people want to see of them."""
    expected = [name for name in expectations(signals, rows)[0] if name is not None]
    return Picked(method, rows, [str(uri) for uri in manifest.frame["uri"].to_numpy()[rows[:SHOWN]]], Counter(expected))


def render(this: Round, found: Sequence[Picked]) -> Group:
    """In words what is compared; a line for each method; the first picks of each."""
    own = found[0]
    control = this.params.acquire.budget - len(own.rows)
    about = f"{this.name} picks {counted(len(own.rows), 'image')} by {own.method['name']}"
    about += f", and {control} at random whatever the method" if control else ""
    table, firsts = Table("method", "in common", "classes that the model expects"), Table.grid(padding=(0, 2))
    for each in found:
        shared = "its own" if each is own else f"{len(np.intersect1d(own.rows, each.rows))} of {len(own.rows)}"
        classes = some(each.classes.most_common(), SHOWN, lambda pair: f"{pair[0]} ({pair[1]})") or "no model yet"
        table.add_row(*map(Text, (one_line(each.method), shared, classes)))  # names may hold brackets, which are markup in bare strings
        firsts.add_row(*map(Text, (one_line(each.method), ", ".join(each.uris))))
    return Group(Text(about), table, Text("First picks:"), firsts, Text("Nothing was changed."))


def one_line(method: dict[str, Any]) -> str:
    """A method and those of its parameters that are not the default, as `margin {partitions: 4}`."""
    usual = settle_method({"name": method["name"]}, "--what-if")
    knobs = {key: value for key, value in method.items() if key not in usual or value != usual[key]}
    return str(method["name"]) + (f" {yaml.safe_dump(knobs, default_flow_style=True, width=1000).strip()}" if knobs else "")

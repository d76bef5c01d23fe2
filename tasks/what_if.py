"""`rondo acquire --what-if`: what other methods would pick for the open round, beside what its own picked. The round is not touched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Group
from rich.table import Table
from rich.text import Text

from al_core.pool import blocks
from tasks import dvc
from tasks.acquire import arms, expectations, pool_of
from tasks.artifacts import Manifest, PreviousLabels, Selection, StartLabels
from tasks.errors import WorkspaceError
from tasks.rounds import inputs, needs_model, settle_method
from tasks.signals import Signals
from tasks.workspace import Round

SHOWN = 4  # uris and classes of a method that are spelled out


@dataclass(frozen=True)
class Picked:
    """What a method picks, control arm apart."""

    method: dict[str, Any]  # name and parameters
    rows: npt.NDArray[np.int64]  # of the manifest, first pick first; empty where it cannot pick
    uris: list[str]
    classes: Counter[str]  # what the model in use expects of the picks; empty without one
    refused: str = ""  # why it cannot pick here


def what_if(this: Round, methods: Sequence[dict[str, Any]]) -> list[Picked]:
    """The picks of the round's own method, then those of each other one with the round's budget, control arm and seed.

    Args:
        this: a round whose stage acquire has run.
        methods: `{name: ..., parameter: ...}` of each, as in `params.yaml`.

    Raises:
        WorkspaceError: acquire has not run yet.
        ParamsError: an unknown method or parameter.
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
    selection = Selection.load(this.file(Selection.file)).frame.query("arm == 'acquired'")
    found = [picked(params.acquire.method, np.searchsorted(manifest.ids, selection["id"].to_numpy(dtype=np.str_)), signals, manifest)]
    for method in settled:
        if needs_model(method) and signals.head() is None:
            found.append(Picked(method, np.empty(0, np.int64), [], Counter(), "needs a model, and before the first round is closed there is none"))
            continue
        try:
            rows = arms(pool, params.acquire.model_copy(update={"method": method}), params.seed, this.name)[0].rows
            found.append(picked(method, rows, signals, manifest))
        except ValueError as error:
            found.append(Picked(method, np.empty(0, np.int64), [], Counter(), str(error)))
    return found


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
    """One line a method: how many of its picks the round's own method picked too, the classes expected, the first picks."""
    own = found[0]
    table = Table(title=f"{this.name}: what if", title_justify="left")
    for heading in ("method", "same picks", "classes expected of the picks", "first picks"):
        table.add_column(heading)
    for number, each in enumerate(found):
        spelled = one_line(each.method) + ("  (the round's own)" if number == 0 else "")
        if each.refused:
            table.add_row(spelled, "-", Text(each.refused, "yellow"), "")
            continue
        shared = len(np.intersect1d(own.rows, each.rows))
        classes = ", ".join(f"{name} {count}" for name, count in each.classes.most_common(SHOWN)) + (", ..." if len(each.classes) > SHOWN else "")
        table.add_row(spelled, f"{shared} of {len(own.rows)}", classes or "no model yet", "\n".join(each.uris))
    return Group(table, Text("The control arm, drawn at random, is the same for all. Nothing was changed."))


def one_line(method: dict[str, Any]) -> str:
    """A method and its parameters on one line."""
    knobs = ", ".join(f"{key}: {value}" for key, value in method.items() if key != "name")
    return f"{method['name']}" + (f" ({knobs})" if knobs else "")

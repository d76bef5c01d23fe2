"""What there is to tell of a round, read from its files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from tasks.artifacts import AcquireReport, Artifact, ImportReport, Known, Labels, Manifest, Metrics, Predictions, PreviousLabels, Selection, Shards, StartLabels
from tasks.errors import ArtifactError, WorkspaceError
from tasks.params import Params
from tasks.rounds import open_state
from tasks.signals import Signals
from tasks.workspace import Round, Workspace

A = TypeVar("A", bound=Artifact)


@dataclass(frozen=True)
class Past:
    """A round in a line of the history."""

    name: str
    pool: str  # name
    method: str
    metrics: Metrics | None


@dataclass(frozen=True)
class Facts:
    """The files of a round that are there; None where the stage has not run or its output was not fetched."""

    workspace: str  # name
    this: Round
    pool: Round
    state: str
    params: Params
    past: list[Past]  # all rounds up to this one, which is the last
    manifest: Manifest | None
    shards: Shards | None
    known: Known | None
    earlier: Labels | None  # known before this round, as acquire knows it
    signals: Signals | None
    selection: Selection | None
    acquired: AcquireReport | None
    labels: Labels | None
    imported: ImportReport | None
    predictions: Predictions | None
    predictions_before: Predictions | None  # of the previous round's model, where it looked at the same pool

    @property
    def name(self) -> str:
        """r001."""
        return self.this.name

    @property
    def metrics(self) -> Metrics | None:
        """Of this round's model."""
        return self.past[-1].metrics

    @property
    def before(self) -> Past | None:
        """The previous round."""
        return self.past[-2] if len(self.past) > 1 else None

    @property
    def classes(self) -> list[str]:
        """The answers people may give."""
        return self.params.classes or []

    @property
    def picks(self) -> pd.DataFrame:
        """The selection in order of rank, with `answered` and `label`: None where there is no answer, or it says that the image cannot be labelled."""
        assert self.selection is not None
        answers = (self.labels or Labels.of([])).frame.query("round == @self.name")[["id", "label"]].astype({"label": object})
        picks = self.selection.frame.merge(answers, on="id", how="left").sort_values("rank", ignore_index=True)
        return picks.assign(answered=picks["id"].isin(answers["id"]))

    @property
    def tested(self) -> pd.DataFrame:
        """`id`, `actual` and `predicted` of the test images whose class is known; no rows without predictions or a test split."""
        return outcomes(self.manifest, self.labels, self.predictions, self.classes)


def gather(workspace: Workspace, name: str) -> Facts:
    """Everything that is there of a round.

    Raises:
        WorkspaceError: there is no round of that name.
    """
    this = workspace.find_round(name)
    if this.is_pool:
        rounds = ", ".join(each.name for each in workspace.all("rounds")) or "none yet (rondo open)"
        raise WorkspaceError(f"{name} is a pool and reports are of rounds; the rounds are: {rounds}")
    chain = [each for each in workspace.all("rounds") if each.name <= name]
    past = [past_of(each) for each in chain]
    same_pool = len(past) > 1 and past[-2].pool == past[-1].pool
    return Facts(
        workspace=workspace.root.resolve().name,
        this=this,
        pool=Round(workspace.root, past[-1].pool),
        state=state_of(workspace, this),
        params=this.params,
        past=past,
        manifest=there(Manifest, this),
        shards=there(Shards, this),
        known=there(Known, this),
        earlier=known_before(this),
        signals=there(Signals, this),
        selection=there(Selection, this),
        acquired=there(AcquireReport, this),
        labels=there(Labels, this),
        imported=there(ImportReport, this),
        predictions=there(Predictions, this),
        predictions_before=there(Predictions, chain[-2]) if same_pool else None,
    )


def there(kind: type[A], this: Round) -> A | None:
    """The artifact, None where its file is not there."""
    path = this.file(kind.file)
    return kind.load(path) if path.exists() else None


def known_before(this: Round) -> Labels | None:
    """What the round before knew, and what the source of a newer pool adds; None where one of them is not there."""
    previous, start = there(PreviousLabels, this), there(StartLabels, this)
    return previous.joined(start) if previous is not None and start is not None else None


def past_of(this: Round) -> Past:
    """A round's line of history."""
    params = this.params
    return Past(this.name, Path(params.pool).name, method_of(params), there(Metrics, this))


def method_of(params: Params) -> str:
    """`margin`, or `coreset (normalize: False)` with its parameters."""
    knobs = ", ".join(f"{key}: {value}" for key, value in params.acquire.method.items() if key != "name")
    name = str(params.acquire.method["name"])
    return f"{name} ({knobs})" if knobs else name


def state_of(workspace: Workspace, this: Round) -> str:
    """The round's state in words."""
    if this.name in workspace.closed():
        return "closed"
    state = open_state(this)
    return f"open, {state}" if state.startswith("before") else state


def splits(manifest: Manifest) -> pd.DataFrame:
    """`id` and `split` in manifest order, without the lists of uris that are slow to unpack."""
    frame: pd.DataFrame = manifest.table.select(["id", "split"]).to_pandas()
    return frame


def rows_of(manifest: Manifest, ids: Sequence[str]) -> npt.NDArray[np.int64]:
    """(n,) rows of these images in the manifest.

    Raises:
        ArtifactError: it has not all of them.
    """
    rows: npt.NDArray[np.int64] = pd.Index(manifest.ids).get_indexer(pd.Index(ids)).astype(np.int64)
    if (rows < 0).any():
        raise ArtifactError(
            f"selection.parquet names {int((rows < 0).sum())} images that the pool does not have, first {ids[int(np.argmin(rows))]}; run acquire again"
        )
    return rows


def outcomes(manifest: Manifest | None, labels: Labels | None, predictions: Predictions | None, classes: Sequence[str]) -> pd.DataFrame:
    """What was predicted of the test images of these classes, and what they are."""
    if manifest is None or labels is None or predictions is None:
        return pd.DataFrame({"id": [], "actual": [], "predicted": []})
    frame = splits(manifest).query("split == 'test'")[["id"]].merge(labels.frame.query("label in @classes")[["id", "label"]], on="id")
    frame = frame.merge(predictions.frame[["id", "prediction"]], on="id")
    return frame.rename(columns={"label": "actual", "prediction": "predicted"})


def candidates(facts: Facts) -> pd.Series[str]:
    """Ids of the train images that nobody had answered for when the round was opened."""
    assert facts.manifest is not None and facts.earlier is not None
    frame = splits(facts.manifest).query("split == 'train'")
    return frame.loc[~frame["id"].isin(facts.earlier.frame["id"]), "id"]


@dataclass(frozen=True)
class Change:
    """Accuracy of this round's model less that of the previous round's, on the same test images."""

    value: float
    low: float
    high: float
    gained: int  # images that only the new model gets right
    lost: int  # images that only the old one got right


def change(facts: Facts) -> Change | None:
    """The paired difference with its 95% interval; None unless both models predicted the same test images.

    The interval is Bonett & Price's (2012): Wald's, after one more image won and one more lost.
    """
    new, old = facts.tested, outcomes(facts.manifest, facts.labels, facts.predictions_before, facts.classes)
    both = new.merge(old[["id", "predicted"]], on="id", suffixes=("", "_before"))
    if len(both) == 0 or len(both) != len(new):
        return None
    right, right_before = both["predicted"] == both["actual"], both["predicted_before"] == both["actual"]
    gained, lost, n = int((right & ~right_before).sum()), int((~right & right_before).sum()), len(both)
    up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    reach = 1.959964 * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    return Change((gained - lost) / n, up - down - reach, up - down + reach, gained, lost)

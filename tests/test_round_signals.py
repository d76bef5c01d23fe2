"""Rounds whose methods read what only a trained model can give beside logits: opened, run and picked under DVC."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from tasks import git, rounds
from tasks.artifacts import AcquireReport, Manifest, Selection
from tasks.params import render
from tasks.signals import Signals
from tasks.workspace import Round, Workspace
from tests.conftest import advance, params_for

Doubles = npt.NDArray[np.float64]


def third_round(workspace: Workspace, **changes: object) -> Round:
    """A round behind the two that are closed, with changed params."""
    params = params_for(Path(workspace.params.ingest.source), **{"programme": {"budget": 36}, **changes})
    (workspace.root / "params.yaml").write_text(render(params), "utf-8")
    git.commit(workspace.root, ["params.yaml"], "Change params")
    assert advance(workspace).name == rounds.BUDGET_SPENT
    return workspace.find_round("r003")


def information(probs: Doubles) -> Doubles:
    """(n,) BALD in nats of (passes, n, classes), by its definition."""
    average = probs.mean(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        of_mean, of_each = (-np.nan_to_num(p * np.log(p)).sum(-1) for p in (average, probs))
    result: Doubles = of_mean - of_each.mean(0)
    return result


def test_bald_picks_what_dropout_on_the_embeddings_leaves_in_doubt(finished: Workspace) -> None:
    this = third_round(finished, embed={"workers": 0, "passes": 20, "dropout": 0.3}, acquire={"method": {"name": "bald"}, "budget": 12, "control": 0.25})
    assert this.params.embed.signals == ("embeddings", "mc_probs")
    signals, manifest = (kind.load(this.file(kind.file)) for kind in (Signals, Manifest))
    assert not signals.has("logits")
    draws, head = signals.draws(), signals.head()
    assert draws is not None and head is not None
    assert draws[0].shape == (20, 3, 128)
    scale = draws[0][:, head.weight != 0] / head.weight[head.weight != 0]
    np.testing.assert_allclose(np.unique(scale.round(4)), [0, 1.4286])

    logits = np.einsum("nd,tcd->tnc", signals.array("embeddings").astype(np.float64), draws[0].astype(np.float64)) + draws[1][:, None]
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    scores = information(probs / probs.sum(-1, keepdims=True))
    picks = Selection.load(this.file(Selection.file)).frame
    picked = picks[picks["arm"] == "acquired"]
    place = {image: row for row, image in enumerate(manifest.ids)}
    np.testing.assert_allclose(picked["score"], scores[[place[image] for image in picked["id"]]], atol=1e-5)
    assert picked["score"].min() > 0
    assert AcquireReport.load(this.file(AcquireReport.file)).method["name"] == "bald"
    known = {image for name in ("r001", "r002") for image in Selection.load(finished.find_round(name).path / "selection.parquet").frame["id"]}
    train = manifest.frame.loc[manifest.frame["split"] == "train", "id"]
    left = [place[image] for image in train if image not in known | set(picks["id"])]
    assert max(scores[left]) <= picked["score"].min() + 1e-5

"""The pool in two dimensions: where its images lie for the encoder, which are labelled, and which were picked."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from al_core.seeds import derive, generator
from tasks.report import charts
from tasks.report.facts import Facts, rows_of, splits
from tasks.report.layout import count_images, elsewhere, section
from tasks.report.markup import Html, element

MOST = 2000  # points: t-SNE of these takes a few seconds on one core
MOST_PICKS = 1000
FEWEST = 10  # below, there are no neighbourhoods to keep

Rows = npt.NDArray[np.int64]


def pool_map(facts: Facts) -> Html | None:
    """The train images in the plane; None before embed."""
    heading = "Map of the pool"
    if "embed" not in facts.this.lock:
        return None
    if facts.manifest is None or facts.signals is None or facts.earlier is None or not facts.signals.has("embeddings"):
        return section(heading, lead=elsewhere(facts))
    facts.signals.check(facts.manifest)
    frame = splits(facts.manifest)
    train = np.flatnonzero(frame["split"] == "train")
    chosen = facts.picks if facts.selection is not None else pd.DataFrame({"id": [], "arm": [], "rank": []})
    rows = sample(train, rows_of(facts.manifest, chosen["id"].tolist()), facts.params.seed)
    places = plane(facts.signals.array("embeddings")[rows], facts.params.seed)
    if places is None:
        return section(heading, lead="There is nothing to draw: too few images, or (nearly) all of them have the same embedding.")
    layers = layers_of(frame["id"].iloc[rows].reset_index(drop=True), places, set(facts.earlier.frame["id"]), chosen)
    picks = "the picks" if len(chosen) <= MOST_PICKS else f"the first {MOST_PICKS:,} picks"
    drawn = f"{count_images(len(rows))} of the pool's {len(train):,} train images: {picks}, and others drawn at random"
    part = drawn if len(rows) < len(train) else f"all {len(rows):,} train images"
    lead = f"t-SNE of the embeddings of {part}. Neighbours look alike to the encoder; sizes of groups and distances between them mean nothing."
    legend = charts.legend([(layer.kind, f"{layer.name} ({len(layer.points):,})") for layer in layers])
    return section(heading, element("figure", charts.scatter(layers), legend), lead=lead)


def sample(train: Rows, picks: Rows, seed: int) -> Rows:
    """Rows for the map, ascending: all of a pool of at most MOST; else the first MOST_PICKS picks, and others drawn uniformly.

    Args:
        train: (n,) rows that may be shown, picks among them.
        picks: rows in the order of the picks.
        seed: of the draw.
    """
    if len(train) <= MOST:
        return np.sort(train)
    first, others = picks[:MOST_PICKS], np.setdiff1d(train, picks)
    drawn = generator(seed, "report", "map").choice(others, min(MOST - len(first), len(others)), replace=False)
    return np.sort(np.concatenate([first, drawn]))


def plane(embeddings: npt.NDArray[np.float32], seed: int) -> charts.Points | None:
    """(n, 2) places where images with similar embeddings are neighbours, longer across than up; None where there is nothing to tell apart.

    t-SNE on directions (unit length), begun from the first two principal components: the same embeddings give the same map.
    """
    from sklearn.manifold import TSNE

    directions = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)  # (n, d)
    if directions.shape[1] < 2 or len(np.unique(directions.round(5), axis=0)) < FEWEST:
        return None
    tsne = TSNE(2, perplexity=min(30.0, (len(directions) - 1) / 3), init="pca", max_iter=500, random_state=derive(seed, "report", "t-sne") % 2**32)
    places = np.asarray(tsne.fit_transform(directions), dtype=np.float64)
    centred = places - places.mean(0)
    turned: charts.Points = centred @ np.linalg.svd(centred, full_matrices=False)[2].T  # t-SNE's own axes mean nothing
    return turned


def layers_of(ids: pd.Series[str], places: charts.Points, labelled: set[str], chosen: pd.DataFrame) -> list[charts.Layer]:
    """The map's layers from the lowest to the highest; empty ones left out."""
    arm = ids.map(dict(zip(chosen["id"], chosen["arm"], strict=True)))
    before = ids.isin(labelled).to_numpy()
    titles = {pick["id"]: title(pick) for pick in chosen.to_dict("records")}
    layers = [
        charts.Layer("unlabelled", "unlabelled", places[arm.isna().to_numpy() & ~before]),
        charts.Layer("labelled before this round", "labelled", places[before]),
    ]
    for kind, name in (("acquired", "picked by the method"), ("control", "control arm, drawn at random")):
        mine = (arm == kind).to_numpy()
        layers.append(charts.Layer(name, kind, places[mine], [titles[each] for each in ids[mine]]))
    return [layer for layer in layers if len(layer.points)]


def title(pick: dict[Any, Any]) -> str:
    """What hovering over a pick tells."""
    told = ((f"#{pick['rank']}", "rank"), (f"expected {pick['prediction']}", "prediction"), (f"answer {pick['label']}", "label"))
    return ", ".join(text for text, key in told if pd.notna(pick[key]))

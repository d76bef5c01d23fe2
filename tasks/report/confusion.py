"""What the round's model confuses on the test split, and the recall of each class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tasks.artifacts import Metrics
from tasks.report import charts
from tasks.report.facts import Facts
from tasks.report.layout import class_cell, count_images, elsewhere, percent, section, table
from tasks.report.markup import Child, Html, element, join

MOST = 50  # classes up to which the matrix is drawn
WORST = 20  # rows of a list of the worst

Counts = npt.NDArray[np.int64]
Confused = tuple[str, str, int, float]  # actual, predicted, images, share of the actual class


def confusion(facts: Facts) -> Html | None:
    """The matrix, or the most frequent confusions of very many classes, beside recall by class; None without a test split or a model."""
    title, tested, metrics = "Test split by class", facts.tested, facts.metrics
    if metrics is None or metrics.accuracy is None:
        return None
    if len(tested) == 0:
        return section(title, lead=elsewhere(facts))
    names = facts.classes
    place = {name: row for row, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)), dtype=np.int64)
    np.add.at(counts, (tested["actual"].map(place).to_numpy(), tested["predicted"].map(place).to_numpy()), 1)
    found = worst(counts, names)
    told = [join("; " if rank else " Most often confused: ", in_words(*each)) for rank, each in enumerate(found[:3])]
    lead = join(f"{int(np.trace(counts)):,} of {count_images(len(tested))} right.", told, "." if told else None)
    left = drawn(counts, names) if len(names) <= MOST else listed(found[:WORST])
    beside = "pair" if len(names) <= charts.FEW or len(names) > MOST else None
    return section(title, element("div", left, recall(metrics, names), class_=beside), lead=lead)


def drawn(counts: Counts, names: Sequence[str]) -> Html:
    """The matrix as a figure."""
    caption = "Counts, shaded by their share of the actual class; the framed diagonal is right."
    return element("figure", element("div", charts.matrix(counts, names), class_="wide"), element("figcaption", caption))


def listed(found: Sequence[Confused]) -> Html:
    """Confusions as a table."""
    rows: list[list[Child]] = [[class_cell(actual), class_cell(predicted), f"{images:,}", f"{share:.0%}"] for actual, predicted, images, share in found]
    return element("div", element("h3", f"The {len(rows)} most frequent confusions"), table(["actual", "predicted", ">images", ">of its class"], rows))


def worst(counts: Counts, names: Sequence[str]) -> list[Confused]:
    """Every confusion, the most frequent first; ties by share, then in class order."""
    wrong, total = counts - np.diag(np.diag(counts)), counts.sum(1)
    found = [(names[i], names[j], int(wrong[i, j]), float(wrong[i, j] / total[i])) for i, j in zip(*np.nonzero(wrong), strict=True)]
    return sorted(found, key=lambda each: (-each[2], -each[3]))


def in_words(actual: str, predicted: str, images: int, share: float) -> Html:
    """A confusion in the lead."""
    return join(element("b", actual), " read as ", element("b", predicted), f" ({count_images(images)}, {share:.0%} of its class)")


def recall(metrics: Metrics, classes: Sequence[str]) -> Html:
    """Recall by class with intervals; of more than a few classes the lowest."""
    heading, names = "Recall by class, with 95% interval", [name for name in classes if name in metrics.recall]
    if len(names) > charts.FEW:
        known = {name: estimate.value for name, estimate in metrics.recall.items() if estimate is not None}
        names = sorted((name for name in names if name in known), key=lambda name: known[name])[:WORST]
        heading = f"The {len(names)} classes with the lowest recall, with 95% interval"
    rows: list[list[Child]] = []
    for name in names:
        estimate = metrics.recall[name]
        cells = (charts.whisker(estimate), percent(estimate), f"{estimate.n:,}") if estimate else (None, "not in the test split", "0")
        rows.append([class_cell(name), *cells])
    return element("div", element("h3", heading), table(["class", "0 to 100%", ">recall, %", ">images"], rows, "recall"))

"""Accuracy over labels, across all rounds up to this one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from tasks.report import charts
from tasks.report.facts import Facts, Past
from tasks.report.layout import percent, section, table
from tasks.report.markup import Child, Html, element

NOTE = "Whiskers and brackets are 95% Wilson intervals: how far chance alone, in which images were tested, can move a figure."
STAR = "* of the model before, on images drawn at random, predicted before they were labelled: it had not been trained on them."


def curve(facts: Facts) -> Html | None:
    """The learning curve with intervals, and its numbers; None while nothing is measured."""
    past = facts.past
    test = [charts.Mark(p.metrics.labels, p.metrics.accuracy, p.name, p.pool) for p in past if p.metrics and p.metrics.accuracy]
    control = list(control_marks(past))
    series = [charts.Series("test split", "test", test, joined=True), charts.Series("control arm", "control", control, joined=False)]
    if not test and not control:
        return None
    keys = {
        "test": "test split, this round's model",
        "control": "control arm of the round after: the same model on images drawn at random from what was still unlabelled",
    }
    shown = [each for each in series if each.marks]
    drawn = element("figure", charts.intervals(shown, "train labels the model has seen", "accuracy, %"), charts.legend([(s.kind, keys[s.kind]) for s in shown]))
    numbers = table(["round", "method", ">labels", ">test split, %", ">control arm*, %"], [row(each) for each in past])
    columns = [drawn, element("div", numbers, element("p", STAR, class_="small") if control else None)]
    pools = " Rounds over different pools are not joined: their test splits differ." if len({p.pool for p in past}) > 1 else ""
    return section("Accuracy over labels", element("div", columns, class_="curve"), lead=NOTE + pools)


def control_marks(past: Sequence[Past]) -> Iterator[charts.Mark]:
    """Each control arm's figure at the number of labels that the model it measures had seen: the round before's."""
    for before, this in itertools.pairwise(past):
        if before.metrics and this.metrics and this.metrics.control_accuracy:
            yield charts.Mark(before.metrics.labels, this.metrics.control_accuracy, f"{before.name} on {this.name}'s control arm", this.pool)


def row(past: Past) -> list[Child]:
    """A round in the table."""
    if past.metrics is None:
        return [past.name, past.method, None, None, None]
    return [past.name, past.method, f"{past.metrics.labels:,}", percent(past.metrics.accuracy), percent(past.metrics.control_accuracy)]

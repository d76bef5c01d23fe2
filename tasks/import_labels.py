"""Answers to labels: people's files, or the source's own labels in the part of a labeller."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from al_core.seeds import generator
from tasks.answers import Answer, Checked, check_classes, read, validate
from tasks.artifacts import Answers, ImportReport, Known, Labels, Manifest, PreviousLabels, Rejects, Selection, StartLabels
from tasks.errors import AnswersError, ArtifactError, ParamsError
from tasks.params import ImportLabels
from tasks.progress import say
from tasks.stage import Run, stage
from tasks.wording import counted

ORACLE = "oracle"


@dataclass(frozen=True)
class Imported:
    """What import-labels writes."""

    labels: Labels
    rejects: Rejects
    report: ImportReport


@stage("round", "classes")
def import_labels(
    selection: Selection, manifest: Manifest, previous: PreviousLabels, start: StartLabels, answers: Answers, params: ImportLabels, run: Run
) -> Imported:
    """Check the answers and add them to what is known."""
    before = previous.joined(start)
    classes = check_classes(run.params.classes)
    given = oracle(selection, Known.load(answers.path), classes, params.noise, run) if params.labeller == ORACLE else read(answers)
    checked = validate(given, selection, manifest, before, classes)
    if not checked.enough(params.min_answered):
        raise AnswersError(too_few(checked, params, run.round))
    counts = report(checked, params.labeller)
    say(f"import-labels: {summary(counts)}")
    return Imported(merged(before, checked, selection, run.round), checked.table, counts)


def oracle(selection: Selection, known: Known, classes: Sequence[str], noise: float, run: Run) -> list[Answer]:
    """The source's own labels of the picks, in rank order, a share `noise` of them replaced by another class drawn uniformly.

    Every pick takes its own two draws, whether the source knows it or not, so that no answer depends on another.
    """
    if noise > 0 and len(classes) < 2:
        raise ParamsError(f"import-labels.noise is {noise} but there is only one class, {classes[0]!r}; set it to 0 or name more classes")
    label_of = dict(zip(known.table["id"].to_pylist(), known.table["label"].to_pylist(), strict=True))
    picks: list[str] = selection.table.sort_by("rank")["id"].to_pylist()
    rng = generator(run.seed, run.round, "import-labels", "noise")
    wrong = rng.random(len(picks)) < noise
    steps = rng.integers(1, max(2, len(classes)), len(picks))
    place = {name: row for row, name in enumerate(classes)}
    answers = []
    for rank, image in enumerate(picks):
        label = label_of.get(image)
        if label in place and wrong[rank]:
            label = classes[(place[label] + int(steps[rank])) % len(classes)]
        if label is not None:
            answers.append(Answer(Known.file.split("/")[-1], rank + 1, image, "", label, ORACLE))
    return answers


def merged(previous: Labels, checked: Checked, selection: Selection, round: str) -> Labels:
    """What was known before, and a row for each image that is labelled or skipped now."""
    arm = dict(zip(selection.table["id"].to_pylist(), selection.table["arm"].to_pylist(), strict=True))
    again = set(previous.table["id"].to_pylist()) & set(arm)
    if again:
        raise ArtifactError(f"selection.parquet asks about {len(again)} images that were known before, first {min(again)}; run acquire again")
    rows = [
        {"id": image, "label": checked.labels.get(image), "round": round, "annotator": ", ".join(names), "arm": arm[image]}
        for image, names in checked.annotators.items()
    ]
    return Labels(pa.concat_tables([previous.table, Labels.of(rows).table]).combine_chunks().sort_by("id"))


def report(checked: Checked, labeller: str) -> ImportReport:
    """The answers in numbers; every class is counted, also those that nobody gave."""
    given = Counter(checked.labels.values())
    return ImportReport(
        labeller=labeller,
        batch=len(checked.batch),
        labelled=len(checked.labels),
        skipped=len(checked.skipped),
        unanswered=len(checked.unanswered),
        rejected=dict(Counter(reject.reason for reject in checked.rejects)),
        by_class={name: given[name] for name in checked.classes},
        by_annotator=dict(Counter(name for names in checked.annotators.values() for name in names)),
    )


def summary(report: ImportReport) -> str:
    """`97 of 100 images labelled, 2 skipped, 1 unanswered`, and how many answers were not used."""
    text = f"{report.labelled:,} of {counted(report.batch, 'image')} labelled, {report.skipped:,} skipped, {report.unanswered:,} unanswered"
    unused = ", ".join(f"{count:,} {reason}" for reason, count in sorted(report.rejected.items()))
    return text + (f"; not used, see rejects.parquet: {unused}" if unused else "")


def too_few(checked: Checked, params: ImportLabels, round: str) -> str:
    """Why the round cannot go on, and what to do."""
    wanted = f"import-labels.min_answered is {params.min_answered:g}"
    if params.labeller == ORACLE:
        remedy = "lower it and `rondo open --again`, or have people answer (labeller: files)"
        return f"{checked.summary()}\n{wanted}, and the source has no label among `classes` for the others; {remedy}"
    return f"{checked.summary()}\n{wanted}; answer the others in answers/{round}/, or lower it in rounds/{round}/params.yaml"

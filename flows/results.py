"""What a stage made, as Prefect artifacts: one look at the flow run's page shows it. Keys never change, so that the page of a key shows its history."""

from __future__ import annotations

import base64
import io
import posixpath
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from PIL import Image
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.context import FlowRunContext, TaskRunContext

from flows.addresses import redact
from tasks.artifacts import AcquireReport, Batch, Estimate, ImportReport, IngestReport, Metrics, PretrainCurve, PretrainReport, Quarantine, Rejects, Selection
from tasks.errors import ArtifactError, WorkspaceError
from tasks.signals import Signals
from tasks.workspace import Round

ROWS = 200  # of a table; the page grows slow beyond, and the whole table is in its file
PICTURE_BYTES = 200_000  # before base64, which makes four bytes of three
BARS = "▁▂▃▄▅▆▇█"

Cell = str | int | float | None
Rows = list[dict[str, Cell]]
Item = TypeVar("Item")


def publish(this: Round, stage: str) -> None:
    """Show what a stage of a pool or round has written, from its files.

    Raises:
        WorkspaceError: not inside a Prefect flow or task run, or the stage is unknown.
        ArtifactError: a file is missing; the message names it.
    """
    if FlowRunContext.get() is None and TaskRunContext.get() is None:
        raise WorkspaceError(f"results of {this.name} {stage} can be published inside a Prefect flow or task run only; `rondo cycle` starts one")
    if stage not in PUBLISHERS:
        raise WorkspaceError(f"unknown stage {stage!r}; the stages are {', '.join(PUBLISHERS)}")
    PUBLISHERS[stage](this)


def ingest(this: Round) -> None:
    """What the source gave, and what of it is no image."""
    report = IngestReport.load(this.file(IngestReport.file))
    single = ("found", "reused", "images", "duplicates", "conflicts", "leaks", "gone", "bytes")
    rows: Rows = [{"what": name, "count": getattr(report, name)} for name in single]
    for title, group in (("split", report.splits), ("quarantined", report.quarantined), ("known label", report.known)):
        rows += [{"what": f"{title}: {name}", "count": count} for name, count in sorted(group.items())]
    table("ingest-counts", rows, f"{this.name}: {report.images} images of {report.found} files")
    if report.quarantined:
        bad = Quarantine.load(this.file(Quarantine.file)).table.slice(0, ROWS).to_pylist()
        cells: Rows = [{name: redact(str(value)) for name, value in row.items()} for row in bad]
        table("ingest-quarantine", cells, f"{this.name}: files that are no image of the pool", sum(report.quarantined.values()))


def pretrain(this: Round) -> None:
    """The loss, epoch by epoch."""
    report = PretrainReport.load(this.file(PretrainReport.file))
    lines = PretrainCurve.load(this.file(PretrainCurve.file)).lines
    about = (
        f"{report.method}, {report.encoder} at {report.image_size} px: {report.parameters:,} weights, {report.dim} numbers an image, {report.images:,} images"
    )
    text = [f"## {this.name}: encoder", about]
    if lines:
        shown = thinned(lines, ROWS)
        text += [
            f"loss {lines[0].loss:.4f} `{sparkline([line.loss for line in thinned(lines, 60)])}` {lines[-1].loss:.4f}",
            "| epoch | loss | learning rate |\n|---|---|---|",
        ]
        text[-1] += "".join(f"\n| {line.epoch} | {line.loss:.4f} | {line.learning_rate:.2e} |" for line in shown)
    markdown("pretrain-curve", "\n\n".join(text))


def embed(this: Round) -> None:
    """Which arrays were computed."""
    signals = Signals.load(this.file(Signals.file))
    arrays = {path.stem: np.load(path, mmap_mode="r", allow_pickle=False) for path in sorted(signals.path.glob("*.npy"))}
    rows: Rows = [
        {"signal": name, "shape": " x ".join(map(str, array.shape)), "type": str(array.dtype), "bytes": array.nbytes} for name, array in arrays.items()
    ]
    table(
        "embed-signals",
        rows,
        f"{this.name}: looked at with {posixpath.normpath(f'{this.folder}/{this.params.model}')}; row i of each is image i of the manifest",
    )


def acquire(this: Round) -> None:
    """The picks."""
    report = AcquireReport.load(this.file(AcquireReport.file))
    selection = Selection.load(this.file(Selection.file))
    knobs = ", ".join(f"{key} {value}" for key, value in report.method.items() if key != "name")
    lines = [
        f"## {this.name}: {len(selection)} images to label",
        f"**{report.method['name']}**{f' ({knobs})' if knobs else ''} picked {report.acquired} of {report.unlabelled:,} unlabelled images, "
        f"chance {report.control} (control arm); {report.labelled:,} had a label.",
        f"Score: {report.direction}",
        *[f"- {key}: {value}" for key, value in sorted(report.info.items())],
    ]
    markdown("acquire-summary", "\n\n".join(lines))
    rows: Rows = [{**pick, "id": pick["id"][:12]} for pick in selection.table.slice(0, ROWS).to_pylist()]
    table("acquire-selection", rows, f"{this.name}: picks in order; score: {report.direction}", len(selection))


def export(this: Round) -> None:
    """The contact sheet."""
    path = this.file(Batch.file) / "contact_sheet.png"
    if not path.exists():
        raise ArtifactError(f"{path} is missing; run the stage that writes it, or `dvc pull {this.folder}/batch`")
    with Image.open(path) as sheet:
        address = picture(sheet)
    # an image artifact would show the picture too, and then all of its address as text
    markdown("export-contact-sheet", f"## {this.name}: the batch for the labellers is in {this.folder}/batch\n\n![contact sheet]({address})")


def import_labels(this: Round) -> None:
    """What the answers brought, and those that were refused."""
    report = ImportReport.load(this.file(ImportReport.file))
    rows: Rows = [{"what": name, "count": getattr(report, name)} for name in ("batch", "labelled", "skipped", "unanswered")]
    for title, group in (("rejected", report.rejected), ("class", report.by_class), ("annotator", report.by_annotator)):
        rows += [{"what": f"{title}: {name}", "count": count} for name, count in sorted(group.items())]
    table("import-labels-counts", rows, f"{this.name}: answers by {report.labeller}")
    rejects = Rejects.load(this.file(Rejects.file))
    table("import-labels-rejects", rejects.table.slice(0, ROWS).to_pylist(), f"{this.name}: answers that did not become labels", len(rejects))


METRICS = {"control_accuracy": "previous model on the control arm", "top5": "top-5 accuracy", "nll": "nll (nats)", "ece_uncalibrated": "ece before calibration"}


def retrain(this: Round) -> None:
    """How good the new model is."""
    metrics = Metrics.load(this.file(Metrics.file))
    rows: Rows = [
        *[{"metric": METRICS.get(name, name.replace("_", " ")), **bounds(getattr(metrics, name))} for name in Metrics.estimates()],
        {"metric": "train accuracy", "value": metrics.train_accuracy},
        *[{"metric": f"recall of {name}", **bounds(estimate)} for name, estimate in metrics.recall.items()],
    ]
    accuracy = f"accuracy {metrics.accuracy.value:.3f}" if metrics.accuracy else "no test images"
    table("retrain-metrics", rows, f"{this.name}: {metrics.labels} labels, {accuracy}")


PUBLISHERS: Mapping[str, Callable[[Round], None]] = {
    "ingest": ingest,
    "pretrain": pretrain,
    "embed": embed,
    "acquire": acquire,
    "export": export,
    "import-labels": import_labels,
    "retrain": retrain,
}


# ---- forms -----------------------------------------------------------------------------------------------------------------


def table(key: str, rows: Rows, description: str, total: int | None = None) -> None:
    """A table of at most ROWS rows; the description says how many there are where that is not all."""
    total = len(rows) if total is None else total
    more = f" (the first {ROWS} of {total:,})" if total > ROWS else ""
    create_table_artifact(rows[:ROWS], key=key, description=description + more)


def markdown(key: str, text: str) -> None:
    """A text with headings."""
    create_markdown_artifact(text, key=key)


def bounds(estimate: Estimate | None) -> dict[str, Cell]:
    """A figure with its interval, rounded for the eye; nothing where it could not be measured."""
    return {name: round(value, 4) for name, value in estimate.model_dump().items()} if estimate else {"value": None}


def sparkline(values: Sequence[float]) -> str:
    """One bar a value, the lowest low and the highest high."""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return "".join(BARS[int((value - low) / span * (len(BARS) - 1))] for value in values)


def thinned(items: Sequence[Item], most: int) -> list[Item]:
    """At most `most` of the items, evenly spaced, first and last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def picture(image: Image.Image, limit: int = PICTURE_BYTES) -> str:
    """The image as a `data:` address, made smaller until it takes at most `limit` bytes (before base64)."""
    image = image.convert("RGB")
    image.thumbnail((1600, 1600))
    data = jpeg(image)
    while len(data) > limit:
        image = image.resize((max(1, image.width * 3 // 4), max(1, image.height * 3 // 4)))
        data = jpeg(image)
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


def jpeg(image: Image.Image) -> bytes:
    """The image's file."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()

"""The batch: what labellers get, in the order of the picks, for Label Studio, for a spreadsheet and for the eye.

Labelling is blind: the same picks give the same batch whichever arm they are in. Arm, score and reason are in selection.parquet alone, and join by
image id. What the model expects is shown only where `export.suggestions` asks for it, then for both arms alike: people follow suggestions, and the
control arm's answers judge the model.
"""

from __future__ import annotations

import csv
import io
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import pyarrow.compute as pc

from tasks.answers import CONTROL, SKIP, check_classes
from tasks.artifacts import Batch, Manifest, Selection, Shards
from tasks.contact_sheet import contact_sheet
from tasks.errors import ArtifactError
from tasks.images import SUFFIXES, Images
from tasks.params import Export
from tasks.progress import say
from tasks.spreadsheets import guard
from tasks.stage import Run, stage
from tasks.wording import counted

IMAGE = "image"  # name of the picture in Label Studio's configuration and key of its address in a task
SHEET = 200  # most thumbnails on the contact sheet
INLINE = 20  # most classes shown as buttons; more become a list to choose from


@dataclass(frozen=True)
class Pick:
    """One image of the batch, with what labellers may see of it."""

    rank: int
    row: int  # in the manifest
    id: str
    uri: str
    format: str
    prediction: str | None  # None without a model or a wish for suggestions, and where people are not asked about the class
    confidence: float | None


@stage("round", "classes", "model")
def export(selection: Selection, manifest: Manifest, shards: Shards, params: Export, run: Run) -> Batch:
    """Write the picks as tasks for the labellers."""
    classes = check_classes(run.params.classes)
    picks = picks_of(selection, manifest, classes if params.suggestions else ())
    images = Images(manifest, shards.path)
    folder = run.scratch / "batch"
    folder.mkdir()
    write(folder / "tasks.json", json.dumps(tasks(picks, params.url_prefix, run), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")
    write(folder / "labeling_config.xml", labeling_config(classes))
    write(folder / "batch.csv", "\ufeff" + batch_csv(picks, run.round))  # the mark makes spreadsheets read UTF-8
    write(folder / "README.txt", readme(run.round, classes, images=params.images))
    title = f"{run.round}: {f'the first {SHEET} of ' if len(picks) > SHEET else ''}{len(picks)} images to label, by rank"
    sheet = contact_sheet(((images[pick.row], str(pick.rank)) for pick in picks[:SHEET]), params.columns, title)
    sheet.save(folder / "contact_sheet.png", compress_type=zlib.Z_RLE)  # no search for matches, whose outcome may differ between processors
    if params.images:
        (folder / "images").mkdir()
        for pick in picks:
            (folder / "images" / f"{pick.id}.{SUFFIXES[pick.format]}").write_bytes(images.bytes_of(pick.row))
    say(f"export: {counted(len(picks), 'image')} to label, in batch/")
    return Batch(folder)


def picks_of(selection: Selection, manifest: Manifest, suggested: Sequence[str]) -> list[Pick]:
    """The picks in rank order, with what the manifest knows of them, and predictions of the classes that may be suggested."""
    chosen = selection.table.sort_by("rank")
    rows = pc.index_in(chosen["id"], value_set=manifest.table["id"].combine_chunks())
    if rows.null_count:
        strangers = chosen.filter(pc.is_null(rows))["id"].to_pylist()
        raise ArtifactError(f"selection.parquet names {len(strangers)} images that the pool does not have, first {strangers[0]}; run acquire again")
    places = manifest.table.select(["uri", "format"]).take(rows).to_pylist()
    return [
        Pick(pick["rank"], row, pick["id"], place["uri"], place["format"], *suggestion(pick, suggested))
        for pick, row, place in zip(chosen.to_pylist(), rows.to_pylist(), places, strict=True)
    ]


def suggestion(pick: Mapping[str, Any], suggested: Sequence[str]) -> tuple[str | None, float | None]:
    """Prediction and confidence as labellers may see them."""
    return (pick["prediction"], pick["confidence"]) if pick["prediction"] in suggested else (None, None)


def tasks(picks: Sequence[Pick], url_prefix: str, run: Run) -> list[dict[str, object]]:
    """Tasks for Label Studio's import; the keys in `data` come back with its export."""
    model = Path(run.params.model).parent.name
    return [
        {
            "data": {IMAGE: address(url_prefix, pick.uri), "image_id": pick.id, "uri": pick.uri, "al_round": run.round, "al_rank": pick.rank},
            "predictions": [] if pick.prediction is None else [prediction(pick.prediction, pick.confidence, model)],
        }
        for pick in picks
    ]


def prediction(label: str, confidence: float | None, model: str) -> dict[str, object]:
    """A suggestion in Label Studio's form; its score is the model's confidence, 0 to 1."""
    result = {"from_name": CONTROL, "to_name": IMAGE, "type": "choices", "value": {"choices": [label]}}
    return {"model_version": model, "score": confidence, "result": [result]}


def address(prefix: str, uri: str) -> str:
    """Where the labelling tool finds the image; what follows a web address is percent-encoded, what follows another prefix is not."""
    return prefix + (quote(uri) if prefix.startswith(("http://", "https://", "/")) else uri)


def labeling_config(classes: Sequence[str]) -> str:
    """Label Studio's interface: the image, and one of the classes to choose."""
    layout = 'showInline="true"' if len(classes) <= INLINE else 'layout="select"'
    lines = [f"    <Choice value={quoteattr(name)}/>" for name in classes]
    return "\n".join(
        [
            "<View>",
            f'  <Image name="{IMAGE}" value="${IMAGE}" zoom="true" zoomControl="true"/>',
            f'  <Choices name="{CONTROL}" toName="{IMAGE}" choice="single" required="true" {layout}>',
            *lines,
            "  </Choices>",
            "</View>",
            "",
        ]
    )


def batch_csv(picks: Sequence[Pick], round: str) -> str:
    """One row a pick with an empty `label` to fill in; `score` is the model's confidence in its prediction, 0 to 1."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image_id", "uri", "al_round", "al_rank", "prediction", "score", CONTROL])
    for pick in picks:
        score = "" if pick.confidence is None else f"{pick.confidence:.4f}"
        writer.writerow([pick.id, guard(pick.uri), round, pick.rank, guard(pick.prediction or ""), score, ""])
    return text.getvalue()


def readme(round: str, classes: Sequence[str], *, images: bool) -> str:
    """What to do with the batch, in a few lines."""
    look = "images/<image_id> and contact_sheet.png (its numbers are al_rank)" if images else "contact_sheet.png (its numbers are al_rank)"
    return f"""\
Round {round}: choose one class for every image. The classes: {", ".join(classes)}

With Label Studio: new project, paste labeling_config.xml as its interface, import tasks.json; export as JSON (JSON-MIN leaves skipped images out).
With a spreadsheet: fill in the column `label` of batch.csv and save it as CSV in UTF-8. Images: {look}.
With a program: a line {{"image_id": "...", "label": "..."}} for each image in a .jsonl file, with "annotator" if wanted.
An image that cannot be labelled: skip it in Label Studio, or write {SKIP} as its label. An empty label means: not answered yet.
Classes are taken as they are spelt above, capitals and spaces too. Suggestions of the model may be wrong, and some images have none.

Put the files (.csv, .jsonl, .json, several if several people worked) into answers/{round}/ of the workspace; then `rondo cycle` goes on.
`image` in tasks.json is export.url_prefix of params.yaml followed by the uri; Label Studio must be able to open that address.
"""


def write(path: Path, text: str) -> None:
    """Text in UTF-8 with the same line ends on every system."""
    path.write_text(text, encoding="utf-8", newline="\n")

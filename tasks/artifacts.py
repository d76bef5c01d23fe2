"""The files between stages: one class a file, which knows its path, its schema, and how to load and save itself.

Same content gives the same bytes: no times, fixed compression, fixed order of rows and keys, no pickle. Paths are relative to the folder
of the `dvc.yaml` that runs the stage; `${...}` names come from the `params.yaml` beside it, in DVC's own templating.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from tasks.errors import ArtifactError


class Artifact:
    """What a stage reads or writes; subclasses say where it lies and how it is stored."""

    file: ClassVar[str]
    kind: ClassVar[Literal["outs", "metrics", "plots"]] = "outs"
    in_git: ClassVar[bool] = False  # small and read by people: git holds it; else DVC's cache does

    @classmethod
    def load(cls, path: Path) -> Self:
        raise NotImplementedError(cls)

    def save(self, path: Path) -> None:
        raise NotImplementedError(type(self))


# ---- tables --------------------------------------------------------------------------------------------------------------


def column(name: str, kind: pa.DataType, meaning: str, *, null: bool = False) -> pa.Field:
    """One column of a schema; `meaning` (unit, range, direction) travels in the file's field metadata."""
    return pa.field(name, kind, nullable=null, metadata={"meaning": meaning})


class Table(Artifact):
    """Rows of one schema, stored as Parquet, sorted by `key`."""

    schema: ClassVar[pa.Schema]
    key: ClassVar[Sequence[str]] = ("id",)

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    @classmethod
    def of(cls, columns: Mapping[str, Any] | pd.DataFrame | Sequence[Mapping[str, Any]]) -> Self:
        """The artifact from columns, a frame or a list of rows: cast to the schema and sorted by the key."""
        if isinstance(columns, pd.DataFrame):
            table = pa.Table.from_pandas(columns[cls.schema.names], schema=cls.schema, preserve_index=False)
        elif isinstance(columns, Mapping):
            table = pa.table({name: columns[name] for name in cls.schema.names}, schema=cls.schema)
        else:
            table = pa.Table.from_pylist(list(columns), schema=cls.schema)
        table = table.replace_schema_metadata(None).sort_by([(name, "ascending") for name in cls.key])
        return cls(table.cast(cls.schema))

    @property
    def frame(self) -> pd.DataFrame:
        """The rows as a new pandas frame, in the file's order."""
        frame: pd.DataFrame = self.table.to_pandas()
        return frame

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @classmethod
    def load(cls, path: Path) -> Self:
        try:
            table = pq.read_table(path)
        except FileNotFoundError as error:
            raise ArtifactError(f"{path} is missing; run the stage that writes it, or `dvc pull {path}`") from error
        except (pa.ArrowException, OSError) as error:
            raise ArtifactError(f"{path} is not a readable Parquet file ({error}); restore it with `dvc checkout {path}`") from error
        for field in cls.schema:
            if field.name not in table.schema.names:
                raise ArtifactError(f"{path} has no column {field.name!r}; it has {table.schema.names}; restore it with `dvc checkout`")
            found = table.schema.field(field.name).type
            if found != field.type:
                raise ArtifactError(f"{path}: column {field.name!r} is {found}, expected {field.type}; restore it with `dvc checkout`")
        return cls(table.select(cls.schema.names).cast(cls.schema))

    def save(self, path: Path) -> None:
        pq.write_table(self.table, path, compression="zstd", compression_level=3, store_schema=True, write_statistics=False)


ID = column("id", pa.string(), "image id: sha256 of the file's bytes, 64 hexadecimal digits")


class Manifest(Table):
    """Every readable image of a pool, once."""

    file = "${pool}/manifest.parquet"
    schema = pa.schema(
        [
            ID,
            column("uri", pa.string(), "where the source has it; the first in sorted order if it is there several times"),
            column("uris", pa.list_(pa.string()), "every place the source has these bytes, sorted"),
            column("split", pa.string(), "train | validation | test; only train images are ever acquired"),
            column("shard", pa.string(), "file name of the tar in shards/"),
            column("offset", pa.int64(), "byte at which the image's data starts in the shard"),
            column("length", pa.int64(), "bytes of the image file"),
            column("width", pa.int32(), "pixels"),
            column("height", pa.int32(), "pixels"),
            column("format", pa.string(), "image format found by content, such as JPEG or PNG"),
        ]
    )

    @property
    def ids(self) -> npt.NDArray[np.str_]:
        """(n,) ids in manifest order: ascending, and the row order of every array in signals/."""
        return np.asarray(self.table["id"].to_pylist(), dtype=np.str_)


class Known(Table):
    """What the source itself says about its images; the oracle answers from it."""

    file = "${pool}/known.parquet"
    schema = pa.schema([ID, column("label", pa.string(), "class name; images whose copies disagree are left out")])


class Quarantine(Table):
    """Files of the source that are no image of the pool, and why."""

    file = "${pool}/quarantine.parquet"
    key = ("uri",)
    schema = pa.schema(
        [
            column("uri", pa.string(), "where the source has it"),
            column("reason", pa.string(), "truncated | not-an-image | too-large | vanished | unreadable | empty"),
            column("detail", pa.string(), "what was seen"),
        ]
    )


class Labels(Table):
    """All that is known after a round: one row an image."""

    file = "${here}/labels.parquet"
    schema = pa.schema(
        [
            ID,
            column("label", pa.string(), "class name; null where people said that it cannot be labelled", null=True),
            column("round", pa.string(), "round (r001) that brought the answer, or pool (p001) whose source carried it"),
            column("annotator", pa.string(), "who answered, several who agree joined by commas; 'source' for labels that came with the images"),
            column("arm", pa.string(), "acquired | control | source"),
        ]
    )

    def joined(self, start: StartLabels) -> Labels:
        """These rows, and those of `start` about images that these say nothing of: what the source of a newer pool carries."""
        new = start.table.filter(pc.invert(pc.is_in(start.table["id"], value_set=self.table["id"].combine_chunks())))
        return Labels(pa.concat_tables([self.table, new]).combine_chunks().sort_by("id"))


class PreviousLabels(Labels):
    """What was known before this round: the previous round's labels, or what the pool's source carried."""

    file = "${previous}/labels.parquet"


class StartLabels(Labels):
    """What is known before the first round of a pool: test and validation labels, and train labels that the user keeps."""

    file = "${pool}/labels.parquet"


class Selection(Table):
    """The ordered picks of a round."""

    file = "${here}/selection.parquet"
    key = ("rank",)
    schema = pa.schema(
        [
            column("rank", pa.int32(), "order of the picks, from 0, each arm in its own order and the control arm spread evenly among the other"),
            ID,
            column("score", pa.float64(), "the method's score at the moment of the pick; its direction is in acquire.json; null in the control arm", null=True),
            column("arm", pa.string(), "acquired: the method's picks | control: drawn uniformly at random"),
            column("reason", pa.string(), "why this image, in words"),
            column("prediction", pa.string(), "class the model in use expects; null without a model", null=True),
            column("confidence", pa.float64(), "softmax probability of that class, 0 to 1; null without a model", null=True),
        ]
    )


class Rejects(Table):
    """Answers that did not become labels."""

    file = "${here}/rejects.parquet"
    key = ("source", "line", "id")
    schema = pa.schema(
        [
            column("source", pa.string(), "file in the answers folder"),
            column("line", pa.int64(), "line of the file, or position in its list, from 1"),
            column("id", pa.string(), "image id or uri as answered"),
            column("answer", pa.string(), "the answer as given", null=True),
            column("annotator", pa.string(), "who answered"),
            column("reason", pa.string(), "unknown-id | not-in-batch | unknown-class | duplicate | conflict | no-answer"),
        ]
    )


class Predictions(Table):
    """What the new model expects of every image of the pool."""

    file = "${here}/predictions.parquet"
    schema = pa.schema(
        [
            ID,
            column("prediction", pa.string(), "most probable class"),
            column("confidence", pa.float32(), "its softmax probability, 0 to 1; higher = surer"),
            column("margin", pa.float32(), "gap to the second class, 0 to 1; lower = less sure"),
        ]
    )


# ---- small records that people read ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def reading(path: Path, kind: type[Artifact]) -> Iterator[None]:
    """Raise what goes wrong in reading a text that git holds as an ArtifactError."""
    try:
        yield
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing; run the stage that writes it") from error
    except (ValidationError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is not a {kind.__name__}: {error}; restore it with `git checkout {path}`") from error


class Record(Artifact, BaseModel):
    """A small JSON file with sorted keys, held by git."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    in_git: ClassVar[bool] = True

    @classmethod
    def load(cls, path: Path) -> Self:
        with reading(path, cls):
            return cls.model_validate_json(path.read_text("utf-8"))

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(self.model_dump(mode="json"), indent=2, sort_keys=True, allow_nan=False) + "\n", "utf-8")


class IngestReport(Record):
    """Counts of one ingest."""

    file: ClassVar[str] = "${pool}/ingest.json"
    found: int  # files listed in the source
    reused: int  # of these, taken over from the previous pool without reading
    images: int  # distinct readable images
    duplicates: int  # files beyond the first with the same bytes: found = images + duplicates + all quarantined
    quarantined: dict[str, int]  # by reason
    splits: dict[str, int]  # images by split
    known: dict[str, int]  # source labels by class
    conflicts: int  # images whose copies carry different labels; they count as unlabelled
    leaks: int  # images that the source has in several splits; test wins over validation, validation over train
    gone: int  # images of the previous pool that the source no longer has
    bytes: int  # of all images


class PretrainReport(Record):
    """The encoder in words and numbers."""

    file: ClassVar[str] = "${pool}/encoder.json"
    method: str
    encoder: str
    stem: str
    weights: str | None  # that it began with: sha256 of the file, or of the encoder with what timm gave; null: random
    image_size: int
    dim: int  # length of an embedding
    parameters: int
    epochs: int
    images: int
    first_loss: float | None  # mean of the first epoch; null without training
    last_loss: float | None


class AcquireReport(Record):
    """How the picks were made."""

    file: ClassVar[str] = "${here}/acquire.json"
    method: dict[str, Any]  # name and parameters, all explicit
    direction: str  # what the score means and which way it points
    budget: int
    acquired: int
    control: int
    unlabelled: int  # images that could have been picked
    labelled: int
    info: dict[str, Any]  # what the method says of its own run


class ImportReport(Record):
    """What the answers brought."""

    file: ClassVar[str] = "${here}/import.json"
    labeller: str
    batch: int  # images asked about
    labelled: int
    skipped: int  # people said: cannot be labelled
    unanswered: int
    rejected: dict[str, int]  # rows by reason
    by_class: dict[str, int]
    by_annotator: dict[str, int]


class Estimate(BaseModel):
    """A figure with its 95% interval: Wilson's of a proportion, else the bootstrap's."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    value: float
    low: float
    high: float
    n: int


class Metrics(Record):
    """How good the round's model is."""

    file: ClassVar[str] = "${here}/metrics.json"
    kind: ClassVar[Literal["outs", "metrics", "plots"]] = "metrics"
    labels: int  # train labels the model saw
    accuracy: Estimate | None  # of this round's model on the test split; null without one
    control_accuracy: Estimate | None  # of the previous model on this round's control arm, predicted before its labels were known
    top5: Estimate | None = None  # share of the test split whose class is among the 5 most probable; null up to 5 classes
    balanced_accuracy: Estimate | None = None  # mean recall over classes, on the test split
    macro_f1: Estimate | None = None  # mean F1 over classes, on the test split
    auc: Estimate | None = None  # area under the ROC curve on the test split; null but for two classes, both in it
    nll: Estimate | None  # mean negative log-likelihood on the test split, nats; lower is better
    brier: Estimate | None = None  # Brier score on the test split, 0 to 2; lower is better
    ece: Estimate | None  # expected calibration error on the test split, 15 equal bins, 0 to 1; lower is better
    ece_uncalibrated: Estimate | None = None  # the same before temperature scaling
    temperature: float | None = None  # that labels held out of training asked for; null where there were none: nothing is scaled
    l2: float | None = None  # strength of the ridge, as chosen or given; null where the head is no logistic regression
    recall: dict[str, Estimate | None]  # per class on the test split; null where the test split has none of it
    train_accuracy: float

    @classmethod
    def estimates(cls) -> list[str]:
        """Names of the figures that have an interval."""
        return [name for name, field in cls.model_fields.items() if field.annotation == Estimate | None]


class Line(BaseModel):
    """One line of a curve."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    epoch: int  # from 1
    loss: float
    learning_rate: float
    spread: float  # of the embeddings' directions: 1 as different as can be, 0 all alike
    rank: float  # effective rank of the embeddings, 1 to their length
    head_spread: float  # spread of what the method compares, behind its head
    probe: float | None  # share of labelled images whose nearest neighbours vote for their label, 0 to 1; null without labels

    def text(self) -> str:
        """As it stands in the file."""
        return json.dumps(self.model_dump(), sort_keys=True) + "\n"


class PretrainCurve(Artifact):
    """Loss and health over epochs of the self-supervised training, one JSON object a line."""

    file = "${pool}/pretrain.jsonl"
    in_git = True

    def __init__(self, lines: Sequence[Line]) -> None:
        self.lines = list(lines)

    @classmethod
    def load(cls, path: Path) -> Self:
        with reading(path, cls):
            return cls([Line.model_validate_json(line) for line in path.read_text("utf-8").splitlines()])

    def save(self, path: Path) -> None:
        path.write_text("".join(line.text() for line in self.lines), "utf-8")


# ---- folders and large arrays --------------------------------------------------------------------------------------------


class Folder(Artifact):
    """Files too large to hold: the artifact is where they lie. `save` moves them, since stages build them in their scratch folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def load(cls, path: Path) -> Self:
        if not path.exists():
            raise ArtifactError(f"{path} is missing; run the stage that writes it, or `dvc pull {path}`")
        return cls(path)

    def save(self, path: Path) -> None:
        if path != self.path:
            self.path.replace(path)


class Shards(Folder):
    """The bytes of the pool's images in tar files; `tasks.images` reads them through the manifest."""

    file = "${pool}/shards"


class Batch(Folder):
    """What the labellers get."""

    file = "${here}/batch"


class Plots(Folder):
    """CSV files for `dvc plots`: `confusion.csv`, a row an image of the test split with its actual and its predicted class."""

    file = "${here}/plots"
    kind = "plots"


class Answers(Folder):
    """What the labellers returned: a folder of files as they came, or for the oracle the source's own labels."""

    file = "${answers}"

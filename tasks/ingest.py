"""The first stage of a pool: every file of the source verified, each distinct image once in the shards, everything else in quarantine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from tasks.artifacts import IngestReport, Known, Manifest, Quarantine, Shards, StartLabels
from tasks.errors import SourceError
from tasks.images import SUFFIXES
from tasks.pack import Pack, make
from tasks.params import Ingest, Params
from tasks.progress import progress, say
from tasks.reading import Bad, read_all
from tasks.shards import TarWriter, bring, next_number
from tasks.sources import Entry, Reader, Source, open_source
from tasks.stage import Run, stage

ORDER = ("test", "validation", "train")  # of copies in several splits, the first wins: what is tested on is never trained on


@dataclass(frozen=True)
class Ingested:
    """A pool's images and what its source says about them."""

    manifest: Manifest
    shards: Shards
    known: Known
    labels: StartLabels
    quarantine: Quarantine
    report: IngestReport
    pack: Pack


@stage("round", "previous")
def ingest(params: Ingest, run: Run) -> Ingested:
    """Turn the source into a pool: verified, distinct images in tar shards, with a manifest.

    A file that the pool before has under the same uri with the same size is taken over without reading it: once ingested, files of a source
    count as immutable. That holds while `ingest.source` is the same; of another source every file is read, and bytes known already are still
    stored once. Relative paths in the params are relative to the working directory, which DVC makes the folder of the `params.yaml`.

    Raises:
        SourceError: the source cannot be listed, or no file of it is a readable image.
        ArtifactError: the pool before is incomplete.
    """
    source = open_source(params.source, Path(), run.scratch / "source")
    previous = Previous.of(run.params)
    kept = previous.take_over(source, params)
    say(
        f"ingest: {len(source.entries):,} files listed, {len(kept):,} of them as in the pool before, {len(source.entries) - len(kept):,} to read"
        + (f" ({source.passed_over:,} files of other kinds passed over)" if source.passed_over else "")
    )
    shards = run.scratch / "shards"
    shards.mkdir()
    ids: list[str | None] = [kept.get(entry.uri) for entry in source.entries]
    unread = [place for place, image_id in enumerate(ids) if image_id is None]
    placed: dict[str, Placed] = {}
    bad = [Bad(uri, "unreadable", why) for uri, why in source.unlisted]
    with (
        TarWriter(shards, run.round, previous.count(run.round), params.shard_megabytes * 10**6) as writer,
        closing(read_all(source.reader, [source.entries[place].uri for place in unread], params.max_pixels, params.workers)) as results,
    ):
        for place, (seen, data) in zip(unread, progress(results, len(unread), "ingest: files"), strict=True):
            if isinstance(seen, Bad):
                bad.append(seen)
                continue
            ids[place] = seen.id
            if seen.id not in placed and seen.id not in previous.rows:
                placed[seen.id] = Placed(seen.id, *writer.add(f"{seen.id}.{SUFFIXES[seen.format]}", data), len(data), seen.width, seen.height, seen.format)
    if not any(ids):
        raise SourceError(f"none of the {len(bad)} files of {source.name!r} is a readable image:\n" + "\n".join(f"  {each}" for each in bad[:5]))
    return assemble(source, Found(ids, list(placed.values()), bad, len(kept)), previous, shards, params, run)


# ---- shards ----------------------------------------------------------------------------------------------------------------------


class Placed(NamedTuple):
    """An image and where it lies."""

    id: str
    shard: str
    offset: int
    length: int
    width: int
    height: int
    format: str


# ---- the pool before -------------------------------------------------------------------------------------------------------------


class Previous:
    """The pool before, or nothing where this is the first."""

    def __init__(self, table: pa.Table, shards: Path | None = None, source: str | None = None, pack: Pack | None = None) -> None:
        self.table, self.shards, self.source, self.pack = table, shards, source, pack
        self.rows: dict[str, int] = {image_id: row for row, image_id in enumerate(table["id"].to_pylist())}

    @classmethod
    def of(cls, params: Params) -> Previous:
        """The pool that the params name; one that names itself, or none, is the first.

        Raises:
            ArtifactError: the pool is named but its manifest, shards or pack are not there.
        """
        if params.previous is None or Path(params.previous).resolve() == Path(params.pool).resolve():
            return cls(Manifest.schema.empty_table())
        folder = Path(params.previous)
        manifest = Manifest.load(folder / "manifest.parquet")
        try:
            source = yaml.safe_load((folder / "params.yaml").read_text("utf-8"))["ingest"]["source"]
        except (OSError, KeyError, TypeError, yaml.YAMLError):
            source = None  # then uris cannot be trusted to mean the same files
        return cls(manifest.table, Shards.load(folder / "shards").path, source, Pack.load(folder / "pack"))

    def take_over(self, source: Source, params: Ingest) -> dict[str, str]:
        """Ids by uri of the files that need not be read: same source, same uri, same size."""
        if self.source != params.source or not len(self.table):
            return {}
        small = np.asarray(self.table["width"]).astype(np.int64) * np.asarray(self.table["height"]) <= params.max_pixels
        sizes = {
            uri: (image_id, length)
            for image_id, uris, length, fits in zip(*(self.table[key].to_pylist() for key in ("id", "uris", "length")), small, strict=True)
            for uri in uris
            if fits
        }
        kept = {}
        for entry in source.entries:
            image_id, length = sizes.get(entry.uri, ("", -1))
            if image_id and size_now(source.reader, entry) == length:
                kept[entry.uri] = image_id
        return kept

    def count(self, prefix: str) -> int:
        """The number after the last shard of that prefix."""
        return next_number(self.table["shard"].unique().to_pylist(), prefix)

    def places(self, ids: npt.NDArray[np.str_]) -> pa.Table:
        """Where those of the images lie that this pool has."""
        rows = [self.rows[image_id] for image_id in ids.tolist() if image_id in self.rows]
        return self.table.select(Placed._fields).take(np.array(rows, dtype=np.int64))

    def trained(self, ids: npt.NDArray[np.str_]) -> npt.NDArray[np.bool_]:
        """(n,) whether each of the images was for training here; its label may have been bought since, and a model may have learned from it."""
        train = set(self.table.filter(pc.equal(self.table["split"], "train"))["id"].to_pylist())
        return np.array([image_id in train for image_id in ids.tolist()], dtype=np.bool_)


def size_now(reader: Reader, entry: Entry) -> int | None:
    """Bytes of the file; None where it cannot be told."""
    try:
        return reader.size(entry.uri)
    except OSError:
        return None


# ---- tables ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """What became of the source's files."""

    ids: Sequence[str | None]  # by file, as the source's entries; None: in quarantine
    placed: Sequence[Placed]  # images that the pool before did not have
    bad: Sequence[Bad]
    reused: int  # files that were not read


def assemble(source: Source, found: Found, previous: Previous, shards: Path, params: Ingest, run: Run) -> Ingested:
    """The pool's tables, in `shards` the shards that it shares with the pool before, and its pack."""
    files = [(image_id, entry) for image_id, entry in zip(found.ids, source.entries, strict=True) if image_id is not None]
    files.sort(key=lambda file: file[0])  # stable: within an image the uris stay sorted
    every = np.array([image_id for image_id, _ in files], dtype="S64")
    starts = np.flatnonzero(np.r_[True, every[1:] != every[:-1]])  # each image's first file
    ids = every[starts].astype(np.str_)

    splits, leaks = resolve_splits([entry.split for _, entry in files], starts)
    labels, conflicts = resolve_labels([entry.label for _, entry in files], starts)
    known = pd.notna(labels)
    if not source.has_test:
        splits[known & (splits == "train") & (shares(ids) < params.test) & ~previous.trained(ids)] = "test"
    given = known & ((splits != "train") | (params.labels == "keep"))

    old = previous.places(ids)
    if previous.shards is not None:
        bring(old, previous.shards, shards)
    places = pa.concat_tables([old, pa.Table.from_pylist([each._asdict() for each in found.placed], schema=old.schema)]).sort_by("id")
    assert places["id"].to_pylist() == ids.tolist(), "each image lies in one place"
    uris = pa.array([entry.uri for _, entry in files], pa.string())
    grouped = pa.ListArray.from_arrays(pa.array(np.r_[starts, len(files)], pa.int32()), uris)
    report = IngestReport(
        found=len(found.ids) + len(source.unlisted),
        reused=found.reused,
        images=len(ids),
        duplicates=len(files) - len(ids),
        quarantined=Counter(each.reason for each in found.bad),
        splits=Counter(splits.tolist()),
        known=Counter(labels[known].tolist()),
        conflicts=conflicts,
        leaks=leaks,
        gone=len(previous.rows) - len(old),
        bytes=int(np.asarray(places["length"]).sum()),
    )
    say(f"ingest: {summary(report)}")
    start = pd.DataFrame({"id": ids[given], "label": labels[given], "round": run.round, "annotator": "source", "arm": "source"})
    manifest = Manifest.of({**{key: places[key] for key in Placed._fields}, "uri": uris.take(starts), "uris": grouped, "split": splits})
    most_bytes = params.shard_megabytes * 10**6
    pack = make(run.scratch / "pack", params.cache, manifest, Shards(shards), previous.pack, pool=run.round, most_bytes=most_bytes, workers=params.workers)
    return Ingested(
        manifest,
        Shards(shards),
        Known.of({"id": ids[known], "label": labels[known]}),
        StartLabels.of(start),
        Quarantine.of([each._asdict() for each in found.bad]),
        report,
        pack,
    )


def resolve_splits(splits: Sequence[str | None], starts: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.object_], int]:
    """The split of each image whose files begin at `starts`, and how many have files in several."""
    codes = np.array([ORDER.index(split or "train") for split in splits])
    first, last = np.minimum.reduceat(codes, starts), np.maximum.reduceat(codes, starts)
    return np.array(ORDER, dtype=object)[first], int((first != last).sum())


def resolve_labels(labels: Sequence[str | None], starts: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.object_], int]:
    """The label of each image whose files begin at `starts`, None where there is none or they disagree, and how many disagree."""
    classes = sorted({label for label in labels if label is not None})
    code = {label: place for place, label in enumerate(classes)}
    none = len(classes)
    low = np.minimum.reduceat(np.array([none if label is None else code[label] for label in labels]), starts)
    high = np.maximum.reduceat(np.array([-1 if label is None else code[label] for label in labels]), starts)
    agreed = np.where(low == high, low, none)
    return np.array([*classes, None], dtype=object)[agreed], int((low < high).sum())


def shares(ids: npt.NDArray[np.str_]) -> npt.NDArray[np.float64]:
    """(n,) a number in [0, 1) for each image, from its id alone: an image stays on its side of a threshold while the pool grows."""
    return np.array([int(image_id[:8], 16) for image_id in ids.tolist()], dtype=np.float64) / 2**32


def summary(report: IngestReport) -> str:
    """`1,797 images (train 1,440, test 357), 3 files in quarantine (truncated 2, empty 1)`."""

    def counts(numbers: dict[str, int]) -> str:
        return ", ".join(f"{name} {number:,}" for name, number in sorted(numbers.items(), key=lambda item: (-item[1], item[0])))

    parts = [f"{report.images:,} images ({counts(report.splits)})", f"{report.duplicates:,} duplicates"]
    if report.quarantined:
        parts.append(f"{sum(report.quarantined.values()):,} files in quarantine ({counts(report.quarantined)})")
    parts += [
        f"{number:,} {what}"
        for number, what in ((report.conflicts, "conflicting labels"), (report.leaks, "in several splits"), (report.gone, "gone"))
        if number
    ]
    return ", ".join(parts)

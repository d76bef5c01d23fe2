"""A pool's pack: every image once more as a square of one size, so that stages need not decode large files again and again."""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image
from pydantic import ValidationError

from tasks import reading
from tasks.artifacts import ID, Folder, Manifest, Shards, Table, column
from tasks.errors import ArtifactError
from tasks.images import Images
from tasks.params import Cache
from tasks.progress import progress, say
from tasks.shards import ShardWriter, TarWriter, bring, next_number

QUALITY = 90  # of JPEG, with Pillow's usual halved colour resolution
SQUARE = Image.Resampling.BILINEAR  # as al_core.loading.Square, so that a raw pack holds just what a network of its size would see


class PackIndex(Table):
    """Where each image of the pool lies in the pack."""

    schema = pa.schema(
        [
            ID,
            column("shard", pa.string(), "file name in pack/"),
            column("offset", pa.int64(), "byte at which the image's data starts in it"),
            column("length", pa.int64(), "bytes of the image's data"),
        ]
    )


class Pack(Folder):
    """A folder: `pack.json`, what `ingest.cache` was; unless that is null `index.parquet`, and files of JPEGs (tar) or of pixels (.npy)."""

    file = "${pool}/pack"

    @property
    def cache(self) -> Cache | None:
        """Size and format; None where the pool has no copies of its images.

        Raises:
            ArtifactError: `pack.json` is missing or damaged.
        """
        path = self.path / "pack.json"
        try:
            content = path.read_text("utf-8")
            return None if content.strip() == "null" else Cache.model_validate_json(content)
        except (OSError, UnicodeDecodeError, ValidationError) as error:
            raise ArtifactError(f"{path} does not describe a pack ({error}); restore it with `dvc checkout {self.path}`") from error

    @property
    def index(self) -> PackIndex:
        """In the order of the manifest's rows."""
        return PackIndex.load(self.path / "index.parquet")

    def images(self, manifest: Manifest) -> Images | RawImages:
        """The squares, by row of the manifest.

        Raises:
            ArtifactError: the pack was made for another manifest.
        """
        cache, index = self.cache, self.index
        assert cache is not None, "asked for the squares of a pack that has none"
        if not index.table["id"].equals(manifest.table["id"]):
            raise ArtifactError(f"{self.path} was made for another manifest ({len(index)} rows, expected {len(manifest)}); restore it with `dvc checkout`")
        files = Images(index, self.path, hashed=False)
        return files if cache.format == "jpeg" else RawImages(files, cache.size)


class RawImages:
    """Squares whose pixels lie ready; `Decoded` and `Stored` in terms of al_core.loading."""

    def __init__(self, files: Images, side: int) -> None:
        self.files, self.side = files, side

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int, /) -> Image.Image:
        return Image.frombytes("RGB", self.size, self.files.bytes_of(row))

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of each."""
        return self.side, self.side

    def only(self, rows: npt.ArrayLike) -> RawImages:
        """Some of these images: row i is row `rows[i]` here."""
        return RawImages(self.files.only(rows), self.side)

    def expect(self, rows: Sequence[int], /) -> None:
        """Have the system fetch these rows."""
        self.files.expect(rows)

    def take(self, rows: Sequence[int], /) -> npt.NDArray[np.uint8]:
        """(B, side, side, 3) pixels of these rows."""
        out = np.empty((len(rows), self.side, self.side, 3), np.uint8)
        self.expect(rows)
        self.files.fill(rows, out.reshape(len(rows), -1))
        return out


def images_for(stage: str, size: int, manifest: Manifest, shards: Shards, pack: Pack) -> Images | RawImages:
    """What a stage that looks at `size` x `size` pixels reads, by row of the manifest: the pack; without one, or where its squares are smaller than that,
    the images themselves, with a word."""
    cache = pack.cache
    if cache is not None and cache.size >= size:
        return pack.images(manifest)
    if cache is not None:
        say(f"{stage}: the pack's images have {cache.size} px and {size} are needed: the images are read out of shards/ instead")
    return Images(manifest, shards.path)


# ---- making one ------------------------------------------------------------------------------------------------------------------


class RawWriter(ShardWriter):
    """Shards that are `.npy` arrays, (n, side, side, 3) uint8."""

    suffix = "npy"

    def __init__(self, folder: Path, prefix: str, number: int, most_bytes: int, side: int) -> None:
        super().__init__(folder, prefix, number, most_bytes)
        self.side = side

    def head(self) -> bytes:
        return self.header(0)

    def end(self, file: BinaryIO) -> None:
        file.seek(0)
        file.write(self.header((self.at - len(self.header(0))) // (3 * self.side**2)))

    def header(self, number: int) -> bytes:
        """Of an array of so many squares: as long for any number, since NumPy leaves room for it to grow."""
        buffer = io.BytesIO()
        np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": (number, self.side, self.side, 3)})
        return buffer.getvalue()


def make(folder: Path, cache: Cache | None, manifest: Manifest, shards: Shards, before: Pack | None, *, pool: str, most_bytes: int, workers: int) -> Pack:
    """The pack of a pool, in a new folder: shards of the pack before are shared, other images read out of the pool's shards, in order of id.

    Args:
        folder: to be made.
        cache: what to hold; None: nothing.
        manifest: the pool's images.
        shards: their files.
        before: of the pool before; used where it has the same size and format.
        pool: such as p001; begins the names of new shards.
        most_bytes: size at which a new shard is begun.
        workers: processes; do not change a byte.
    """
    folder.mkdir()
    (folder / "pack.json").write_text(json.dumps(cache and cache.model_dump(), sort_keys=True) + "\n", "utf-8")
    if cache is None:
        return Pack(folder)
    old = taken_over(before, cache, manifest, folder)
    missing = np.flatnonzero(~np.isin(manifest.ids, np.asarray(old["id"].to_pylist(), dtype=np.str_)))
    writer = writer_of(cache)(folder, pool, next_number(old["shard"].unique().to_pylist(), pool), most_bytes)
    new = []
    with writer, closing(squares(Images(manifest, shards.path, missing), cache, workers)) as results:
        for image_id, data in zip(manifest.ids[missing].tolist(), progress(results, len(missing), "ingest: pack"), strict=True):
            shard, offset = writer.add(f"{image_id}.jpg", data)
            new.append({"id": image_id, "shard": shard, "offset": offset, "length": len(data)})
    index = pa.concat_tables([old, pa.Table.from_pylist(new, schema=old.schema)])
    PackIndex.of({name: index[name] for name in index.column_names}).save(folder / "index.parquet")
    return Pack(folder)


def taken_over(before: Pack | None, cache: Cache, manifest: Manifest, folder: Path) -> pa.Table:
    """Rows of the index of the pack before that hold for this pool too, after bringing their shards; none where it is of another kind."""
    if before is None or before.cache != cache:
        return PackIndex.schema.empty_table()
    index = before.index.table
    old = index.filter(np.isin(np.asarray(index["id"].to_pylist(), dtype=np.str_), manifest.ids))
    bring(old, before.path, folder)
    return old


def writer_of(cache: Cache) -> Callable[[Path, str, int, int], ShardWriter]:
    """Makes the writer for a format."""
    return TarWriter if cache.format == "jpeg" else functools.partial(RawWriter, side=cache.size)


def squares(images: Images, cache: Cache, workers: int) -> Generator[bytes]:
    """What the pack holds of each image, in their order."""
    number = max(1, reading.CHUNK_BYTES // (3 * cache.size**2))
    chunks = (images[start : start + number] for start in range(0, len(images), number))
    return reading.in_order(functools.partial(square, cache=cache), chunks, workers, places)


def places(images: Sequence[Image.Image]) -> list[str]:
    """Where a chunk's images lie."""
    assert isinstance(images, Images)
    return [images.place(row) for row in range(len(images))]


def square(image: Image.Image, cache: Cache) -> bytes:
    """An image as the pack holds it."""
    small = image.resize((cache.size, cache.size), SQUARE)
    if cache.format == "raw":
        return small.tobytes()
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()

"""Image files to RGB pixels, and a pool's images by row out of its shards."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from PIL.ExifTags import Base

from tasks.errors import ArtifactError

if TYPE_CHECKING:
    from tasks.artifacts import Table

FORMATS = {  # Pillow's name: suffix. Only these: others start programs (EPS), are rare, or describe no pixels
    "JPEG": "jpg",
    "PNG": "png",
    "GIF": "gif",
    "BMP": "bmp",
    "WEBP": "webp",
    "TIFF": "tif",
    "PPM": "ppm",
    "JPEG2000": "jp2",
    "AVIF": "avif",
}
SUFFIXES = {**FORMATS, "MPO": "jpg"}  # of formats found; MPO is what Pillow calls a JPEG with further pictures behind the first
TURNS = {  # EXIF orientation: what makes the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Images(Sequence[Image.Image]):
    """A pool's images by row, as upright RGB; picklable, and safe to read from several threads and processes.

    Row i is row i of the manifest, or row `rows[i]` where `rows` is given. Instead of the manifest there may be the index of a pack; its files' hashes are
    not the images' ids, and so are not checked (`hashed`).
    """

    def __init__(self, manifest: Table, shards: Path, rows: npt.ArrayLike | None = None, *, hashed: bool = True) -> None:
        chosen = np.arange(len(manifest)) if rows is None else np.asarray(rows, dtype=np.int64)
        names = manifest.table["shard"].combine_chunks().dictionary_encode()
        self.folder = shards
        self.names: list[str] = names.dictionary.to_pylist()
        self.shard = np.asarray(names.indices)[chosen]  # (n,) position in names
        self.offset = np.asarray(manifest.table["offset"])[chosen]  # (n,) bytes
        self.length = np.asarray(manifest.table["length"])[chosen]  # (n,) bytes
        self.ids = np.asarray(manifest.table["id"].to_pylist(), dtype="S64")[chosen] if hashed else None  # (n,) hexadecimal sha256 of the files

    def __len__(self) -> int:
        return len(self.offset)

    @overload
    def __getitem__(self, row: int, /) -> Image.Image: ...
    @overload
    def __getitem__(self, row: slice, /) -> Images: ...
    def __getitem__(self, row: int | slice, /) -> Image.Image | Images:
        if isinstance(row, slice):
            return self.only(np.arange(len(self))[row])
        data = self.bytes_of(row)
        try:
            return to_rgb(open_image(data))
        except Exception as error:
            raise ArtifactError(f"{self.place(row)} does not decode ({error}); restore it with `dvc checkout`") from error

    def only(self, rows: npt.ArrayLike) -> Images:
        """Some of these images: row i is row `rows[i]` here."""
        chosen, part = np.asarray(rows, dtype=np.int64), object.__new__(Images)
        part.folder, part.names = self.folder, self.names
        part.shard, part.offset, part.length = self.shard[chosen], self.offset[chosen], self.length[chosen]
        part.ids = None if self.ids is None else self.ids[chosen]
        return part

    def bytes_of(self, row: int) -> bytes:
        """The image file of a row as the source had it.

        Raises:
            IndexError: there is no such row.
            ArtifactError: its shard is missing or too short, or holds other bytes there.
        """
        offset, length = int(self.offset[row]), int(self.length[row])
        with self.opened(row) as file:
            data = os.pread(file, length, offset)
        if len(data) < length:
            raise self.too_short(row, len(data), length)
        if self.ids is not None and hashlib.sha256(data).hexdigest() != self.ids[row].decode():
            raise ArtifactError(f"{self.place(row)}: the shard has changed, the sha256 of the image is not its id; restore it with `dvc checkout`")
        return data

    def fill(self, rows: Sequence[int], out: npt.NDArray[np.uint8]) -> None:
        """Read files of one length into `out`, (B, length) contiguous; those that follow each other in a shard are read at once.

        Raises:
            ArtifactError: a shard is missing or too short.
        """
        wanted = np.asarray(rows, dtype=np.int64)
        follows = (np.diff(self.shard[wanted]) == 0) & (np.diff(self.offset[wanted]) == out.shape[1])
        edges = np.unique(np.r_[0, np.flatnonzero(~follows) + 1, len(wanted)])
        for start, stop in pairwise(edges.tolist()):
            row, block = int(wanted[start]), out[start:stop].data.cast("B")
            offset, done = int(self.offset[row]), 0
            with self.opened(row) as file:
                while done < len(block):  # a call reads 2 GiB at most
                    got = os.preadv(file, [block[done:]], offset + done)
                    if got == 0:
                        raise self.too_short(row, done, len(block))
                    done += got

    def expect(self, rows: Sequence[int]) -> None:
        """Have the system fetch the files of these rows, which are wanted next, all at once; only a hint, of which some systems know nothing."""
        if not hasattr(os, "posix_fadvise"):
            return
        wanted = np.asarray(rows, dtype=np.int64)
        for shard in np.unique(self.shard[wanted]):
            inside = wanted[self.shard[wanted] == shard]
            with contextlib.suppress(ArtifactError), self.opened(int(inside[0])) as file:  # reading will say that it is missing
                for row in inside[np.argsort(self.offset[inside])]:
                    os.posix_fadvise(file, int(self.offset[row]), int(self.length[row]), os.POSIX_FADV_WILLNEED)

    @contextlib.contextmanager
    def opened(self, row: int) -> Iterator[int]:
        """The descriptor of the shard of a row."""
        try:
            file = os.open(self.folder / self.names[self.shard[row]], os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise ArtifactError(f"{self.place(row)}: the shard is missing; restore it with `dvc checkout` or `dvc pull`") from error
        try:
            yield file
        finally:
            os.close(file)

    def too_short(self, row: int, got: int, wanted: int) -> ArtifactError:
        """What to say when a shard ends too early."""
        return ArtifactError(f"{self.place(row)}: the shard is too short, got {got} bytes of {wanted}; restore it with `dvc checkout`")

    def place(self, row: int) -> str:
        """Row, shard and byte, for messages."""
        return f"row {row} (byte {int(self.offset[row])} of {self.folder / self.names[self.shard[row]]})"


def open_image(data: bytes) -> Image.Image:
    """The image of a file's bytes, its type found by content and only its header read: check `size` before decoding it.

    `PIL.Image.open` without its check of the pixel limit, which is one global for all threads: callers have their own, or read what was checked
    before. Pillow's readers of WebP, TIFF, GIF and of a JPEG's further pictures check it themselves all the same: here, or when the image is decoded.

    Raises:
        PIL.UnidentifiedImageError: it begins like none of FORMATS.
        PIL.Image.DecompressionBombError: it has more than twice Pillow's own limit, some 179 million pixels, in a format whose reader checks that.
        Exception: Pillow's errors of many kinds, where the header is damaged.
    """
    if "JPEG2000" not in Image.OPEN:  # one of the plugins that are loaded last
        Image.init()
    for name in FORMATS:
        factory, accept = Image.OPEN.get(name, (None, None))
        if factory and accept and accept(data[:16]) is True:  # text instead of True says that this build of Pillow cannot read it
            return factory(io.BytesIO(data), "")
    raise UnidentifiedImageError(f"no image format known here; it begins with {data[:8]!r}")


def to_rgb(image: Image.Image) -> Image.Image:
    """Decode completely and give 8-bit RGB, upright.

    The first frame of several. EXIF orientation is applied; EXIF that cannot be read says nothing. Transparent pixels show white behind
    them; 16-bit grey keeps its upper 8 bits (Pillow itself would make all above 255 white); CMYK and palettes as Pillow converts them.

    Raises:
        ValueError: the pixels are 32-bit numbers, whose range nobody knows; and Pillow's errors where the data is damaged.
    """
    image.load()
    turn = TURNS.get(orientation(image))
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):  # Pillow scales PPM's wider greys to 16 bits
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"32-bit pixels (mode {image.mode}) have no agreed range; convert the image to 8 or 16 bits")
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode != "RGB":
        image = image.convert("RGB")
    return image if turn is None else image.transpose(turn)


def orientation(image: Image.Image) -> int:
    """EXIF's, 1 (upright) to 8; 1 where there is none or it cannot be read."""
    try:
        value = image.getexif().get(Base.Orientation, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) else 1

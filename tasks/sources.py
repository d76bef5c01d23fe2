"""Where images come from: a folder, a list, a torchvision data set or the example. Each becomes a sorted listing and a reader of single files.

A further kind of source (S3) is one more entry of CHECKS, and one of OPENERS that gives a `Source` with a `Reader` of its own.
"""

from __future__ import annotations

import csv
import difflib
import errno
import gzip
import io
import json
import os
import re
import stat
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tasks.errors import SourceError
from tasks.progress import progress
from tasks.spreadsheets import separator
from tasks.wording import counted, quoted, quoted_path, some

SPLITS = {"train": "train", "test": "test", "validation": "validation", "val": "validation", "valid": "validation"}
UNLABELED = {"unlabeled", "unlabelled"}  # folders whose images are train images without a label, however deep
READ = "jpg jpeg jpe jfif png apng gif bmp dib webp tif tiff ppm pgm pbm pnm jp2 j2k jpx avif"
NOT_READ = "heic heif jxl svg ico psd raw dng cr2 cr3 nef arw orf rw2"  # listed all the same: quarantine tells of them
KINDS = "a folder, a .csv or .jsonl list, torchvision://NAME or example://digits"
COLUMNS = ("uri", "label", "split")
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
IDX_SETS = ("MNIST", "FashionMNIST", "KMNIST")
BATCH_SETS = ("CIFAR10", "CIFAR100")


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a source."""

    uri: str
    label: str | None = None
    split: str | None = None  # train | validation | test; None where the source does not say


class Reader(Protocol):
    """Reads single files of a source; picklable, since several processes read."""

    def size(self, uri: str) -> int:
        """Bytes of the file. Raises OSError."""
        ...

    def read(self, uri: str, most: int) -> bytes:
        """The file. Raises OSError: FileNotFoundError where it is gone, with errno EFBIG where it has more than `most` bytes."""
        ...


@dataclass(frozen=True)
class Files:
    """Reads paths, relative to `root` unless they are absolute."""

    root: Path

    def path(self, uri: str) -> str:
        """Where the file lies; a Path would cost as much as reading a small file."""
        return uri if uri.startswith("/") else f"{self.root}/{uri}"

    def size(self, uri: str) -> int:
        """Bytes of the file."""
        return os.stat(self.path(uri)).st_size  # noqa: PTH116

    def read(self, uri: str, most: int) -> bytes:
        """The file's bytes, at most `most`."""
        opened = os.open(self.path(uri), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would make us wait for ever
        with os.fdopen(opened, "rb", buffering=0) as file:
            status = os.fstat(opened)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
            if status.st_size > most:
                raise OSError(errno.EFBIG, f"{status.st_size} bytes")
            return file.read()


@dataclass(frozen=True)
class Source:
    """What a source holds."""

    name: str  # as the user wrote it
    entries: Sequence[Entry]  # sorted by uri, each uri once
    reader: Reader
    unlisted: Sequence[tuple[str, str]] = ()  # (uri, why): files whose names no table can hold
    passed_over: int = 0  # visible files of a folder whose names claim to be something else than an image

    @property
    def has_test(self) -> bool:
        """Whether the source itself says what is for testing."""
        return any(entry.split == "test" for entry in self.entries)


def open_source(text: str, base: Path, scratch: Path) -> Source:
    """List a source.

    Args:
        text: a folder, a .csv or .jsonl list, `torchvision://NAME` or `example://digits`.
        base: what a relative path is relative to.
        scratch: an empty or absent folder for files that a source has to be written out to; keep it while reading.

    Raises:
        SourceError: the source is unknown, missing, malformed or empty.
    """
    check_source(text, base)
    match = SCHEME.match(text)
    source = OPENERS[match[1].lower()](text, text[match.end() :], scratch) if match else open_path(text, base / Path(text).expanduser())
    if not source.entries and not source.unlisted:
        raise SourceError(
            f"source {text!r} is empty: no image files in it"
            + (f" ({source.passed_over} files of other kinds)" if source.passed_over else "")
            + "; put images in it, or name another with ingest.source"
        )
    return source


def check_source(text: str, base: Path) -> None:
    """Raise where there is no such source, without a look into it.

    Args:
        text: as `open_source` takes it.
        base: what a relative path is relative to.

    Raises:
        SourceError: a path that does not exist or is no folder or list, an unknown kind, or an unknown name of a kind.
    """
    match = SCHEME.match(text)
    if match is None:
        check_path(text, base / Path(text).expanduser())
    elif match[1].lower() in CHECKS:
        CHECKS[match[1].lower()](text, text[match.end() :])
    else:
        raise SourceError(f"source {text!r} has the unknown scheme {match[1]!r}; ingest.source takes {KINDS}")


def check_path(text: str, path: Path) -> None:
    """Raise unless it is a folder or a list."""
    if not text or not path.exists():
        raise SourceError(f"source {text!r} does not exist (looked at {path.absolute()}); ingest.source takes {KINDS}")
    if not path.is_dir() and path.suffix.lower() not in (".csv", ".jsonl"):
        raise SourceError(f"source {text!r} is a file, expected a folder or a list named .csv or .jsonl")


def open_path(text: str, path: Path) -> Source:
    """A folder or a list."""
    return open_folder(text, path) if path.is_dir() else open_list(text, path)


# ---- folders -------------------------------------------------------------------------------------------------------------


def open_folder(text: str, root: Path) -> Source:
    """A folder; labels and splits are in its structure.

    * Top folders named train, test, val, valid or validation are splits, and the folder below them is the label: `train/dress/x.jpg`.
    * Without such folders the top folder is the label: `dress/x.jpg`. All below belongs to it, however deep.
    * Images directly in the root or in a split have no label, nor has anything below a top folder named unlabeled.
    * Hidden files and folders are left out. Of the others those count whose suffix is an image's, or who have none; what they really are,
      reading tells. Links are followed.
    """
    names, passed_over = walk(root)
    tops = {name.split("/", 1)[0] for name in names if "/" in name}
    splits = sorted(top for top in tops if top.lower() in SPLITS)
    classes = sorted(top for top in tops if top.lower() not in SPLITS | dict.fromkeys(UNLABELED))
    if splits and classes:
        raise SourceError(
            f"source {text!r} has split folders ({', '.join(splits)}) beside other folders of images ({some(classes, 5, quoted)}), "
            "which could be classes or splits; move those into a split, or give a list: uri,label,split"
        )
    entries, unlisted = [], []
    for name in names:
        if why := unwritable(name):
            unlisted.append((name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"), f"its name {why}; rename it"))
        else:
            entries.append(entry_of_path(name))
    entries.sort(key=lambda entry: entry.uri)
    return Source(text, entries, Files(root), sorted(unlisted), passed_over)


def entry_of_path(name: str) -> Entry:
    """What a file's place in its folder says."""
    top, *below = name.split("/")
    if not below:
        return Entry(name)
    if top.lower() in UNLABELED:
        return Entry(name, None, "train")
    if top.lower() in SPLITS:
        return Entry(name, below[0] if len(below) > 1 else None, SPLITS[top.lower()])
    return Entry(name, top)


def walk(root: Path) -> tuple[list[str], int]:
    """Relative names of files that claim to be images, in no order, and how many others there are."""
    suffixes = {"", *READ.split(), *NOT_READ.split()}
    names, others = [], 0
    todo: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]  # folder, and the folders it lies in by device and inode
    while todo:
        folder, above = todo.pop()
        place = Path(root, folder)
        try:
            status = place.stat()
            itself = (status.st_dev, status.st_ino)
            if itself in above:
                raise SourceError(f"{quoted_path(str(place))} is a link to a folder that it lies in; remove the link")
            with os.scandir(place) as items:
                for item in items:
                    if item.name.startswith("."):
                        continue
                    if is_folder(item):
                        todo.append((f"{folder}{item.name}/", above | {itself}))
                    elif (item.name.rpartition(".")[2].lower() if "." in item.name else "") in suffixes:
                        names.append(folder + item.name)
                    else:
                        others += 1
        except OSError as error:
            raise SourceError(f"folder {quoted_path(str(place))} cannot be listed ({error.strerror}); make it readable, or move it away") from error
    return names, others


def is_folder(item: os.DirEntry[str]) -> bool:
    """Whether it is a folder or a link to one."""
    try:
        return item.is_dir()
    except OSError:  # a link to itself: no folder, and unreadable as a file
        return False


def unwritable(text: str) -> str | None:
    """Why a table or the file system cannot hold a text; None if they can."""
    if "\0" in text:
        return "holds a NUL character"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "is not valid Unicode"
    return None


# ---- lists ---------------------------------------------------------------------------------------------------------------


def open_list(text: str, path: Path) -> Source:
    """A list in UTF-8: `uri[,label][,split]` with a header, separated by `,`, `;` or tab, or one JSON object a line with those keys.

    Relative uris are relative to the list's folder and stay below it; absolute paths are taken as they are, since the list is the user's own.
    """
    data = path.read_bytes()
    try:
        content = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = data[: error.start].count(b"\n") + 1
        raise SourceError(f"list {path} is not UTF-8 (line {number}, byte {data[error.start]:#04x}); save it as UTF-8") from error
    rows = csv_rows(path, content) if path.suffix.lower() == ".csv" else jsonl_rows(content)
    entries, problems, lines = [], [], dict[str, int]()
    for number, row in rows:
        entry = row if isinstance(row, str) else entry_of_row(row)
        if isinstance(entry, Entry) and lines.setdefault(entry.uri, number) != number:
            entry = f"uri {entry.uri!r} is on line {lines[entry.uri]} already; list each file once"
        if isinstance(entry, str):
            problems.append(f"line {number}: {entry}")
        else:
            entries.append(entry)
    if problems:
        more = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise SourceError(f"list {path} has {counted(len(problems), 'wrong line')}; mend them:\n  " + "\n  ".join(problems[:10]) + more)
    entries.sort(key=lambda entry: entry.uri)
    return Source(text, entries, Files(path.parent))


Row = dict[str, object] | str  # the fields of a line, or what is wrong with it


def csv_rows(path: Path, content: str) -> Iterator[tuple[int, Row]]:
    """Line on which each row ends, and its fields by column."""
    first = next(iter(content.splitlines()), "")
    between = separator(first)
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=between, strict=True)
    try:
        header = next(reader, [])
        if "uri" not in header:
            raise SourceError(f"list {path} begins with {first!r}, expected a header with uri and, if you have them, label and split")
        if unknown := unknown_column(header):
            raise SourceError(f"list {path}, line 1: {unknown}")
        if len(set(header)) < len(header):
            raise SourceError(f"list {path}, line 1: a column is named twice in {first!r}")
        for row in reader:
            if len(row) == len(header):
                yield reader.line_num, dict(zip(header, row, strict=True))
            elif row:
                yield reader.line_num, f"{len(row)} fields, expected {len(header)} ({between.join(header)}); put a field with {between!r} in double quotes"
    except csv.Error as error:
        raise SourceError(f"list {path}, line {reader.line_num}: not CSV ({error})") from error


def jsonl_rows(content: str) -> Iterator[tuple[int, Row]]:
    """Line and object of each row."""
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield number, f"not JSON ({error})"
            continue
        if not isinstance(row, dict):
            yield number, f'is {type(row).__name__}, expected an object such as {{"uri": "a.jpg", "label": "dress"}}'
        else:
            yield number, unknown_column(list(row)) or row


def unknown_column(columns: Sequence[str]) -> str | None:
    """What is wrong with the names of columns, if anything."""
    for name in columns:
        if name not in COLUMNS:
            near = difflib.get_close_matches(name, COLUMNS, n=1)
            return f"unknown column {name!r}; " + (f"did you mean {near[0]!r}?" if near else f"known are {', '.join(COLUMNS)}")
    return None


def entry_of_row(row: dict[str, object]) -> Entry | str:
    """The entry of a line, or what is wrong with it."""
    values: dict[str, str | None] = {}
    for name in COLUMNS:
        value = row.get(name)
        if value is not None and not isinstance(value, str):
            return f"{name} is {value!r}, expected text"
        if value and value != value.strip():
            return f"{name} {value!r} begins or ends with white space"
        if value and (why := unwritable(value)):
            return f"{name} {value!r} {why}"
        values[name] = value or None
    uri, split = values["uri"], values["split"]
    if uri is None:
        return "uri is empty"
    if match := SCHEME.match(uri):
        return f"uri {uri!r} has the scheme {match[1]!r}; lists take paths in this version"
    if ".." in uri.split("/"):
        return f"uri {uri!r} leads out of the list's folder; put the list above the images, or write absolute paths"
    if any(part in ("", ".") for part in uri.removeprefix("/").split("/")):
        return f"uri {uri!r} has an empty part or '.' between its slashes; write it without, so that each file has one name"
    if split is not None and split not in SPLITS:
        return f"split is {split!r}, expected train, validation or test"
    return Entry(uri, values["label"], SPLITS[split] if split else None)


# ---- sources that come as arrays: written out as files, so that they take the ordinary path --------------------------------------


def png_bytes(pixels: npt.NDArray[np.uint8]) -> bytes:
    """A PNG of (height, width) grey or (height, width, 3) RGB pixels, stored without compression.

    Compressors differ from version to version, and an image's id is the hash of its bytes: stored, they are the same everywhere.
    """
    height, width = pixels.shape[:2]
    lines = np.ascontiguousarray(pixels).reshape(height, -1)
    raw = b"".join(b"\0" + line.tobytes() for line in lines)
    blocks = [raw[i : i + 65535] for i in range(0, len(raw), 65535)]
    stored = b"".join(struct.pack("<BHH", i == len(blocks) - 1, len(block), len(block) ^ 0xFFFF) + block for i, block in enumerate(blocks))
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if pixels.ndim == 3 else 0, 0, 0, 0)
    data = b"\x78\x01" + stored + struct.pack(">I", zlib.adler32(raw))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in ((b"IHDR", header), (b"IDAT", data), (b"IEND", b"")))


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """Data as a PNG frames it: length, kind, data, check sum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def check_example(text: str, name: str) -> None:
    """Raise unless it is the one example."""
    if name != "digits":
        raise SourceError(f"source {text!r} is unknown; the example is example://digits")


def open_example(text: str, name: str, scratch: Path) -> Source:
    """Scikit-learn's 1,797 handwritten digits, 8 x 8 pixels of 0 to 16 scaled to 0 to 255, in a folder a class; no splits."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = ((digits.images.astype(np.int64) * 255 + 8) // 16).astype(np.uint8)  # (1797, 8, 8)
    root = scratch / "digits"
    for label in digits.target_names:
        (root / str(label)).mkdir(parents=True, exist_ok=True)
    for row, label in enumerate(digits.target):
        (root / str(label) / f"{row:04}.png").write_bytes(png_bytes(pixels[row]))
    below = open_folder(text, root)
    return Source(text, [Entry(f"digits/{entry.uri}", entry.label) for entry in below.entries], Files(scratch))


def check_torchvision(text: str, name: str) -> None:
    """Raise unless it is a data set that this version reads."""
    known = IDX_SETS + BATCH_SETS
    if name not in known:
        near = difflib.get_close_matches(name.lower(), [each.lower() for each in known], n=1)
        hint = next((f"; did you mean torchvision://{each}?" for each in known if near == [each.lower()]), "")
        raise SourceError(f"source {text!r} is unknown; this version reads {', '.join(known)}{hint}")


def open_torchvision(text: str, name: str, scratch: Path) -> Source:
    """A data set of torchvision's from files that are on this machine already, with its own train and test split; nothing is downloaded."""
    how = (
        f"download it once, `python -c \"import torchvision; torchvision.datasets.{name}('DIR', download=True)\"`, "
        "and set the environment variable RONDO_DATA to DIR; ingest itself never downloads"
    )
    root = os.environ.get("RONDO_DATA")
    if not root:
        raise SourceError(f"source {text!r}: RONDO_DATA is not set, so there is nowhere to look; {how}")
    place = (find_idx if name in IDX_SETS else find_batches)(Path(root), name, scratch)
    if place is None:
        raise SourceError(f"source {text!r}: its files are not in RONDO_DATA ({root}); {how}")
    return Source(text, sorted(write_out(text, name, place, scratch), key=lambda entry: entry.uri), Files(scratch))


def write_out(text: str, name: str, place: Path, scratch: Path) -> list[Entry]:
    """Every image as a file `name/split/row.png`."""
    from torchvision import datasets

    entries = []
    for split in ("train", "test"):
        try:
            data = getattr(datasets, name)(place, train=split == "train", download=False)
        except (RuntimeError, ValueError, AssertionError, EOFError, OSError) as error:
            raise SourceError(f"source {text!r}: torchvision cannot read its files ({error}); download them again") from error
        folder = scratch / name.lower() / split
        folder.mkdir(parents=True)
        labels = [each.split(" - ")[0] for each in data.classes]  # MNIST's are "7 - seven"
        images = np.asarray(data.data)
        for row in progress(range(len(images)), len(images), f"{name}: {split} images written out"):
            (folder / f"{row:05}.png").write_bytes(png_bytes(images[row]))
            entries.append(Entry(f"{name.lower()}/{split}/{row:05}.png", labels[int(data.targets[row])], split))
    return entries


def find_idx(root: Path, name: str, scratch: Path) -> Path | None:
    """A folder laid out as torchvision expects, with the four idx files that lie, packed or not, in NAME/raw, NAME or name."""
    files = [f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    for folder in (root / name / "raw", root / name, root / name.lower()):
        if all((folder / file).exists() or (folder / f"{file}.gz").exists() for file in files):
            raw = scratch / "unpacked" / name / "raw"
            raw.mkdir(parents=True)
            for file in files:
                plain = folder / file
                try:
                    (raw / file).write_bytes(plain.read_bytes() if plain.exists() else gzip.decompress((folder / f"{file}.gz").read_bytes()))
                except (OSError, EOFError, zlib.error) as error:
                    raise SourceError(f"{plain}.gz cannot be unpacked ({error}); download it again") from error
            return scratch / "unpacked"
    return None


def find_batches(root: Path, name: str, scratch: Path) -> Path | None:
    """The folder that holds CIFAR's own."""
    from torchvision import datasets

    own: str = getattr(datasets, name).base_folder
    return next((place for place in (root, root / name, root / name.lower()) if (place / own).is_dir()), None)


def refuse_s3(text: str, name: str) -> None:
    """Says what to do instead."""
    raise SourceError(f"source {text!r}: S3 is not read directly in this version; copy it into a folder (`aws s3 sync {text} DIR`) and name that")


CHECKS: dict[str, Callable[[str, str], None]] = {"example": check_example, "torchvision": check_torchvision, "s3": refuse_s3}
OPENERS: dict[str, Callable[[str, str, Path], Source]] = {"example": open_example, "torchvision": open_torchvision}

"""Files to verified images, in several processes: what a source's file is, or why it is none. Imports little, since each process imports it."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import itertools
import multiprocessing
import os
import re
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple, TypeVar

from PIL import UnidentifiedImageError
from PIL.Image import DecompressionBombError

from tasks.errors import SourceError
from tasks.images import open_image, to_rgb
from tasks.process import die_with_parent
from tasks.sources import Reader
from tasks.wording import quoted_path, some

Item = TypeVar("Item")
Value = TypeVar("Value")

CHUNK_FILES, CHUNK_BYTES = 256, 2**22  # what a process reads at a time: some 50 ms, much more than handing it over takes
ALONE = 16  # chunks; fewer are read here, since starting processes would take longer
OF_THE_FILE = (errno.EACCES, errno.EPERM, errno.EINVAL, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO)  # and not of the machine


class Seen(NamedTuple):
    """A readable image."""

    id: str
    width: int  # upright
    height: int
    format: str


class Bad(NamedTuple):
    """A file that is none."""

    uri: str
    reason: str
    detail: str

    def __str__(self) -> str:
        return f"{quoted_path(self.uri)}: {self.reason} ({self.detail})"


Result = tuple[Seen | Bad, bytes]  # with the bytes of a readable image


class UnfitError(Exception):
    """Why bytes are no image of the pool."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def examine(data: bytes, max_pixels: int) -> Seen:
    """Verify an image by decoding all of it, just as `Images` will.

    Raises:
        UnfitError: it is empty, no image, too large (seen in its header, before anything is decoded), truncated or damaged.
        MemoryError: there is too little memory to decode it, which says nothing about the image.
    """
    if not data:
        raise UnfitError("empty", "0 bytes")
    with warnings.catch_warnings(action="ignore"):  # Pillow's remarks about odd metadata
        try:
            image = open_image(data)
            width, height = image.size
            if width * height > max_pixels:
                raise UnfitError("too-large", f"{width} x {height} pixels; ingest.max_pixels is {max_pixels}")
            kind = image.format or ""
            image = to_rgb(image)
        except (UnfitError, MemoryError):
            raise
        except DecompressionBombError as error:
            raise UnfitError("too-large", f"{error}") from error
        except UnidentifiedImageError as error:
            raise UnfitError("not-an-image", str(error)) from error
        except Exception as error:  # plugins raise nearly anything on damaged data
            detail = re.sub(r"0x[0-9a-f]{6,}", "0x...", f"{error}") or type(error).__name__
            raise UnfitError("truncated" if re.search(r"truncat|EOF|only got|not enough", detail, re.I) else "unreadable", detail) from error
    return Seen(hashlib.sha256(data).hexdigest(), *image.size, kind)


def read_one(reader: Reader, uri: str, max_pixels: int) -> Result:
    """Read and verify one file.

    Raises:
        SourceError: the machine failed, not the file: it has too little memory, its disk or network does not answer, its limits are reached.
    """
    try:
        data = reader.read(uri, 16 * max_pixels + 2**20)  # 16 bytes a pixel are more than any format needs
        return examine(data, max_pixels), data
    except UnfitError as unfit:
        return Bad(uri, unfit.reason, unfit.detail), b""
    except (FileNotFoundError, NotADirectoryError):
        return Bad(uri, "vanished", "listed, but no such file when it was read"), b""
    except OSError as error:
        if error.errno == errno.EFBIG:
            return Bad(uri, "too-large", f"{error.strerror}; {max_pixels} pixels (ingest.max_pixels) cannot need as many"), b""
        if error.errno in OF_THE_FILE:
            return Bad(uri, "unreadable", error.strerror or type(error).__name__), b""
        raise SourceError(
            f"{quoted_path(uri)} cannot be read now ({error.strerror or error}): this machine's disk, network or limits are at fault; "
            "mend that and run again, or move the file away if it alone cannot be read"
        ) from error
    except MemoryError as error:
        raise SourceError(
            f"{quoted_path(uri)}: not enough memory to decode it; lower ingest.workers or ingest.max_pixels, or move the file away, and run again"
        ) from error


def read_all(reader: Reader, uris: Sequence[str], max_pixels: int, workers: int) -> Generator[Result]:
    """Results in the order of the uris, with any number of processes.

    Memory: three chunks a process are under way, each of at most CHUNK_BYTES or one file.

    Raises:
        SourceError: the machine failed while reading a file, or a process was killed; names the file, or those that were being read.
    """
    return in_order(functools.partial(read_one, reader, max_pixels=max_pixels), chunked(reader, uris), workers, list)


def in_order(work: Callable[[Item], Value], chunks: Iterator[Sequence[Item]], workers: int, names: Callable[[Sequence[Item]], list[str]]) -> Generator[Value]:
    """What `work` gives for each item of each chunk, in their order, with any number of processes; three chunks a process are under way.

    Raises:
        SourceError: a process was killed; `names` says what to call the items of a chunk that it may have been at.
    """
    first = list(itertools.islice(chunks, ALONE))
    if workers == 1 or len(first) < ALONE:
        for chunk in itertools.chain(first, chunks):
            yield from map(work, chunk)
        return
    waiting: deque[tuple[Future[list[Value]], Sequence[Item]]] = deque()
    context = multiprocessing.get_context("spawn")  # fork copies locks that other threads hold
    with ProcessPoolExecutor(workers, context, initializer=begin, initargs=(os.getpid(),)) as pool:
        try:
            for chunk in itertools.chain(first, chunks):
                waiting.append((pool.submit(each, work, chunk), chunk))
                if len(waiting) >= 3 * workers:
                    yield from waiting[0][0].result()
                    waiting.popleft()
            while waiting:
                yield from waiting[0][0].result()
                waiting.popleft()
        except BrokenProcessPool as error:
            busy = [name for _, chunk in waiting for name in names(chunk)]
            raise SourceError(
                f"a reading process was killed, perhaps for lack of memory, with {len(busy)} files under way ({some(busy, 3, quoted_path)}); "
                "lower ingest.workers or ingest.max_pixels, and run again"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def each(work: Callable[[Item], Value], chunk: Sequence[Item]) -> list[Value]:
    """What `work` gives for the items of a chunk."""
    return [work(item) for item in chunk]


def begin(parent: int) -> None:
    """Tie a reading process to the one that started it."""
    die_with_parent()
    if os.getppid() != parent:  # it died before we were tied
        os._exit(1)


def chunked(reader: Reader, uris: Iterable[str]) -> Iterator[list[str]]:
    """Uris in groups that are read at a time."""
    chunk: list[str] = []
    total = 0
    for uri in uris:
        chunk.append(uri)
        with contextlib.suppress(OSError):  # reading it will say why
            total += reader.size(uri)
        if len(chunk) >= CHUNK_FILES or total >= CHUNK_BYTES:
            yield chunk
            chunk, total = [], 0
    if chunk:
        yield chunk

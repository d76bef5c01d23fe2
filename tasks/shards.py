"""Files one after another in larger ones: how a pool's shards, and the parts of its pack, are written and handed on from pool to pool."""

from __future__ import annotations

import os
import re
import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
import pyarrow as pa

from tasks.errors import ArtifactError


class ShardWriter:
    """Files one after another into shards whose bytes depend on nothing but the files and their order."""

    suffix: str

    def __init__(self, folder: Path, prefix: str, number: int, most_bytes: int) -> None:
        self.folder, self.prefix, self.number, self.most_bytes = folder, prefix, number, most_bytes
        self.file: BinaryIO | None = None
        self.at = 0  # bytes written to the file

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def add(self, name: str, data: bytes) -> tuple[str, int]:
        """Append a file; gives the shard's name and the byte at which its data starts."""
        if self.file and self.at + len(data) > self.most_bytes:
            self.close()
        if self.file is None:
            self.file, self.at = (self.folder / self.shard).open("wb"), 0
            self.write(self.head())
        self.write(self.before(name, len(data)))
        start = self.at
        self.write(data)
        self.write(self.after(len(data)))
        return self.shard, start

    @property
    def shard(self) -> str:
        """Of the shard being written: p001-00000.tar."""
        return f"{self.prefix}-{self.number:05}.{self.suffix}"

    def write(self, data: bytes) -> None:
        """More bytes of the shard."""
        assert self.file is not None
        self.file.write(data)
        self.at += len(data)

    def close(self) -> None:
        """End the shard, if one is begun; the next file begins another."""
        if self.file:
            self.end(self.file)
            self.file.close()
            self.file, self.number = None, self.number + 1

    def head(self) -> bytes:
        """What a shard begins with."""
        return b""

    def before(self, name: str, length: int) -> bytes:
        """What stands before a file."""
        return b""

    def after(self, length: int) -> bytes:
        """What stands behind a file."""
        return b""

    def end(self, file: BinaryIO) -> None:
        """Complete a shard."""


class TarWriter(ShardWriter):
    """Shards that are tar files."""

    suffix = "tar"

    def before(self, name: str, length: int) -> bytes:
        entry = tarfile.TarInfo(name)  # mtime, uid and gid are 0, the mode is 0644
        entry.size = length
        return entry.tobuf(tarfile.USTAR_FORMAT)

    def after(self, length: int) -> bytes:
        return bytes(-length % tarfile.BLOCKSIZE)

    def end(self, file: BinaryIO) -> None:
        end = 2 * tarfile.BLOCKSIZE
        file.write(bytes(end + -(self.at + end) % tarfile.RECORDSIZE))


def next_number(shards: Iterable[str], prefix: str) -> int:
    """The number after the last of the shards with that prefix."""
    numbers = [int(found[1]) for name in shards if (found := re.fullmatch(rf"{re.escape(prefix)}-(\d+)\.\w+", name))]
    return max(numbers, default=-1) + 1


def bring(places: pa.Table, source: Path, folder: Path) -> None:
    """Link, or else copy, into `folder` the shards of `source` that hold the files in `places` (shard, offset, length).

    Raises:
        ArtifactError: one is missing or too short.
    """
    ends = pa.table({"shard": places["shard"], "end": np.asarray(places["offset"]) + np.asarray(places["length"])})
    for shard, end in zip(*ends.group_by("shard").aggregate([("end", "max")]).to_pydict().values(), strict=True):
        path = (source / shard).resolve()  # DVC may have put a link to its cache there
        size = path.stat().st_size if path.exists() else None
        if size is None or size < end:
            raise ArtifactError(
                f"{source / shard} is {'missing' if size is None else f'too short ({size} bytes)'}, the manifest expects at least {end} bytes; "
                f"restore it with `dvc checkout` or `dvc pull {source}`"
            )
        try:
            os.link(path, folder / shard)
        except OSError:
            shutil.copyfile(path, folder / shard)

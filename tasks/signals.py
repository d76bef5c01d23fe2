"""The signals of a round on disk: what the method may look at, row by row of the manifest."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from al_core.pool import SIGNALS
from tasks.artifacts import Folder, Manifest
from tasks.errors import ArtifactError, ParamsError
from tasks.models import Head, Model, write_tensors


def check_without_model(names: Sequence[str]) -> None:
    """Raise where a signal of embed.signals takes a trained model; the discriminator learns from what is labelled instead."""
    for name in names:
        if SIGNALS[name].from_model and name != "discriminator":
            raise ParamsError(
                f"embed.signals names {name}, which takes a trained model, and before the first round there is only the encoder; take {name} out "
                "and put it back for the second round"
            )


class Signals(Folder):
    """A folder: row i of every array is image i of the manifest.

    `ids.npy` (n,) S64; `embeddings.npy` (n, d) float32; float32 too and where asked for `logits.npy` (n, classes), `predicted_loss.npy` (n,),
    `discriminator.npy` (n,) and, of an encoder with dropout, `mc_probs.npy` (n, passes, classes); `head.safetensors` where the model has a head;
    `mc_heads.safetensors`, draws of the head, where they stand for passes; `signals.json`: the digest of the encoder, and the classes in the order of
    the logits.
    """

    file = "${here}/signals"

    @classmethod
    def begin(cls, path: Path, manifest: Manifest, model: Model) -> Signals:
        """A new folder with all but the arrays."""
        path.mkdir()
        np.save(path / "ids.npy", manifest.ids.astype("S64"), allow_pickle=False)
        classes = model.head.classes if model.head else None
        (path / "signals.json").write_text(json.dumps({"classes": classes, "encoder": model.digest()}, sort_keys=True) + "\n", "utf-8")
        if model.head:
            write_tensors(path / "head.safetensors", {"weight": model.head.weight, "bias": model.head.bias})
        return cls(path)

    def write(self, name: str, shape: tuple[int, ...], done: int = 0) -> ArrayWriter:
        """An array to be filled batch by batch, or to go on with behind the first `done` rows."""
        return ArrayWriter(self.path / f"{name}.npy", shape, done)

    def has(self, name: str) -> bool:
        """Whether the array was computed."""
        return (self.path / f"{name}.npy").exists()

    def array_or_none(self, name: str) -> npt.NDArray[np.float32] | None:
        """The array, or None where embed.signals did not name it."""
        return self.array(name) if self.has(name) else None

    def array(self, name: str) -> npt.NDArray[np.float32]:
        """One of the arrays, such as `embeddings`, memory-mapped and read-only."""
        if not self.has(name):
            raise ArtifactError(f"{self.path / name}.npy is missing: embed.signals did not name {name!r}; open the round again with it")
        array: npt.NDArray[np.float32] = np.load(self.path / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        return array

    def head(self) -> Head | None:
        """The head of the model that looked, None if it had none."""
        path = self.path / "head.safetensors"
        if not path.exists():
            return None
        tensors = load_file(path)
        return Head(tensors["weight"], tensors["bias"], self.about()["classes"])

    def write_draws(self, weight: npt.NDArray[np.float32], bias: npt.NDArray[np.float32]) -> None:
        """Draws of the head: weight (passes, classes, d) and bias (passes, classes)."""
        write_tensors(self.path / "mc_heads.safetensors", {"weight": weight, "bias": bias})

    def draws(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None:
        """Draws of the head; None where embed.signals did not name mc_probs."""
        path = self.path / "mc_heads.safetensors"
        if not path.exists():
            return None
        tensors = load_file(path)
        return tensors["weight"], tensors["bias"]

    def about(self) -> dict[str, list[str]]:
        """`signals.json`."""
        content: dict[str, list[str]] = json.loads((self.path / "signals.json").read_text("utf-8"))
        return content

    def encoder(self) -> str:
        """Digest of the encoder whose embeddings these are."""
        return str(self.about()["encoder"])

    def check(self, manifest: Manifest) -> None:
        """Raise unless the rows are the manifest's."""
        ids = np.load(self.path / "ids.npy", allow_pickle=False).astype(np.str_)
        if not np.array_equal(ids, manifest.ids):
            raise ArtifactError(f"{self.path} was made for another manifest ({len(ids)} rows, expected {len(manifest)}); run embed again")


class ArrayWriter:
    """A float32 `.npy` file written from front to back; by plain writes, since a memory map on a full disk ends the process without a word.

    Args:
        path: of the file.
        shape: of the whole array.
        done: rows that the file has already; what stands behind them is written anew.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], done: int = 0) -> None:
        self.left = shape[0] - done
        self.file = path.open("r+b" if done else "wb")
        if done == 0:
            np.lib.format.write_array_header_1_0(self.file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        else:
            np.lib.format.read_magic(self.file)
            np.lib.format.read_array_header_1_0(self.file)
            self.file.seek(done * math.prod(shape[1:], start=4), os.SEEK_CUR)
            self.file.truncate()

    def __enter__(self) -> ArrayWriter:
        return self

    def append(self, batch: npt.NDArray[np.float32]) -> None:
        """The next rows."""
        self.left -= len(batch)
        self.file.write(np.ascontiguousarray(batch, "<f4").tobytes())

    def settle(self) -> None:
        """Return when what was appended is on the disk."""
        self.file.flush()
        os.fsync(self.file.fileno())

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.file.close()
        if kind is None and self.left:
            raise ArtifactError(f"{self.file.name}: {self.left} rows are missing; this is a fault of the stage that writes it")

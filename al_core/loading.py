"""Images to batches of tensors: the same bytes with any number of loader processes."""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from al_core.seeds import derive, generator, seeded

if TYPE_CHECKING:
    from PIL.Image import Image

BILINEAR = 2  # PIL.Image.Resampling.BILINEAR, which averages (antialias) where it shrinks
PR_SET_PDEATHSIG = 1

AHEAD = 2  # batches that are copied before they are asked for

Bytes = npt.NDArray[np.uint8]
Pick = tuple[int, int]  # epoch, row


class Images(Protocol):
    """Images by row; picklable, since loader processes hold a copy, which must open its files for itself (a file position is shared by a fork).

    Images may also be `Stored`, `Decoded` or both, which makes reading them faster and changes no byte.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> Image:
        """The image of a row, in mode RGB."""
        ...


@runtime_checkable
class Stored(Protocol):
    """Images in files, which can be asked for ahead."""

    def expect(self, rows: Sequence[int], /) -> None:
        """Have the system fetch what these rows need: they are read next."""
        ...


@runtime_checkable
class Decoded(Protocol):
    """Images of one size whose pixels need only be copied."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of each image, as Pillow has them."""
        ...

    def take(self, rows: Sequence[int], /) -> Bytes:
        """(B, height, width, 3) pixels of these rows, the caller's own."""
        ...


View = Callable[["Image"], Tensor]  # picklable; may draw from torch's and NumPy's global generators, which are set for each (seed, epoch, row)
OnEpoch = Callable[[int, float, float], None]  # of training: epoch from 1, mean loss, learning rate of the epoch's last step


@dataclass(frozen=True)
class Square:
    """The whole image at `size` x `size` pixels, bilinear with antialias: (3, size, size) uint8."""

    size: int

    def __call__(self, image: Image) -> Tensor:
        return pixels(self.of(image))

    def of(self, image: Image) -> Image:
        """The image itself where it has the size already."""
        side = (self.size, self.size)
        return image if image.size == side else image.resize(side, BILINEAR)


def pixels(image: Image) -> Tensor:
    """(3, height, width) uint8 of an RGB image."""
    return torch.from_numpy(rgb(image).copy()).permute(2, 0, 1)


def rgb(image: Image) -> Bytes:
    """(height, width, 3) of an RGB image, read-only."""
    if image.mode != "RGB":
        raise ValueError(f"an image has mode {image.mode!r}, expected 'RGB'; convert it where it is read")
    return np.asarray(image)


def channels_first(array: Bytes) -> Tensor:
    """(B, height, width, 3) as (B, 3, height, width), without moving a byte."""
    return torch.from_numpy(array).permute(0, 3, 1, 2)


def unit(batch: Tensor, device: torch.device, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
    """uint8 pixels as float32 in [0, 1] on the device, laid out in memory as asked for, however the batch is: networks round by how their input lies."""
    return batch.to(device, non_blocking=True).to(torch.float32, memory_format=memory_format).div_(255)


def in_order(rows: Sequence[int], size: int) -> Iterator[list[Pick]]:
    """Rows once, in the order given, in batches of `size`; the last may be smaller."""
    for start in range(0, len(rows), size):
        yield [(0, row) for row in rows[start : start + size]]


def shuffled(rows: Sequence[int], size: int, epochs: int, seed: int, *, drop_last: bool) -> Iterator[list[Pick]]:
    """Rows in a new random order each epoch (1, 2, ...), in batches of `size`."""
    for epoch in range(1, epochs + 1):
        order = generator(seed, "order", epoch).permutation(len(rows))
        for start in range(0, len(rows) - size + 1 if drop_last else len(rows), size):
            yield [(epoch, rows[place]) for place in order[start : start + size].tolist()]


def load(images: Images, batches: Iterable[list[Pick]], view: View, *, seed: int, workers: int) -> Iterator[Tensor]:
    """Batches of views, (B, *view's shape), in the order of `batches`.

    Args:
        images: read by row.
        batches: which rows, each with the epoch that its randomness is drawn for.
        view: image to tensor.
        seed: of the views' randomness.
        workers: loader processes; 0 loads in this one. Does not change the result. They end with this process, however it ends. None is started for
            images that are `Decoded` and only wanted as they are: copying them takes less time than handing them over.

    Raises:
        Whatever reading an image raised, from a loader process with its traceback as a note.
    """
    if isinstance(images, Decoded) and isinstance(view, Square) and images.size == (view.size, view.size):
        yield from copied(images, batches)
        return
    loader = DataLoader(
        Views(images, view, seed),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=as_it_is,
        worker_init_fn=begin if workers else None,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(0),  # else the loader draws from the global one
    )
    for batch in loader:
        if isinstance(batch, Exception):
            raise batch
        yield batch


def copied(images: Decoded, batches: Iterable[list[Pick]]) -> Iterator[Tensor]:
    """Batches of the images as they are, (B, 3, height, width) uint8 whose channels lie side by side; a thread copies some ahead."""

    pinned = torch.cuda.is_available()

    def copy(rows: list[int]) -> Tensor:
        batch = channels_first(images.take(rows))
        return batch.pin_memory() if pinned else batch

    waiting: deque[Future[Tensor]] = deque()
    begin = partial(torch.cuda.set_device, torch.cuda.current_device()) if pinned else None  # else the thread would be on the first device
    with ThreadPoolExecutor(1, "copied", begin) as thread:
        for picks in batches:
            waiting.append(thread.submit(copy, [row for _, row in picks]))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class Views(Dataset[Tensor]):
    """Images through a view, a batch at a time."""

    def __init__(self, images: Images, view: View, seed: int) -> None:
        self.images, self.view, self.seed = images, view, seed

    def __getitems__(self, picks: list[Pick]) -> Tensor | Exception:
        """(B, ...) views, or what went wrong: raised here it would reach the caller as another error, with the traceback as its message."""
        try:
            if isinstance(self.images, Stored):
                self.images.expect([row for _, row in picks])
            if isinstance(self.view, Square):  # draws nothing
                return channels_first(np.stack([rgb(self.view.of(self.images[row])) for _, row in picks]))
            with seeded(self.seed, "views"):
                return torch.stack([self.one(epoch, row) for epoch, row in picks])
        except Exception as error:
            error.add_note(traceback.format_exc())
            return error

    def one(self, epoch: int, row: int) -> Tensor:
        value = derive(self.seed, "view", epoch, row)
        torch.default_generator.manual_seed(value)
        np.random.seed(value % 2**32)  # noqa: NPY002 -- some of lightly's transforms draw from it
        return self.view(self.images[row])


def as_it_is(batch: object) -> object:
    """`Views` gives whole batches."""
    return batch


def begin(_: int) -> None:
    """Tie a loader process to its parent's life, and not to what the parent would do at its end.

    Linux is asked to kill it when its parent dies; elsewhere torch's own watch ends it within seconds. What the parent's threads have registered for
    their end is forgotten: a fork inherits it, and where it fails there (Prefect's does), torch takes that for a loader that broke down.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    getattr(threading, "_threading_atexits", []).clear()


# ---- many passes over the same images ------------------------------------------------------------------------------------


def resized(images: Images, size: int, *, workers: int, limit: int = 2**31) -> Images:
    """The images at `size` x `size` pixels: held in memory where they take at most `limit` bytes, else read, and resized, at every use."""
    if len(images) * size * size * 3 > limit:
        return images if isinstance(images, Decoded) and images.size == (size, size) else Resized(images, size)
    held = np.empty((len(images), size, size, 3), np.uint8)
    start = 0
    for batch in load(images, in_order(range(len(images)), 64), Square(size), seed=0, workers=workers):
        held[start : start + len(batch)] = batch.permute(0, 2, 3, 1).numpy()
        start += len(batch)
    return Held(held)


@dataclass(frozen=True)
class Resized:
    """Images read and resized at every use."""

    images: Images
    size: int

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int, /) -> Image:
        return self.images[row].resize((self.size, self.size), BILINEAR)

    def expect(self, rows: Sequence[int], /) -> None:
        """Have the system fetch what these rows need, where they are in files."""
        if isinstance(self.images, Stored):
            self.images.expect(rows)


@dataclass(frozen=True)
class Held:
    """Images in memory."""

    array: Bytes  # (n, height, width, 3)

    def __len__(self) -> int:
        return len(self.array)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.array.shape[2], self.array.shape[1]

    def take(self, rows: Sequence[int], /) -> Bytes:
        """(B, height, width, 3) pixels of these rows."""
        return self.array[np.asarray(rows, dtype=np.int64)]

    def __getitem__(self, row: int, /) -> Image:
        from PIL import Image

        return Image.fromarray(self.array[row])

"""What an acquisition method may look at, and which rows it may pick. Everything is checked here, once, so that methods check nothing."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Rows = npt.NDArray[np.int64]
Array = TypeVar("Array", Floats, Rows)
Present = TypeVar("Present")

BLOCK_VALUES = 2**20  # float64 values in one block of a streamed signal: 8 MB


@dataclass(frozen=True)
class Signal:
    """Where something that a method reads comes from."""

    made_by: str  # the stage, and how to ask for it
    from_model: bool  # takes a trained model, so the first round cannot have it


SIGNALS = {
    "embeddings": Signal("stage `embed` makes them: name them in embed.signals", from_model=False),
    "logits": Signal("stage `embed` makes them with a trained model: name them in embed.signals", from_model=True),
    "head": Signal("stage `embed` copies it from a trained model: name it in embed.signals", from_model=True),
    "labels": Signal("stage `import-labels` makes them from answers", from_model=False),
}


class Pool:
    """Signals, and the rows that may be picked. Row i of every signal is the same image.

    Signals stay where they lie: a memory map is read in blocks and never copied whole. Neither a pool nor, through it, a signal can be changed.

    Args:
        embeddings: (n, d) float16, float32 or float64.
        logits: (n, classes) float16, float32 or float64.
        head: weight (classes, d) and bias (classes,) of the layer that makes logits from embeddings.
        labeled: distinct rows whose labels are known. Never picked; methods that spread their picks keep away from them.
        labels: class numbers, from 0, of `labeled`, in its order.
        excluded: distinct rows that are neither picked nor known, as if they were not there: test and validation images, images that people
            could not label, images that another arm has taken.

    Raises:
        ValueError: naming the argument: no signal with a row an image, shapes that disagree, a type that is not expected, NaN or infinity
            (with the first row), rows that are out of range, repeated, or both labelled and excluded.
    """

    def __init__(
        self,
        *,
        embeddings: Floats | None = None,
        logits: Floats | None = None,
        head: tuple[Floats, Floats] | None = None,
        labeled: Sequence[int] | Rows = (),
        labels: Sequence[int] | Rows | None = None,
        excluded: Sequence[int] | Rows = (),
    ) -> None:
        self._embeddings = None if embeddings is None else checked("embeddings", embeddings, ndim=2)
        self._logits = None if logits is None else checked("logits", logits, ndim=2)
        self._head = None if head is None else (checked("head weight", head[0], ndim=2), checked("head bias", head[1], ndim=1))
        self._size = self._agreed_size()
        labeled = row_numbers("labeled", labeled, self._size)
        order = np.argsort(labeled)
        self._labeled = read_only(labeled[order])
        self._labels = None if labels is None else read_only(class_numbers(labels, len(labeled))[order])
        self._exclude(row_numbers("excluded", excluded, self._size))

    @property
    def size(self) -> int:
        """Number of rows, n."""
        return self._size

    @property
    def embeddings(self) -> Floats:
        """(n, d); raises ValueError where the pool has none, as every signal does."""
        return present("embeddings", self._embeddings)

    @property
    def logits(self) -> Floats:
        """(n, classes)."""
        return present("logits", self._logits)

    @property
    def head(self) -> tuple[Floats, Floats]:
        """Weight (classes, d) and bias (classes,)."""
        return present("head", self._head)

    @property
    def labels(self) -> Rows:
        """(labelled,) class numbers of `labeled`, in its order."""
        return present("labels", self._labels)

    @property
    def labeled(self) -> Rows:
        """(labelled,) rows whose labels are known, ascending."""
        return self._labeled

    @property
    def excluded(self) -> Rows:
        """Rows that are neither picked nor known, ascending."""
        return self._excluded

    @property
    def available(self) -> Rows:
        """Rows that may be picked, ascending: neither labelled nor excluded."""
        return self._available

    @property
    def signals(self) -> tuple[str, ...]:
        """Names of the signals that the pool has, as in SIGNALS."""
        values = {"embeddings": self._embeddings, "logits": self._logits, "head": self._head, "labels": self._labels}
        return tuple(name for name, value in values.items() if value is not None)

    def without(self, rows: Sequence[int] | Rows) -> Pool:
        """The same pool with these rows excluded too. Shares the signals and checks none of them again, so it costs next to nothing."""
        smaller = copy.copy(self)
        smaller._exclude(np.union1d(self._excluded, row_numbers("rows", rows, self._size)))
        return smaller

    def __repr__(self) -> str:
        rows = f"{len(self._available)} available, {len(self._labeled)} labelled, {len(self._excluded)} excluded"
        return f"Pool of {self._size} rows ({rows}) with {', '.join(self.signals)}"

    def _exclude(self, rows: Rows) -> None:
        both = np.intersect1d(self._labeled, rows)
        if len(both):
            raise ValueError(f"row {both[0]} is both labelled and excluded; a labelled row is known, an excluded one is as if it were not there")
        self._excluded = read_only(np.sort(rows))
        available = np.ones(self._size, dtype=bool)
        available[self._labeled] = available[rows] = False
        self._available = read_only(np.flatnonzero(available).astype(np.int64))

    def _agreed_size(self) -> int:
        by_row = {name: array for name, array in (("embeddings", self._embeddings), ("logits", self._logits)) if array is not None}
        if not by_row:
            raise ValueError("a pool needs embeddings (n, d) or logits (n, classes); it got neither")
        sizes = {name: len(array) for name, array in by_row.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"embeddings have {sizes['embeddings']} rows but logits have {sizes['logits']}; row i of each must be the same image")
        if self._head is not None:
            weight, bias = self._head
            if len(weight) != len(bias):
                raise ValueError(f"head weight has {len(weight)} classes but head bias has {len(bias)}")
            for name, axis, unit in (("logits", 0, "classes"), ("embeddings", 1, "dimensions")):
                if name in by_row and weight.shape[axis] != by_row[name].shape[1]:
                    raise ValueError(f"head weight has {weight.shape[axis]} {unit} but {name} have {by_row[name].shape[1]}")
        return next(iter(sizes.values()))


def blocks(array: Floats | Rows, *, width: int = 1) -> Iterator[slice]:
    """Slices that run over the rows of an array, each as long as BLOCK_VALUES allows.

    Args:
        array: (n, ...); the other axes say how many values a row has.
        width: values that the caller works on for each row, where they are more.
    """
    step = max(1, BLOCK_VALUES // max(width, math.prod(array.shape[1:])))
    return (slice(start, min(start + step, len(array))) for start in range(0, len(array), step))


def checked(name: str, array: Floats, *, ndim: int) -> Floats:
    """A read-only view of a signal that has the right type and number of axes, at least one row and column, and finite values alone."""
    expected = f"expected a NumPy array or memory map with {ndim} {'axis' if ndim == 1 else 'axes'} of float16, float32 or float64"
    if type(array) not in (np.ndarray, np.memmap):
        raise ValueError(f"{name} is of type {type(array).__name__}; {expected}")
    if array.ndim != ndim or array.dtype not in (np.float16, np.float32, np.float64):
        raise ValueError(f"{name} is {array.dtype} {array.shape}; {expected}")
    if 0 in array.shape:
        raise ValueError(f"{name} is empty: its shape is {array.shape}")
    for block in blocks(array):
        finite = np.isfinite(array[block])
        if not finite.all():
            at = tuple(np.argwhere(~finite)[0])
            raise ValueError(f"{name} holds {array[block][at]} in row {block.start + at[0]}; every value must be finite: mend what made it")
    return read_only(array)


def row_numbers(name: str, rows: Sequence[int] | Rows, size: int) -> Rows:
    """Distinct rows of the pool as int64, in the given order."""
    array = integers(name, rows, "row numbers")
    outside = array[(array < 0) | (array >= size)]
    if len(outside):
        raise ValueError(f"{name} holds row {outside[0]}, but the pool has rows 0 to {size - 1}")
    ordered = np.sort(array)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(repeated):
        raise ValueError(f"{name} holds row {repeated[0]} more than once")
    return array


def class_numbers(labels: Sequence[int] | Rows, expected: int) -> Rows:
    """One class number from 0 for each labelled row, as int64."""
    array = integers("labels", labels, "class numbers")
    if len(array) != expected:
        raise ValueError(f"labels holds {len(array)} classes for {expected} labelled rows; it must name the class of each, in the order of `labeled`")
    if len(array) and array.min() < 0:
        raise ValueError(f"labels holds {array.min()}; classes are numbered from 0")
    return array


def integers(name: str, values: Sequence[int] | Rows, what: str) -> Rows:
    """A new int64 array; a mask or anything else that is no list of whole numbers is refused."""
    array = np.asarray(values)
    if array.dtype == bool:
        raise ValueError(f"{name} is a mask of truth values; expected {what}: use np.flatnonzero(mask)")
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise ValueError(f"{name} is {array.dtype} {array.shape}; expected a list of {what}")
    return array.astype(np.int64)


def present(name: str, signal: Present | None) -> Present:
    """The signal, or a word on how to get it."""
    if signal is None:
        raise ValueError(f"this pool has no {name}; {SIGNALS[name].made_by}")
    return signal


def read_only(array: Array) -> Array:
    """A view through which nothing can be written."""
    view = array.view()
    view.flags.writeable = False
    return view

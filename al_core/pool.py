"""What an acquisition method may look at, and which rows it may pick. Everything is checked here, once, so that methods check nothing."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from al_core.processes import Processes

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Floats = npt.NDArray[np.floating]
Rows = npt.NDArray[np.int64]
Array = TypeVar("Array", Floats, Rows)
Present = TypeVar("Present")

BLOCK_VALUES = 2**20  # float64 values in one block of a streamed signal: 8 MB
SUM_TOLERANCE = 0.01  # by which a row of probabilities may miss 1: float16 errs by less, logits by more


@dataclass(frozen=True)
class Signal:
    """Where something that a method reads comes from."""

    made_by: str  # the stage, and how to ask for it; or who alone can know it
    from_model: bool = False  # takes a trained model or labelled images, so the first round cannot have it
    in_rounds: bool = True  # a round can have it; if not, only callers of al_core can give it


SIGNALS = {
    "embeddings": Signal("stage `embed` makes them: name them in embed.signals"),
    "logits": Signal("stage `embed` makes them with a trained model: name them in embed.signals", from_model=True),
    "head": Signal("stage `embed` copies it from a trained model", from_model=True),
    "mc_probs": Signal("stage `embed` makes them with a trained model: name them in embed.signals", from_model=True),
    "mc_heads": Signal("stage `embed` draws them from a trained model: name mc_probs, which they stand for, in embed.signals", from_model=True),
    "predicted_loss": Signal("stage `embed` makes it with a model that was trained with retrain.loss_prediction: name it in embed.signals", from_model=True),
    "discriminator": Signal("stage `embed` trains it where some images are labelled: name it in embed.signals", from_model=True),
    "labels": Signal("stage `import-labels` makes them from answers"),
    "groups": Signal("no stage makes them: give them to Pool yourself", in_rounds=False),
    "truth": Signal("nobody knows it before the images are labelled: only a backtest over labelled data has it", in_rounds=False),
}


class MissingSignalError(ValueError):
    """A method reads what the pool does not have.

    Attributes:
        signal: its name, one of `SIGNALS`.
    """

    def __init__(self, reader: str, signal: str) -> None:
        super().__init__(f"{reader} reads {signal}, which this pool does not have; {SIGNALS[signal].made_by}")
        self.signal = signal


ROWS_AXIS = {"embeddings": 0, "logits": 0, "mc_probs": 1, "predicted_loss": 0, "discriminator": 0}  # of the arrays of floats that have a row an image


class Pool:
    """Signals, and the rows that may be picked. Row i of every signal is the same image.

    Signals stay where they lie: a memory map is read in blocks and never copied whole. Neither a pool nor, through it, a signal can be changed.

    Args:
        embeddings: (n, d) float16, float32 or float64, like every array of numbers here.
        logits: (n, classes).
        head: weight (classes, d) and bias (classes,) of the layer that makes logits from embeddings.
        mc_probs: (passes, n, classes) class probabilities of several stochastic passes, as under MC dropout; each row sums to 1.
        mc_heads: weight (passes, classes, d) and bias (passes, classes) of several draws of the layer that makes logits from embeddings, as with
            dropout masks laid over `head`. With embeddings they stand for mc_probs, which then need not exist.
        predicted_loss: (n,) what a loss prediction module expects the loss to be; only its order means something.
        discriminator: (n,) probability of being labelled, as a discriminator between labelled and unlabelled images sees it.
        labeled: distinct rows whose labels are known. Never picked; methods that spread their picks keep away from them.
        labels: class numbers, from 0, of `labeled`, in its order.
        groups: (n,) a number an image, such as its camera, for quotas.
        truth: (n,) class number of every image; for methods that only backtests can run.
        excluded: distinct rows that are neither picked nor known, as if they were not there: test and validation images, images that people
            could not label, images that another arm has taken.
        device: torch's name of where methods compute what is worth it: "cpu", "cuda", "cuda:1".
        process_group: of torch.distributed, such as `torch.distributed.group.WORLD`: its processes share the work of one selection, for which each
            makes this pool, its signals memory maps of the same files, and calls `select` alike. The backend has to carry what lies in the CPU's
            memory (gloo does).

    Raises:
        ValueError: naming the argument: no signal with a row an image, shapes that disagree, a type that is not expected, NaN or infinity
            (with the first row), probabilities outside 0 to 1 or that do not sum to 1, rows that are out of range, repeated, or both labelled and excluded.
    """

    def __init__(
        self,
        *,
        embeddings: Floats | None = None,
        logits: Floats | None = None,
        head: tuple[Floats, Floats] | None = None,
        mc_probs: Floats | None = None,
        mc_heads: tuple[Floats, Floats] | None = None,
        predicted_loss: Floats | None = None,
        discriminator: Floats | None = None,
        labeled: Sequence[int] | Rows = (),
        labels: Sequence[int] | Rows | None = None,
        groups: Sequence[int] | Rows | None = None,
        truth: Sequence[int] | Rows | None = None,
        excluded: Sequence[int] | Rows = (),
        device: str = "cpu",
        process_group: ProcessGroup | None = None,
    ) -> None:
        self._embeddings = None if embeddings is None else checked("embeddings", embeddings, ndim=2)
        self._logits = None if logits is None else checked("logits", logits, ndim=2)
        self._head = None if head is None else (checked("head weight", head[0], ndim=2), checked("head bias", head[1], ndim=1))
        self._mc_probs = None if mc_probs is None else checked("mc_probs", mc_probs, ndim=3, among=DISTRIBUTIONS)
        self._mc_heads = None if mc_heads is None else (checked("mc_heads weight", mc_heads[0], ndim=3), checked("mc_heads bias", mc_heads[1], ndim=2))
        self._predicted_loss = None if predicted_loss is None else checked("predicted_loss", predicted_loss, ndim=1)
        self._discriminator = None if discriminator is None else checked("discriminator", discriminator, ndim=1, among=PROBABILITIES)
        self._size = self._agreed_size()
        labeled = row_numbers("labeled", labeled, self._size)
        order = np.argsort(labeled)
        self._labeled = read_only(labeled[order])
        self._labels = None if labels is None else read_only(numbered("labels", labels, len(labeled), "labelled row, in the order of `labeled`")[order])
        self._groups = None if groups is None else read_only(numbered("groups", groups, self._size, "row"))
        self._truth = None if truth is None else read_only(numbered("truth", truth, self._size, "row"))
        self._device = device
        self._processes = Processes(process_group)
        self._exclude(row_numbers("excluded", excluded, self._size))

    @property
    def size(self) -> int:
        """Number of rows, n."""
        return self._size

    @property
    def device(self) -> str:
        """Where methods compute what is worth it, as torch names it."""
        return self._device

    @property
    def processes(self) -> Processes:
        """Those that share the work of a selection."""
        return self._processes

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
    def mc_probs(self) -> Floats:
        """(passes, n, classes). Where draws of the head stand for them, `al_core.passes.passes_of` reads both alike."""
        if self._mc_probs is None and self._mc_heads is not None:
            raise ValueError("this pool has mc_heads in place of mc_probs; a method reads either through al_core.passes.passes_of(pool)")
        return present("mc_probs", self._mc_probs)

    @property
    def mc_heads(self) -> tuple[Floats, Floats]:
        """Weight (passes, classes, d) and bias (passes, classes)."""
        return present("mc_heads", self._mc_heads)

    @property
    def predicted_loss(self) -> Floats:
        """(n,); high means a high loss is expected."""
        return present("predicted_loss", self._predicted_loss)

    @property
    def discriminator(self) -> Floats:
        """(n,); low means that an image looks unlike the labelled ones."""
        return present("discriminator", self._discriminator)

    @property
    def labels(self) -> Rows:
        """(labelled,) class numbers of `labeled`, in its order."""
        return present("labels", self._labels)

    @property
    def groups(self) -> Rows:
        """(n,) group numbers."""
        return present("groups", self._groups)

    @property
    def truth(self) -> Rows:
        """(n,) class numbers of all rows."""
        return present("truth", self._truth)

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
    def looked_at(self) -> Rows:
        """Rows that are not excluded, ascending: labelled and available ones."""
        return np.union1d(self._labeled, self._available)

    @property
    def signals(self) -> tuple[str, ...]:
        """Names of the signals that the pool has, as in SIGNALS; mc_probs among them where mc_heads and embeddings stand for them."""
        has = {name for name in SIGNALS if getattr(self, f"_{name}") is not None}
        return tuple(name for name in SIGNALS if name in has or (name == "mc_probs" and {"mc_heads", "embeddings"} <= has))

    def outline(self) -> tuple[object, ...]:
        """Shapes and types of the signals, and a hash of the rows that are known, grouped or out of reach: equal for equal pools, and cheap."""
        digest = hashlib.sha256()
        for rows in (self._labeled, self._labels, self._excluded, self._groups, self._truth):
            digest.update(b"|" if rows is None else rows.tobytes())
        signals = {name: getattr(self, f"_{name}") for name in ROWS_AXIS}
        shapes = {name: (signal.shape, signal.dtype.name) for name, signal in signals.items() if signal is not None}
        heads = [tuple(part.shape for part in head) for head in (self._head, self._mc_heads) if head is not None]
        return self.signals, tuple(shapes.items()), tuple(heads), digest.hexdigest()[:16]

    def without(self, rows: Sequence[int] | Rows) -> Pool:
        """The same pool with these rows excluded too, labelled ones among them. Shares the signals and checks none of them again, so it costs little."""
        rows = row_numbers("rows", rows, self._size)
        smaller = copy.copy(self)
        kept = ~np.isin(self._labeled, rows)
        smaller._labeled = read_only(self._labeled[kept])
        smaller._labels = None if self._labels is None else read_only(self._labels[kept])
        smaller._exclude(np.union1d(self._excluded, rows))
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
        sizes = {name: getattr(self, f"_{name}").shape[axis] for name, axis in ROWS_AXIS.items() if getattr(self, f"_{name}") is not None}
        if not sizes:
            raise ValueError(f"a pool needs a signal with a row an image and got none; give one of {', '.join(ROWS_AXIS)}")
        (first, size), *others = sizes.items()
        for name, other in others:
            if other != size:
                raise ValueError(f"{first} have {size} rows but {name} have {other}; row i of each must be the same image")
        if self._head is not None:
            weight, bias = self._head
            if len(weight) != len(bias):
                raise ValueError(f"head weight has {len(weight)} classes but head bias has {len(bias)}")
            for name, signal, axis, unit in (("logits", self._logits, 0, "classes"), ("embeddings", self._embeddings, 1, "dimensions")):
                if signal is not None and weight.shape[axis] != signal.shape[1]:
                    raise ValueError(f"head weight has {weight.shape[axis]} {unit} but {name} have {signal.shape[1]}")
        if self._mc_heads is not None:
            if self._mc_probs is not None:
                raise ValueError("mc_probs and mc_heads are both given; they say the same, so give one of them")
            weight, bias = self._mc_heads
            if weight.shape[:2] != bias.shape:
                raise ValueError(f"mc_heads weight is {weight.shape} but mc_heads bias is {bias.shape}; expected (passes, classes, d) and (passes, classes)")
            if self._embeddings is not None and weight.shape[2] != self._embeddings.shape[1]:
                raise ValueError(f"mc_heads weight has {weight.shape[2]} dimensions but embeddings have {self._embeddings.shape[1]}")
        return int(size)


def blocks(array: Floats | Rows, *, width: int = 1) -> Iterator[slice]:
    """Slices that run over the rows of an array, each as long as BLOCK_VALUES allows.

    Args:
        array: (n, ...); the other axes say how many values a row has.
        width: values that the caller works on for each row, where they are more.
    """
    step = max(1, BLOCK_VALUES // max(width, math.prod(array.shape[1:])))
    return (slice(start, min(start + step, len(array))) for start in range(0, len(array), step))


@dataclass(frozen=True)
class Values:
    """Which values a signal may hold, beside finite ones."""

    expected: str
    wrong: Callable[[Floats], npt.NDArray[np.bool_]]  # of a block, (rows,) whether a row holds others


DISTRIBUTIONS = Values(
    "probabilities that sum to 1: softmax the logits first",
    lambda part: (np.abs(part.sum(axis=1, dtype=np.float64) - 1) > SUM_TOLERANCE) | (part < 0).any(axis=1),
)
PROBABILITIES = Values("probabilities from 0 to 1: take the sigmoid of logits first", lambda part: (part < 0) | (part > 1))


def checked(name: str, array: Floats, *, ndim: int, among: Values | None = None) -> Floats:
    """A read-only view of a signal that has the right type and number of axes, at least one row and column, and right values alone; reads it once."""
    expected = f"expected a NumPy array or memory map with {ndim} {'axis' if ndim == 1 else 'axes'} of float16, float32 or float64"
    if type(array) not in (np.ndarray, np.memmap):
        raise ValueError(f"{name} is of type {type(array).__name__}; {expected}")
    if array.ndim != ndim or array.dtype not in (np.float16, np.float32, np.float64):
        raise ValueError(f"{name} is {array.dtype} {array.shape}; {expected}")
    if 0 in array.shape:
        raise ValueError(f"{name} is empty: its shape is {array.shape}")
    for number, one in enumerate(array if ndim == 3 else [array]):
        of_pass = f" of pass {number}" if ndim == 3 else ""
        for block in blocks(one):
            part = np.asarray(one[block])
            finite = np.isfinite(part)
            if not finite.all():
                at = tuple(np.argwhere(~finite)[0])
                raise ValueError(f"{name} holds {part[at]} in row {block.start + at[0]}{of_pass}; every value must be finite: mend what made it")
            if among and (wrong := among.wrong(part)).any():
                row = int(np.argmax(wrong))
                raise ValueError(f"{name} holds {part[row]} in row {block.start + row}{of_pass}; expected {among.expected}")
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


def numbered(name: str, values: Sequence[int] | Rows, expected: int, what: str) -> Rows:
    """One number from 0 for each of so many things, as int64."""
    array = integers(name, values, "whole numbers from 0")
    if len(array) != expected:
        raise ValueError(f"{name} holds {len(array)} numbers; expected {expected}, one for each {what}")
    if len(array) and array.min() < 0:
        raise ValueError(f"{name} holds {array.min()}; expected whole numbers from 0")
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

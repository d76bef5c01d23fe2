"""What several stochastic passes of a model say of each row, taken in pass by pass: no array of passes x rows x classes is ever made.

A measure goes once over the passes of some rows and adds up how far they are off the first. Where all passes agree that is 0 to the last bit, and so
is what measures disagreement. Each row is summed up on its own, in one order: where passes are stored, neither blocks nor threads change a bit. Where
draws of the last layer make them, all is float32, and they do: by some millionths of a nat.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeVar

import numpy as np

from al_core.bounds import plus_product
from al_core.pool import Floats, Pool, Rows, blocks
from al_core.progress import counted, over
from al_core.selection import Scores

if TYPE_CHECKING:
    import torch

Array = TypeVar("Array", Scores, "torch.Tensor")  # float64 arrays; tensors of either precision

TINY = np.finfo(np.float64).tiny  # stands for 0 inside a logarithm that 0 multiplies
IN_CACHE = 64  # blocks so much shorter than usual, of 128 KB, stay in a core's cache over all passes


class Measure(Protocol):
    """A number for each of some rows, from their probabilities (rows, classes) in one pass after another, which it may overwrite."""

    def __call__(self, passes: Iterable[Array]) -> Array: ...


@dataclass(frozen=True)
class Stored:
    """Passes that were computed before.

    Attributes:
        probs: (passes, n, classes).
        device: where measures are computed.
    """

    probs: Floats
    device: str
    signal: ClassVar[str] = "mc_probs"

    @property
    def count(self) -> int:
        """Number of passes."""
        return len(self.probs)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.probs.shape[2])

    @property
    def width(self) -> int:
        """Values to work on for each row."""
        return self.classes

    def of(self, rows: Rows) -> Iterator[Scores]:
        """(rows, classes) float64 probabilities, one pass at a time."""
        return (one[rows].astype(np.float64, order="C") for one in self.probs)

    def on_device(self, rows: Rows) -> Iterator[torch.Tensor]:
        """The same on the device."""
        return (moved(np.ascontiguousarray(one[rows]), self.device) for one in self.probs)


@dataclass(frozen=True, eq=False)
class Drawn:
    """Passes that draws of the last layer make of the embeddings, when they are asked for; softmax and all before it in float32.

    Attributes:
        embeddings: (n, d).
        weight: (passes, classes, d) on the device where they are computed.
        bias: (passes, classes) there.
    """

    embeddings: Floats
    weight: torch.Tensor
    bias: torch.Tensor
    signal: ClassVar[str] = "mc_heads"

    @property
    def count(self) -> int:
        """Number of passes."""
        return len(self.weight)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.weight.shape[1])

    @property
    def width(self) -> int:
        """Values to work on for each row: so many that a block of some 500 rows and 1000 classes stays in a core's cache."""
        return 2 * max(self.weight.shape[1:])

    def of(self, rows: Rows) -> Iterator[Scores]:
        """(rows, classes) float64 probabilities, one pass at a time."""
        return (p.double().cpu().numpy() for p in self.on_device(rows))

    def on_device(self, rows: Rows) -> Iterator[torch.Tensor]:
        """(rows, classes) float32, one pass at a time."""
        import torch

        x = torch.from_numpy(self.embeddings[rows].astype(np.float32, order="C")).to(self.weight.device)
        return (plus_product(bias, x, weight.T, 1).softmax(dim=1) for weight, bias in zip(self.weight, self.bias, strict=True))


def passes_of(pool: Pool) -> Stored | Drawn:
    """Those that the pool has stored, or those that its draws of the head make."""
    if "mc_heads" not in pool.signals:
        return Stored(pool.mc_probs, pool.device)
    import torch

    weight, bias = (torch.from_numpy(array.astype(np.float32)).to(pool.device) for array in pool.mc_heads)
    return Drawn(pool.embeddings, weight, bias)


def over_available(pool: Pool, measure: Measure, *, least_passes: int = 1) -> Scores:
    """(available,) a measure of every available row's passes; of several processes each computes its share.

    Raises:
        ValueError: a single class, or fewer passes than the measure takes.
    """
    passes = passes_of(pool)
    if passes.classes < 2:
        raise ValueError(f"{passes.signal} have 1 class; a model needs at least 2 to be unsure between")
    if passes.count < least_passes:
        raise ValueError(f"{passes.signal} have {passes.count} pass; passes can disagree only if there are at least {least_passes}")

    def scores_of(rows: Rows) -> Scores:
        if isinstance(passes, Stored) and pool.device == "cpu":
            return in_threads(lambda block: measure(passes.of(rows[block])), blocks(rows, width=IN_CACHE * passes.classes))
        parts = over(blocks(rows, width=passes.width), "rows", len(rows))
        return np.concatenate([np.empty(0), *(measure(passes.on_device(rows[part])).double().cpu().numpy() for part in parts)])

    return pool.processes.mapped(scores_of, pool.available)


def in_threads(scores_of: Callable[[slice], Scores], parts: Iterable[slice]) -> Scores:
    """Scores of one block after another, computed by as many threads as torch would take; NumPy lets go of the interpreter's lock meanwhile."""
    import torch

    parts = list(parts)
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        return np.concatenate([np.empty(0), *counted(threads.map(scores_of, parts), "blocks of rows", len(parts))])


def moved(array: Floats, device: str) -> torch.Tensor:
    """An array as float64 on another device."""
    import torch

    return torch.from_numpy(array).to(device).to(torch.float64)


def p_log_p(p: Array) -> Array:
    """Each probability times its logarithm; 0 of 0."""
    if isinstance(p, np.ndarray):
        logs = p.clip(TINY)
        np.log(logs, out=logs)
    else:
        import torch

        logs = p.clip(torch.finfo(p.dtype).tiny).log_()
    logs *= p
    return logs


def entropy(p: Array) -> Array:
    """(rows,) entropy in nats of (rows, classes) probabilities."""
    nats: Array = 0.0 - p_log_p(p).sum(1)  # not -0.0
    return nats


def largest(values: Array) -> Array:
    """(rows,) maximum over classes."""
    maximum: Array = values.max(axis=1) if isinstance(values, np.ndarray) else values.amax(1)
    return maximum


def vote(p: Array) -> Array:
    """(rows, classes) 1 for the likeliest class, the lowest of several, and 0 for the others."""
    if isinstance(p, np.ndarray):
        votes: Scores = (p.argmax(axis=1)[:, None] == np.arange(p.shape[1])).astype(np.float64)
        return votes
    import torch

    return torch.nn.functional.one_hot(p.argmax(1), p.shape[1]).to(p.dtype)


def mean(passes: Iterable[Array]) -> Array:
    """(rows, classes) mean over passes."""
    first, rest = opened(passes)
    off, count = first * 0, 1
    for p in rest:
        p -= first
        off += p
        count += 1
    return first + off / count


def mutual_information(passes: Iterable[Array]) -> Array:
    """(rows,) entropy of the mean over passes minus the mean of their entropies, in nats; at least 0, and exactly 0 where all passes agree."""
    first, rest = opened(passes)
    nats = entropy(first)
    off, off_nats, count = first * 0, nats * 0, 1
    for p in rest:
        off_nats += entropy(p) - nats
        p -= first
        off += p
        count += 1
    information: Array = (entropy(first + off / count) - (nats + off_nats / count)).clip(0)
    return information


def opened(passes: Iterable[Array]) -> tuple[Array, Iterator[Array]]:
    """The first pass, and an iterator over the others."""
    rest = iter(passes)
    return next(rest), rest

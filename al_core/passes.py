"""What several stochastic passes of a model say of each row, taken in pass by pass: no array of passes x rows x classes is ever made.

A measure goes once over the passes of some rows and adds up how far they are off the first. Where all passes agree that is 0 to the last bit, and so
is what measures disagreement. Each row is summed up on its own, in one order: neither blocks nor threads change a bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from al_core.pool import Floats, Pool, Rows, blocks
from al_core.progress import counted, over
from al_core.selection import Scores

if TYPE_CHECKING:
    import torch

Array = TypeVar("Array", Scores, "torch.Tensor")  # float64, on the CPU or on another device

TINY = np.finfo(np.float64).tiny  # stands for 0 inside a logarithm that 0 multiplies
IN_CACHE = 64  # blocks so much shorter than usual, of 128 KB, stay in a core's cache over all passes


class Measure(Protocol):
    """A number for each of some rows, from their probabilities (rows, classes) in one pass after another."""

    def __call__(self, passes: Iterable[Array]) -> Array: ...


def over_available(pool: Pool, measure: Measure, *, least_passes: int = 1) -> Scores:
    """(available,) a measure of every available row of mc_probs, of which each of several processes computes its share.

    Raises:
        ValueError: a single class, or fewer passes than the measure takes.
    """
    probs = pool.mc_probs
    several(probs, least_passes)

    def scores_of(rows: Rows) -> Scores:
        if pool.device == "cpu":
            return in_threads(lambda block: measure(passes_of(probs, rows[block])), blocks(rows, width=IN_CACHE * probs.shape[2]))
        parts = (measure(passes_on(pool.device, probs, rows[block])).cpu().numpy() for block in over(blocks(rows, width=probs.shape[2]), "rows", len(rows)))
        return np.concatenate([np.empty(0), *parts])

    return pool.processes.mapped(scores_of, pool.available)


def in_threads(scores_of: Callable[[slice], Scores], parts: Iterable[slice]) -> Scores:
    """Scores of one block after another, computed by as many threads as torch would take; NumPy lets go of the interpreter's lock meanwhile."""
    import torch

    parts = list(parts)
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        return np.concatenate([np.empty(0), *counted(threads.map(scores_of, parts), "blocks of rows", len(parts))])


def several(probs: Floats, least_passes: int) -> None:
    """Raise unless there are classes to be unsure between and passes that could disagree."""
    if probs.shape[2] < 2:
        raise ValueError("mc_probs have 1 class; a model needs at least 2 to be unsure between")
    if len(probs) < least_passes:
        raise ValueError(f"mc_probs have {len(probs)} pass; passes can disagree only if there are at least {least_passes}")


def passes_of(probs: Floats, rows: Rows) -> Iterator[Scores]:
    """Some rows of each pass as float64, one pass at a time."""
    return (np.take(np.asarray(one), rows, axis=0).astype(np.float64) for one in probs)


def passes_on(device: str, probs: Floats, rows: Rows) -> Iterator[torch.Tensor]:
    """The same on another device."""
    return (moved(np.take(np.asarray(one), rows, axis=0), device) for one in probs)


def moved(array: Floats, device: str) -> torch.Tensor:
    """An array as float64 on another device."""
    import torch

    return torch.from_numpy(array).to(device).to(torch.float64)


def p_log_p(p: Array) -> Array:
    """Each probability times its logarithm; 0 of 0."""
    logs = p.clip(TINY)
    if isinstance(logs, np.ndarray):
        np.log(logs, out=logs)
    else:
        logs.log_()
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
        off += p - first
        count += 1
    return first + off / count


def mutual_information(passes: Iterable[Array]) -> Array:
    """(rows,) entropy of the mean over passes minus the mean of their entropies, in nats; at least 0, and exactly 0 where all passes agree."""
    first, rest = opened(passes)
    nats = entropy(first)
    off, off_nats, count = first * 0, nats * 0, 1
    for p in rest:
        off += p - first
        off_nats += entropy(p) - nats
        count += 1
    information: Array = (entropy(first + off / count) - (nats + off_nats / count)).clip(0)
    return information


def opened(passes: Iterable[Array]) -> tuple[Array, Iterator[Array]]:
    """The first pass, and an iterator over the others."""
    rest = iter(passes)
    return next(rest), rest

"""Embeddings as points: their coordinates, exactly, and vectors in float32 that bound their distances."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from al_core.bounds import LANE, REACH, ROUNDING, Bounded, Doubles, pairs, product, smallest, squared_length, sums
from al_core.pool import Floats, Rows, blocks
from al_core.processes import ALONE, Processes

if TYPE_CHECKING:
    from torch import Tensor

SAMPLE = 1024  # rows that the origin and the principal directions are found from


@dataclass(frozen=True)
class Points:
    """Embeddings as points, read block by block.

    Attributes:
        x: (n, d) embeddings as they lie.
        scale: (n,) factor on each row: 1 / its length; None: 1.
        origin: (d,) near which the points lie; vectors are taken from there.
        factor: power of 2 on vectors, so that their lengths have room in float32.
        device: torch's name of where vectors are multiplied.
        resident: the embeddings for torch, on that device; None where torch cannot take them as they lie.
        sample: rows spread evenly over those that are looked at.
        squares: (n,) squared lengths of vectors once they have been computed, NaN before.
        processes: those that share the work on them.
    """

    x: Floats
    scale: Doubles | None
    origin: Doubles
    factor: float
    device: str
    resident: Tensor | None
    sample: Rows
    squares: Doubles
    processes: Processes

    @classmethod
    def of(cls, x: Floats, rows: Rows | None = None, *, unit: bool, device: str = "cpu", processes: Processes = ALONE) -> Points:
        """Points of embeddings; with `unit`, each row scaled to length 1. On another device than the CPU they are copied there.

        Args:
            x: (n, d).
            rows: that will be looked at; None: all.
            unit: scale each row to length 1.
            device: where vectors are multiplied.
            processes: those that share the work.

        Raises:
            ValueError: a row is too long to be squared, or has length 0 and is to be scaled.
        """
        rows, scale = np.arange(len(x)) if rows is None else rows, None
        if unit or x.dtype == np.float64:
            square = processes.mapped(lambda rows: lengths_of(x, rows), rows)
            if square.max() > 1e300:
                raise ValueError(f"embeddings are too long to measure: row {rows[np.argmax(square)]} is longer than 1e150; scale them down")
            if unit and not square.all():
                raise ValueError(f"embeddings hold only zeros in row {rows[np.argmin(square)]}, which gives it no direction; use normalize: false")
            if unit:
                scale = np.full(len(x), np.nan)
                scale[rows] = 1 / np.sqrt(square)
        sample = rows[np.unique(np.linspace(0, len(rows) - 1, SAMPLE).astype(np.int64))]
        points = cls(x, scale, np.zeros(x.shape[1]), 1.0, device, in_torch(x, device), sample, np.full(len(x), np.nan), processes)
        at = points[sample]
        mean = at.mean(axis=0)
        apart = squared_length(at - mean)
        if mean @ mean > 4 * apart.mean():  # else it is not worth a pass over what is read
            points = dataclasses.replace(points, origin=mean.astype(np.float32).astype(np.float64) if np.abs(mean).max() < 1e38 else mean)
        length = np.sqrt(squared_length(at - points.origin).max())
        return points if 1e-6 < length < 1e6 or not length else dataclasses.replace(points, factor=2.0 ** np.clip(-np.round(np.log2(length)), -500, 500))

    @property
    def dim(self) -> int:
        """Coordinates of a point, d."""
        return int(self.x.shape[1])

    @property
    def unit(self) -> float:
        """Squared distance between vectors of points that are 1 apart."""
        return self.factor**2

    def __getitem__(self, rows: Rows | slice) -> Doubles:
        """(rows, d) coordinates in float64."""
        at = self.x[rows].astype(np.float64, order="C")
        return at if self.scale is None else at * self.scale[rows, None]

    def within(self, rows: Rows, others: Rows, square: float) -> Iterator[tuple[Rows, Rows, Doubles]]:
        """Pairs of rows and others that lie within a squared distance, exactly, block by block: positions in `rows`, positions in `others`, distances."""
        for block in blocks(rows, width=max(self.dim, REACH)):
            mine, limit = self.bounded(rows[block]), np.full(block.stop - block.start, square * self.unit)
            for start in range(0, len(others), REACH):
                theirs = self.bounded(others[start : start + REACH])
                row, other = pairs(mine.within(product(mine, theirs), np.arange(len(limit)), limit))
                for part in blocks(row, width=self.dim):
                    a, b = row[part] + block.start, other[part] + start
                    distance = squared_length(self[rows[a]] - self[others[b]])
                    near = distance <= square
                    yield a[near], b[near], distance[near]

    def bounded(self, rows: Rows) -> Bounded:
        """Their vectors: (x - origin) factor, rounded."""
        v, square = self.vectors(rows)
        return Bounded.of(v, square, self.blur(square), slack=2.0**-18)

    def blur(self, square: Doubles) -> Doubles:
        """How far vectors of these squared lengths may be off: two roundings, and what float32 is too small for."""
        blur: Doubles = 2.1 * ROUNDING * np.sqrt(square) + 1e-30
        return blur

    def vectors(self, rows: Rows) -> tuple[Tensor, Doubles]:
        """(rows, d) vectors and their squared lengths."""
        import torch

        x = self.read(rows)
        if self.scale is None and x.dtype != torch.float64 and 1e-30 < self.factor < 1e30:
            v = x.to(torch.float32)
            v = v - torch.from_numpy(self.origin.astype(np.float32)).to(v.device) if self.origin.any() else v
        else:
            v = x.to(torch.float64) if self.scale is None else x.to(torch.float64) * torch.from_numpy(self.scale[rows, None]).to(x.device)
            v = v - torch.from_numpy(self.origin).to(v.device)
        v = (v * self.factor).to(torch.float32) if self.factor != 1 else v.to(torch.float32)
        square = self.squares[rows]
        if np.isnan(square).any():
            square = self.squares[rows] = sums(v * v)
        return v, square

    def read(self, rows: Rows) -> Tensor:
        """(rows, d) embeddings as they are, on the device."""
        import torch

        if self.resident is None:
            return torch.from_numpy(np.ascontiguousarray(self.x[rows])).to(self.device)
        if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all():
            return self.resident[int(rows[0]) : int(rows[-1]) + 1]
        return self.resident.index_select(0, torch.from_numpy(rows).to(self.device))

    def nearest_mean(self, rows: Rows) -> int:
        """Of these rows, the one nearest to their mean; of several, the first."""
        import torch

        total = np.zeros(self.dim)
        for start in range(0, len(rows), LANE):  # of one size, so that no block size changes the mean
            total += self[rows[start : start + LANE]].sum(axis=0)
        mean = total / len(rows)
        v = torch.from_numpy(((mean - self.origin) * self.factor).astype(np.float32)[None]).to(self.device)
        square = sums(v * v)
        middle = Bounded.of(v, square, self.blur(square), slack=2.0**-18)
        low, high = np.empty(len(rows)), np.empty(len(rows))
        for block in blocks(rows, width=self.dim):
            mine = self.bounded(rows[block])
            lean = smallest(product(mine, middle))[0]
            low[block], high[block] = mine.lower(lean), mine.upper(lean, middle, np.zeros(len(lean), dtype=np.int64))
        near = rows[low <= high.min()]
        return int(near[np.argmin(np.concatenate([squared_length(self[near[block]] - mean) for block in blocks(near, width=self.dim)]))])


def lengths_of(x: Floats, rows: Rows) -> Doubles:
    """(m,) squared lengths of some rows, block by block."""
    return np.concatenate([np.empty(0), *(squared_length(x[rows[block]].astype(np.float64, order="C")) for block in blocks(rows, width=x.shape[1]))])


def in_torch(x: Floats, device: str) -> Tensor | None:
    """The same memory as a tensor, or a copy on another device than the CPU; None where torch cannot have it as it lies."""
    import torch

    if any(stride < 0 or stride % x.itemsize for stride in x.strides):
        return None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nor is it written
        try:
            return torch.from_numpy(x).to(device)
        except torch.OutOfMemoryError:  # then what is looked at is copied as it is needed
            return None

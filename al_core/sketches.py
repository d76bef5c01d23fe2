"""Sketches of points: a few numbers each, between which distances are never longer than between the points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from al_core.bounds import LANE, REACH, ROUNDING, STRIP, Bounded, Centers, Doubles, plus_product, product, sums
from al_core.points import Points
from al_core.pool import Rows, blocks

if TYPE_CHECKING:
    from torch import Tensor

SKETCH = 64  # numbers in a sketch
PAIR_COST = 20  # of a pair measured on its own, in pairs of a product


@dataclass(frozen=True)
class Sketching:
    """How points become a few numbers each, between which distances are never longer than between the points.

    In coordinates along orthonormal directions and across them, |x - y|^2 is the sum of both parts, and the part across is at least the difference of
    the two lengths across, squared. So the directions decide how close the sketches come, not whether they are right.

    What is computed errs by the rounding of the product with the basis, by how far that is from orthonormal, and, in the length across, by what both do
    to |x|^2 less the squared length along: the length is then off by at most that doubt over itself, and at most by its root.
    """

    points: Points
    basis: Tensor  # (d, k - 1)
    skew: float  # Frobenius norm of basis' basis - 1

    @classmethod
    def of(cls, points: Points) -> Sketching:
        """Along the principal directions of a sample, near enough: three rounds of subspace iteration."""
        import torch

        v, square = points.vectors(points.sample)
        v = v[torch.from_numpy(square < 1e30).to(v.device)]
        basis = torch.from_numpy(np.random.default_rng(0).normal(size=(points.dim, SKETCH + 8)).astype(np.float32)).to(v.device)
        for _ in range(3):
            basis = torch.linalg.qr(v.T @ (v @ basis))[0]
        turn = torch.linalg.svd((v @ basis).to(torch.float64), full_matrices=False)[2][: SKETCH - 1].T
        basis = points.processes.first(torch.linalg.qr(basis.to(torch.float64) @ turn)[0].to(torch.float32).cpu()).to(v.device)
        skew = basis.to(torch.float64).T @ basis.to(torch.float64) - torch.eye(basis.shape[1], dtype=torch.float64, device=basis.device)
        return cls(points, basis.contiguous(), float(skew.norm()))

    def __call__(self, rows: Rows) -> Bounded:
        """(rows, k) coordinates along the basis, and the length across it."""
        import torch

        v, square = self.points.vectors(rows)
        along = plus_product(torch.zeros(self.basis.shape[1], device=v.device), v, self.basis, 1)
        inside, length, blur = sums(along * along), np.sqrt(square), self.points.blur(square)
        gamma = 1.05 * (min(STRIP, self.points.dim) + self.points.dim / STRIP + 8) * ROUNDING
        error = (gamma * np.sqrt(self.basis.shape[1]) + self.skew) * length + blur
        with np.errstate(invalid="ignore", over="ignore"):
            across = np.sqrt(np.maximum(square - inside, 0)).astype(np.float32)
            doubt = 2 * (LANE + 16) * ROUNDING * square + error * (2 * np.sqrt(inside) + error) + 2 * self.points.dim * 2.0**-126
            error += np.minimum(np.sqrt(doubt), doubt / np.maximum(across, 1e-30)) + 2 * ROUNDING * across
        v = torch.cat([along, torch.from_numpy(across).to(along.device)[:, None]], dim=1)
        return Bounded.of(v, inside + across.astype(np.float64) ** 2, error, slack=2.0**-8)


@dataclass
class Sketches:
    """Those of the rows that may be picked, and of the centres."""

    rows: Bounded
    centers: Centers

    @classmethod
    def that_pay(cls, points: Points, rows: Rows, centers: Rows, at: Rows, gap: Doubles) -> Sketches | None:
        """Sketches, if they tell most centres from those that may be nearest, for rows at places `at` with these squared distances; else None."""
        sketching = Sketching.of(points)
        if not sketching.skew < 1e-3:  # the sample has no directions to tell apart
            return None
        theirs = Centers(sketching, centers)
        at, gap = at[:: len(at) // 256 + 1], gap[:: len(at) // 256 + 1]
        few = sketching(rows[at])
        parts = (product(few, theirs[since : since + REACH]) for since in range(0, len(centers), REACH))
        left = sum(int(few.within(part, np.arange(len(at)), gap).sum()) for part in parts) / (len(at) * len(centers))
        if 2 * SKETCH + PAIR_COST * points.dim * points.processes.first(left) > points.dim:
            return None
        share = points.processes.share(rows)
        own = few.empty(len(share))
        for block in blocks(share, width=points.dim):
            own.put(block, sketching(share[block]))
        return cls(own if points.processes.count == 1 else own.joined(points.processes), theirs)

"""Rows by what they hold: which are equal, and samples that depend neither on a seed nor on the order of rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from al_core.pool import Floats, Rows, blocks

Hashes = npt.NDArray[np.uint64]


def fingerprints(x: Floats, rows: Rows) -> Hashes:
    """(m,) a 64-bit hash of the values of each row, whatever their precision: equal rows have equal ones, others practically never.

    Args:
        x: (n, d), read block by block.
        rows: (m,) rows to look at.
    """
    keys = np.random.default_rng(0).integers(2**63, size=x.shape[1], dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    parts = [np.empty(0, dtype=np.uint64)]
    for block in blocks(rows, width=x.shape[1]):
        bits = (x[rows[block]].astype(np.float64, order="C") + 0.0).view(np.uint64)  # + 0.0 makes -0.0 equal to 0.0 in its bits too
        bits ^= bits >> np.uint64(29)  # few of the low bits of a short float are set
        bits *= keys
        bits ^= bits >> np.uint64(32)
        parts.append(mixed(bits.sum(axis=1, dtype=np.uint64)))
    return np.concatenate(parts)


def mixed(hashes: Hashes) -> Hashes:
    """Every bit of the result depends on every bit given (the finaliser of splitmix64)."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))


def sample(x: Floats, rows: Rows, size: int) -> Rows:
    """So many of the rows, ascending: those of the smallest fingerprints, of equal ones the lowest rows; all of them where there are no more."""
    if len(rows) <= size:
        return np.sort(rows)
    rows = np.sort(rows)
    return np.sort(rows[np.argsort(fingerprints(x, rows), kind="stable")[:size]])


def distinct(x: Floats, rows: Rows) -> tuple[Rows, Rows]:
    """Which rows hold the same values.

    Args:
        x: (n, d).
        rows: (m,) ascending.

    Returns:
        (u,) positions in `rows` of the first of each set of equal rows, ascending, and (m,) the number of the set that each row is in.
    """
    _, first, which = np.unique(fingerprints(x, rows), return_index=True, return_inverse=True)
    leader = first[which]  # (m,) the first row of the same hash
    for block in blocks(rows, width=x.shape[1]):
        odd = (x[rows[block]] != x[rows[leader[block]]]).any(axis=1)  # hashes that are equal by chance: such a row stands for itself
        leader[block][odd] = np.arange(block.start, block.stop)[odd]
    leaders, number = np.unique(leader, return_inverse=True)
    return leaders, number

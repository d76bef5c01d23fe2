"""Equal rows and samples by content."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

import al_core.pool
from al_core import fingerprints as module
from al_core.fingerprints import distinct, fingerprints, sample


def pool(n: int = 2000, dim: int = 5) -> npt.NDArray[np.float16]:
    return np.random.default_rng(0).normal(size=(n, dim)).astype(np.float16)


def test_equal_values_have_equal_hashes_in_any_precision_and_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    x, rows = pool(), np.arange(2000)
    expected = fingerprints(x, rows)
    np.testing.assert_array_equal(fingerprints(np.asfortranarray(x.astype(np.float64)), rows), expected)
    np.testing.assert_array_equal(fingerprints(np.where(x == 0, -0.0, x), rows), expected)
    np.testing.assert_array_equal(fingerprints(x, rows[::-1]), expected[::-1])
    monkeypatch.setattr(al_core.pool, "BLOCK_VALUES", 100)
    np.testing.assert_array_equal(fingerprints(x, rows), expected)


def test_other_values_have_other_hashes() -> None:
    few = np.array([[a, b, c] for a in (0.0, 1, 2, 4) for b in (0.0, 1, 2, 4) for c in (0.0, 1, 2, 4)])
    assert len(set(fingerprints(few, np.arange(64)).tolist())) == 64
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves) & (halves != 0)][:, None]
    assert len(set(fingerprints(halves, np.arange(len(halves))).tolist())) == len(halves)


def test_hashes_are_even() -> None:
    """Each bit is set in half of the rows, within 5 standard errors."""
    bits = (fingerprints(pool(), np.arange(2000))[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    assert (np.abs(bits.mean(axis=0) - 0.5) < 5 * 0.5 / np.sqrt(2000)).all()


def test_a_sample_depends_on_values_alone() -> None:
    x = pool()
    order = np.random.default_rng(1).permutation(2000)
    chosen = sample(x, np.arange(2000), 300)
    assert len(set(chosen.tolist())) == 300 and (np.diff(chosen) > 0).all()
    np.testing.assert_array_equal(np.sort(order[sample(x[order], np.arange(2000), 300)]), chosen)
    np.testing.assert_array_equal(sample(x, np.arange(2000), 2000), np.arange(2000))
    assert set(sample(x, np.arange(0, 2000, 2), 150).tolist()) <= set(range(0, 2000, 2))
    np.testing.assert_array_equal(sample(np.ones((50, 3)), np.arange(50), 10), np.arange(10))


def test_distinct() -> None:
    x = np.array([[1.0, 2], [3, 4], [1, 2], [0.0, 4], [3, 4], [-0.0, 4]])
    first, number = distinct(x, np.arange(6))
    assert first.tolist() == [0, 1, 3] and number.tolist() == [0, 1, 0, 2, 1, 2]
    first, number = distinct(x, np.array([1, 2, 4]))
    assert first.tolist() == [0, 1] and number.tolist() == [0, 1, 0]


def test_hashes_equal_by_chance_do_not_join_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "fingerprints", lambda x, rows: np.zeros(len(rows), dtype=np.uint64))
    x = np.array([[1.0], [2], [1], [2]])
    first, number = distinct(x, np.arange(4))
    assert first.tolist() == [0, 1, 3] and number.tolist() == [0, 1, 0, 2]  # only the first row's equals are found

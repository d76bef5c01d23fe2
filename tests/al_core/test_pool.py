from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import al_core.pool
from al_core import Pool
from al_core.pool import blocks

X = np.arange(30, dtype=np.float32).reshape(10, 3)
Z = np.arange(20, dtype=np.float32).reshape(10, 2)
HEAD = (np.ones((2, 3), dtype=np.float32), np.zeros(2, dtype=np.float32))


def test_rows_are_labelled_excluded_or_available() -> None:
    pool = Pool(embeddings=X, logits=Z, head=HEAD, labeled=[7, 2], labels=[1, 0], excluded=[9, 0])
    assert pool.size == 10
    assert pool.labeled.tolist() == [2, 7] and pool.labels.tolist() == [0, 1]  # ascending, each label with its row
    assert pool.excluded.tolist() == [0, 9]
    assert pool.available.tolist() == [1, 3, 4, 5, 6, 8]
    assert pool.signals == ("embeddings", "logits", "head", "labels")
    assert repr(pool) == "Pool of 10 rows (6 available, 2 labelled, 2 excluded) with embeddings, logits, head, labels"


@pytest.mark.parametrize("signals", [{"embeddings": X}, {"logits": Z}])
def test_one_signal_is_enough(signals: dict[str, Any]) -> None:
    assert Pool(**signals).available.tolist() == list(range(10))


def test_without_excludes_more_and_shares_the_signals() -> None:
    pool = Pool(embeddings=X, labeled=[2], excluded=[0])
    smaller = pool.without([5, 0, 3])
    assert smaller.available.tolist() == [1, 4, 6, 7, 8, 9] and smaller.excluded.tolist() == [0, 3, 5]
    assert pool.available.tolist() == [1, 3, 4, 5, 6, 7, 8, 9] and pool.excluded.tolist() == [0]
    assert np.shares_memory(smaller.embeddings, X)
    with pytest.raises(ValueError, match="rows holds row 10, but the pool has rows 0 to 9"):
        pool.without([10])


def test_without_takes_labelled_rows_out_with_their_labels() -> None:
    smaller = Pool(embeddings=X, labeled=[7, 2, 4], labels=[1, 0, 3], excluded=[0]).without([4, 5])
    assert (smaller.labeled.tolist(), smaller.labels.tolist(), smaller.excluded.tolist()) == ([2, 7], [0, 1], [0, 4, 5])
    assert smaller.available.tolist() == [1, 3, 6, 8, 9]


def test_nothing_can_be_written_through_a_pool() -> None:
    pool = Pool(embeddings=X, logits=Z, head=HEAD, labeled=[1], labels=[0])
    for array in (pool.embeddings, pool.logits, *pool.head, pool.labeled, pool.labels, pool.excluded, pool.available):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    with pytest.raises(AttributeError):
        pool.embeddings = X  # type: ignore[misc]
    assert X.flags.writeable


def test_a_memory_map_stays_one(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    pool = Pool(embeddings=np.load(tmp_path / "x.npy", mmap_mode="r"))
    assert isinstance(pool.embeddings, np.memmap)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("embeddings", "stage `embed` makes them: name them in embed.signals"),
        ("logits", "stage `embed` makes them with a trained model: name them in embed.signals"),
        ("head", "stage `embed` copies it from a trained model"),
        ("mc_probs", "stage `embed` makes them with a trained model: name them in embed.signals"),
        ("groups", "no stage makes them: give them to Pool yourself"),
        ("labels", "stage `import-labels` makes them from answers"),
    ],
)
def test_a_signal_that_is_not_there_says_who_makes_it(name: str, remedy: str) -> None:
    pool = Pool(logits=Z) if name == "embeddings" else Pool(embeddings=X)
    with pytest.raises(ValueError) as error:
        getattr(pool, name)
    assert str(error.value) == f"this pool has no {name}; {remedy}"


FLOATS = "expected a NumPy array or memory map with 2 axes of float16, float32 or float64"
BOTH = "a labelled row is known, an excluded one is as if it were not there"
ONE_EACH = "one for each labelled row, in the order of `labeled`"
MC = np.full((2, 10, 4), 0.25, np.float32)
ZERO_TO_ONE = "expected probabilities from 0 to 1: take the sigmoid of logits first"
MINUS = MC.copy()
MINUS[1, 3:, :] = [1.25, -0.25, 0, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "a pool needs a signal with a row an image and got none; give one of embeddings, logits, mc_probs, predicted_loss, discriminator"),
        ({"embeddings": X.tolist()}, f"embeddings is of type list; {FLOATS}"),
        ({"embeddings": np.ma.masked_array(X)}, f"embeddings is of type MaskedArray; {FLOATS}"),
        ({"embeddings": X.astype(np.int32)}, f"embeddings is int32 (10, 3); {FLOATS}"),
        ({"embeddings": X.astype(">f4")}, f"embeddings is >f4 (10, 3); {FLOATS}"),
        ({"logits": Z[:, 0]}, f"logits is float32 (10,); {FLOATS}"),
        ({"embeddings": X[:0]}, "embeddings is empty: its shape is (0, 3)"),
        ({"embeddings": X, "logits": Z[:9]}, "embeddings have 10 rows but logits have 9; row i of each must be the same image"),
        ({"embeddings": X, "head": (HEAD[0], HEAD[1][:1])}, "head weight has 2 classes but head bias has 1"),
        ({"embeddings": X[:, :2], "head": HEAD}, "head weight has 3 dimensions but embeddings have 2"),
        ({"logits": Z[:, :1], "head": HEAD}, "head weight has 2 classes but logits have 1"),
        ({"logits": Z, "head": (HEAD[0], np.array([0, np.nan]))}, "head bias holds nan in row 1; every value must be finite: mend what made it"),
        ({"embeddings": X, "labeled": [3, 10]}, "labeled holds row 10, but the pool has rows 0 to 9"),
        ({"embeddings": X, "labeled": [3, -1]}, "labeled holds row -1, but the pool has rows 0 to 9"),
        ({"embeddings": X, "excluded": [3, 4, 3]}, "excluded holds row 3 more than once"),
        ({"embeddings": X, "labeled": [1, 4], "excluded": [2, 4]}, f"row 4 is both labelled and excluded; {BOTH}"),
        ({"embeddings": X, "labeled": np.arange(10) < 3}, "labeled is a mask of truth values; expected row numbers: use np.flatnonzero(mask)"),
        ({"embeddings": X, "labeled": [1.0, 2.0]}, "labeled is float64 (2,); expected a list of row numbers"),
        ({"embeddings": X, "labeled": [[1, 2]]}, "labeled is int64 (1, 2); expected a list of row numbers"),
        ({"embeddings": X, "labeled": [1, 2], "labels": [0]}, f"labels holds 1 numbers; expected 2, {ONE_EACH}"),
        ({"embeddings": X, "labeled": [1, 2], "labels": [0, -1]}, "labels holds -1; expected whole numbers from 0"),
        ({"embeddings": X, "labeled": [1], "labels": ["cat"]}, "labels is <U3 (1,); expected a list of whole numbers from 0"),
        ({"embeddings": X, "groups": [1, 2]}, "groups holds 2 numbers; expected 10, one for each row"),
        ({"embeddings": X, "mc_probs": MC[:, :9]}, "embeddings have 10 rows but mc_probs have 9; row i of each must be the same image"),
        ({"mc_probs": MC[0]}, "mc_probs is float32 (10, 4); expected a NumPy array or memory map with 3 axes of float16, float32 or float64"),
        ({"mc_probs": MC * 1.5}, "mc_probs holds [0.375 0.375 0.375 0.375] in row 0 of pass 0; expected probabilities that sum to 1: softmax the logits first"),
        ({"mc_probs": MINUS}, "mc_probs holds [ 1.25 -0.25  0.    0.  ] in row 3 of pass 1; expected probabilities that sum to 1: softmax the logits first"),
        ({"discriminator": np.array([0.0, 1, 1.5, -2])}, f"discriminator holds 1.5 in row 2; {ZERO_TO_ONE}"),
        ({"discriminator": np.array([0.5, -0.25])}, f"discriminator holds -0.25 in row 1; {ZERO_TO_ONE}"),
        ({"discriminator": np.array([np.nan, 2])}, "discriminator holds nan in row 0; every value must be finite: mend what made it"),
        ({"predicted_loss": np.array([0.0, np.inf])}, "predicted_loss holds inf in row 1; every value must be finite: mend what made it"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_pool_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        Pool(**arguments)
    assert str(error.value) == message


def test_every_signal_is_read_once_to_be_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def counted(array: npt.NDArray[Any]) -> Iterator[slice]:
        for block in blocks(array):
            read.append(block.stop - block.start)
            yield block

    monkeypatch.setattr(al_core.pool, "blocks", counted)
    Pool(mc_probs=MC)
    assert sum(read) == MC.shape[0] * MC.shape[1]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("values", [1, 7, 2**20])
def test_the_first_row_that_is_not_finite_is_found_in_any_block(bad: float, values: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(al_core.pool, "BLOCK_VALUES", values)
    x = X.copy()
    x[6, 2] = x[8, 0] = bad
    with pytest.raises(ValueError, match=f"embeddings holds {bad} in row 6; every value must be finite"):
        Pool(embeddings=x)


@pytest.mark.parametrize(("shape", "width", "steps"), [((10, 3), 1, [4, 4, 2]), ((10, 3), 6, [2] * 5), ((10, 100), 1, [1] * 10), ((10,), 1, [10])])
def test_blocks_cover_every_row_once(shape: tuple[int, ...], width: int, steps: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(al_core.pool, "BLOCK_VALUES", 12)
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    parts = [array[block] for block in blocks(array, width=width)]
    assert [len(part) for part in parts] == steps
    np.testing.assert_array_equal(np.concatenate(parts), array)

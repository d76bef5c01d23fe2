"""What every acquisition method owes, whatever it does. A new method is tested here without a line."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import al_core.pool
from al_core import Pool, Selection, methods, select
from al_core.pool import SIGNALS
from al_core.progress import listening
from al_core.registry import Card, build, parameters

Signals = Mapping[str, Any]

NUM_ROWS, NUM_CLASSES = 60, 4
LABELED = np.arange(3, 60, 9)
EXCLUDED = np.array([0, 5, 58])
FLOATS = {"embeddings", "logits", "mc_probs", "predicted_loss", "discriminator"}
BY_ROW = ("embeddings", "logits", "mc_probs", "predicted_loss", "discriminator", "truth")

each = pytest.mark.parametrize("card", methods(), ids=lambda card: card.name)
each_deterministic = pytest.mark.parametrize("card", [card for card in methods() if not card.stochastic], ids=lambda card: card.name)

DRAWING: dict[str, Any] = {"learning-loss": {"subpool": 20}}  # it draws from pools that are larger than this
UNTIED: dict[str, Any] = {
    "variation-ratios": {"kind": "mean"},  # votes of five passes tie in masses, and ties go by row
    "maxherding": {"sigma": 3.0},  # with a narrow kernel two rows that only cover each other tie, too
}
LIGHTER: dict[str, Any] = {  # where the pool is large
    "typiclust": {"max_clusters": 20},
    "probcover": {"sample": 2000},
    "maxherding": {"sample": 2000},
    "uherding": {"sample": 2000},
    "dropquery": {"dropout": 0.01},
}


def make_signals(num_rows: int = NUM_ROWS, dim: int = 6, dtype: npt.DTypeLike = np.float32) -> dict[str, Any]:
    """Every signal: embeddings, a linear head's logits of them, and others that go with them, all with values that float16 can hold."""
    rng = np.random.default_rng(5)
    embeddings = rng.normal(size=(num_rows, dim)).astype(np.float16)
    weight = rng.normal(size=(NUM_CLASSES, dim)).astype(np.float16)
    bias = rng.normal(size=NUM_CLASSES).astype(np.float16)
    logits = (embeddings.astype(np.float64) @ weight.T + bias).astype(np.float16)
    noisy = logits.astype(np.float64) + rng.normal(size=(5, num_rows, NUM_CLASSES))
    mc_probs = np.exp(noisy) / np.exp(noisy).sum(axis=2, keepdims=True)
    return {
        "embeddings": embeddings.astype(dtype),
        "logits": logits.astype(dtype),
        "head": (weight.astype(dtype), bias.astype(dtype)),
        "mc_probs": mc_probs.astype(np.float16).astype(dtype),
        "predicted_loss": rng.normal(size=num_rows).astype(np.float16).astype(dtype),
        "discriminator": rng.uniform(size=num_rows).astype(np.float16).astype(dtype),
        "truth": np.arange(num_rows) % NUM_CLASSES,
    }


def taken(name: str, array: npt.NDArray[Any], rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """Some rows of a signal."""
    return array[:, rows] if name == "mc_probs" else array[rows]


def at_rows(signals: Signals, rows: npt.NDArray[np.int64]) -> dict[str, Any]:
    """The signals of some rows, in that order."""
    return {name: taken(name, array, rows) if name in BY_ROW else array for name, array in signals.items()}


def make_pool(signals: Signals, labeled: npt.NDArray[np.int64] = LABELED, excluded: npt.NDArray[np.int64] = EXCLUDED) -> Pool:
    return Pool(**signals, labeled=labeled, labels=labeled % NUM_CLASSES, excluded=excluded)


def run(card: Card, pool: Pool, budget: int = 12, seed: int = 0, **params: Any) -> Selection:
    return select(card.name, pool, budget=budget, seed=seed, **params)


def same(one: Selection, other: Selection) -> bool:
    return bool(np.array_equal(one.rows, other.rows) and np.array_equal(one.scores, other.scores, equal_nan=True) and one.info == other.info)


def agree(one: Selection, other: Selection) -> None:
    """Equal picks; scores and info may differ by the rounding of sums that were taken in another order."""
    np.testing.assert_array_equal(one.rows, other.rows)
    np.testing.assert_allclose(one.scores, other.scores, rtol=1e-5, atol=1e-7)
    assert one.info.keys() == other.info.keys()


@each
def test_card_says_all_there_is_to_know(card: Card) -> None:
    for text in (card.name, card.family, card.direction, card.complexity, card.memory, card.source, card.when, card.summary):
        assert text.strip()
    assert all(parameter.meaning for parameter in card.parameters)
    assert card.needs_model == bool({"logits", "head", "mc_probs", "predicted_loss", "discriminator"} & set(card.needs))


@each
def test_parameters_survive_params_yaml(card: Card) -> None:
    explicit = json.loads(json.dumps(parameters(build(card.name, {}))))
    assert explicit.keys() == {"name", *(parameter.name for parameter in card.parameters)}
    name = explicit.pop("name")
    assert build(name, explicit) == build(card.name, {})


@each
def test_picks_are_distinct_available_rows_with_a_score_each(card: Card) -> None:
    selection = run(card, make_pool(make_signals()))
    assert selection.rows.dtype == np.int64 and selection.scores.dtype == np.float64
    assert len(selection) == len(selection.scores) == len(set(selection.rows.tolist())) == 12
    assert not set(selection.rows.tolist()) & {*LABELED.tolist(), *EXCLUDED.tolist()}
    json.dumps(dict(selection.info), allow_nan=False)


@each
def test_same_seed_same_picks_and_only_stochastic_methods_heed_it(card: Card) -> None:
    pool, params = make_pool(make_signals()), DRAWING.get(card.name, {})
    assert same(run(card, pool, seed=1, **params), run(card, make_pool(make_signals()), seed=1, **params))
    assert same(run(card, pool, seed=1, **params), run(card, pool, seed=2, **params)) == (not card.stochastic)


@each_deterministic
def test_permuting_the_pool_permutes_the_picks(card: Card) -> None:
    """Of a random draw only the law is so: equal seeds draw equal positions, wherever the images went."""
    signals = make_signals()
    new_to_old = np.random.default_rng(1).permutation(NUM_ROWS)
    old_to_new = np.argsort(new_to_old)
    moved = Pool(**at_rows(signals, new_to_old), labeled=old_to_new[LABELED], labels=LABELED % NUM_CLASSES, excluded=old_to_new[EXCLUDED])
    there = run(card, moved, **UNTIED.get(card.name, {}))
    here = run(card, make_pool(signals), **UNTIED.get(card.name, {}))
    np.testing.assert_array_equal(new_to_old[there.rows], here.rows)
    np.testing.assert_allclose(there.scores, here.scores, rtol=1e-5, atol=1e-7)


@each
def test_the_order_in_which_labelled_rows_are_given_does_not_matter(card: Card) -> None:
    assert same(run(card, make_pool(make_signals(), LABELED[::-1])), run(card, make_pool(make_signals())))


@each
def test_excluded_rows_are_as_if_they_were_not_there(card: Card) -> None:
    signals = make_signals()
    kept = np.setdiff1d(np.arange(NUM_ROWS), EXCLUDED)
    smaller = run(card, Pool(**at_rows(signals, kept), labeled=np.searchsorted(kept, LABELED), labels=LABELED % NUM_CLASSES))
    np.testing.assert_array_equal(kept[smaller.rows], run(card, make_pool(signals)).rows)
    np.testing.assert_array_equal(run(card, make_pool(signals, excluded=EXCLUDED[:0]).without(EXCLUDED)).rows, kept[smaller.rows])


@each
def test_identical_points_stay_distinct_picks(card: Card) -> None:
    signals = make_signals()
    alike = at_rows(signals, np.zeros(NUM_ROWS, dtype=np.int64))
    pool = make_pool(alike)
    for unseen in (pool, make_pool(alike, LABELED[:0])):
        selection = run(card, unseen, budget=20)
        assert len(set(selection.rows.tolist())) == 20
        if not card.stochastic:
            np.testing.assert_array_equal(selection.rows, unseen.available[:20])  # all tie, so the lowest rows


@each
def test_budget_equal_to_the_pool_takes_everything(card: Card) -> None:
    pool = make_pool(make_signals())
    selection = run(card, pool, budget=len(pool.available))
    np.testing.assert_array_equal(np.sort(selection.rows), pool.available)


@each
def test_budget_beyond_the_pool_is_refused(card: Card) -> None:
    pool = make_pool(make_signals())
    with pytest.raises(ValueError, match=f"budget is 500 but only {len(pool.available)} images are unlabelled; lower it or ingest more"):
        run(card, pool, budget=500)


@each
def test_nothing_labelled(card: Card) -> None:
    for budget in (1, 3, 30):  # fewer picks than classes, too
        assert len(run(card, Pool(**make_signals(), labeled=[], labels=[]), budget=budget)) == budget


@each
def test_one_class(card: Card) -> None:
    signals = make_signals()
    assert len(run(card, Pool(**signals, labeled=LABELED, labels=np.zeros_like(LABELED)))) == 12
    weight, bias = signals["head"]
    narrow = signals | {"logits": signals["logits"][:, :1], "head": (weight[:1], bias[:1]), "mc_probs": np.ones_like(signals["mc_probs"][:, :, :1])}
    single = Pool(**narrow, labeled=LABELED, labels=np.zeros_like(LABELED))
    if {"logits", "head", "mc_probs"} & set(card.needs):
        with pytest.raises(ValueError, match="1 class"):
            run(card, single)
    else:
        assert len(run(card, single)) == 12


@each
def test_inputs_are_left_as_they_were(card: Card) -> None:
    signals, labeled, excluded = make_signals(), LABELED.copy(), EXCLUDED.copy()
    run(card, make_pool(signals, labeled, excluded))
    for name, before in make_signals().items():
        np.testing.assert_array_equal(np.concatenate([np.ravel(part) for part in signals[name]]), np.concatenate([np.ravel(part) for part in before]))
    np.testing.assert_array_equal(labeled, LABELED)
    np.testing.assert_array_equal(excluded, EXCLUDED)
    assert signals["embeddings"].flags.writeable and labeled.flags.writeable


@each
def test_equal_values_in_any_precision_or_layout_give_equal_picks(card: Card) -> None:
    expected = run(card, make_pool(make_signals(dtype=np.float64)))
    for dtype in (np.float16, np.float32):
        signals = make_signals(dtype=dtype)
        agree(run(card, make_pool(signals)), expected)
        column_major = signals | {name: np.asfortranarray(signals[name]) for name in BY_ROW}
        agree(run(card, make_pool(column_major)), expected)


@pytest.mark.gpu
@each
def test_a_gpu_picks_what_the_cpu_picks(card: Card, gpu: str) -> None:
    signals = make_signals(400, dim=12)
    params = UNTIED.get(card.name, {}) | DRAWING.get(card.name, {})
    pools = (Pool(**signals, labeled=LABELED, labels=LABELED % NUM_CLASSES, excluded=EXCLUDED, device=device) for device in ("cpu", gpu))
    here, there = (run(card, pool, **params) for pool in pools)
    np.testing.assert_array_equal(there.rows, here.rows)
    np.testing.assert_allclose(there.scores, here.scores, rtol=1e-5, atol=1e-6)


@each
def test_block_size_changes_nothing(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(card, make_pool(make_signals()))
    for values in (1, 50, 200):
        monkeypatch.setattr(al_core.pool, "BLOCK_VALUES", values)
        agree(run(card, make_pool(make_signals())), expected)


@each
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_by_name(card: Card, bad: float) -> None:
    for name in set(card.needs) & FLOATS:
        signals = make_signals()
        array = signals[name][1] if name == "mc_probs" else signals[name]
        array[41] = array[50] = bad
        with pytest.raises(ValueError, match=f"{name} holds {bad} in row 41( of pass 1)?; every value must be finite"):
            run(card, make_pool(signals))


@each
def test_a_signal_that_is_not_there_is_named_with_who_makes_it(card: Card) -> None:
    signals = make_signals()
    for name in card.needs:
        kept = {other: signals[other] for other in signals if other != name}
        pool = Pool(**kept, labeled=LABELED, labels=None if name == "labels" else LABELED % NUM_CLASSES)
        with pytest.raises(ValueError) as error:
            run(card, pool)
        assert str(error.value) == f"{card.name} reads {name}, which this pool does not have; {SIGNALS[name].made_by}"


def large(name: str, rows: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """A signal of so many rows that a copy would be seen."""
    if name == "mc_probs":
        return rng.dirichlet(np.ones(64), size=(4, rows)).astype(np.float32)
    if name == "discriminator":
        return rng.uniform(size=rows).astype(np.float32)
    return rng.normal(size=rows if name == "predicted_loss" else (rows, 256)).astype(np.float32)


@each
def test_memory_maps_are_streamed(card: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same picks as in memory, and never as much in memory as two thirds of the file, blocks scaled down with it."""
    monkeypatch.setattr(al_core.pool, "BLOCK_VALUES", 2**16)
    rng = np.random.default_rng(2)
    rows, params = 12_000, LIGHTER.get(card.name, {})
    given: dict[str, Any] = {"labeled": range(0, 2000, 10), "labels": np.arange(200) % NUM_CLASSES}
    if "head" in card.needs:
        given["head"] = (rng.normal(size=(256, 256)).astype(np.float32), np.zeros(256, np.float32))
    if "truth" in card.needs:
        given["truth"] = np.arange(rows) % NUM_CLASSES
    maps: dict[str, Any] = {}
    for name in set(card.needs) & FLOATS or {"embeddings"}:
        np.save(tmp_path / f"{name}.npy", large(name, rows, rng))  # 12 MB
        maps[name] = np.load(tmp_path / f"{name}.npy", mmap_mode="r")
    tracemalloc.start()
    try:
        from_map = run(card, Pool(**maps, **given), budget=5, **params)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8e6
    in_memory: dict[str, Any] = {name: np.array(array) for name, array in maps.items()}
    assert same(run(card, Pool(**in_memory, **given), budget=5, **params), from_map)


@pytest.mark.parametrize("name", ["margin", "mase", "badge", "bald"])
def test_columns_that_lie_apart_are_not_gathered_first(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Column after column in memory, as Fortran has it: blocks of rows are taken without a copy of all."""
    monkeypatch.setattr(al_core.pool, "BLOCK_VALUES", 2**17)
    rng = np.random.default_rng(3)
    rows, dim = 20_000, 256
    signals: dict[str, Any] = {"embeddings": np.asfortranarray(rng.normal(size=(rows, dim)).astype(np.float32)), "head": (np.eye(dim), np.zeros(dim))}
    signals["logits"] = np.asfortranarray(signals["embeddings"])
    if name == "bald":
        signals = {"mc_probs": np.asfortranarray(np.full((3, rows, dim), 1 / dim, np.float32))}
    pool = Pool(**signals)
    select(name, pool, budget=3, seed=0)  # imports
    tracemalloc.start()
    try:
        select(name, pool, budget=3, seed=0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < rows * dim * 4 / 2


SILENT = {"random", "balanced-random", "learning-loss", "vaal"}  # a draw or a sort of one number a row


@each
def test_progress_is_told_and_never_runs_backwards_or_beyond(card: Card) -> None:
    told: list[tuple[str, int, int]] = []
    pool = make_pool(make_signals())
    with listening(lambda *what: told.append(what)):
        heard = run(card, pool)
    assert same(heard, run(card, pool))
    assert bool(told) == (card.name not in SILENT)
    last: dict[str, int] = {}
    for what, done, total in told:
        assert 0 <= done <= total
        assert done >= last.get(what, 0) or done == 0  # another count of the same may begin
        last[what] = done

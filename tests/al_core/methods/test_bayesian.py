"""BALD, max-entropy, variation ratios and mean standard deviation against their definitions, written out number by number."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

import al_core.pool
from al_core import Pool, Selection, select
from al_core.methods.bayesian import dissent, doubt_of_mean, entropy_of_mean, mean_deviation
from al_core.passes import mutual_information

Probabilities = npt.NDArray[np.floating]

MEASURES = {
    "bald": mutual_information,
    "max-entropy": entropy_of_mean,
    "vote": dissent,
    "mean": doubt_of_mean,
    "mean-std": mean_deviation,
}


def nats(p: Sequence[float]) -> float:
    return -math.fsum(each * math.log(each) for each in p if each > 0)


def by_definition(row: Probabilities) -> dict[str, float]:
    """Of the (passes, classes) probabilities of one row; METHODS' letters: T passes, C classes."""
    passes = [[float(value) for value in one] for one in row]
    T, C = len(passes), len(passes[0])
    average = [math.fsum(one[c] for one in passes) / T for c in range(C)]
    votes = Counter(one.index(max(one)) for one in passes)
    return {
        "bald": nats(average) - math.fsum(nats(one) for one in passes) / T,
        "max-entropy": nats(average),
        "vote": 1 - max(votes.values()) / T,
        "mean": 1 - max(average),
        "mean-std": math.fsum(math.sqrt(math.fsum((one[c] - average[c]) ** 2 for one in passes) / T) for c in range(C)) / C,
    }


def softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(exp / exp.sum(axis=-1, keepdims=True))


RNG = np.random.default_rng(0)
CASES: dict[str, Probabilities] = {
    "ordinary": softmax(RNG.normal(size=(7, 30, 5)) * 2),
    "two classes, two passes": softmax(RNG.normal(size=(2, 30, 2))),
    "nearly agreeing": softmax(RNG.normal(size=(30, 4)) + 1e-3 * RNG.normal(size=(9, 30, 4))),
    "sure": softmax(RNG.normal(size=(5, 30, 6)) * 200),
    "one-hot": np.eye(4)[RNG.integers(4, size=(6, 30))],
    "half precision": softmax(RNG.normal(size=(11, 30, 3))).astype(np.float16),
    "many classes": RNG.dirichlet(np.full(300, 0.1), size=(4, 20)).astype(np.float32),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("measure", MEASURES)
def test_measures_against_the_definition(measure: str, case: str) -> None:
    p = CASES[case]
    expected = [by_definition(p[:, row])[measure] for row in range(p.shape[1])]
    np.testing.assert_allclose(MEASURES[measure](iter(p.astype(np.float64))), expected, rtol=1e-10, atol=2e-15)


def choose(name: str, p: Probabilities, budget: int, **params: object) -> Selection:
    where = {key: params.pop(key) for key in ("labeled", "excluded") if key in params}
    return select(name, Pool(mc_probs=p, **where), budget=budget, seed=0, **params)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["bald", "max-entropy", "variation-ratios", "mean-std"])
@pytest.mark.parametrize("case", CASES)
def test_picks_are_the_head_of_the_sorted_pool(name: str, case: str) -> None:
    p = CASES[case]
    measure = MEASURES["vote" if name == "variation-ratios" else name]
    scores = measure(iter(p.astype(np.float64)))
    order = sorted(range(3, p.shape[1] - 1), key=lambda row: (-scores[row], row))
    selection = choose(name, p, 8, labeled=[0, 2], excluded=[1, p.shape[1] - 1])
    assert selection.rows.tolist() == order[:8]
    np.testing.assert_array_equal(selection.scores, scores[order[:8]])
    assert selection.info == {"tied": sum(scores[row] == scores[order[7]] for row in order[8:])}


def all_scores(p: Sequence[Sequence[Sequence[float]]]) -> dict[str, list[float]]:
    return {name: list(measure(iter(np.array(p, dtype=np.float64)))) for name, measure in MEASURES.items()}


def test_passes_that_are_sure_of_opposite_classes() -> None:
    assert all_scores([[[1, 0]], [[0, 1]]]) == {"bald": [math.log(2)], "max-entropy": [math.log(2)], "vote": [0.5], "mean": [0.5], "mean-std": [0.5]}


def test_passes_that_all_say_they_do_not_know() -> None:
    """No pass contradicts another, so nothing is to be learned of the model: only the entropy of the mean takes that for a reason to ask."""
    assert all_scores([[[0.5, 0.5]]] * 4) == {"bald": [0], "max-entropy": [math.log(2)], "vote": [0], "mean": [0.5], "mean-std": [0]}


@pytest.mark.parametrize("count", [2, 3, 7, 49, 100])
def test_passes_that_agree_give_exactly_0(count: int) -> None:
    p = np.repeat(softmax(np.random.default_rng(1).normal(size=(1, 200, 10)) * 3), count, axis=0)
    for name in ("bald", "vote", "mean-std"):
        assert (MEASURES[name](iter(p.copy())) == 0).all()


def test_one_pass_of_four_votes_otherwise() -> None:
    scores = all_scores([[[0.6, 0.4]], [[0.9, 0.1]], [[0.7, 0.3]], [[0.2, 0.8]]])
    assert scores["vote"] == [0.25] and scores["mean"] == [pytest.approx(0.4)]
    assert scores["mean-std"] == [pytest.approx(math.sqrt(0.065))]


def test_votes_have_as_many_values_as_passes_and_a_pass_that_is_tied_votes_for_its_lowest_class() -> None:
    p = softmax(np.random.default_rng(2).normal(size=(4, 500, 6)))
    assert set(dissent(iter(p))) == {0, 0.25, 0.5, 0.75}
    assert all_scores([[[0.5, 0.5]], [[0.9, 0.1]]])["vote"] == [0]
    assert all_scores([[[0.5, 0.5]], [[0.1, 0.9]]])["vote"] == [0.5]


def test_ties_of_votes_go_to_the_lowest_row_unless_they_are_drawn() -> None:
    p = np.eye(3)[np.random.default_rng(3).integers(3, size=(4, 300))]
    score = dissent(iter(p))
    most = np.flatnonzero(score == 0.5)
    selection = choose("variation-ratios", p, 20)
    assert selection.rows.tolist() == most[:20].tolist() and selection.info == {"tied": len(most) - 20}
    drawn = [select("variation-ratios", Pool(mc_probs=p), budget=20, seed=seed, stochastic="power", temperature=0.001).rows.tolist() for seed in (0, 1)]
    assert set(drawn[0]) | set(drawn[1]) <= set(most.tolist()) and set(drawn[0]) != set(drawn[1])


def test_kind_mean_ranks_by_the_mean() -> None:
    p = CASES["ordinary"]
    selection = choose("variation-ratios", p, 30, kind="mean")
    assert selection.rows.tolist() == np.argsort(p.mean(axis=0).max(axis=1), kind="stable").tolist()
    assert selection.info == {"tied": 0}


def test_information_lies_between_0_and_the_logarithms_of_classes_and_passes() -> None:
    for p in CASES.values():
        scores = MEASURES["bald"](iter(p.astype(np.float64)))
        assert (scores >= 0).all() and (scores <= math.log(min(len(p), p.shape[2])) + 1e-3).all()


@pytest.mark.parametrize("smallest", [0.0, 5e-324, 1e-300, 6e-8])
def test_probabilities_near_0_make_neither_nan_nor_warnings(smallest: float) -> None:
    p = np.array([[[1, smallest]], [[smallest, 1]], [[1, smallest]]])
    with np.errstate(all="raise", under="ignore"):
        for name, measure in MEASURES.items():
            np.testing.assert_allclose(measure(iter(p.copy())), [by_definition(p[:, 0])[name]], rtol=1e-12)


def test_neither_threads_nor_blocks_change_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    p = CASES["many classes"]
    params: dict[str, dict[str, object]] = {"bald": {}, "max-entropy": {}, "variation-ratios": {"kind": "mean"}, "mean-std": {}}
    expected = {name: choose(name, p, 20, **params[name]) for name in params}
    before = torch.get_num_threads()
    try:
        for threads, values in ((1, 2**20), (3, 1), (2, 16 * 300 * 7)):
            torch.set_num_threads(threads)
            monkeypatch.setattr(al_core.pool, "BLOCK_VALUES", values)
            for name, one in expected.items():
                other = choose(name, p, 20, **params[name])
                np.testing.assert_array_equal(other.rows, one.rows)
                np.testing.assert_array_equal(other.scores, one.scores)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["bald", "max-entropy", "variation-ratios", "mean-std"])
def test_a_single_class_is_refused(name: str) -> None:
    with pytest.raises(ValueError) as error:
        choose(name, np.ones((3, 5, 1)), 1)
    assert str(error.value) == "mc_probs have 1 class; a model needs at least 2 to be unsure between"


@pytest.mark.parametrize("name", ["bald", "variation-ratios", "mean-std"])
def test_a_single_pass_cannot_disagree(name: str) -> None:
    p = CASES["ordinary"][:1]
    with pytest.raises(ValueError) as error:
        choose(name, p, 1)
    assert str(error.value) == "mc_probs have 1 pass; passes can disagree only if there are at least 2"
    assert choose("max-entropy", p, 5).scores[0] == pytest.approx(max(nats(row) for row in p[0]))
    assert choose("variation-ratios", p, 5, kind="mean").scores[0] == pytest.approx(1 - p[0].max(axis=1).min())


def test_kinds_are_named() -> None:
    with pytest.raises(ValueError) as error:
        choose("variation-ratios", CASES["ordinary"], 1, kind="votes")
    assert str(error.value) == "variation-ratios.kind is 'votes'; expected 'vote' | 'mean'"


def test_no_score_is_a_negative_zero() -> None:
    p = np.repeat(np.eye(3)[None], 4, axis=0)
    for measure in MEASURES.values():
        scores = measure(iter(p.copy()))
        assert (scores == 0).all() and not np.signbit(scores).any()


@pytest.mark.parametrize("kind", ["vote", "mean"])
@pytest.mark.parametrize("name", ["bald", "max-entropy", "variation-ratios", "mean-std"])
def test_another_device_picks_the_same(name: str, kind: str, device: str) -> None:
    p = softmax(np.random.default_rng(4).normal(size=(8, 3000, 12)) * 2).astype(np.float32)
    params: dict[str, Any] = {"kind": kind} if name == "variation-ratios" else {}
    there, here = (select(name, Pool(mc_probs=p, device=each, excluded=[7]), budget=200, seed=0, **params) for each in (device, "cpu"))
    np.testing.assert_array_equal(there.rows, here.rows)
    np.testing.assert_allclose(there.scores, here.scores, rtol=1e-12)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("measure", MEASURES)
def test_measures_of_tensors(measure: str, case: str) -> None:
    p = CASES[case].astype(np.float64)
    found = MEASURES[measure](iter(torch.from_numpy(p.copy())))
    np.testing.assert_allclose(found, MEASURES[measure](iter(p)), rtol=1e-10, atol=2e-15)


# ---- draws of the head in place of stored probabilities --------------------------------------------------------------------


def heads(passes: int, classes: int, rows: int = 400, dim: int = 12) -> dict[str, Any]:
    """Embeddings, and a head under so many dropout masks; labelled and excluded rows."""
    rng = np.random.default_rng(passes)
    mask = (rng.random(size=(passes, 1, dim)) < 0.5) / 0.5
    weight = (rng.normal(size=(classes, dim)) * mask).astype(np.float32)
    bias = rng.normal(size=(passes, classes)).astype(np.float32)
    return {"embeddings": rng.normal(size=(rows, dim)).astype(np.float32), "mc_heads": (weight, bias), "labeled": [3, 50], "excluded": [7]}


@pytest.mark.parametrize("name", ["bald", "max-entropy", "variation-ratios", "mean-std", "batchbald"])
def test_draws_of_the_head_stand_for_their_probabilities(name: str) -> None:
    given = heads(6, 5)
    weight, bias = (each.astype(np.float64) for each in given["mc_heads"])
    p = softmax(np.einsum("nd,tcd->tnc", given["embeddings"].astype(np.float64), weight) + bias[:, None])
    budget = 8 if name == "batchbald" else 40
    found = select(name, Pool(**given), budget=budget, seed=0)
    expected = select(name, Pool(mc_probs=p, labeled=[3, 50], excluded=[7]), budget=budget, seed=0)
    assert found.rows.tolist() == expected.rows.tolist()
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("fewer_bits")
def test_draws_where_torch_is_told_to_multiply_with_fewer_bits() -> None:
    test_draws_of_the_head_stand_for_their_probabilities("bald")


def test_draws_that_agree_tell_nothing() -> None:
    given = heads(1, 4)
    weight, bias = (np.repeat(each, 5, axis=0) for each in given["mc_heads"])
    selection = select("bald", Pool(**given | {"mc_heads": (weight, bias)}), budget=10, seed=0)
    assert selection.scores.tolist() == [0.0] * 10
    assert selection.info["tied"] == 400 - 3 - 10


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mc_heads": heads(1, 5)["mc_heads"]}, "mc_heads have 1 pass; passes can disagree only if there are at least 2"),
        ({"mc_heads": heads(3, 1)["mc_heads"]}, "mc_heads have 1 class; a model needs at least 2 to be unsure between"),
        ({"mc_heads": heads(3, 5, dim=9)["mc_heads"]}, "mc_heads weight has 9 dimensions but embeddings have 12"),
        ({"mc_heads": (heads(3, 5)["mc_heads"][0], np.zeros((2, 5)))}, r"mc_heads weight is \(3, 5, 12\) but mc_heads bias is \(2, 5\); expected \(passes"),
        ({"mc_probs": np.full((3, 400, 5), 0.2)}, "mc_probs and mc_heads are both given; they say the same, so give one of them"),
    ],
)
def test_heads_that_make_no_passes_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select("bald", Pool(**heads(3, 5) | given), budget=3, seed=0)


def test_a_method_that_reads_stored_passes_alone_learns_how_to_read_either() -> None:
    with pytest.raises(ValueError, match=r"this pool has mc_heads in place of mc_probs; a method reads either through al_core.passes.passes_of\(pool\)"):
        _ = Pool(**heads(3, 5)).mc_probs

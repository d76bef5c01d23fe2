"""Diffusion against its definition: a dense graph and matrix, built and applied entry by entry in float64; the method's own walk is in float32."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
import torch

from al_core import Pool, Selection, select

module = importlib.import_module("al_core.methods.diffusion")

Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.floating]
Some = Sequence[int] | npt.NDArray[np.int64]


def transition(x: Floats, k: int, scale_neighbor: int) -> tuple[Doubles, Doubles]:
    """A = D^-1 W of distinct points, W = max(K, K^T) of self-tuned weights to the k nearest, and W."""
    x = x.astype(np.float64)
    n = len(x)
    square = np.array([[((a - b) ** 2).sum() for b in x] for a in x])
    nearest = [sorted((square[i, j], j) for j in range(n) if j != i)[:k] for i in range(n)]
    scale = [np.sqrt(each[min(scale_neighbor, len(each)) - 1][0]) for each in nearest]
    weight = np.zeros((n, n))
    for i in range(n):
        for gap, j in nearest[i]:
            weight[i, j] = max(weight[i, j], np.exp(-gap / (scale[i] * scale[j])))
            weight[j, i] = weight[i, j]
    for i in range(n):
        if not any(weight[i, j] for _, j in nearest[i]):
            weight[i, nearest[i][0][1]] = weight[nearest[i][0][1], i] = 1.0
    return weight / weight.sum(axis=1, keepdims=True), weight


def walked(chance: Doubles, labeled: Sequence[int], labels: Sequence[int], steps: int) -> Doubles:
    """F <- A F, F_L = one-hot, so many times; one column a class."""
    fixed = np.array([[float(label == c) for c in sorted(set(labels))] for label in labels]).reshape(len(labels), -1)
    f = np.zeros((len(chance), fixed.shape[1]))
    for _ in range(steps):
        f[list(labeled)] = fixed
        f = chance @ f
    f[list(labeled)] = fixed
    return f


def certainty(f: Doubles, score: str) -> Doubles:
    """Margin, or the least |chi| over one-vs-rest signals: +1 of the class, -1 of all other labels."""
    if score == "margin":
        padded = np.sort(np.hstack([f, np.zeros((len(f), 2))]), axis=1)
        return np.asarray(padded[:, -1] - padded[:, -2])
    return np.asarray(np.abs(2 * f - f.sum(axis=1, keepdims=True)).min(axis=1, initial=np.inf))


def picks_of(f: Doubles, score: Doubles, weight: Doubles, open_nodes: Sequence[int], budget: int) -> list[int]:
    """The pseudo-code: the first by (score, -degree, number) that no pick of the turn blocks; once none is left, unblock the rest."""
    unreached = f.sum(axis=1) <= 1e-8
    key = {i: ((0, 0.0) if unreached[i] else (1, score[i]), -weight[i].sum(), i) for i in open_nodes}
    left, blocked, picks = set(open_nodes), set[int](), list[int]()
    while len(picks) < budget:
        if not left - blocked:
            blocked = set()
        best = min(left - blocked, key=lambda i: key[i])
        picks.append(best)
        left.remove(best)
        blocked |= {best, *np.flatnonzero(weight[best]).tolist()}
    return picks


def diffusion(x: Floats, budget: int, labeled: Some = (), labels: Some = (), excluded: Some = (), **params: object) -> Selection:
    return select("diffusion", Pool(embeddings=x, labeled=labeled, labels=labels, excluded=excluded), budget=budget, seed=0, **params)


@pytest.mark.parametrize("score", ["margin", "one-vs-rest"])
@pytest.mark.parametrize(("neighbors", "scale_neighbor", "steps"), [(3, 2, 2), (6, 6, 5), (10, 7, 40), (79, 7, 3)])
@pytest.mark.parametrize("num_classes", [1, 2, 5])
def test_against_the_definition(num_classes: int, neighbors: int, scale_neighbor: int, steps: int, score: str) -> None:
    rng = np.random.default_rng(num_classes)
    x = rng.normal(size=(100, 4)).astype(np.float32)
    order = rng.permutation(100)
    labeled, excluded, kept = order[:10], order[10:20], np.sort(np.concatenate([order[:10], order[20:]]))
    labels = rng.integers(num_classes, size=10)
    selection = diffusion(x, 40, labeled, labels, excluded, neighbors=neighbors, scale_neighbor=scale_neighbor, steps=steps, score=score)
    chance, weight = transition(x[kept], min(neighbors, 89), scale_neighbor)
    known = np.searchsorted(kept, labeled)
    f = walked(chance, known.tolist(), labels.tolist(), steps)
    expected = certainty(f, score)
    rows = picks_of(f, expected, weight, [i for i in range(90) if i not in known], 40)
    assert selection.rows.tolist() == kept[rows].tolist()
    wanted = np.where(f[rows].sum(axis=1) <= 1e-8, 0, expected[rows])
    np.testing.assert_allclose(selection.scores, wanted, atol=1e-6)
    share = (f.sum(axis=1) <= 1e-8)[np.setdiff1d(np.arange(90), known)].mean()
    assert selection.info["unreached"] == pytest.approx(share)
    assert selection.info["phase"] == ("exploration" if share else "refinement")


def test_a_chain_by_hand() -> None:
    """Five points a unit apart, joined with both neighbours by weights that are alike; the ends are labelled."""
    x = np.arange(5.0)[:, None]
    selection = diffusion(x, 3, [0, 4], [0, 1], neighbors=1, scale_neighbor=1, steps=1)
    assert selection.rows.tolist() == [2, 1, 3]  # in one step no label reaches 2; with 1 and 3, neighbours of 2, half of the walkers meet one
    np.testing.assert_allclose(selection.scores, [0, 0.5, 0.5])
    assert selection.info == {"phase": "exploration", "unreached": 1 / 3, "unreached_picks": 1, "components": 1, "components_without_labels": 0}
    many = diffusion(x, 3, [0, 4], [0, 1], neighbors=1, scale_neighbor=1, steps=500)
    assert many.rows.tolist() == [2, 1, 3] and many.info["phase"] == "refinement"
    np.testing.assert_allclose(many.scores, [0, 0.5, 0.5], atol=1e-5)  # the harmonic solution: F_0 is 3/4, 1/2, 1/4


@pytest.mark.parametrize("neighbors", [1, 4, 30])
def test_rows_of_the_step_sum_to_one(neighbors: int) -> None:
    x = np.random.default_rng(0).normal(size=(60, 3))
    graph, place = module.Diffusion(neighbors=neighbors, scale_neighbor=1).graph(x, np.arange(60), "cpu")
    dense = module.stepped(graph.edges("cpu"), torch.eye(60)).numpy()[np.ix_(place, place)]
    np.testing.assert_allclose(dense.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(dense, transition(x, neighbors, 1)[0], rtol=1e-6)
    np.testing.assert_allclose(graph.degree[place], transition(x, neighbors, 1)[1].sum(axis=1), rtol=1e-12)


def test_labels_absorb_and_signals_are_bounded() -> None:
    x = np.random.default_rng(0).normal(size=(80, 3))
    graph, _ = module.Diffusion(neighbors=5, scale_neighbor=3).graph(x, np.arange(80), "cpu")
    known, labels = np.arange(0, 80, 9), np.arange(9) % 3
    for steps in (1, 7, 300):
        f = module.walked(graph.edges("cpu"), known, (labels[:, None] == [0, 1, 2]).astype(np.float64), steps).numpy()
        np.testing.assert_array_equal(f[known], labels[:, None] == [0, 1, 2])
        assert (f >= 0).all() and (f.sum(axis=1) <= 1 + 1e-5).all()
        chi = 2 * f - f.sum(axis=1, keepdims=True)
        assert (np.abs(chi) <= 1 + 1e-5).all()
        reach, _ = module.diffused(graph, known, labels, steps, "margin", "cpu")
        np.testing.assert_allclose(reach, f.sum(axis=1), rtol=1e-5)


def test_a_component_without_labels_stays_exactly_0() -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(40, 2)), 1000 + rng.normal(size=(30, 2)), -1000 + rng.normal(size=(20, 2))])
    labeled, labels = [0, 1, 2, 75], [0, 1, 0, 1]
    selection = diffusion(x, 50, labeled, labels, neighbors=8, steps=500)
    assert selection.info["components"] == 3 and selection.info["components_without_labels"] == 1
    assert selection.info["unreached"] == 30 / 86 and selection.info["phase"] == "exploration"
    middle = (selection.rows >= 40) & (selection.rows < 70)
    assert (selection.scores[middle] == 0).all() and (selection.scores[~middle] > 0).all()


def two_moons(n: int, seed: int) -> tuple[Doubles, npt.NDArray[np.int64]]:
    """Two half circles that reach into each other, and which of them each point is on."""
    rng = np.random.default_rng(seed)
    truth = np.arange(n) % 2
    angle = np.pi * rng.uniform(size=n)
    x = np.where(truth == 0, np.cos(angle), 1 - np.cos(angle))
    y = np.where(truth == 0, np.sin(angle), 0.5 - np.sin(angle))
    return np.column_stack([x, y]) + 0.05 * rng.normal(size=(n, 2)), truth


@pytest.mark.parametrize("seed", range(3))
def test_exploration_turns_into_refinement_on_two_moons(seed: int) -> None:
    """One label at a time: first rows that no label reaches, until there are none, then rows between the moons; and never back."""
    x, truth = two_moons(400, seed)
    labeled = [0]
    phases, unreached = [], []
    for _ in range(25):
        selection = diffusion(x, 1, labeled, truth[labeled].tolist(), neighbors=8, steps=10)
        phases.append(str(selection.info["phase"]))
        unreached.append(selection.info["unreached"])
        assert (selection.info["unreached_picks"] == 1) == (phases[-1] == "exploration")
        labeled.append(int(selection.rows[0]))
    switch = phases.index("refinement")
    assert 3 < switch < 25 and phases == ["exploration"] * switch + ["refinement"] * (25 - switch)
    assert unreached == sorted(unreached, reverse=True)  # type: ignore[type-var]
    assert set(truth[labeled[: switch + 1]].tolist()) == {0, 1}


def test_picks_of_a_batch_are_no_neighbours_while_others_are_left() -> None:
    x = np.random.default_rng(1).normal(size=(200, 2))
    selection = diffusion(x, 10, [0, 1], [0, 1], neighbors=6, scale_neighbor=3)
    _, weight = transition(x, 6, 3)
    assert not np.triu(weight[np.ix_(selection.rows, selection.rows)], 1).any()


def test_denser_rows_come_first_where_no_label_reaches() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 2))
    selection = diffusion(x, 5, neighbors=8)
    _, weight = transition(x, 8, 7)
    assert selection.rows[0] == np.argmax(weight.sum(axis=1))
    assert selection.info["phase"] == "exploration" and selection.info["unreached"] == 1.0
    assert selection.info["components_without_labels"] == selection.info["components"]


def test_coincident_rows_are_one_node() -> None:
    """They share its labels, in equal parts where they differ, and its place in the graph; each can be picked."""
    x = np.array([[0.0], [0], [0], [1], [2], [3], [3], [3]])
    selection = diffusion(x, 6, [0, 7], [0, 1], neighbors=1, scale_neighbor=1, steps=500)
    assert selection.rows.tolist() == [3, 5, 4, 1, 2, 6]  # 3 keeps 0, 1, 2 and 4 out, not 5; then 4 keeps 6 and the rest out, but not 1
    np.testing.assert_allclose(selection.scores, [1 / 3, 1, 1 / 3, 1, 1, 1])
    mixed = diffusion(x, 6, [0, 1], [0, 1], neighbors=1, scale_neighbor=1, steps=500)
    np.testing.assert_allclose(mixed.scores, 0, atol=1e-5)  # label 0 and 1 in one place: half of each, everywhere


def test_directions() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(80, 3)) * np.exp(2 * rng.normal(size=(80, 1)))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    one = diffusion(x, 20, [3, 4], [0, 1], normalize=True, neighbors=6, scale_neighbor=3)
    other = diffusion(unit, 20, [3, 4], [0, 1], neighbors=6, scale_neighbor=3)
    np.testing.assert_array_equal(one.rows, other.rows)
    np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)


def test_weights_that_vanish() -> None:
    """A row much farther from its neighbours than they are from theirs: all its weights would be 0."""
    x = np.concatenate([np.arange(10.0), [1e6]])[:, None]
    selection = diffusion(x, 9, [0, 1], [0, 1], neighbors=3, scale_neighbor=3, steps=50)
    chance, weight = transition(x, 3, 3)
    assert weight[10].tolist() == [0.0] * 9 + [1.0, 0.0]
    f = walked(chance, [0, 1], [0, 1], 50)
    assert selection.rows.tolist() == picks_of(f, certainty(f, "margin"), weight, range(2, 11), 9)


def test_edges_without_weight_join_nothing() -> None:
    """A group smaller than the neighbours asked for lists far rows, whose weights vanish: it is a component of its own."""
    rng = np.random.default_rng(4)
    x = np.concatenate([rng.normal(size=(40, 2)), 1e5 + rng.normal(size=(6, 2))])
    selection = diffusion(x, 6, [0, 1], [0, 1], neighbors=8, scale_neighbor=3, steps=300)
    assert selection.info["components"] == 2 and selection.info["components_without_labels"] == 1
    assert selection.info["unreached"] == 6 / 44 and selection.rows[0] >= 40


def test_layout_and_class_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(400, 3)).astype(np.float32)
    labeled, labels = list(range(0, 400, 10)), list(range(40))
    expected = [diffusion(x, 60, labeled, labels, score=score) for score in ("margin", "one-vs-rest")]
    monkeypatch.setattr(module, "SCATTERED", 10)
    monkeypatch.setattr(module, "CLASSES", 7)
    for before, score in zip(expected, ("margin", "one-vs-rest"), strict=True):
        after = diffusion(x, 60, labeled, labels, score=score)
        np.testing.assert_array_equal(after.rows, before.rows)
        np.testing.assert_allclose(after.scores, before.scores, atol=1e-5)
        assert after.info == before.info


@pytest.mark.parametrize("index", ["ivf", "hnsw"])
def test_approximate_graphs(index: str) -> None:
    pytest.importorskip("faiss")
    x, truth = two_moons(500, 0)
    selection = diffusion(x, 30, range(10), truth[:10].tolist(), index=index)
    exact = diffusion(x, 30, range(10), truth[:10].tolist())
    assert len(np.intersect1d(selection.rows, exact.rows)) > 15


def test_another_device_picks_the_same(device: str) -> None:
    x = np.random.default_rng(6).normal(size=(600, 5)).astype(np.float32)
    signals = {"embeddings": x, "labeled": range(40), "labels": np.arange(40) % 3}
    there, here = (select("diffusion", Pool(**signals, device=each), budget=50, seed=0) for each in (device, "cpu"))  # type: ignore[arg-type]
    np.testing.assert_array_equal(there.rows, here.rows)
    np.testing.assert_allclose(there.scores, here.scores, atol=1e-6)
    assert there.info == here.info


def test_parameters_that_make_no_sense() -> None:
    x = np.zeros((5, 1))
    for params, message in (
        ({"neighbors": 0}, "diffusion: neighbors is 0; expected at least 1"),
        ({"steps": 0}, "diffusion: steps is 0; expected at least 1"),
        ({"scale_neighbor": 0}, "diffusion: scale_neighbor is 0; expected at least 1"),
        ({"neighbors": 5}, "diffusion: scale_neighbor is 7 but neighbors is 5; expected at most as many"),
    ):
        with pytest.raises(ValueError) as error:
            diffusion(x, 1, **params)  # type: ignore[arg-type]
        assert str(error.value) == message

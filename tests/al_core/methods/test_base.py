"""MASE and BASE against their definitions: explicit perturbations, tensors of rows x classes x dimensions, and class loops over whole sorted pools."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pytest
import torch

from al_core import Pool, Selection, select
from al_core.methods import base
from al_core.methods.base import Boundaries, Distances

Doubles = npt.NDArray[np.float64]
Head = tuple[Doubles, Doubles]


def linear(seed: int, rows: int = 120, classes: int = 7, dim: int = 10) -> tuple[Doubles, Head, Doubles]:
    """Embeddings, a head whose rows have lengths of many sizes, and its logits."""
    rng = np.random.default_rng(seed)
    h = rng.normal(size=(rows, dim))
    weight = rng.normal(size=(classes, dim)) * np.exp(rng.normal(size=(classes, 1)))
    bias = rng.normal(size=classes)
    return h, (weight, bias), h @ weight.T + bias


def radii(h: Doubles, head: Head) -> tuple[npt.NDArray[np.int64], Doubles]:
    """Predictions, and (n, classes) lengths of the smallest moves onto each boundary, by the tensor that the released code makes; infinite for its own."""
    weight, bias = head
    predicted = (h @ weight.T + bias).argmax(axis=1)
    delta = weight[predicted][:, None, :] - weight[None]  # (n, classes, d)
    with np.errstate(invalid="ignore", divide="ignore"):
        multiplier = ((h[:, None, :] * delta).sum(axis=2) + bias[predicted][:, None] - bias) / (delta**2).sum(axis=2)
        moves = -delta * multiplier[:, :, None]
    lengths = np.sqrt((moves**2).sum(axis=2))
    return predicted, np.where(np.isnan(lengths), np.inf, lengths)


def choose(name: str, logits: npt.NDArray[np.floating], head: Head, budget: int, labeled: Sequence[int] = (), **params: object) -> Selection:
    return select(name, Pool(logits=logits, head=head, labeled=labeled), budget=budget, seed=0, **params)


def by_the_loop(predicted: npt.NDArray[np.int64], to: Doubles, open_rows: Sequence[int], budget: int, offset: int = 0) -> tuple[list[int], list[float]]:
    """BASE as its released code has it, over whole lists sorted by (distance, row); what no class can take goes to the rows nearest to any boundary."""
    classes = to.shape[1]
    nearest = to.min(axis=1)
    picks: list[int] = []
    scores: list[float] = []
    for turn in range(classes):
        number = (turn + offset) % classes
        quota = budget // classes + (turn < budget % classes)
        away = np.where(predicted == number, nearest, to[:, number])
        best = sorted((away[row], row) for row in open_rows if row not in picks and away[row] < np.inf)[:quota]
        picks += [row for _, row in best]
        scores += [float(distance) for distance, _ in best]
    best = sorted((nearest[row], row) for row in open_rows if row not in picks)[: budget - len(picks)]
    return picks + [row for _, row in best], scores + [float(distance) for distance, _ in best]


# ---- MASE ----------------------------------------------------------------------------------------------------------------------


def test_distances_by_hand() -> None:
    head = (np.array([[3.0, 0], [0, 4], [0, 0]]), np.zeros(3))
    logits = np.array([[6.0, 1, 0], [3, 9, 0], [-3, -2, 0], [0, 0, -5]])
    selection = choose("mase", logits, head, 4)
    # |w0 - w1| = 5, |w0 - w2| = 3, |w1 - w2| = 4
    assert selection.rows.tolist() == [3, 2, 0, 1]
    np.testing.assert_allclose(selection.scores, [0, min(3 / 3, 2 / 4), min(5 / 5, 6 / 3), min(6 / 5, 9 / 4)], rtol=1e-15)


@pytest.mark.parametrize("seed", range(5))
def test_closed_form_is_the_tensor_of_moves(seed: int) -> None:
    h, head, logits = linear(seed)
    predicted, to = radii(h, head)
    found = Boundaries(head[0]).distances(torch.from_numpy(logits))
    np.testing.assert_array_equal(found.predicted, predicted)
    np.testing.assert_allclose(found.nearest, to.min(axis=1), rtol=1e-9)
    to[np.arange(len(h)), predicted] = to.min(axis=1)
    np.testing.assert_allclose(found.to_class, to, rtol=1e-9)
    selection = choose("mase", logits, head, 30, labeled=[4, 9])
    assert selection.rows.tolist() == [row for row in np.argsort(to.min(axis=1)).tolist() if row not in (4, 9)][:30]
    np.testing.assert_allclose(selection.scores, np.sort(np.delete(to.min(axis=1), [4, 9]))[:30], rtol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_a_move_of_the_score_ties_the_prediction_and_no_shorter_one_changes_it(seed: int) -> None:
    h, (weight, bias), logits = linear(seed, classes=5, dim=4)
    selection = choose("mase", logits, (weight, bias), len(h))
    rng = np.random.default_rng(seed)
    for row, distance in zip(selection.rows, selection.scores, strict=True):
        before = (h[row] @ weight.T + bias).argmax()
        directions = weight - weight[before]
        directions = np.delete(directions, before, axis=0)
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        onto = (h[row] + distance * directions) @ weight.T + bias
        top = np.sort(onto, axis=1)
        assert (top[:, -1] - top[:, -2]).min() < 1e-9  # straight at the nearest boundary it arrives exactly there
        beyond = ((h[row] + (1.001 * distance + 1e-9) * directions) @ weight.T + bias).argmax(axis=1)
        assert (beyond != before).any()
        anywhere = rng.normal(size=(300, h.shape[1]))
        anywhere *= 0.999 * distance / np.linalg.norm(anywhere, axis=1, keepdims=True)
        short = np.concatenate([anywhere, 0.999 * distance * directions])
        assert (((h[row] + short) @ weight.T + bias).argmax(axis=1) == before).all()


def test_lengths_of_the_head_count_not_only_the_gap_between_logits() -> None:
    head = (np.array([[0.0, 0], [10, 0], [0, 1]]), np.zeros(3))
    logits = np.array([[0.0, -4, -9], [0, -9, -1]])
    assert choose("mase", logits, head, 2).rows.tolist() == [0, 1]  # 4 / 10 before 1 / 1
    assert select("margin", Pool(logits=logits), budget=2, seed=0).rows.tolist() == [1, 0]


def test_classes_with_the_same_weights_have_no_boundary() -> None:
    weight = np.array([[1.0, 0], [1, 0], [0, 1]])
    head = (weight, np.array([0.5, 0, 0]))
    found = Boundaries(weight).distances(torch.tensor([[2.0, 1.5, 0.5], [0, 0, 3], [1, 1, 1]], dtype=torch.float64))
    root = np.sqrt(2)
    np.testing.assert_allclose(found.to_class, [[1.5 / root, np.inf, 1.5 / root], [3 / root, 3 / root, 3 / root], [0, np.inf, 0]])
    np.testing.assert_allclose(found.nearest, [1.5 / root, 3 / root, 0])
    assert choose("mase", np.array([[2.0, 1.5, 0.5], [0, 0, 3]]), head, 1).scores == pytest.approx([1.5 / root])


@pytest.mark.parametrize("name", ["mase", "base"])
def test_heads_without_boundaries_are_refused(name: str) -> None:
    logits = np.zeros((4, 3))
    with pytest.raises(ValueError, match="head weight has the same row for every class, so there is no boundary between them; train the model first"):
        choose(name, logits, (np.ones((3, 2)), np.arange(3.0)), 2)
    with pytest.raises(ValueError, match="head weight is too large to measure: two of its rows are more than 1e150 apart; scale it down"):
        choose(name, logits, (np.array([[1e200], [0], [1]]), np.zeros(3)), 2)
    with pytest.raises(ValueError, match="logits have 1 class; a boundary needs at least 2 to lie between"):
        choose(name, logits[:, :1], (np.ones((1, 2)), np.zeros(1)), 2)


def test_the_largest_logits_make_neither_nan_nor_infinity() -> None:
    most = np.finfo(np.float64).max
    head = (np.array([[1e-9, 0], [0, 0]]), np.zeros(2))
    for name in ("mase", "base"):
        selection = choose(name, np.array([[most, -most], [0, most], [-most, -most]]), head, 3)
        assert selection.rows[0] == 2 and np.isfinite(selection.scores).all()


@pytest.mark.parametrize("name", ["mase", "base"])
def test_threads_change_no_bit(name: str) -> None:
    _, head, logits = linear(3, rows=3000, classes=40, dim=300)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = choose(name, logits, head, 200)
        torch.set_num_threads(3)
        together = choose(name, logits, head, 200)
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_array_equal(alone.rows, together.rows)
    np.testing.assert_array_equal(alone.scores, together.scores)


# ---- BASE ----------------------------------------------------------------------------------------------------------------------


def test_turns_by_hand() -> None:
    head = (np.array([[1.0, 0], [0, 1], [-1, 0]]) / np.sqrt(2), np.zeros(3))  # |w0 - w1| = |w1 - w2| = 1, |w0 - w2| = sqrt 2
    logits = np.array([[5.0, 4, 0], [5, 2, 1], [1, 9, 3], [0, 7, 6], [2, 3, 8]])
    # distances to class 0: 1, 2.83, 8, 7, 4.24; to class 1: 1, 3, 6, 1, 5; to class 2: 3.54, 2.83, 6, 1, 4.24
    selection = choose("base", logits, head, 5)
    assert selection.rows.tolist() == [0, 1, 3, 4, 2]
    np.testing.assert_allclose(selection.scores, [1, 4 / np.sqrt(2), 1, 5, 6])
    assert selection.info == {"quota": [2, 2, 1], "predicted": [2, 2, 1], "unfilled": 0}
    assert choose("base", logits, head, 2).rows.tolist() == [0, 3]
    assert choose("base", logits, head, 2, class_offset=2).rows.tolist() == [3, 0]


@pytest.mark.parametrize("shortest_lists", [False, True])
@pytest.mark.parametrize("seed", range(30))
def test_against_the_loop(seed: int, shortest_lists: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where lists are so short, or memory so tight, that the rows are scanned again and again. Rounded values make ties and equal weights."""
    rng = np.random.default_rng(seed)
    classes = int(rng.integers(2, 9))
    h, (weight, bias), logits = linear(seed, rows=int(rng.integers(20, 130)), classes=classes, dim=5)
    if seed % 3 == 0:
        weight, logits = np.round(weight), np.round(logits)
    predicted = logits.argmax(axis=1)
    apart = np.sqrt(((weight[:, None] - weight) ** 2).sum(axis=2))
    with np.errstate(invalid="ignore", divide="ignore"):
        to = (logits.max(axis=1)[:, None] - logits) / apart[predicted]
    to = np.where(apart[predicted] == 0, np.inf, to)
    if shortest_lists:
        for name, value in {"SPARE": 0, "TIMES": 1, "PENDING": 1 + 10 * seed, "KEPT": 1 + seed}.items():
            monkeypatch.setattr(base, name, value)
    labeled = rng.permutation(len(h))[: len(h) // 5].tolist()
    rest = [row for row in range(len(h)) if row not in labeled]
    for budget in {1, classes - 1, classes + 1, len(rest) // 2, len(rest)}:
        offset = int(rng.integers(0, 12))
        selection = choose("base", logits, (weight, bias), budget, labeled, class_offset=offset)
        rows, scores = by_the_loop(predicted, to, rest, budget, offset)
        assert selection.rows.tolist() == rows
        np.testing.assert_allclose(selection.scores, scores, rtol=1e-12)


@pytest.mark.parametrize(
    ("budget", "offset", "quota"),
    [(7, 0, [1] * 7), (10, 0, [2, 2, 2, 1, 1, 1, 1]), (10, 5, [2, 1, 1, 1, 1, 2, 2]), (3, 0, [1, 1, 1, 0, 0, 0, 0]), (3, 13, [1, 1, 0, 0, 0, 0, 1])],
)
def test_quotas(budget: int, offset: int, quota: list[int]) -> None:
    _, head, logits = linear(1)
    selection = choose("base", logits, head, budget, class_offset=offset)
    assert selection.info["quota"] == quota
    assert selection.info["predicted"] == np.bincount(logits[selection.rows].argmax(axis=1), minlength=7).tolist()
    assert len(set(selection.rows.tolist())) == budget


def test_every_class_has_its_share_where_margins_would_give_it_none() -> None:
    """One class is never predicted, and one boundary has most of the doubt."""
    rng = np.random.default_rng(0)
    h = rng.normal(size=(2000, 8)) + np.r_[6.0, np.zeros(7)]
    weight = np.concatenate([np.eye(4, 8), np.full((1, 8), -0.1)])
    logits = h @ weight.T
    selection = choose("base", logits, (weight, np.zeros(5)), 100)
    assert (logits.argmax(axis=1) == 4).sum() == 0
    predicted, to = radii(h, (weight, np.zeros(5)))
    own = [selection.rows[20 * number : 20 * number + 20] for number in range(5)]
    assert all(len(set(rows.tolist())) == 20 for rows in own)
    nearest_to_last = np.argsort(to[:, 4])
    assert own[4].tolist() == [row for row in nearest_to_last if row not in np.concatenate(own[:4])][:20]
    assert predicted[own[4]].tolist() == logits[own[4]].argmax(axis=1).tolist()


def test_what_no_class_has_a_boundary_to_goes_to_the_nearest_rows() -> None:
    weight = np.array([[0.0], [0], [1]])  # classes 0 and 1 are one: rows of either have no boundary to the other
    logits = np.array([[3.0, 2, 1], [3, 2, 0], [3, 2, 2], [3, 2, -5]])
    selection = choose("base", logits, (weight, np.zeros(3)), 4)
    assert selection.rows.tolist() == [2, 0, 1, 3]  # two to class 0, none to class 1, one to class 2, and one to none
    assert selection.scores.tolist() == [1, 2, 3, 8]
    assert selection.info == {"quota": [2, 1, 1], "predicted": [4, 0, 0], "unfilled": 1}


def test_lists_are_scanned_anew_only_when_they_run_out(monkeypatch: pytest.MonkeyPatch) -> None:
    _, head, logits = linear(2, rows=2000, classes=20)
    scans: list[int] = []
    scan = Boundaries.over_share

    def counted(self: Boundaries, pool: Pool) -> Iterator[tuple[slice, Distances]]:
        scans.append(1)
        return scan(self, pool)

    monkeypatch.setattr(Boundaries, "over_share", counted)
    expected = choose("base", logits, head, 200)
    assert len(scans) == 1
    monkeypatch.setattr(base, "SPARE", 0)
    monkeypatch.setattr(base, "TIMES", 1)
    found = choose("base", logits, head, 200)
    assert 2 < len(scans) < 10
    np.testing.assert_array_equal(found.rows, expected.rows)


def test_a_negative_offset_is_refused() -> None:
    _, head, logits = linear(1)
    with pytest.raises(ValueError, match="base: class_offset is -1; expected at least 0"):
        choose("base", logits, head, 3, class_offset=-1)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["mase", "base"])
def test_picks_on_a_gpu_are_those_on_the_cpu(name: str, gpu: str) -> None:
    _, head, logits = linear(5, rows=30_000, classes=50, dim=64)
    here, there = (select(name, Pool(logits=logits, head=head, device=device), budget=1000, seed=0) for device in ("cpu", gpu))
    np.testing.assert_array_equal(here.rows, there.rows)
    np.testing.assert_allclose(here.scores, there.scores, rtol=1e-12)

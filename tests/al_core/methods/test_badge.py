"""BADGE against its definition: gradients written out as outer products, all distances in float64, all picks looked at again for every pick."""

from __future__ import annotations

import sys
import tracemalloc
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import permutations
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

import al_core.gradients
from al_core import Pool, Selection, select
from al_core.gradients import CLOSED, Gradients, Nearest, distances, loss_gradient
from al_core.methods.badge import Badge

Array = npt.NDArray[np.floating]
Doubles = npt.NDArray[np.float64]

badge_module = sys.modules["al_core.methods.badge"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two would wait for each other longer than these small products take."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def written_out(h: Array, z: Array) -> Doubles:
    """(n, classes * d): the gradient of each row's loss with respect to the last layer, the predicted class being the label."""
    gradients = []
    for x, logits in zip(h.astype(np.float64), z.astype(np.float64), strict=True):
        odds = np.exp(logits - logits.max())
        p = odds / odds.sum()
        predicted = np.argmax(logits)
        p[predicted] = -np.delete(p, predicted).sum()  # p - 1, without the loss of digits
        gradients.append(np.outer(p, x).ravel())
    return np.array(gradients)


def squared(g: Doubles) -> Doubles:
    """(n, n) squared distances, by the definition."""
    return np.array([((g - row) ** 2).sum(axis=1) for row in g])


def farthest_first(h: Array, z: Array, budget: int, closed: Sequence[int] = ()) -> tuple[list[int], list[float]]:
    """The longest gradient, then each time the one farthest from those picked; ties by lowest row."""
    g = written_out(h, z)
    between = squared(g)
    rows: list[int] = []
    scores: list[float] = []
    for _ in range(budget):
        rest = [row for row in range(len(g)) if row not in rows and row not in closed]
        away = {row: min(between[row, rows]) if rows else float((g[row] ** 2).sum()) for row in rest}
        rows.append(max(rest, key=lambda row: (away[row], -row)))
        scores.append(away[rows[-1]])
    return rows, scores


def badge(h: Array, z: Array, budget: int, labeled: Sequence[int] = (), excluded: Sequence[int] = (), seed: int = 0, **params: object) -> Selection:
    return select("badge", Pool(embeddings=h, logits=z, labeled=labeled, excluded=excluded), budget=budget, seed=seed, **params)


RNG = np.random.default_rng(3)
H, Z = RNG.normal(size=(120, 7)), RNG.normal(size=(120, 5))
TWINS = np.arange(120) // 2
KINDS: dict[str, tuple[Doubles, Doubles]] = {
    "gaussian": (H, 3 * Z),
    "positive features": (np.maximum(H, 0) + 0.01, 3 * Z),
    "sure": (H, 40 * Z),
    "unsure": (H, 0.01 * Z),
    "no idea": (H, 0 * Z),
    "lengths of many sizes": (H * np.exp(3 * RNG.normal(size=(120, 1))), 3 * Z),
    "twins": (H[TWINS], 3 * Z[TWINS]),
    "clusters": (H[TWINS // 10] + 0.01 * H, 3 * Z[TWINS // 10]),
    "two classes, one dimension": (H[:, :1], 3 * Z[:, :2]),
    "many classes": (H, 3 * RNG.normal(size=(120, 300))),
    "some embeddings are 0": (H * (np.arange(120) % 3 > 0)[:, None], 3 * Z),
}

each_kind = pytest.mark.parametrize("kind", KINDS)


def test_the_loss_gradient_is_softmax_less_the_predicted_class() -> None:
    a = loss_gradient(np.log(np.array([[0.2, 0.7, 0.1], [0.5, 0.25, 0.25]])))
    np.testing.assert_allclose(a, [[0.2, -0.3, 0.1], [-0.5, 0.25, 0.25]], rtol=1e-14)
    np.testing.assert_allclose(loss_gradient(np.array([[1.0, 1.0]])), [[-0.5, 0.5]])  # the first of several is the predicted one


def test_a_sure_model_s_loss_gradient_keeps_its_digits() -> None:
    a = loss_gradient(np.array([[0.0, 50, 10], [0, 800, 0], [-1e308, 1e308, 0]]))
    np.testing.assert_allclose(a[0], [np.exp(-50), -np.exp(-50) - np.exp(-40), np.exp(-40)], rtol=1e-14)
    np.testing.assert_array_equal(a[1:], 0.0)


@each_kind
def test_factorised_distances_are_those_of_the_outer_products(kind: str) -> None:
    h, z = KINDS[kind]
    gradients = Gradients(Pool(embeddings=h, logits=z))
    g = written_out(h, z)
    np.testing.assert_allclose(gradients.square * gradients.unit**2, (g**2).sum(axis=1), rtol=1e-12)
    i, j = (each.ravel() for each in np.indices((120, 120)))
    factors = gradients.factors(np.arange(120))
    found = (distances(factors, i, factors, j) * gradients.unit**2).reshape(120, 120)
    np.testing.assert_allclose(found, squared(g), rtol=1e-9, atol=1e-14 * (g**2).sum(axis=1).max())
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_array_equal(found[TWINS == 3][:, TWINS == 3] if kind == "twins" else found.diagonal(), 0.0)


def test_near_gradients_keep_their_distance() -> None:
    """Products of whole factors would lose it: |g|^2 + |g'|^2 - 2 <g, g'> is good for 1e-16 |g|^2."""
    h = np.array([[3.0, 4], [3, 4 + 1e-9]])
    z = np.log(np.array([[0.5, 0.3, 0.2], [0.5, 0.3 + 1e-9, 0.2 - 1e-9]]))
    gradients = Gradients(Pool(embeddings=h, logits=z))
    factors = gradients.factors(np.arange(2))
    found = distances(factors, np.array([0]), factors, np.array([1]))[0] * gradients.unit**2
    a = np.array([-0.5, 0.3, 0.2])
    exact = (((h[1] - h[0]) ** 2).sum() * (a @ a)) + 25 * 2e-18 + 2 * (4e-9) * (0.3 - 0.2) * 1e-9
    assert found == pytest.approx(exact, rel=1e-6)


def test_factors_of_very_different_lengths() -> None:
    """Equal gradients whose factors are not: a sure row with a long embedding, an unsure one with a short one."""
    z = np.array([[0.0, 30], [0, 0]])
    ratio = loss_gradient(z)[0, 0] / loss_gradient(z)[1, 1]
    h = np.array([[1.0, 2, 3], [-ratio, -2 * ratio, -3 * ratio]])
    gradients = Gradients(Pool(embeddings=h, logits=z))
    factors = gradients.factors(np.arange(2))
    assert distances(factors, np.array([0]), factors, np.array([1]))[0] <= 1e-15 * gradients.square[0]


@each_kind
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_farthest_against_the_definition(kind: str, dtype: npt.DTypeLike) -> None:
    h, z = (each.astype(dtype) for each in KINDS[kind])
    order = np.random.default_rng(4).permutation(120).tolist()
    selection = badge(h, z, 40, labeled=order[:20], excluded=order[100:], draw="farthest")
    rows, scores = farthest_first(h, z, 40, order[:20] + order[100:])
    assert selection.rows.tolist() == rows
    np.testing.assert_allclose(selection.scores, scores, rtol=1e-9)


@pytest.mark.parametrize("most", [1, 2, 7])
@each_kind
def test_farthest_with_few_leaders_at_a_time(kind: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that ceilings, not the batch, decide; picks come in many parts, bounds from both precisions."""
    expected = badge(*KINDS[kind], 60, draw="farthest")
    monkeypatch.setattr(badge_module, "MOST", most)
    for name, value in (("PICKS", 5), ("ASKED", 3), ("CROWD", 0.2), ("PAIRS", 2)):
        monkeypatch.setattr(al_core.gradients, name, value)
    selection = badge(*KINDS[kind], 60, draw="farthest")
    np.testing.assert_array_equal(selection.rows, expected.rows)
    np.testing.assert_array_equal(selection.scores, expected.scores)


def test_farthest_by_hand() -> None:
    """Two classes at even odds: a is (-1/2, 1/2) for all, so distances are those of the embeddings, squared and halved."""
    h = np.array([[1.0], [0], [3], [4], [2]])
    selection = badge(h, np.zeros((5, 2)), 5, draw="farthest")
    assert selection.rows.tolist() == [3, 1, 4, 0, 2]  # 4 is longest, 0 farthest from it; 2; then 1 and 3 are equally far: the lower row
    assert selection.scores.tolist() == [8, 8, 2, 0.5, 0.5]
    assert selection.info == {"duplicates": 0}


@each_kind
def test_gaps_are_the_least_distances_whatever_is_asked_when(kind: str) -> None:
    gradients = Gradients(Pool(embeddings=KINDS[kind][0], logits=KINDS[kind][1]))
    everything = gradients.factors(np.arange(120))
    i, j = (each.ravel() for each in np.indices((120, 120)))
    between = distances(everything, i, everything, j).reshape(120, 120)
    nearest = Nearest(gradients)
    rng = np.random.default_rng(5)
    for _ in range(12):
        picks = rng.choice(np.flatnonzero(nearest.gap != CLOSED), size=rng.integers(1, 8), replace=False)
        nearest.add(picks, gradients.factors(picks))
        at = np.sort(rng.choice(np.flatnonzero(nearest.gap != CLOSED), size=10, replace=False))
        nearest.bring_up_to_date(at)
        np.testing.assert_array_equal(nearest.gap[at], between[at][:, nearest.picks].min(axis=1))
        opened = np.flatnonzero(nearest.gap != CLOSED)
        assert (nearest.ceiling(opened) >= between[opened][:, nearest.picks].min(axis=1)).all()


def chances(h: Doubles, z: Doubles) -> dict[tuple[int, ...], float]:
    """Probability of each three picks in order, by the definition of k-means++ seeding that starts at the longest gradient."""
    g = written_out(h, z)
    between = squared(g)
    first = int(np.argmax((g**2).sum(axis=1)))
    one = between[first] / between[first].sum()
    chance: dict[tuple[int, ...], float] = {}
    for second, third in permutations(set(range(len(g))) - {first}, 2):
        two = between[[first, second]].min(axis=0)
        chance[first, second, third] = one[second] * two[third] / two.sum()
    return chance


@pytest.mark.parametrize(("least", "most"), [(64, 512), (1, 1), (3, 3)])
def test_draws_follow_the_law_of_k_means_plus_plus(least: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one batch of proposals, and over several, so that ceilings are at times fresh and at times stale."""
    monkeypatch.setattr(badge_module, "LEAST", least)
    monkeypatch.setattr(badge_module, "MOST", most)
    rng = np.random.default_rng(6)
    h, z = rng.normal(size=(6, 3)) * np.exp(rng.normal(size=(6, 1))), 2 * rng.normal(size=(6, 4))
    h[5], z[5] = h[4] + 0.3, z[4]  # near each other: seldom both
    pool = Pool(embeddings=h, logits=z)
    draws = 800
    seen = Counter(tuple(Badge()(pool, 3, rng).rows.tolist()) for _ in range(draws))
    expected = chances(h, z)
    assert set(seen) <= set(expected) and len(expected) == 20 and sum(expected.values()) == pytest.approx(1)
    rare = [picks for picks, chance in expected.items() if chance * draws < 5]  # together, so that chi-squared holds
    cells = [([picks], chance) for picks, chance in expected.items() if picks not in rare] + [(rare, sum(expected[picks] for picks in rare))]
    statistic = sum((sum(seen[picks] for picks in group) - chance * draws) ** 2 / (chance * draws) for group, chance in cells if group)
    assert statistic < 46  # of 19 degrees of freedom, or fewer: exceeded once in 2000


def test_many_draws_lower_the_sum_of_distances_as_one_by_one_seeding_does() -> None:
    """Sixty picks of 400, in several batches with rejections: what is left to cover, on average over 60 runs."""
    rng = np.random.default_rng(7)
    center = rng.integers(20, size=400)
    h, z = rng.normal(size=(20, 6))[center] + 0.2 * rng.normal(size=(400, 6)), 2 * rng.normal(size=(20, 5))[center] + 0.2 * rng.normal(size=(400, 5))
    g = written_out(h, z)
    between = squared(g)
    pool = Pool(embeddings=h, logits=z)

    def one_by_one() -> list[int]:
        rows = [int(np.argmax((g**2).sum(axis=1)))]
        while len(rows) < 60:
            gap = between[rows].min(axis=0)
            rows.append(int(rng.choice(400, p=gap / gap.sum())))
        return rows

    left = np.array([[between[rows].min(axis=0).sum() for rows in (Badge()(pool, 60, rng).rows, one_by_one())] for _ in range(60)])
    difference = left[:, 0].mean() - left[:, 1].mean()
    assert abs(difference) < 4 * np.sqrt((left.var(axis=0) / 60).sum())


@each_kind
def test_scores_of_draws_are_squared_distances_to_the_picks_before(kind: str) -> None:
    h, z = KINDS[kind]
    selection = badge(h, z, 80)
    g = written_out(h, z)
    rows = selection.rows
    assert selection.scores[0] == pytest.approx((g[rows[0]] ** 2).sum()) == pytest.approx((g**2).sum(axis=1).max())
    expected = [((g[rows[:i]] - g[rows[i]]) ** 2).sum(axis=1).min() for i in range(1, 80)]
    np.testing.assert_allclose(selection.scores[1:], expected, rtol=1e-9, atol=1e-14 * selection.scores[0])


@each_kind
@pytest.mark.parametrize("draw", ["sample", "farthest"])
def test_bounds_threads_and_device_change_no_bit(kind: str, draw: str, monkeypatch: pytest.MonkeyPatch) -> None:
    h, z = (each.astype(np.float32) for each in KINDS[kind])
    expected = badge(h, z, 70, draw=draw)
    precision = torch.get_float32_matmul_precision()
    try:
        torch.set_num_threads(2)
        torch.set_float32_matmul_precision("medium")  # float32 is not to be trusted any more
        two_threads = badge(h, z, 70, draw=draw)
    finally:
        torch.set_num_threads(1)
        torch.set_float32_matmul_precision(precision)
    for name, value in (("PICKS", 5), ("ASKED", 3), ("PAIRS", 2), ("SHORT", 1000)):
        monkeypatch.setattr(al_core.gradients, name, value)
    other_device = select("badge", Pool(embeddings=h, logits=z, device="cpu:0"), budget=70, seed=0, draw=draw)
    for selection in (two_threads, other_device):
        np.testing.assert_array_equal(selection.rows, expected.rows)
        np.testing.assert_array_equal(selection.scores, expected.scores)


@pytest.mark.gpu
@pytest.mark.parametrize("draw", ["sample", "farthest"])
def test_the_gpu_picks_what_the_cpu_picks(draw: str, gpu: str) -> None:
    rng = np.random.default_rng(8)
    h, z = rng.normal(size=(5000, 64)).astype(np.float32), 3 * rng.normal(size=(5000, 50)).astype(np.float32)
    there = select("badge", Pool(embeddings=h, logits=z, device=gpu), budget=800, seed=0, draw=draw)
    here = badge(h, z, 800, draw=draw)
    np.testing.assert_array_equal(there.rows, here.rows)
    np.testing.assert_array_equal(there.scores, here.scores)


def test_permuting_the_pool_permutes_the_farthest() -> None:
    h, z = KINDS["clusters"]
    new_to_old = np.random.default_rng(1).permutation(120)
    there, here = badge(h[new_to_old], z[new_to_old], 60, draw="farthest"), badge(h, z, 60, draw="farthest")
    np.testing.assert_array_equal(new_to_old[there.rows], here.rows)
    np.testing.assert_array_equal(there.scores, here.scores)


def test_only_draws_heed_the_seed() -> None:
    h, z = KINDS["gaussian"]
    assert badge(h, z, 20, seed=1).rows.tolist() != badge(h, z, 20, seed=2).rows.tolist()
    assert badge(h, z, 20, seed=1, draw="farthest").rows.tolist() == badge(h, z, 20, seed=2, draw="farthest").rows.tolist()
    assert badge(h, z, 20, seed=1).rows[0] == badge(h, z, 20, seed=2).rows[0]  # the longest


@pytest.mark.parametrize("draw", ["sample", "farthest"])
def test_labelled_rows_are_not_looked_at(draw: str) -> None:
    h, z = KINDS["gaussian"]
    labeled = [0, 7, 50, 119]
    np.testing.assert_array_equal(badge(h, z, 30, labeled=labeled, draw=draw).rows, badge(h, z, 30, excluded=labeled, draw=draw).rows)


@pytest.mark.parametrize("draw", ["sample", "farthest"])
def test_coincident_gradients_come_last(draw: str) -> None:
    h, z = H[np.arange(30) % 3], 3 * Z[np.arange(30) % 3]
    selection = badge(h, z, 10, draw=draw)
    assert sorted((selection.rows[:3] % 3).tolist()) == [0, 1, 2]
    assert (selection.scores[:3] > 0).all() and (selection.scores[3:] == 0).all()
    assert selection.info == {"duplicates": 7}
    left = [row for row in range(30) if row not in selection.rows[:3]]
    assert (selection.rows[3:].tolist() == left[:7]) == (draw == "farthest")
    assert selection.rows[3:].tolist() == left[:7] or badge(h, z, 10, draw=draw, seed=1).rows.tolist() != selection.rows.tolist()


def test_a_model_that_is_sure_of_everything_leaves_nothing_to_tell_apart() -> None:
    z = np.where(np.arange(4) == (np.arange(50) % 4)[:, None], 2000.0, 0.0)
    farthest, drawn = badge(H[:50], z, 8, draw="farthest"), badge(H[:50], z, 8)
    assert farthest.rows.tolist() == list(range(8))
    for selection in (farthest, drawn):
        assert (selection.scores == 0).all() and selection.info == {"duplicates": 7}


def test_sure_rows_are_told_apart_by_what_is_left() -> None:
    """1 - p is 1e-11 and less, far below what a float32 softmax knows."""
    z = np.where(np.arange(5) == Z.argmax(axis=1)[:, None], 30.0, 0.0) + Z
    selection = badge(H, z, 30, draw="farthest")
    rows, scores = farthest_first(H, z, 30)
    assert selection.rows.tolist() == rows and scores[0] < 1e-18
    np.testing.assert_allclose(selection.scores, scores, rtol=1e-9)


def test_a_model_so_sure_that_squares_are_at_the_end_of_the_range() -> None:
    """Even rows have gradients of e^-300, odd ones of e^-2000: none, once squared."""
    even = np.arange(120) % 2 == 0
    z = np.zeros((120, 2))
    z[:, 1] = np.where(even, 300 + H[:, 0], 2000)
    selection = badge(H, z, 60, draw="farthest")
    g = H * (np.exp(-H[:, 0]) * even)[:, None] * np.sqrt(2)
    gap = (g**2).sum(axis=1)
    for row, score in zip(selection.rows, selection.scores, strict=True):
        assert (row, score * np.exp(600)) == (np.argmax(gap), pytest.approx(gap.max(), rel=1e-9))
        gap = np.minimum(gap if row != selection.rows[0] else np.inf, ((g - g[row]) ** 2).sum(axis=1))


@pytest.mark.parametrize("draw", ["sample", "farthest"])
@pytest.mark.parametrize("exponent", [-300, -60, 60, 300])
def test_scale_changes_no_pick(draw: str, exponent: int) -> None:
    h, z = KINDS["lengths of many sizes"]
    one, other = badge(h, z, 40, draw=draw), badge(h * 2.0**exponent, z, 40, draw=draw)
    np.testing.assert_array_equal(other.rows, one.rows)
    np.testing.assert_allclose(other.scores, one.scores * 4.0**exponent, rtol=1e-12)


def test_factors_at_both_ends_of_the_range() -> None:
    """A sure row with a very long embedding weighs as much as an unsure one with a usual one."""
    z = np.array([[0.0, 300], [0, 0], [0, 0]])
    h = np.array([[np.exp(300.0), 0], [1, 1], [0, 1]])
    selection = badge(h, z, 3, draw="farthest")
    assert selection.rows.tolist() == [0, 1, 2]
    np.testing.assert_allclose(selection.scores, [2, 5, 0.5], rtol=1e-12)  # (1, 0, -1, 0), (-1, -1, 1, 1) / 2 and (0, -1, 0, 1) / 2


def test_a_pool_of_one_row() -> None:
    for draw in ("sample", "farthest"):
        assert badge(H[:1], Z[:1], 1, draw=draw).rows.tolist() == [0]


def test_lengths_that_cannot_be_squared_are_refused() -> None:
    with pytest.raises(ValueError, match="embeddings are too long to measure: row 1 is longer than 1e140; scale them down"):
        badge(np.array([[0.0], [1e150], [1e160]]), np.zeros((3, 2)), 1, excluded=[2])


def test_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="logits have 1 class; with fewer than 2 every gradient is 0"):
        badge(H, Z[:, :1], 1)


def test_another_draw_is_refused() -> None:
    with pytest.raises(ValueError, match=r"badge.draw is 'greedy'; expected 'sample' \| 'farthest'"):
        badge(H, Z, 1, draw="greedy")


@pytest.mark.parametrize("draw", ["sample", "farthest"])
def test_a_large_pool_in_little_memory(draw: str, tmp_path: Path) -> None:
    """The gradients of these 20,000 rows would take 7 GB; the signals, which stay on disk, take 18 MB."""
    rng = np.random.default_rng(9)
    center = rng.integers(300, size=20_000)
    h, z = rng.normal(size=(300, 128))[center] + rng.normal(size=(20_000, 128)), 4 * rng.normal(size=(300, 96))[center]
    maps = {}
    for name, array in (("embeddings", h), ("logits", z)):
        np.save(tmp_path / f"{name}.npy", array.astype(np.float32))
        maps[name] = np.load(tmp_path / f"{name}.npy", mmap_mode="r")
    pool = Pool(**maps)
    tracemalloc.start()
    try:
        selection = select("badge", pool, budget=300, seed=0, draw=draw)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 40e6
    g = Gradients(pool)
    factors = g.factors(selection.rows)
    i, j = np.tril_indices(300, -1)
    between = np.full((300, 300), np.inf)
    between[i, j] = distances(factors, i, factors, j)
    np.testing.assert_array_equal(between[1:].min(axis=1) * g.unit**2, selection.scores[1:])

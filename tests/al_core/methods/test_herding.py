"""MaxHerding and UHerding against their definition: the mean coverage written out, and computed anew with every row as the next pick."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from al_core import Pool, Selection, select
from al_core.fingerprints import sample

Doubles = npt.NDArray[np.float64]


def kernel(x: Doubles, sigma: float) -> Doubles:
    """(n, n) exp(-|x - y|^2 / sigma^2)."""
    square = np.array([((x - row) ** 2).sum(axis=1) for row in x])
    k: Doubles = np.exp(-square / sigma**2)
    return k


def defined(k: Doubles, weights: Doubles, labeled: Sequence[int], available: Sequence[int], budget: int) -> tuple[list[int], list[float]]:
    """Greedy: the row with which the mean over all rows of weight * best kernel to a centre is highest, of several the least covered, the lowest."""
    every = [*labeled, *available]

    def coverage(centers: Sequence[int]) -> float:
        return float(np.mean([weights[row] * max((k[row, center] for center in centers), default=0.0) for row in every]))

    tie = 1e-10 * sum(weights[row] for row in available) / len(every)
    picks: list[int] = []
    scores: list[float] = []
    for _ in range(budget):
        taken = [*labeled, *picks]
        rise = {row: coverage([*taken, row]) - coverage(taken) for row in available if row not in picks}
        near = [row for row in rise if rise[row] >= max(rise.values()) - tie]
        covered = {row: max((k[row, center] for center in taken), default=0.0) for row in near}
        best = min(row for row in near if covered[row] <= min(covered.values()) + 1e-10)
        picks.append(best)
        scores.append(rise[best])
    return picks, scores


def unit(x: Doubles) -> Doubles:
    length: Doubles = np.sqrt((x**2).sum(axis=1, keepdims=True))
    return x / length


def softmax_margin(logits: Doubles) -> Doubles:
    """(n,) from the probabilities themselves."""
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    p.sort(axis=1)
    gap: Doubles = p[:, -1] - p[:, -2]
    return gap


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("sigma", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("seed", range(3))
def test_maxherding_against_the_definition(seed: int, sigma: float, normalize: bool) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(50, 3)) + 3 * rng.normal(size=(4, 3))[rng.integers(4, size=50)]
    x[40:45] = x[:5]
    given = rng.permutation(50)
    labeled, excluded = given[: 4 * seed], given[20:25]
    pool = Pool(embeddings=x, labeled=labeled, excluded=excluded)
    found = select("maxherding", pool, budget=12, seed=0, sigma=sigma, normalize=normalize)
    picks, scores = defined(kernel(unit(x) if normalize else x, sigma), np.ones(50), labeled.tolist(), pool.available.tolist(), 12)
    np.testing.assert_array_equal(found.rows, picks)
    np.testing.assert_allclose(found.scores, scores, atol=1e-11)
    assert found.info == {"sigma": sigma, "rows_looked_at": len(pool.available)}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("sigma", [None, 0.7])
@pytest.mark.parametrize("seed", range(2))
def test_uherding_against_the_definition(seed: int, sigma: float | None, temperature: float) -> None:
    rng = np.random.default_rng(seed)
    x, z = rng.normal(size=(50, 3)), 3 * rng.normal(size=(50, 4))
    given = rng.permutation(50)
    labeled, excluded = given[: 6 * seed], given[20:25]
    pool = Pool(embeddings=x, logits=z, labeled=labeled, excluded=excluded)
    found = select("uherding", pool, budget=12, seed=0, sigma=sigma, softmax_temperature=temperature)
    away = [float(np.sqrt(((unit(x)[one] - unit(x)[other]) ** 2).sum())) for one in labeled for other in labeled if one != other]
    width = sigma or min(away, default=1.0)
    assert found.info["sigma"] == pytest.approx(width)
    weights = 1 - softmax_margin(z / temperature)
    picks, scores = defined(kernel(unit(x), width), weights, labeled.tolist(), pool.available.tolist(), 12)
    np.testing.assert_array_equal(found.rows, picks)
    np.testing.assert_allclose(found.scores, scores, atol=1e-11)


def line(*points: float) -> Doubles:
    return np.array(points, dtype=np.float64)[:, None]


def herd(x: Doubles, budget: int, labeled: Sequence[int] = (), **params: Any) -> Selection:
    return select("maxherding", Pool(embeddings=x, labeled=labeled), budget=budget, seed=0, normalize=False, **params)


def test_by_hand() -> None:
    """With e = exp(-1): 1 covers 0, 1, 2 by e, 1, e. Then 9 covers itself, and 0 and 2 would be raised from e to 1 alone."""
    found = herd(line(0, 1, 2, 9), 3)
    np.testing.assert_array_equal(found.rows, [1, 3, 0])
    e = np.exp(-1)
    np.testing.assert_allclose(found.scores, [(1 + 2 * e) / 4, 1 / 4, (1 - e) / 4], atol=1e-12)


def test_labelled_rows_cover_from_the_start_and_are_counted() -> None:
    found = herd(line(0, 1, 2, 9), 2, labeled=[1])
    np.testing.assert_array_equal(found.rows, [3, 0])
    np.testing.assert_allclose(found.scores, [1 / 4, (1 - np.exp(-1)) / 4], atol=1e-12)


def test_a_wide_kernel_begins_in_the_middle_and_a_narrow_one_with_the_lowest_row() -> None:
    x = line(9, 0, 1, 4, 5, 2)
    assert herd(x, 1, sigma=100.0).rows[0] == 3  # next to the mean of 3.5
    np.testing.assert_array_equal(herd(x, 6, sigma=0.01).rows, range(6))  # none covers another


def test_rows_that_coincide_come_last() -> None:
    np.testing.assert_array_equal(herd(line(5, 5, 1, 1, 9, 5), 6, sigma=0.5).rows, [0, 2, 4, 1, 3, 5])


def test_uherding_with_equal_doubt_is_maxherding() -> None:
    x = np.random.default_rng(0).normal(size=(60, 4))
    pool = Pool(embeddings=x, logits=np.zeros((60, 3)), labeled=range(5))
    one, other = select("uherding", pool, budget=20, seed=0, sigma=1.0), select("maxherding", pool, budget=20, seed=0)
    np.testing.assert_array_equal(one.rows, other.rows)
    np.testing.assert_allclose(one.scores, other.scores, atol=1e-12)


def test_uherding_with_a_narrow_kernel_is_margin() -> None:
    rng = np.random.default_rng(1)
    pool = Pool(embeddings=rng.normal(size=(60, 4)), logits=rng.normal(size=(60, 3)))
    one, other = select("uherding", pool, budget=60, seed=0, sigma=1e-4), select("margin", pool, budget=60, seed=0)
    np.testing.assert_array_equal(one.rows, other.rows)
    np.testing.assert_allclose(60 * one.scores, 1 - other.scores, atol=1e-10)


def test_a_very_sure_model_s_doubts_still_differ() -> None:
    sure = np.array([26.0, 29, 27, 28])  # doubts of 1e-11 and less
    z = np.stack([np.zeros(4), sure], axis=1)
    found = select("uherding", Pool(embeddings=line(0, 3, 1, 7), logits=z), budget=4, seed=0, normalize=False, sigma=0.1)
    np.testing.assert_array_equal(found.rows, [0, 2, 3, 1])
    np.testing.assert_allclose(found.scores, 2 * np.exp(-sure[found.rows]) / 4, rtol=1e-3)


def test_a_sure_model_leaves_nothing_to_cover() -> None:
    pool = Pool(embeddings=line(0, 3, 1, 7), logits=np.array([[0.0, 800]] * 4))
    found = select("uherding", pool, budget=4, seed=0, normalize=False)
    np.testing.assert_array_equal(found.rows, [0, 3, 1, 2])  # those that are covered least, as all rise by nothing
    np.testing.assert_array_equal(found.scores, 0.0)


@pytest.mark.parametrize(
    ("x", "labeled", "normalize", "sigma"),
    [
        (line(0, 5, 7, 1, 2), [0, 1, 2], False, 2.0),
        (line(0, 5, 5, 1, 2), [0, 1, 2], False, 5.0),  # coincident rows are one
        (line(5, 5, 5, 1, 2), [0, 1, 2], False, 1.0),
        (line(0, 5, 7, 1, 2), [1], False, 1.0),
        (np.array([[1.0, 0], [3, 0], [0.1, 0], [0, 2], [0, 7], [1, 1]]), [0, 1, 2, 3, 4], True, np.sqrt(2)),  # and so are equal directions
        (np.array([[1.0, 0], [3, 0], [0.1, 0], [1, 1]]), [0, 1, 2], True, 1.0),
    ],
)
def test_the_width_of_uherding(x: Doubles, labeled: list[int], normalize: bool, sigma: float) -> None:
    pool = Pool(embeddings=x, logits=np.zeros((len(x), 2)), labeled=labeled)
    found = select("uherding", pool, budget=1, seed=0, normalize=normalize)
    assert found.info["sigma"] == pytest.approx(sigma, rel=1e-12)


def test_a_large_pool_is_sampled_and_the_score_still_the_pool_s() -> None:
    """With a wide kernel one pick covers nearly all; what is labelled is covered already."""
    x = np.random.default_rng(2).normal(size=(500, 4))
    pool = Pool(embeddings=x, labeled=range(100), excluded=range(480, 500))
    found = select("maxherding", pool, budget=20, seed=0, sample=60)
    kept = sample(x, pool.available, 60)
    assert found.info["rows_looked_at"] == 60 and np.isin(found.rows, kept).all()
    assert select("maxherding", pool, budget=50, seed=0, sample=60).info["rows_looked_at"] == 100
    unlabelled = Pool(embeddings=x, excluded=range(400, 500))
    assert select("maxherding", unlabelled, budget=1, seed=0, sample=60, sigma=1e4).scores[0] == pytest.approx(1.0)
    half = Pool(embeddings=x, labeled=range(200), excluded=range(400, 500), logits=np.zeros((500, 2)))
    narrow = select("uherding", half, budget=20, seed=0, sample=20, sigma=1e-3)
    np.testing.assert_allclose(narrow.scores, 200 / 400 / 40)  # a row stands for 200 / 40, of 400


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("maxherding", {"sigma": 0.0}, "maxherding: sigma is 0.0; expected above 0"),
        ("maxherding", {"sample": 0}, "maxherding: sample is 0; expected at least 1"),
        ("uherding", {"sigma": -1.0}, "uherding: sigma is -1.0; expected above 0"),
        ("uherding", {"sample": 0}, "uherding: sample is 0; expected at least 1"),
        ("uherding", {"softmax_temperature": 0.0}, "uherding: softmax_temperature is 0.0; expected above 0"),
    ],
)
def test_parameters_that_cannot_be(name: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        select(name, Pool(embeddings=line(0, 1), logits=np.zeros((2, 2))), budget=1, seed=0, **params)
    assert str(error.value) == message


def test_one_class_is_refused() -> None:
    with pytest.raises(ValueError) as error:
        select("uherding", Pool(embeddings=line(0, 1), logits=np.zeros((2, 1))), budget=1, seed=0)
    assert str(error.value) == "logits have 1 class; a model needs at least 2 to be unsure between"

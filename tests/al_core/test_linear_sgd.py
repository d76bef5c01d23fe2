from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch

from al_core.linear_sgd import Descent, descend
from al_core.seeds import generator

RNG = np.random.default_rng(0)
LABELS = np.repeat([0, 1, 3], [12, 9, 20])  # class 2 has no examples
X = (RNG.normal(size=(41, 5)) + 2 * RNG.normal(size=(4, 5))[LABELS]).astype(np.float32)
HOW = Descent(epochs=5, batch_size=8, learning_rate=0.5, momentum=0.8, weight_decay=0.01, step_epochs=2, step_factor=0.3, start=0.1)


def by_hand(how: Descent, weights: npt.NDArray[np.float64], seed: int = 0) -> npt.NDArray[np.float64]:
    """(4, 6) weight and bias by the textbook's update in float64."""
    x = np.concatenate([X.astype(np.float64), np.ones((41, 1))], axis=1)
    w = np.concatenate([how.start * generator(seed, "start").standard_normal((4, 5)), np.zeros((4, 1))], axis=1)
    velocity = np.zeros_like(w)
    for epoch in range(1, how.epochs + 1):
        rate = how.learning_rate * how.step_factor ** ((epoch - 1) // how.step_epochs)
        order = generator(seed, "order", epoch).permutation(41)
        for rows in (order[start : start + how.batch_size] for start in range(0, 41, how.batch_size)):
            logits = x[rows] @ w.T
            probs = np.exp(logits - logits.max(1, keepdims=True))
            probs /= probs.sum(1, keepdims=True)
            share = weights[LABELS[rows]] / weights[LABELS[rows]].sum()
            gradient = ((probs - np.eye(4)[LABELS[rows]]) * share[:, None]).T @ x[rows]
            velocity = how.momentum * velocity + gradient + how.weight_decay * w
            w = w - rate * velocity
    return w


@pytest.mark.parametrize("weights", [None, np.array([1.0, 5.0, 1.0, 0.5])])
def test_it_is_the_textbooks_update(weights: npt.NDArray[np.float64] | None) -> None:
    head = descend(X, LABELS, 4, how=HOW, seed=0, weights=weights)
    expected = by_hand(HOW, np.ones(4) if weights is None else weights)
    np.testing.assert_allclose(head.weight, expected[:, :-1], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(head.bias, expected[:, -1], rtol=1e-3, atol=1e-5)


def test_the_rate_falls_in_steps_and_the_defaults_are_the_papers() -> None:
    rates: list[float] = []
    descend(X, LABELS, 4, how=Descent(), seed=0, on_epoch=lambda epoch, loss, rate: rates.append(rate))
    np.testing.assert_allclose(rates, [15] * 20 + [1.5] * 20 + [0.15] * 20)
    assert vars(Descent()).items() >= {"batch_size": 128, "momentum": 0.9, "weight_decay": 1e-4, "start": 1e-3}.items()


def test_it_learns_and_depends_on_the_seed() -> None:
    first, second, other = (descend(X, LABELS, 4, how=replace(HOW, epochs=40), seed=seed) for seed in (0, 0, 1))
    assert ((X @ first.weight.T + first.bias).argmax(1) == LABELS).mean() > 0.9
    assert first.weight.tobytes() == second.weight.tobytes() != other.weight.tobytes()


def test_dropout_sets_coordinates_to_zero_and_scales_the_others() -> None:
    """From weights of 0, a step of rate 1 on four ones of one class moves each weight by half the mean of what was not dropped: of 4 times 4 or 0."""
    ones, how = np.ones((4, 3), np.float32), Descent(epochs=1, batch_size=4, learning_rate=1.0, weight_decay=0.0, dropout=0.75, start=0.0)
    moved = np.stack([descend(ones, np.zeros(4, np.int64), 2, how=how, seed=seed).weight for seed in range(100)])  # (100, 2, 3)
    np.testing.assert_array_equal(moved[:, 0], -moved[:, 1])
    kept = moved[:, 0] / 0.5
    assert set(kept.ravel()) <= {0, 1, 2, 3, 4}
    assert kept.mean() == pytest.approx(1, abs=0.2)  # 300 draws from binomial(4, 0.25): standard error 0.05
    assert (kept != kept[:, :1]).any(), "each coordinate by itself"


def test_what_is_dropped_depends_on_the_seed_alone() -> None:
    how = replace(HOW, dropout=0.5)
    first, before = descend(X, LABELS, 4, how=how, seed=0), torch.get_rng_state()
    torch.rand(1)
    assert descend(X, LABELS, 4, how=how, seed=0).weight.tobytes() == first.weight.tobytes() != descend(X, LABELS, 4, how=HOW, seed=0).weight.tobytes()
    torch.set_rng_state(before)
    descend(X, LABELS, 4, how=how, seed=0)
    assert torch.equal(torch.get_rng_state(), before), "it drew from the global generator"


def test_errors_say_what_was_got() -> None:
    with pytest.raises(ValueError, match="there are no labels to train on; label some images first"):
        descend(X[:0], LABELS[:0], 4, how=HOW, seed=0)
    with pytest.raises(ValueError, match="labels reach from 0 to 3, expected 0 to 1"):
        descend(X, LABELS, 2, how=HOW, seed=0)
    with pytest.raises(ValueError, match=r"^the loss of epoch 1 is (nan|inf); lower retrain.sgd.learning_rate \(now 1e\+30\)$"):
        descend(X, LABELS, 4, how=replace(HOW, learning_rate=1e30), seed=0)

import numpy as np
import numpy.typing as npt
import pytest
from scipy.optimize import minimize_scalar

from al_core.calibration import temperature
from al_core.metrics import nll

Floats = npt.NDArray[np.float64]


def sure(scale: float, n: int = 300) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Logits that are `scale` times those that the labels were drawn by."""
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(n, 4))
    odds = np.exp(logits)
    labels = np.array([rng.choice(4, p=row / row.sum()) for row in odds])
    return scale * logits, labels


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_it_is_scipys_minimum(scale: float) -> None:
    logits, labels = sure(scale)
    every = np.repeat(np.arange(4), len(labels))

    def smoothed(log: float) -> float:
        scaled = logits / np.exp(log)
        return (1 - 1 / 302) * nll(scaled, labels) + 1 / 302 * nll(np.tile(scaled, (4, 1)), every)

    found = minimize_scalar(smoothed, bounds=(np.log(0.1), np.log(10)), method="bounded", options={"xatol": 1e-9})
    assert temperature(logits, labels) == pytest.approx(np.exp(found.x), rel=1e-6)
    assert temperature(logits, labels) == pytest.approx(scale, rel=0.2)


def test_by_hand() -> None:
    """Three of four right at logits (2, 0), a sixth spread: the probability 5/6 * 3/4 + 1/12 = 17/24 lies at a gap of log(17/7), which is 2 / T."""
    logits, labels = np.tile([2.0, 0.0], (4, 1)), np.array([0, 0, 1, 0])
    assert temperature(logits, labels) == pytest.approx(2 / np.log(17 / 7))
    assert temperature(logits, labels, np.array([1.0, 1.0, 6.0, 1.0])) == 10, "weighed so, more are wrong than right"


def test_the_ends() -> None:
    logits = np.array([[1.0, 0.0], [1.0, 0.0]])
    assert temperature(logits, np.array([0, 0])) == pytest.approx(1 / np.log(7)), "two of two right: sure to 7/8, a quarter being spread"
    assert temperature(logits / 100, np.array([0, 0])) == pytest.approx(0.1)
    assert temperature(logits, np.array([1, 1])) == pytest.approx(10)
    assert temperature(np.zeros((2, 3)), np.array([0, 1])) == 1, "no temperature changes equal logits"


def test_errors_say_what_was_got() -> None:
    with pytest.raises(ValueError, match="got no labels, expected at least 1"):
        temperature(np.zeros((0, 3)), np.zeros(0, np.int64))

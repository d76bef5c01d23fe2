import random

import numpy as np
import pytest
import torch

from al_core.seeds import seeded


def draws() -> tuple[float, float, float]:
    return torch.rand(1).item(), float(np.random.random_sample()), random.random()  # noqa: NPY002


def test_a_block_draws_by_seed_and_purpose_and_leaves_the_generators_as_they_were() -> None:
    with seeded(3, "test"):
        before = draws()
        with seeded(3, "test", "inner"):
            inner = draws()
        after = draws()
    with seeded(3, "test"):
        assert (draws(), draws()) == (before, after)
    assert not set(inner) & set(before + after)


def test_it_does_not_ask_cuda_which_it_could_not_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", asked.append)
    torch.manual_seed(torch.initial_seed())
    assert len(asked) == 1  # so this is how torch would do it
    with seeded(0, "test"):
        draws()
    assert len(asked) == 1


@pytest.mark.cuda
@pytest.mark.gpu
def test_a_block_leaves_the_generator_of_cuda_alone() -> None:
    before = torch.cuda.get_rng_state()
    with seeded(0, "test"):
        draws()
    assert torch.equal(torch.cuda.get_rng_state(), before)

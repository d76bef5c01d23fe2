"""Batch norm of two processes beside torch's own over the whole batch."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from al_core.pretraining.batch_norm import Synchronised, synchronised
from al_core.processes import grouped

CPU = torch.device("cpu")
ALONE: dict[str, Any] = {"init_method": "tcp://127.0.0.1:0?rank=0&world_size=1"}


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5), nn.BatchNorm1d(5, affine=False)
        )


def images(seed: int) -> Tensor:
    return torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(seed)) * 3 + 1


def learned(it: nn.Module, part: slice, *, half: bool) -> dict[str, Tensor]:
    """Output and gradients of the second batch, and the state after it; half: in bfloat16 where the network may."""
    for seed in (0, 1):
        it.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            out = it(images(seed)[part])
        (out.float() ** 3).mean().backward()
    return {"out": out.detach()} | {f"gradient of {key}": value.grad for key, value in it.named_parameters()} | it.state_dict()


def share(rank: int) -> tuple[list[dict[str, Tensor]], bool]:
    """What this process's half of the images teaches, exact and in bfloat16; and whether the parameters are still the same objects."""
    found, kept = [], True
    for half in (False, True):
        it = network()
        parameters = list(it.parameters())
        same = synchronised(it, torch.distributed.group.WORLD, CPU)
        assert same is it and isinstance(it[1], Synchronised) and isinstance(it[6], Synchronised)
        found.append(learned(it, slice(4 * rank, 4 * rank + 4), half=half))
        kept &= all(one is other for one, other in zip(parameters, it.parameters(), strict=True))
    return found, kept


@pytest.fixture(scope="module")
def shares(two_processes: Callable[..., list[Any]]) -> list[tuple[list[dict[str, Tensor]], bool]]:
    return two_processes(share)


@pytest.mark.parametrize(("half", "tolerance"), [(False, 1e-5), (True, 2e-2)])
def test_two_processes_learn_as_one(shares: list[tuple[list[dict[str, Tensor]], bool]], half: bool, tolerance: float) -> None:
    assert all(kept for _, kept in shares), "an optimiser that holds the parameters would go on training others"
    for key, value in learned(network(), slice(None), half=half).items():
        parts = [found[half][key] for found, _ in shares]
        assert {part.dtype for part in parts} == {value.dtype}, key
        exact = [part.double() for part in parts]
        together = torch.cat(exact) if key == "out" else torch.stack(exact).mean(dim=0)
        assert torch.allclose(together, value.double(), rtol=10 * tolerance, atol=tolerance), key


def test_a_graph_does_not_keep_its_group() -> None:
    with grouped("gloo", **ALONE) as group:
        out = synchronised(network(), group, CPU)(images(0))
        kept = weakref.ref(group)
        del group
    assert kept() is None, "a thread of the group may be the last to hold the graph, and cannot wait for itself to end"
    with pytest.raises(RuntimeError, match="the group of processes ended before the backward pass"):
        out.sum().backward()


def test_alone_nothing_is_replaced() -> None:
    it = network()
    assert isinstance(synchronised(it, None, CPU)[1], nn.BatchNorm2d)


def test_in_evaluation_it_is_torchs() -> None:
    ours, theirs = Synchronised.like(nn.BatchNorm2d(3), None), nn.BatchNorm2d(3)  # type: ignore[arg-type]
    x = images(0)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


@pytest.mark.cuda
@pytest.mark.gpu
def test_on_a_gpu_they_are_torchs() -> None:
    with grouped(**ALONE) as group:
        assert isinstance(synchronised(network(), group, torch.device("cuda"))[1], nn.SyncBatchNorm)

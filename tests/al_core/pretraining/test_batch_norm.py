"""Batch norm of two processes beside torch's own over the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from al_core.pretraining.batch_norm import Synchronised, synchronised

CPU = torch.device("cpu")


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5), nn.BatchNorm1d(5, affine=False)
        )


def images(seed: int) -> Tensor:
    return torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(seed)) * 3 + 1


def learned(it: nn.Module, part: slice) -> dict[str, Tensor]:
    """Output and gradients of the second batch, and the state after it."""
    for seed in (0, 1):
        it.zero_grad()
        out = it(images(seed)[part])
        (out**3).mean().backward()
    return {"out": out.detach()} | {f"gradient of {key}": value.grad for key, value in it.named_parameters()} | it.state_dict()


def share(rank: int) -> tuple[dict[str, Tensor], bool]:
    it = network()
    parameters = list(it.parameters())
    same = synchronised(it, torch.distributed.group.WORLD, CPU)
    assert same is it and isinstance(it[1], Synchronised) and isinstance(it[6], Synchronised)
    return learned(it, slice(4 * rank, 4 * rank + 4)), all(one is other for one, other in zip(parameters, it.parameters(), strict=True))


def test_two_processes_learn_as_one(two_processes: Callable[..., list[Any]]) -> None:
    whole, halves = learned(network(), slice(None)), two_processes(share)
    assert all(kept for _, kept in halves), "an optimiser that holds the parameters would go on training others"
    for key, value in whole.items():
        parts = [half[key].double() for half, _ in halves]
        found = torch.cat(parts) if key == "out" else torch.stack(parts).mean(dim=0)
        assert torch.allclose(found, value.double(), rtol=1e-4, atol=1e-5), key


def test_alone_nothing_is_replaced() -> None:
    it = network()
    assert isinstance(synchronised(it, None, CPU)[1], nn.BatchNorm2d)


def test_in_evaluation_it_is_torchs() -> None:
    ours, theirs = Synchronised.like(nn.BatchNorm2d(3), None), nn.BatchNorm2d(3)  # type: ignore[arg-type]
    x = images(0)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


@pytest.mark.gpu
def test_on_a_gpu_they_are_torchs() -> None:
    torch.distributed.init_process_group(init_method="tcp://127.0.0.1:29511", rank=0, world_size=1)
    try:
        it = synchronised(network(), torch.distributed.group.WORLD, torch.device("cuda"))
        assert isinstance(it[1], nn.SyncBatchNorm)
    finally:
        torch.distributed.destroy_process_group()

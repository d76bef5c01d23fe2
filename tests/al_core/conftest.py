"""What tests of al_core share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch


@pytest.fixture(params=["cpu:0", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """A device other than "cpu" by its name, so that torch computes where NumPy would on the CPU: the CPU all the same, and a GPU."""
    name: str = request.getfixturevalue("gpu") if request.param == "gpu" else request.param
    return name


@pytest.fixture
def fewer_bits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Torch is told to multiply float32 matrices with fewer bits, and does so on any machine, as if they were of bfloat16."""
    product = torch.addmm

    def addmm(start: torch.Tensor, a: torch.Tensor, b: torch.Tensor, **factors: Any) -> torch.Tensor:
        short = a.dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"
        return product(start, *((each.bfloat16().float() for each in (a, b)) if short else (a, b)), **factors)

    monkeypatch.setattr(torch, "addmm", addmm)
    torch.set_float32_matmul_precision("medium")
    yield
    told = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    assert told == "medium"  # nobody told it otherwise

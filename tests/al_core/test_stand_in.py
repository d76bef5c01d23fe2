"""The stand-in for a GPU refuses what CUDA refuses; else what passes on it would say nothing."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from al_core.encoders import deterministic

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def there(stand_in: ModuleType | None) -> None:
    if stand_in is None:
        pytest.skip("about the stand-in, which is there with --stand-in alone")


def test_two_devices_do_not_mix_but_for_numbers_and_indices(gpu: str) -> None:
    x = torch.arange(6.0, device=gpu)
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.ones(6)
    with pytest.raises(RuntimeError, match="same device"):
        torch.ones(6) @ x
    whole = torch.arange(6, device=gpu)
    with pytest.raises(RuntimeError, match="same device"):
        whole[torch.tensor([1, 2])] = torch.tensor([5, 6])
    assert (x + torch.tensor(1.0)).cpu().tolist() == [1, 2, 3, 4, 5, 6]
    assert x[torch.tensor([1, 2])].cpu().tolist() == [1, 2]
    assert x.device == torch.device(gpu, 0)


def test_numpy_reads_no_tensor_of_it(gpu: str) -> None:
    with pytest.raises(RuntimeError, match="numpy"):
        torch.ones(2, device=gpu).numpy()


def test_it_draws_by_no_generator_of_the_cpu(gpu: str) -> None:
    with pytest.raises(RuntimeError, match="generator"):
        torch.randn(2, device=gpu, generator=torch.Generator())


def test_what_has_no_fixed_order_on_cuda_is_noted_where_one_is_asked_for(gpu: str, stand_in: ModuleType) -> None:
    def gradient() -> None:
        x = torch.rand(1, 1, 4, 4).to(gpu).requires_grad_()
        torch.nn.functional.interpolate(x, size=(6, 6), mode="bicubic", antialias=True).sum().backward()  # type: ignore[no-untyped-call]

    gradient()
    assert stand_in.noted == set()
    with deterministic():
        gradient()
        torch.zeros(4, device=gpu).scatter_reduce_(0, torch.tensor([1, 1], device=gpu), torch.ones(2, device=gpu), "sum")
    assert stand_in.noted == {"_upsample_bicubic2d_aa_backward", "scatter_reduce_"}
    stand_in.noted.clear()

import pytest
import torch

from al_core.devices import short_of_memory


def test_what_needs_too_much_memory_says_what_to_do() -> None:
    """A real request that no machine can meet."""
    with (
        pytest.raises(MemoryError, match=r"^out of memory: lower retrain.batch_size \(now 64\) to 32 \(.*can't allocate memory.*\)$"),
        short_of_memory("lower retrain.batch_size (now 64) to 32"),
    ):
        torch.empty(2**60, dtype=torch.uint8)


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="mat1"), short_of_memory("nothing"):
        torch.ones(2, 3) @ torch.ones(2, 3)


@pytest.mark.cuda
@pytest.mark.gpu
def test_a_device_that_is_full_says_what_to_do() -> None:
    with pytest.raises(MemoryError, match="out of memory: lower it"), short_of_memory("lower it"):
        torch.empty(2**50, dtype=torch.uint8, device="cuda")

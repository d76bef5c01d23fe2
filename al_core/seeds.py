"""Randomness: one generator for each (seed, purpose), so that no draw depends on what was drawn elsewhere."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for a purpose, such as ("r003", "acquire", "control"): equal inputs give equal seeds on every machine."""
    digest = hashlib.sha256("\0".join([str(seed), *map(str, purpose)]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """NumPy's generator for a purpose."""
    return np.random.default_rng(derive(seed, *purpose))


@contextmanager
def seeded(seed: int, *purpose: str | int) -> Iterator[None]:
    """Run a block with the global generators of torch (the CPU's), NumPy and Python set for a purpose, then put them back: for libraries that use them."""
    import torch

    before = (torch.get_rng_state(), np.random.get_state(), random.getstate())  # noqa: NPY002
    value = derive(seed, *purpose)
    torch.default_generator.manual_seed(value)  # torch.manual_seed would set CUDA's too, which nobody puts back
    np.random.seed(value % 2**32)  # noqa: NPY002
    random.seed(value)
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        random.setstate(before[2])


@contextmanager
def drawing(seed: int, device: torch.device) -> Iterator[None]:
    """Run a block in which layers that draw, such as dropout, draw from this seed on the CPU and the device; then put the generators back."""
    import torch

    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.manual_seed(seed)
        yield

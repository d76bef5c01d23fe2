"""Where numbers are crunched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from al_core.errors import first_line


def best_device() -> torch.device:
    """The current CUDA device where there is one, else the CPU."""
    return torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")


@contextmanager
def short_of_memory(advice: str) -> Iterator[None]:
    """Run a block; where the device or the machine has too little memory for it, say what to do.

    Args:
        advice: what takes less memory, such as "lower pretrain.batch_size (now 256) to 128".

    Raises:
        MemoryError: with the advice, in place of torch's errors of several kinds.
    """
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one; the CPU's allocator raises a plain one
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise MemoryError(f"out of memory: {advice} ({first_line(error)})") from error

"""Where numbers are crunched."""

from __future__ import annotations

import torch


def best_device() -> torch.device:
    """The current CUDA device where there is one, else the CPU."""
    return torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")

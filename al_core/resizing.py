"""Resizing maps by products with matrices, whose gradients are deterministic on every device; torch's own kernels have none that are on CUDA."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def bicubic(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(..., H, W) to (..., *size): torch's bicubic interpolation with antialiasing, within rounding."""
    return resized(maps, *(bicubic_weights(given, wanted, maps.device) for given, wanted in zip(maps.shape[-2:], size, strict=True)))


def bicubic_weights(given: int, wanted: int, device: torch.device) -> Tensor:
    """(wanted, given): how much of each place goes into each new one, read off rows with a single 1."""
    rows = torch.eye(given, device=device)[None, None]
    return functional.interpolate(rows, size=(given, wanted), mode="bicubic", antialias=True)[0, 0].T


class SquareAvgPool2d(nn.Module):
    """torch's AdaptiveAvgPool2d, within rounding, to a square of so many places a side; maps of that size stay as they are."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, maps: Tensor) -> Tensor:  # (B, C, H, W) -> (B, C, side, side)
        if maps.shape[-2:] == (self.side, self.side):
            return maps
        return resized(maps, *(self.weights(given, maps.device) for given in maps.shape[-2:]))

    def weights(self, given: int, device: torch.device) -> Tensor:
        """(side, given): the share of each place in each mean."""
        return functional.adaptive_avg_pool1d(torch.eye(given, device=device)[None], self.side)[0].T


def resized(maps: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(..., H, W) maps to (..., h, w), of rows (h, H) and columns (w, W); in float64, which autocast leaves alone."""
    return (rows.double() @ maps.double() @ columns.double().T).to(maps.dtype)

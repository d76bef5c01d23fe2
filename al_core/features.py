"""Embeddings of images, streamed in row order."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from al_core.encoders import Encoder, deterministic
from al_core.loading import Images, Square, in_order, load, unit


def features(images: Images, encoder: Encoder, *, image_size: int, batch_size: int, workers: int, device: torch.device) -> Iterator[npt.NDArray[np.float32]]:
    """Batches (B, dim) float32 in row order; every row once. The encoder is put on the device and in evaluation mode.

    `workers` does not change the bytes; `batch_size` may change the last bits, since the kernels sum in another order.

    Raises:
        ValueError: an embedding that is not finite.
    """
    encoder.to(device).eval()
    row = 0
    for batch in load(images, in_order(range(len(images)), batch_size), Square(image_size), seed=0, workers=workers):
        with deterministic(), torch.inference_mode():
            embeddings: npt.NDArray[np.float32] = encoder(unit(batch, device)).float().cpu().numpy()
        if not np.isfinite(embeddings).all():
            raise ValueError(f"the encoder's output is not finite within rows {row} to {row + len(batch) - 1}; pretrain again, with a lower learning rate")
        yield embeddings
        row += len(batch)

"""Embeddings of images, streamed in row order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from al_core.encoders import deterministic
from al_core.loading import Images, Square, in_order, load, unit
from al_core.processes import ALONE, Processes

Precision = Literal["float32", "bfloat16"]
Floats = npt.NDArray[np.float32]


def features(
    images: Images,
    encoder: nn.Module,
    *,
    image_size: int,
    batch_size: int,
    workers: int,
    device: torch.device,
    precision: Precision = "float32",
    start: int = 0,
    processes: Processes = ALONE,
) -> Iterator[Floats]:
    """Batches (B, dim) float32 in row order; every row once. The encoder is put on the device and in evaluation mode.

    `workers` does not change the bytes, nor does it how many processes share the work; `batch_size` may change the last bits, since the kernels sum in
    another order.

    Args:
        images: what to look at.
        encoder: what looks: any network that gives (B, dim) for images in [0, 1].
        image_size: images are resized to a square of it.
        batch_size: images a step.
        workers: loader processes, of each process that shares the work.
        device: where the encoder runs.
        precision: of its products and convolutions; bfloat16 keeps 8 bits of each number and is what recent GPUs are fastest at.
        start: rows that are left out, as embedded before: a multiple of `batch_size`, so that the other batches stay what they are.
        processes: those that share the work, batch by batch in turn. The first of them gets all batches, the others none, but each has to ask for them.

    Raises:
        ValueError: an embedding that is not finite, or a start within a batch.
    """
    if start % batch_size and start != len(images):
        raise ValueError(f"start is {start}, within a batch of {batch_size}; give a multiple of it")
    encoder.to(device).eval()
    rows = range(start, len(images))
    loaded = load(images, processes.turns(in_order(rows, batch_size)), Square(image_size), seed=0, workers=workers)
    row = start
    for embeddings in processes.in_turn(embedded(loaded, encoder, device, precision), total=-(-len(rows) // batch_size)):
        if not np.isfinite(embeddings).all():
            raise ValueError(f"the encoder's output is not finite within rows {row} to {row + len(embeddings) - 1}; pretrain again, with a lower learning rate")
        yield embeddings
        row += len(embeddings)


class Beside(nn.Module):
    """What several networks make of the same images, side by side: (B, sum of all their numbers)."""

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([network(images).flatten(1) for network in self.networks], 1)


def embedded(batches: Iterable[Tensor], encoder: nn.Module, device: torch.device, precision: Precision) -> Iterator[Floats]:
    """What the encoder makes of each batch; a GPU begins the next batch before it is waited for."""
    before: Begun | None = None
    for batch in batches:
        begun = Begun(batch, encoder, device, precision)
        if before is not None:
            yield before.result()
        before = begun
    if before is not None:
        yield before.result()


class Begun:
    """A batch that the device was given to embed."""

    def __init__(self, batch: Tensor, encoder: nn.Module, device: torch.device, precision: Precision) -> None:
        lower = torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")
        with deterministic(), torch.inference_mode(), lower:
            pixels = unit(batch, device, torch.channels_last)  # the layout that convolutions are fastest in
            self.embeddings = encoder(pixels).float().to("cpu", non_blocking=True)
        self.done = torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None

    def result(self) -> Floats:
        """(B, dim), waited for."""
        if self.done is not None:
            self.done.synchronize()
        embeddings: Floats = self.embeddings.numpy()
        return embeddings

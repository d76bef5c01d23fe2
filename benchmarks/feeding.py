"""Feeding a network: loading out of a pack beside Pillow and torchvision on the files themselves; embedding from end to end beside the model alone.

    python -m benchmarks.feeding [--images 512] [--size 224] [--encoders small:28:256:2048 resnet18:224:32:128] [--precision float32] [--device cpu]
    [--workers 0] [--repeats 5]

The images are synthetic photographs, JPEGs of 500 x 375 and quality 95: noise that is weaker the finer it is, as in photographs, and a little white noise.
Where $RONDO_DATA names a folder with clothing/, its photographs, which are smaller, are loaded too. All comes from the page cache, after a turn that does
not count. Loading is timed in seconds of a core, of all threads of one process together, and gives uint8 tensors; embedding in seconds of the clock, with
one thread for the model. What is embedded comes out of packs of the encoder's own size, and out of the files themselves.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from al_core.encoders import build, deterministic
from al_core.features import Precision, features
from al_core.loading import Images, Square, in_order, load, shuffled
from benchmarks.record import write
from tasks.artifacts import Manifest, Shards
from tasks.pack import Pack, images_for
from tasks.params import Params
from tasks.stage import execute

Work = Callable[[], object]

BATCH = 64  # of loading
PEER = "Pillow and torchvision"


def main() -> None:
    """Measure and write benchmarks/results/feeding.json, or feeding-gpu.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512, help="synthetic photographs")
    parser.add_argument("--size", type=int, default=224, help="of what is loaded")
    parser.add_argument("--encoders", nargs="*", default=["small:28:256:2048", "resnet18:224:32:128"], help="name:image size:batch size:images, which repeat")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=0, help="loader processes of embedding")
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        photographs = synthetic(Path(folder) / "photographs", asked.images)
        clothing = Path(os.environ.get("RONDO_DATA", "")) / "clothing/train"
        sources = {"photographs": photographs} | ({"clothing": clothing} if "RONDO_DATA" in os.environ and clothing.is_dir() else {})
        figures = {
            "sizes": vars(asked),
            "threads": torch.get_num_threads(),
            "loading": {name: loading(Path(folder) / name / "pools", source, asked) for name, source in sources.items()},
            "embedding": dict(embedding(Path(folder) / each, photographs, each, asked) for each in asked.encoders),
        }
    print(write("feeding", figures, asked.device).read_text())  # noqa: T201


# ---- what is read --------------------------------------------------------------------------------------------------------------


def synthetic(folder: Path, number: int) -> Path:
    """Photographs of nothing."""
    (folder / "files").mkdir(parents=True)
    for index in range(number):
        Image.fromarray(photograph(np.random.default_rng(index), 375, 500)).save(folder / f"files/{index:05}.jpg", quality=95)
    return folder / "files"


def photograph(rng: np.random.Generator, height: int, width: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(height, width, 3): the strength of a wave falls with its frequency."""
    square = np.fft.rfftfreq(width)[None, :] ** 2 + np.fft.fftfreq(height)[:, None] ** 2
    waves = np.exp(2j * np.pi * rng.random((3, *square.shape))) / np.sqrt(np.maximum(square, 1 / width**2))
    smooth = np.fft.irfft2(waves, s=(height, width))
    smooth = (smooth - smooth.mean(axis=(1, 2), keepdims=True)) / smooth.std(axis=(1, 2), keepdims=True)
    pixels: np.ndarray[Any, np.dtype[np.uint8]] = np.clip(128 + 50 * smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)
    return pixels.transpose(1, 2, 0)


def pools(folder: Path, source: Path, size: int) -> dict[str, Images]:
    """The images out of pools that were made with and without packs."""
    found: dict[str, Images] = {}
    for name, cache in {"raw pack": "raw", "JPEG pack": "jpeg", "files": None}.items():
        here = folder / name
        here.mkdir(parents=True)
        ingest = {"source": str(source), "cache": cache and {"size": size, "format": cache}}
        (here / "params.yaml").write_text(Params.check({"ingest": ingest, "round": "p001", "pool": ".", "previous": None}, "benchmark").dump(), "utf-8")
        execute("ingest", here)
        manifest, shards, pack = Manifest.load(here / "manifest.parquet"), Shards.load(here / "shards"), Pack.load(here / "pack")
        found[name] = images_for("benchmark", size, manifest, shards, pack)
    return found


# ---- loading -------------------------------------------------------------------------------------------------------------------


def loading(folder: Path, source: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Images a second of a core, and how many times faster each way is than Pillow and torchvision."""
    files = sorted(source.rglob("*.jpg"))
    number = len(files)
    work: dict[str, Work] = {PEER: lambda: drained(by_torchvision(files, asked.size))}
    for name, images in pools(folder, source, asked.size).items():
        rows = range(len(images))
        work[name] = partial(loaded, images, asked.size, partial(in_order, rows, BATCH))
        work[f"{name}, shuffled"] = partial(loaded, images, asked.size, partial(shuffled, rows, BATCH, 1, 0, drop_last=False))
    seconds = in_turn(work, asked.repeats, time.process_time)
    median = {name: statistics.median(each) for name, each in seconds.items()}
    sizes = [Image.open(file).size for file in files]
    return {
        "images": number,
        "mean width and height": np.mean(sizes, axis=0).round().astype(int).tolist(),
        "mean bytes": round(statistics.mean(file.stat().st_size for file in files)),
        "images_a_second_of_a_core": {name: round(number / each) for name, each in median.items()},
        "all_seconds": rounded(seconds),
        **{name: {"times_faster": {PEER: round(median[PEER] / each, 2)}} for name, each in median.items() if name != PEER},
    }


def by_torchvision(files: list[Path], size: int) -> Iterator[Tensor]:
    """As one writes it down."""
    from torchvision.transforms import v2

    transform = v2.Compose([v2.Resize((size, size)), v2.PILToTensor()])
    for start in range(0, len(files), BATCH):
        yield torch.stack([transform(Image.open(io.BytesIO(file.read_bytes())).convert("RGB")) for file in files[start : start + BATCH]])


def loaded(images: Images, size: int, batches: Callable[[], Any]) -> None:
    """All images once."""
    drained(load(images, batches(), Square(size), seed=0, workers=0))


def drained(batches: Iterator[object]) -> None:
    """Ask for all of them."""
    deque(batches, maxlen=0)


# ---- embedding -----------------------------------------------------------------------------------------------------------------


def embedding(folder: Path, source: Path, encoder: str, asked: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Images a second out of packs and files and of the model alone, and how many times its time each takes; with a name."""
    name, size, batch_size, number = encoder.split(":")
    device, precision = torch.device(asked.device), asked.precision
    work: dict[str, Work] = {"model": partial(alone, name, int(size), int(batch_size), int(number), device, precision)}
    for source_name, images in pools(folder, source, int(size)).items():
        few: Images = images.only(np.arange(int(number)) % len(images))  # type: ignore[attr-defined]
        work[source_name] = partial(embedded, few, name, int(size), int(batch_size), asked.workers, device, precision)
    seconds = in_turn(work, asked.repeats, time.perf_counter)
    median = {way: statistics.median(each) for way, each in seconds.items()}
    return f"{name} at {size} px", {
        "batch_size": int(batch_size),
        "images_a_second": {way: round(int(number) / each) for way, each in median.items()},
        "all_seconds": rounded(seconds),
        "over_model": {way: round(each / median["model"], 3) for way, each in median.items() if way != "model"},
    }


def alone(name: str, size: int, batch_size: int, number: int, device: torch.device, precision: Precision) -> None:
    """The model over so many images that lie on the device already."""
    encoder = build(name, 0).to(device).eval()
    batch = torch.rand(batch_size, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    for start in range(0, number, batch_size):
        with deterministic(), torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            embeddings = encoder(batch[: number - start]).float()
    embeddings.cpu()


def embedded(images: Images, name: str, size: int, batch_size: int, workers: int, device: torch.device, precision: Precision) -> None:
    """From what is on the disk to embeddings in memory."""
    drained(features(images, build(name, 0), image_size=size, batch_size=batch_size, workers=workers, device=device, precision=precision))


# ---- time ----------------------------------------------------------------------------------------------------------------------


def in_turn(work: dict[str, Work], repeats: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of each, `repeats` times one after another, after a round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(repeats + 1):
        for name, each in work.items():
            started = clock()
            each()
            if turn:
                seconds[name].append(clock() - started)
    return seconds


def rounded(seconds: dict[str, list[float]]) -> dict[str, list[float]]:
    """To milliseconds."""
    return {name: [round(each, 3) for each in values] for name, values in seconds.items()}


if __name__ == "__main__":
    main()

"""MC dropout in the head alone: passes with what comes before it computed once, beside passes of the whole network, by hand and by baal.

    python -m benchmarks.mc_dropout [--encoder resnet18] [--size 64] [--batch 32] [--passes 20] [--classes 10] [--repeats 5] [--device cpu] [--peers DIR]

The network is an encoder with random weights, dropout of 0.5 and a linear head; each way gives (images, passes, classes) probabilities of one batch, in
float32 and with one thread. The first turn of each way does not count; the ways take turns.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from al_core.encoders import build
from al_core.mc_dropout import McDropout
from al_core.seeds import seeded
from benchmarks.peers import peer
from benchmarks.record import write

Work = Callable[[], Tensor]


def main() -> None:
    """Measure and write benchmarks/results/mc_dropout.json, or mc_dropout-gpu.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--passes", type=int, default=20)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--peers", type=Path, help="folder that holds the package baal")
    asked = parser.parse_args()
    if asked.peers:
        sys.path.append(str(asked.peers))
    torch.set_num_threads(1)
    ways = works(asked)
    seconds = timed(ways, asked.repeats, asked.device)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    ours = medians.pop("rondo")
    figures = {
        "sizes": {key: value for key, value in vars(asked).items() if key != "peers"},
        "passes": {
            "all_seconds": {name: [round(each, 4) for each in turns] for name, turns in seconds.items()},
            "times_faster_than": {name: round(each / ours, 2) for name, each in medians.items()},
        },
    }
    print(write("mc_dropout", figures, asked.device).read_text())  # noqa: T201


def works(asked: argparse.Namespace) -> dict[str, Work]:
    """The ways to compute the passes of one batch."""
    encoder = build(asked.encoder, 0, image_size=asked.size)
    with seeded(0, "benchmark"):
        network = nn.Sequential(encoder, nn.Dropout(0.5), nn.Linear(encoder.dim, asked.classes)).to(asked.device).eval()
        x = torch.rand(asked.batch, 3, asked.size, asked.size).to(asked.device)
    sampled = McDropout(network, passes=asked.passes, seed=0)

    def whole() -> Tensor:
        network[1].train()
        passes = [network(x).softmax(1) for _ in range(asked.passes)]
        network[1].eval()
        return torch.stack(passes, 1)

    ways: dict[str, Work] = {"rondo": lambda: sampled(x), "whole passes": whole}
    baal = peer("baal.bayesian.dropout")
    if baal:
        module = baal.patch_module(network, inplace=False).eval()
        ways["baal"] = lambda: torch.stack([module(x).softmax(1) for _ in range(asked.passes)], 1)
    return ways


def timed(ways: dict[str, Work], repeats: int, device: str) -> dict[str, list[float]]:
    """Seconds of each way, turn by turn."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats + 1):
        for name, work in ways.items():
            started = time.perf_counter()
            with torch.inference_mode():
                work()
            if device != "cpu":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - started)
    return {name: each[1:] for name, each in seconds.items()}


if __name__ == "__main__":
    main()

"""k-center greedy beside the plain loop that measures every row against every pick.

    python -m benchmarks.kcenter [--rows 100000] [--dim 2048] [--budget 1000] [--repeats 3] [--device cpu] [--kinds emb gauss ...] [--loop-picks 100]
    [--checked 1000] [--growth-dim 512] [--growth-rows 10000 100000 1000000] [--growth-budgets 100 1000 4000 10000] [--map-rows 100000]
    [--own NAME=SIGNALS ...] [--result NAME] [--peers DIR] [--peer-picks 5]

All go from embeddings in memory (but for the memory map) and one labelled row to picks. The loop written here makes one matrix-vector product in float32
a pick, with lengths computed once, so that it reads the embeddings once a pick and nothing else of their size. It makes `--loop-picks` picks, and its
time is scaled up to the budget. Picks are compared index by index with those of the loop in float64, for the first `--checked` picks.

With `--peers DIR`, clones in DIR run too, in turn with the others; they need scikit-learn. Of https://github.com/ these are google/active-learning,
JordanAsh/badge, EfficientTraining/LabelBench, decile-team/distil and PatrickZH/DeepCore, which are exact and make `--peer-picks` picks scaled up (DeepCore
leaves out the last pick's distances, which is to its advantage), and amazon-science/patchcore-inspection and openvinotoolkit/anomalib, which are not: they
measure in a random projection, and make all picks.

Kinds: `emb`, clusters through a random network, each row with a length of its own; `gauss`; `lowdim`, clusters in 16 directions and noise in all;
`power`, variances that fall as 1/i; and with `-unit` the same with every row scaled to length 1. `--own` adds real embeddings: SIGNALS is a folder with
`embeddings.npy`, such as a round's `signals/`, of which no more than a tenth is picked.

Memory is the peak of what the process holds for itself, as Linux counts it every 5 ms, above what it held before: the embeddings are not among it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from al_core import Pool, select
from benchmarks.kcenter_peers import PEERS, Peer
from benchmarks.record import write

Singles = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

BLOCK = 10_000  # rows made at a time
KINDS = ("emb", "gauss", "lowdim", "power")


def main() -> None:
    """Measure and write benchmarks/results/kcenter.json, or another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [*KINDS, *(f"{kind}-unit" for kind in KINDS)]
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--budget", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--kinds", nargs="*", choices=every, default=["emb", "gauss", "lowdim", "power", "emb-unit", "gauss-unit"])
    parser.add_argument("--result", default="kcenter", help="name of the file of figures, such as kcenter-real for a run with --own alone")
    parser.add_argument("--own", nargs="*", default=[], help="NAME=FOLDER with embeddings.npy")
    parser.add_argument("--loop-picks", type=int, default=100)
    parser.add_argument("--checked", type=int, default=1000)
    parser.add_argument("--growth-dim", type=int, default=512)
    parser.add_argument("--growth-rows", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--growth-budgets", type=int, nargs="*", default=[100, 1000, 4000, 10_000])
    parser.add_argument("--map-rows", type=int, default=100_000)
    parser.add_argument("--peers", type=Path, help="folder that holds clones of the peers")
    parser.add_argument("--peer-picks", type=int, default=5)
    asked = parser.parse_args()
    figures: dict[str, Any] = {name: getattr(asked, name) for name in ("rows", "dim", "budget", "device")}
    figures["the_loop_is_scaled_up_from_picks"] = min(asked.loop_picks, asked.budget)
    ours(np.eye(8, dtype=np.float32), 4, asked.device)  # imports
    for kind in asked.kinds:
        figures[kind] = compared(embeddings(kind, asked.rows, asked.dim), asked)
    for own in asked.own:
        name, _, folder = own.partition("=")
        x = np.load(Path(folder) / "embeddings.npy").astype(np.float32)
        few = argparse.Namespace(**vars(asked) | {"budget": min(asked.budget, len(x) // 10)})
        figures[f"{name}, {len(x)} x {x.shape[1]}, {few.budget} picks"] = compared(x, few)
    figures[f"growth, emb of {asked.growth_dim} numbers"] = growth(asked)
    figures["memory map, emb"] = mapped(asked)
    print(write(asked.result, figures, asked.device).read_text())  # noqa: T201


def embeddings(kind: str, rows: int, dim: int) -> Singles:
    """Rows of a kind."""
    draw = torch.Generator().manual_seed(0)
    law, unit = kind.removesuffix("-unit"), kind.endswith("-unit")
    centers = torch.randn(50, 32, generator=draw) * 1.5 if law == "emb" else torch.randn(100, 16, generator=draw) * 3
    first, second = torch.randn(32, 256, generator=draw) / 32**0.5, torch.randn(256, dim, generator=draw) / 16
    directions = torch.linalg.qr(torch.randn(dim, min(16, dim), generator=draw))[0]
    x = np.empty((rows, dim), np.float32)
    for start in range(0, rows, BLOCK):
        count = min(BLOCK, rows - start)
        own = torch.randint(len(centers), (count,), generator=draw)
        if law == "emb":
            hidden = torch.relu((centers[own] + torch.randn(count, 32, generator=draw)) @ first)
            block = torch.relu(hidden @ second) * torch.exp(0.3 * torch.randn(count, 1, generator=draw))
        else:
            block = torch.randn(count, dim, generator=draw)
            if law == "power":
                block /= torch.arange(1, dim + 1) ** 0.5
            if law == "lowdim":
                inside = centers[own] + torch.randn(count, 16, generator=draw)
                block = 0.1 * block + inside[:, : directions.shape[1]] @ directions.T
        x[start : start + count] = (torch.nn.functional.normalize(block) if unit else block).numpy()
    return x


def ours(x: Singles, budget: int, device: str) -> Rows:
    """Rondo's picks."""
    return select("coreset", Pool(embeddings=x, labeled=[0], device=device), budget=budget, seed=0).rows


def loop(x: Singles, budget: int, device: str, kind: torch.dtype) -> tuple[Rows, float]:
    """The picks of the plain loop, and the seconds for them, which leave out lengths and the copy to the device or to another precision."""
    at = torch.from_numpy(x).to(device, kind)
    square = torch.linalg.vector_norm(at, dim=1) ** 2
    gap, dots = torch.full_like(square, torch.inf), torch.empty_like(square)
    picks = [0]
    started = time.perf_counter()
    for _ in range(budget):
        last = picks[-1]
        if device == "cpu":  # where NumPy's product reads as fast as memory gives, and torch's takes twice as long
            np.dot(at.numpy(), at[last].numpy(), out=dots.numpy())
        else:
            torch.mv(at, at[last], out=dots)
        torch.minimum(gap, dots.mul_(-2).add_(square).add_(square[last]), out=gap)
        gap[last] = -1
        picks.append(int(gap.argmax()))
    return np.array(picks[1:]), time.perf_counter() - started


def compared(x: Singles, asked: argparse.Namespace) -> dict[str, Any]:
    """Seconds in turn, and whether the picks are the same."""
    few = min(asked.loop_picks, asked.budget)
    rivals = peers(asked.peers)
    theirs: dict[str, Rows] = {}
    seconds: dict[str, list[float]] = {name: [] for name in ("rondo", "loop", *rivals)}
    for _ in range(asked.repeats):
        started = time.perf_counter()
        picks = ours(x, asked.budget, asked.device)
        seconds["rondo"].append(time.perf_counter() - started)
        seconds["loop"].append(loop(x, few, asked.device, torch.float32)[1] * asked.budget / few)
        for name, pick in rivals.items():
            count = asked.peer_picks if PEERS[name].exact else asked.budget
            started = time.perf_counter()
            theirs[name] = pick(x, count)
            scale = asked.budget / (count + 1) if PEERS[name].exact else 1  # the labelled row is one more that they measure against
            seconds[name].append((time.perf_counter() - started) * scale)
    median = {name: statistics.median(each) for name, each in seconds.items()}
    found: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "all_seconds": {name: [round(each, 3) for each in values] for name, values in seconds.items()},
        "picks_equal_to_float64_loop": equal(picks[: asked.checked], loop(x, min(asked.checked, asked.budget), asked.device, torch.float64)[0]),
    }
    found |= {f"{name}_over_rondo": round(each / median["rondo"], 1) for name, each in median.items() if name != "rondo"}
    return found | {f"picks_equal_to_{name}": agreement(picks, theirs[name], PEERS[name]) for name in rivals}


def agreement(picks: Rows, theirs: Rows, peer: Peer) -> str:
    """How far a peer's picks are ours."""
    first = picks[: len(theirs)]
    return equal(first if peer.ordered else np.sort(first), theirs) if peer.exact else "not compared: it measures in a random projection"


def equal(one: Rows, other: Rows) -> str:
    """How many picks are the same, in order, up to the first that is not."""
    different = np.flatnonzero(one != other)
    return f"{different[0] if len(different) else len(one)} of {len(one)}"


def peers(folder: Path | None) -> dict[str, Callable[[Singles, int], Rows]]:
    """The public codes that are there."""
    found = {name: peer.found(folder) for name, peer in PEERS.items()} if folder else {}
    return {name: pick for name, pick in found.items() if pick}


def growth(asked: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Over rows at the second smallest budget, and over budgets at the middle number of rows."""
    found: dict[str, dict[str, float]] = {}
    if not asked.growth_rows or not asked.growth_budgets:
        return found
    budgets, numbers = sorted(asked.growth_budgets), sorted(asked.growth_rows)
    middle = numbers[len(numbers) // 2]
    for rows in numbers:
        x = embeddings("emb", rows, asked.growth_dim)
        few = min(asked.loop_picks, 20 if rows > middle else 100)
        a_pick = loop(x, few, asked.device, torch.float32)[1] / few
        for budget in budgets if rows == middle else budgets[1:2] or budgets:
            started = time.perf_counter()
            ours(x, min(budget, rows - 1), asked.device)
            took = time.perf_counter() - started
            found[f"{rows} rows, {budget} picks"] = {"rondo": round(took, 2), "loop_over_rondo": round(a_pick * budget / took, 1)}
    return found


def mapped(asked: argparse.Namespace) -> dict[str, Any]:
    """A process of its own that picks from a memory map of float16, and one that picks from the same in memory."""
    with tempfile.TemporaryDirectory() as folder:
        path, shape = Path(folder) / "x", (asked.map_rows, asked.growth_dim)
        embeddings("emb", *shape).astype(np.float16).tofile(path)
        found: dict[str, Any] = {"rows": shape[0], "dim": shape[1], "budget": asked.budget, "mib_of_the_map": round(path.stat().st_size / 2**20)}
        picks = []
        for name, in_memory in (("map", False), ("in memory", True)):
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as alone:
                chosen, seconds, mib = alone.submit(measured, path, shape, asked.budget, asked.device, in_memory=in_memory).result()
            picks.append(chosen)
            found[name] = {"seconds": round(seconds, 2), "mib_at_peak": mib}
        return found | {"picks_equal": equal(*picks)}


def measured(path: Path, shape: tuple[int, int], budget: int, device: str, *, in_memory: bool) -> tuple[Rows, float, int | None]:
    """Picks, seconds, and MiB at the peak."""
    x: Any = np.memmap(path, np.float16, "r", shape=shape)
    x = np.array(x) if in_memory else x
    ours(np.eye(8, dtype=np.float32), 4, device)  # imports
    before, most, done = held(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.005):
            most = max(most, held())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    picks = ours(x, budget, device)
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    return picks, seconds, round(max(0, most - before) / 1024) if before else None


def held() -> int:
    """KiB that the process has for itself, files that it maps aside; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


if __name__ == "__main__":
    main()

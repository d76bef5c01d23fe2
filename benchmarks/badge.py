"""BADGE beside loops that measure every gradient against every pick, one pick after another.

    python -m benchmarks.badge [--rows 100000] [--classes 1000] [--dim 512] [--budget 1000] [--repeats 3] [--device cpu] [--kinds sure "no idea"]
    [--peers DIR] [--peer-budget 1000] [--growth-rows 10000 100000 1000000] [--growth-budgets 100 1000 10000] [--own NAME=SIGNALS ...] [--result NAME]

All go from logits and embeddings in memory to picks. The loop written here has factorised distances in float32 and draws by inverse CDF. With `--peers
DIR`, DIR being a clone of https://github.com/JordanAsh/badge, its own `distance` and `init_centers` run too, which need SciPy; `--peer-budget` ends
that loop earlier, and its time is then scaled up to the budget and said to be. Farthest picks are compared index by index with those of the loop in
float64. Draws cannot be: two samplers of one law use chance differently; compared is what they leave to cover, the sum of squared distances to the nearest
pick.

Kinds: models that are sure (a mean largest probability of 0.92), learning (0.5), and have no idea (all classes alike), and `clusters`: 200 of them, a
hundredth as wide as they are far apart, so that a pick brings nearly all of a cluster's distances down at once. `--own` adds real signals: SIGNALS is
a folder with `embeddings.npy` and `logits.npy`, such as a round's `signals/`, of which no more than a tenth is picked.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from al_core import Pool, select
from benchmarks.record import write

Singles = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

BLOCK = 5000  # rows made, or measured, at a time
CONFIDENCE = {"sure": 0.92, "learning": 0.5}  # mean largest probability
KINDS = (*CONFIDENCE, "no idea", "clusters")


def main() -> None:
    """Measure and write benchmarks/results/badge.json, or another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--budget", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=KINDS)
    parser.add_argument("--peers", type=Path, help="folder that holds a clone of JordanAsh/badge")
    parser.add_argument("--result", default="badge", help="name of the file of figures, such as badge-real for a run with --own alone")
    parser.add_argument("--own", nargs="*", default=[], help="NAME=FOLDER with embeddings.npy and logits.npy")
    parser.add_argument("--peer-budget", type=int, help="picks after which the peer is stopped; default: the budget")
    parser.add_argument("--growth-rows", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--growth-budgets", type=int, nargs="*", default=[100, 1000, 10_000])
    arguments = parser.parse_args()
    figures: dict[str, Any] = {name: getattr(arguments, name) for name in ("rows", "classes", "dim", "budget", "device")}
    for kind in arguments.kinds:
        figures[kind] = compared(*signals(kind, arguments.rows, arguments.dim, arguments.classes), arguments)
    for own in arguments.own:
        name, _, folder = own.partition("=")
        h, z = (np.load(Path(folder) / f"{each}.npy").astype(np.float32) for each in ("embeddings", "logits"))
        few = argparse.Namespace(**vars(arguments) | {"budget": min(arguments.budget, len(h) // 10)})
        figures[f"{name}, {len(h)} x {h.shape[1]}, {z.shape[1]} classes, {few.budget} picks"] = compared(h, z, few)
    figures["growth, sure"] = growth(arguments)
    print(write(arguments.result, figures, arguments.device).read_text())  # noqa: T201


def signals(kind: str, rows: int, dim: int, classes: int) -> tuple[Singles, Singles]:
    """Embeddings of images that lie about a centre for each class, through two random layers, and a linear head's logits of them."""
    draw = torch.Generator().manual_seed(0)
    if kind == "clusters":
        centers = torch.randn(200, dim, generator=draw)
        weight = torch.randn(dim, classes, generator=draw) / 10
        through: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.float
    else:
        centers = 1.5 * torch.randn(classes, 16, generator=draw)
        first, second = torch.randn(16, 256, generator=draw) / 4, torch.randn(256, dim, generator=draw) / 16
        through = lambda x: torch.relu(torch.tanh(x @ first) @ second)  # noqa: E731
        ideal = through(centers)
        weight = torch.nn.functional.normalize(ideal - ideal.mean(0)).T
    h, z = np.empty((rows, dim), np.float32), np.empty((rows, classes), np.float32)
    for start in range(0, rows, BLOCK):
        own = torch.randint(len(centers), (min(BLOCK, rows - start),), generator=draw)
        hard = 0.01 if kind == "clusters" else 0.1 + 1.2 * torch.rand(len(own), 1, generator=draw)
        x = through(centers[own] + hard * torch.randn(len(own), centers.shape[1], generator=draw))
        if kind != "clusters":
            x *= torch.exp(0.3 * torch.randn(len(own), 1, generator=draw))
        h[start : start + len(own)], z[start : start + len(own)] = x.numpy(), (x @ weight).numpy()
    z *= np.float32(1 if kind == "clusters" else 0 if kind == "no idea" else temperature(z[:BLOCK], CONFIDENCE[kind]))
    return h, z


def temperature(z: Singles, confidence: float) -> float:
    """Factor that gives logits this mean largest probability."""
    low, high = 1e-3, 1e3
    for _ in range(40):
        middle = (low * high) ** 0.5
        sure = torch.softmax(middle * torch.from_numpy(z), 1).amax(1).mean() > confidence
        low, high = (low, middle) if sure else (middle, high)
    return low


def compared(h: Singles, z: Singles, arguments: argparse.Namespace) -> dict[str, Any]:
    """Everybody's seconds, in turn, and what they picked."""
    budget, device = arguments.budget, arguments.device
    work: dict[str, Callable[[], Rows]] = {
        "rondo": lambda: ours(h, z, budget, "sample", device),
        "loop": lambda: loop(h, z, budget, "sample", device, torch.float32),
        "rondo, farthest": lambda: ours(h, z, budget, "farthest", device),
        "loop, farthest": lambda: loop(h, z, budget, "farthest", device, torch.float32),
    }
    share = min(1.0, (arguments.peer_budget or budget) / budget)
    if theirs := peer(arguments.peers):
        work["JordanAsh"] = lambda: theirs(h, z, round(share * budget))
    ours(h[:1000], z[:1000], min(10, budget), "sample", device)  # imports
    seconds: dict[str, list[float]] = {name: [] for name in work}
    picks = {}
    for _ in range(arguments.repeats):
        for name, each in work.items():
            started = time.perf_counter()
            picks[name] = each()
            seconds[name].append(time.perf_counter() - started)
    median = {name: statistics.median(each) for name, each in seconds.items()}
    found: dict[str, Any] = {
        "all_seconds": {name: [round(each, 3) for each in values] for name, values in seconds.items()},
        "loop_over_rondo": round(median["loop"] / median["rondo"], 1),
        "loop_over_rondo, farthest": round(median["loop, farthest"] / median["rondo, farthest"], 1),
        "left_to_cover": {name: left_to_cover(h, z, picks[name], device) for name in ("rondo", "loop")},
        "farthest_picks_equal_to_float64_loop": equal(picks["rondo, farthest"], loop(h, z, budget, "farthest", device, torch.float64)),
    }
    if theirs:
        found["JordanAsh_over_rondo"] = round(median["JordanAsh"] / share / median["rondo"], 1)
        found["JordanAsh_time_is_scaled_up_from_picks"] = None if share == 1 else round(share * budget)
    return found


def ours(h: Singles, z: Singles, budget: int, draw: str, device: str) -> Rows:
    """Rondo's picks."""
    return select("badge", Pool(embeddings=h, logits=z, device=device), budget=budget, seed=0, draw=draw).rows


def factors(h: Singles, z: Singles, device: str, kind: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Both factors of each gradient, as their definition says."""
    a = torch.softmax(torch.from_numpy(z).to(device, kind), 1)
    a[torch.arange(len(a)), a.argmax(1)] -= 1
    return a, torch.from_numpy(h).to(device, kind)


def loop(h: Singles, z: Singles, budget: int, draw: str, device: str, kind: torch.dtype) -> Rows:
    """All squared distances to each pick, one pick after another."""
    rng = np.random.default_rng(0)
    a, x = factors(h, z, device, kind)
    square = (a * a).sum(1) * (x * x).sum(1)
    gap = torch.full_like(square, torch.inf)
    picks = [int(square.argmax())]
    while len(picks) < budget:
        last = picks[-1]
        torch.minimum(gap, (square + square[last] - 2 * (a @ a[last]) * (x @ x[last])).clamp_(min=0), out=gap)
        gap[last] = 0
        if draw == "farthest":
            picks.append(int(gap.argmax()))
        else:
            steps = gap.cumsum(0, dtype=torch.float64)
            picks.append(int(torch.searchsorted(steps, rng.random() * steps[-1], right=True)))
    return np.array(picks)


def left_to_cover(h: Singles, z: Singles, picks: Rows, device: str) -> float:
    """Sum over all rows of the squared distance to the nearest pick."""
    total = 0.0
    a, x = factors(h[picks], z[picks], device, torch.float64)
    square = (a * a).sum(1) * (x * x).sum(1)
    for start in range(0, len(h), BLOCK):
        b, y = factors(h[start : start + BLOCK], z[start : start + BLOCK], device, torch.float64)
        between = ((b * b).sum(1) * (y * y).sum(1))[:, None] + square - 2 * (b @ a.T) * (y @ x.T)
        total += float(between.amin(1).clamp_(min=0).sum())
    return total


def equal(one: Rows, other: Rows) -> str:
    """How many picks are the same, in order, up to the first that is not."""
    different = np.flatnonzero(one != other)
    return f"{different[0] if len(different) else len(one)} of {len(one)}"


def peer(folder: Path | None) -> Callable[[Singles, Singles, int], Rows] | None:
    """The public code's loop over its own two functions, which stand in a file that imports much else."""
    path = folder and next((place for place in (folder / "query_strategies", folder / "badge" / "query_strategies") if place.exists()), None)
    if path is None:
        print("JordanAsh/badge is not compared: clone it and give its folder with --peers")  # noqa: T201
        return None
    try:
        stats = importlib.import_module("scipy.stats")
    except ImportError:
        print("JordanAsh/badge is not compared: it needs SciPy")  # noqa: T201
        return None
    tree = ast.parse((path / "badge_sampling.py").read_text("utf-8"))
    names: dict[str, Any] = {"np": np, "stats": stats}
    wanted: list[ast.stmt] = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in ("distance", "init_centers")]
    exec(compile(ast.Module(wanted, []), "badge_sampling.py", "exec"), names)  # noqa: S102

    def picks(h: Singles, z: Singles, budget: int) -> Rows:
        np.random.seed(0)  # noqa: NPY002
        a, _ = factors(h, z, "cpu", torch.float32)
        one, other = (-a.numpy(), np.sum(a.numpy() ** 2, axis=-1)), (h, np.sum(h**2, axis=-1))
        chosen, order, mu, gap = set[int](), list[int](), None, None
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):  # it prints a line a pick
            for _ in range(budget):
                chosen, order, mu, gap = names["init_centers"](one, other, chosen, order, mu, gap)
        return np.array(order)

    return picks


def growth(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Seconds over rows at the middle budget, and over budgets at the middle number of rows."""
    found: dict[str, dict[str, float]] = {"sample": {}, "farthest": {}}
    if not arguments.growth_rows or not arguments.growth_budgets:
        return found
    middle = sorted(arguments.growth_rows)[len(arguments.growth_rows) // 2], sorted(arguments.growth_budgets)[len(arguments.growth_budgets) // 2]
    sizes = [(rows, middle[1]) for rows in arguments.growth_rows] + [(middle[0], budget) for budget in arguments.growth_budgets]
    for rows, budget in dict.fromkeys(sizes):
        h, z = signals("sure", rows, arguments.dim, arguments.classes)
        for draw, seconds in found.items():
            started = time.perf_counter()
            ours(h, z, min(budget, rows), draw, arguments.device)
            seconds[f"{rows} rows, {budget} picks"] = round(time.perf_counter() - started, 2)
    return found


if __name__ == "__main__":
    main()

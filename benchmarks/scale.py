"""How every method grows: seconds and memory over the size of the pool and of the budget, each run in a process of its own.

    python -m benchmarks.scale [--rows 10000 100000 1000000] [--budgets 100 1000 10000] [--methods margin coreset] [--dim 512] [--classes 100]
    [--minutes 10] [--device cpu] [--folder DIR]

Signals are memory-mapped files of clustered embeddings and a linear head's logits, made once in a scratch folder: 2 GB of embeddings at a million rows.
Memory is what the process holds beyond mapped files (anonymous resident memory), above what it held before the selection. `cpu_seconds` are those of all
threads together, which other work on the machine hardly changes. The first axis runs at the middle budget, the second at the middle number of rows, and
the two largest together. A run that takes longer than `--minutes` is stopped and said so. Results are written method by method, beside those that are
there already; an entry says what parameters beside the defaults it ran with.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from al_core import Pool, methods, select
from al_core.methods.batchbald import BatchBald
from al_core.registry import card
from benchmarks.record import machine, place, write

PASSES, LABELED, CLUSTERS = 10, 1000, 500
BLOCK = 20_000  # rows made at a time


def main() -> None:
    """Measure and write benchmarks/results/scale.json, or, as a child, one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--budgets", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--methods", nargs="+", default=[each.name for each in methods()])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=10, help="longest run")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, help="where to keep the signals; default: a temporary folder")
    parser.add_argument("--one", nargs=3, metavar=("METHOD", "ROWS", "BUDGET"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        method, rows, budget = arguments.one
        print(json.dumps(one(method, arguments.folder / rows, int(budget), arguments.device)))  # noqa: T201
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        for rows in arguments.rows:
            make(folder / str(rows), rows, arguments.dim, arguments.classes)
        for name in arguments.methods:
            keep(name, [run(name, folder, rows, budget, arguments) for rows, budget in points(arguments.rows, arguments.budgets)], arguments)


def keep(name: str, runs: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    """Write a method's runs beside what was measured with the same signals on the same machine; of the same size, the new run counts."""
    shape = {"dim": arguments.dim, "classes": arguments.classes, "passes": PASSES, "labelled": LABELED, "device": arguments.device}
    path = place("scale", arguments.device)
    before: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    known = before["methods"] if before.get("signals") == shape and before.get("machine") == machine() else {}
    sizes = {(each["rows"], each["budget"]): each for each in known.get(name, []) + runs}
    write("scale", {"signals": shape, "methods": known | {name: [sizes[size] for size in sorted(sizes)]}}, arguments.device)


def points(rows: list[int], budgets: list[int]) -> list[tuple[int, int]]:
    """Sizes to run: both axes through the middle, and the far corner."""
    middle = sorted(rows)[len(rows) // 2], sorted(budgets)[len(budgets) // 2]
    found = [(each, middle[1]) for each in rows] + [(middle[0], each) for each in budgets] + [(max(rows), max(budgets))]
    return [(n, k) for n, k in dict.fromkeys(found) if k < n - LABELED]


def make(folder: Path, rows: int, dim: int, classes: int) -> None:
    """Every signal for so many rows, where it is not there yet."""
    if (folder / "made").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(rows)
    centers = rng.normal(size=(CLUSTERS, dim)).astype(np.float32)
    weight = rng.normal(size=(classes, dim)).astype(np.float32) / np.float32(np.sqrt(dim))
    shapes = {"embeddings": (rows, dim), "logits": (rows, classes), "mc_probs": (PASSES, rows, 10)}
    maps = {name: np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=np.float32, shape=shape) for name, shape in shapes.items()}
    for start in range(0, rows, BLOCK):
        part = slice(start, min(start + BLOCK, rows))
        num = part.stop - start
        x = centers[rng.integers(CLUSTERS, size=num)] + 0.7 * rng.normal(size=(num, dim)).astype(np.float32)
        maps["embeddings"][part] = np.maximum(x, 0) * rng.uniform(0.5, 1.5, size=(num, 1)).astype(np.float32)  # as after a ReLU, lengths unequal
        maps["logits"][part] = maps["embeddings"][part] @ weight.T
        noisy = maps["logits"][part][:, :10] + rng.normal(size=(PASSES, num, 10)).astype(np.float32)
        maps["mc_probs"][:, part] = np.exp(noisy) / np.exp(noisy).sum(axis=2, keepdims=True)
    np.save(folder / "weight.npy", weight)
    for name in ("predicted_loss", "discriminator"):
        np.save(folder / f"{name}.npy", rng.uniform(size=rows).astype(np.float32))
    np.save(folder / "truth.npy", rng.integers(classes, size=rows))
    np.save(folder / "labeled.npy", np.sort(rng.choice(rows, LABELED, replace=False)))
    (folder / "made").touch()


def run(method: str, folder: Path, rows: int, budget: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One run in a process of its own."""
    size = {"rows": rows, "budget": budget, "params": params_of(method, budget)}
    command = [sys.executable, "-m", "benchmarks.scale", "--one", method, str(rows), str(budget), "--folder", str(folder), "--device", arguments.device]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60 * arguments.minutes)
    except subprocess.TimeoutExpired:
        found: dict[str, Any] = {"stopped": f"after {arguments.minutes:g} minutes"}
    else:
        found = json.loads(done.stdout) if done.returncode == 0 else {"failed": done.stderr.strip().splitlines()[-1:]}
    sys.stderr.write(f"{method} {size} {found}\n")
    return size | found


def params_of(method: str, budget: int) -> dict[str, Any]:
    """Beside the defaults: an exact graph of a million rows takes hours of a CPU, and batchbald has to look at as many rows as it picks."""
    if method == "diffusion":
        return {"index": "hnsw"}
    if method == "batchbald" and budget > (BatchBald.candidates or budget):
        return {"candidates": budget, "samples": PASSES}
    return {}


def one(method: str, folder: Path, budget: int, device: str) -> dict[str, float]:
    """Seconds to check the pool and to select, seconds of all threads while selecting, and the memory that it took."""
    arrays = {path.stem: np.load(path, mmap_mode="r") for path in folder.glob("*.npy")}
    weight, labeled, truth = (np.array(arrays.pop(name)) for name in ("weight", "labeled", "truth"))
    wanted = set(card(method).needs) or {"embeddings"}
    given: dict[str, Any] = {name: array for name, array in arrays.items() if name in wanted}
    if "head" in wanted:
        given["head"] = (weight, np.zeros(len(weight), np.float32))
    if "truth" in wanted:
        given["truth"] = truth
    if not given.keys() - {"head", "truth"}:
        given["embeddings"] = arrays["embeddings"]
    before = time.perf_counter()
    pool = Pool(**given, labeled=labeled, labels=truth[labeled], device=device)
    checked, busy = time.perf_counter(), time.process_time()
    memory = Memory()
    with memory:
        select(method, pool, budget=budget, seed=0, **params_of(method, budget))
    return {
        "seconds_check": round(checked - before, 3),
        "seconds": round(time.perf_counter() - checked, 3),
        "cpu_seconds": round(time.process_time() - busy, 3),
        "peak_megabytes": round(memory.peak / 1e6),
    }


class Memory:
    """Anonymous resident memory of this process above what it was at the start, sampled every 20 ms; Linux alone."""

    def __enter__(self) -> None:
        self.peak, self.done = 0, threading.Event()
        self.start = anonymous()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()

    def watch(self) -> None:
        """Until the end."""
        while not self.done.wait(0.02):
            self.peak = max(self.peak, anonymous() - self.start)

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()
        self.peak = max(self.peak, anonymous() - self.start)


def anonymous() -> int:
    """Bytes of resident memory that no file backs."""
    status = Path("/proc/self/status").read_text("utf-8")
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")))


if __name__ == "__main__":
    main()

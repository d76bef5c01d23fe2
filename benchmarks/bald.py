"""BALD and its family over a memory map of passes: beside reading the map, beside the formula over whole arrays, and beside baal; BatchBALD beside redux.

    python -m benchmarks.bald [--passes 20] [--rows 20000] [--classes 1000] [--dim 512] [--budget 1000] [--device cpu] [--repeats 3] [--peers DIR]
    [--growth-rows 2000 6000 20000] [--growth-passes 5 10 20] [--growth-classes 10 100 1000] [--batch 10] [--batch-rows 1000] [--batch-passes 100]
    [--batch-classes 10] [--growth-batches 5 10 20 40] [--growth-candidates 100 300 1000]

The map is float32 (passes, rows, classes), made in a temporary folder and read from the page cache. The whole-array formula gets the same numbers as
(rows, classes, passes) in memory, as libraries take them, and computes in float32; the copy into that layout is not counted. Peers are looked for
where Python finds packages, and in the folder of --peers: baal, batchbald_redux. Memory is that of arrays, as tracemalloc sees them; the map's own
pages are not among it.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from al_core import Pool, select
from al_core.pool import blocks
from benchmarks.peers import peer
from benchmarks.record import write

Array = npt.NDArray[np.float32]
Work = Callable[[], object]

FAMILY = ("bald", "max-entropy", "variation-ratios", "mean-std")


def main() -> None:
    """Measure and write benchmarks/results/bald.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passes", type=int, default=20)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--dim", type=int, default=512, help="of the embeddings that draws of the head are applied to")
    parser.add_argument("--budget", type=int, default=1000)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--growth-rows", type=int, nargs="*", default=[2000, 6000, 20_000])
    parser.add_argument("--growth-passes", type=int, nargs="*", default=[5, 10, 20])
    parser.add_argument("--growth-classes", type=int, nargs="*", default=[10, 100, 1000])
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--batch-rows", type=int, default=1000)
    parser.add_argument("--batch-passes", type=int, default=100)
    parser.add_argument("--batch-classes", type=int, default=10)
    parser.add_argument("--growth-batches", type=int, nargs="*", default=[5, 10, 20, 40])
    parser.add_argument("--growth-candidates", type=int, nargs="*", default=[100, 300, 1000])
    parser.add_argument("--peers", type=Path, help="folder that holds the packages baal and batchbald_redux")
    asked = parser.parse_args()
    if asked.peers:
        sys.path.append(str(asked.peers))
    with tempfile.TemporaryDirectory() as folder:
        probs = mapped(Path(folder) / "mc_probs.npy", asked.passes, asked.rows, asked.classes)
        figures = {
            "sizes": {key: value for key, value in vars(asked).items() if key != "peers"},
            "threads": torch.get_num_threads(),
            "megabytes_of_map": round(probs.nbytes / 1e6),
            "family": over_the_map(probs, min(asked.budget, asked.rows), asked.device, asked.repeats),
            "drawn heads": over_heads(asked),
            "growth": growth(probs, asked),
            "batchbald": batches(asked),
        }
    print(write("bald", figures, asked.device).read_text())  # noqa: T201


def mapped(path: Path, passes: int, rows: int, classes: int) -> Array:
    """A map of softmax outputs that share a direction in each row, as passes of one model do, made block by block and read once."""
    rng = np.random.default_rng(0)
    out = np.lib.format.open_memmap(path, "w+", np.float32, (passes, rows, classes))
    for block in blocks(out[0]):
        shared = 4 * rng.standard_normal((block.stop - block.start, classes), np.float32)
        for one in out:
            logits = shared + 1.5 * rng.standard_normal(shared.shape, np.float32)
            exp = np.exp(logits - logits.max(axis=1, keepdims=True))
            one[block] = exp / exp.sum(axis=1, keepdims=True)
    out.flush()
    probs: Array = np.load(path, mmap_mode="r")
    read(probs)
    return probs


def read(probs: Array) -> float:
    """Every value once."""
    return float(sum(one[block].sum() for one in probs for block in blocks(one)))


def whole_formula(by_row: Array) -> npt.NDArray[np.float32]:
    """(rows,) BALD of (rows, classes, passes), as one writes it down; no probability is 0 here."""
    mean = by_row.mean(axis=2)
    within: npt.NDArray[np.float32] = -(by_row * np.log(by_row)).sum(axis=1).mean(axis=1)
    nats: npt.NDArray[np.float32] = -(mean * np.log(mean)).sum(axis=1)
    return nats - within


def picked(name: str, pool: Pool, budget: int) -> npt.NDArray[np.int64]:
    """A method's rows."""
    return select(name, pool, budget=budget, seed=0).rows


def over_the_map(probs: Array, budget: int, device: str, repeats: int) -> dict[str, Any]:
    """Seconds of each in turn, memory of each, and whether the picks are the same."""
    pool = Pool(mc_probs=probs, device=device)
    by_row = np.ascontiguousarray(probs.transpose(1, 2, 0))
    by_row = np.maximum(by_row, np.finfo(np.float32).tiny, out=by_row)
    work: dict[str, Work] = {"reading": lambda: read(probs), "checks of Pool": lambda: Pool(mc_probs=probs)}
    work |= {name: functools.partial(picked, name, pool, budget) for name in FAMILY}
    work["whole formula"] = lambda: np.argsort(-whole_formula(by_row), kind="stable")[:budget]
    baal = peer("baal.active.heuristics")
    if baal:
        work["baal"] = lambda: np.argsort(-baal.BALD().compute_score(by_row), kind="stable")[:budget]
    seconds = in_turn(work, repeats)
    median = {name: statistics.median(each) for name, each in seconds.items()}
    picks = {name: np.asarray(work[name]()) for name in ("bald", "whole formula", "baal") if name in work}
    return {
        "all_seconds": {name: [round(each, 3) for each in values] for name, values in seconds.items()},
        "nanoseconds_a_probability": {name: round(1e9 * each / probs.size, 3) for name, each in median.items()},
        "over_reading": {name: round(median[name] / median["reading"], 2) for name in FAMILY},
        "times_faster_than": {name: round(median[name] / median["bald"], 2) for name in ("whole formula", "baal") if name in work},
        "peak_megabytes": {name: megabytes(each) for name, each in work.items()},
        "shared_picks_of_float32": {name: int(np.isin(rows, picks["bald"]).sum()) for name, rows in picks.items()},
        "same_picks_as_in_float64": same_in_float64(by_row, device, min(budget, 500)),
    }


def over_heads(asked: argparse.Namespace) -> dict[str, Any]:
    """Passes that draws of the head make of embeddings: beside their matrix products alone, in float32, a block of 500 rows at a time."""
    rng = np.random.default_rng(2)
    x = rng.standard_normal((asked.rows, asked.dim), np.float32)
    weight = rng.standard_normal((asked.classes, asked.dim), np.float32) * 3 / asked.dim**0.5
    drawn = (weight * (rng.random((asked.passes, 1, asked.dim)) < 0.5)).astype(np.float32) * 2
    bias = np.zeros(drawn.shape[:2], np.float32)
    pool = Pool(embeddings=x, mc_heads=(drawn, bias), device=asked.device)
    on_device, to_add = torch.from_numpy(drawn).to(asked.device), torch.from_numpy(bias).to(asked.device)

    def products() -> None:
        for start in range(0, len(x), 500):
            block = torch.from_numpy(x[start : start + 500]).to(asked.device)
            for one, more in zip(on_device, to_add, strict=True):
                torch.addmm(more, block, one.T)
        if asked.device != "cpu":
            torch.cuda.synchronize()

    budget = min(asked.budget, asked.rows)
    work: dict[str, Work] = {"products": products, **{name: functools.partial(picked, name, pool, budget) for name in FAMILY}}
    seconds = in_turn(work, asked.repeats)
    median = {name: statistics.median(each) for name, each in seconds.items()}
    return {
        "dim": asked.dim,
        "all_seconds": {name: [round(each, 3) for each in values] for name, values in seconds.items()},
        "over_products": {name: round(median[name] / median["products"], 2) for name in FAMILY},
    }


def same_in_float64(by_row: Array, device: str, budget: int) -> dict[str, Any]:
    """Index by index over the first rows, since whole float64 arrays are large: where float32 tells near-ties otherwise, float64 does not."""
    few = by_row[: 4 * budget].astype(np.float64)
    ours = select("bald", Pool(mc_probs=few.transpose(2, 0, 1), device=device), budget=min(budget, len(few)), seed=0).rows
    theirs = {"whole formula": whole_formula(few)}  # type: ignore[arg-type]
    baal = peer("baal.active.heuristics")
    if baal:
        theirs["baal"] = baal.BALD().compute_score(few)
    return {"rows": len(few), "budget": len(ours)} | {
        name: bool(np.array_equal(np.argsort(-scores, kind="stable")[: len(ours)], ours)) for name, scores in theirs.items()
    }


def growth(probs: Array, asked: argparse.Namespace) -> dict[str, Any]:
    """Nanoseconds a probability and megabytes of BALD over parts of the map, which should hardly move."""
    passes, rows, classes = probs.shape
    shapes = [(passes, each, classes) for each in asked.growth_rows] + [(each, rows, classes) for each in asked.growth_passes]
    shapes += [(passes, rows, each) for each in asked.growth_classes]
    table = []
    for shape in shapes:
        part = probs[: shape[0], : shape[1], : shape[2]]
        if shape[2] < classes:
            part = part / part.sum(axis=2, keepdims=True)
        pool = Pool(mc_probs=part, device=asked.device)
        work = functools.partial(select, "bald", pool, budget=min(asked.budget, shape[1]), seed=0)
        nanoseconds = 1e9 * statistics.median(in_turn({"bald": work}, asked.repeats)["bald"]) / part.size
        table.append({"passes, rows, classes": list(part.shape), "nanoseconds_a_probability": round(nanoseconds, 3), "megabytes": megabytes(work)})
    return {"bald": table}


def batches(asked: argparse.Namespace) -> dict[str, Any]:
    """BatchBALD over all rows, beside redux while both are exact; then how it grows with the batch and the candidates."""
    rng = np.random.default_rng(1)
    shape = (asked.batch_passes, asked.batch_rows, asked.batch_classes)
    logits = 2 * rng.standard_normal(shape[1:]) + rng.standard_normal(shape)
    exp = np.exp(logits)
    probs = exp / exp.sum(axis=2, keepdims=True)
    pool = Pool(mc_probs=probs, device=asked.device)

    def ours(budget: int, **params: object) -> Any:
        return select("batchbald", pool, budget=budget, seed=0, **params)

    figures: dict[str, Any] = {"passes, rows, classes": list(shape)}
    redux = peer("batchbald_redux.batchbald")
    if redux:
        exact = next(length for length in range(1, 20) if asked.batch_classes ** (length + 1) > 4000) + 1  # picks for which no answer is drawn
        logs = torch.from_numpy(np.log(probs.transpose(1, 0, 2)))
        work: dict[str, Work] = {
            "batchbald": lambda: ours(exact, candidates=None),
            "batchbald_redux": lambda: redux.get_batchbald_batch(logs, exact, 10**9, dtype=torch.float64),
        }
        seconds = in_turn(work, asked.repeats)
        figures["exact"] = {
            "picks": exact,
            "all_seconds": {name: [round(each, 3) for each in values] for name, values in seconds.items()},
            "times_faster": round(statistics.median(seconds["batchbald_redux"]) / statistics.median(seconds["batchbald"]), 2),
            "same_picks": ours(exact, candidates=None).rows.tolist() == redux.get_batchbald_batch(logs, exact, 10**9, dtype=torch.float64).indices,
        }
    table = []
    for budget, candidates in [(each, None) for each in asked.growth_batches] + [(asked.batch, each) for each in asked.growth_candidates]:
        one = functools.partial(ours, budget, candidates=candidates)
        second = statistics.median(in_turn({"batchbald": one}, asked.repeats)["batchbald"])
        table.append({"picks": budget, "seconds": round(second, 3), "megabytes": megabytes(one), **one().info})
    return figures | {"growth": table}


def in_turn(work: dict[str, Work], repeats: int) -> dict[str, list[float]]:
    """Seconds of each, `repeats` times one after another, after a round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(repeats + 1):
        for name, each in work.items():
            started = time.perf_counter()
            each()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def megabytes(work: Work) -> float:
    """The most that arrays take meanwhile."""
    tracemalloc.start()
    try:
        work()
        return round(tracemalloc.get_traced_memory()[1] / 1e6, 1)
    finally:
        tracemalloc.stop()


if __name__ == "__main__":
    main()

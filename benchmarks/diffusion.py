"""A graph of neighbours, and labels that diffuse over it: the exact blocked search beside faiss, the solve beside SciPy's sparse product.

    python -m benchmarks.diffusion [--rows 50000] [--dim 512] [--neighbors 50] [--repeats 1] [--device cpu] [--growth-rows 10000 20000 50000]
    [--solve-rows 1000000] [--solve-dim 16] [--solve-index ivf] [--classes 10] [--steps 30] [--labeled 1000] [--solve-repeats 3]

Neighbours: of each row, by ours (exact, and over faiss's ivf and hnsw) and by faiss alone (exact, ivf and hnsw with the same settings), float32, in turn.
Recall is the share of the true nearest that is found; true are those of our exact search, which decides in float64.

Solve: F <- A F so many times for so many classes, labels kept. Ours also computes the chance to meet any label and the certainty of each row; SciPy's loop
is the product and the labels alone, over one matrix in compressed sparse rows. Both in float32 over one graph, first with rows as they come, in no order,
then laid out so that neighbours lie near each other; the time that takes is given. Where faiss or SciPy is not there, it is skipped with a word; without
faiss, say `--solve-index exact` and fewer rows. Memory is what the process holds beyond files (Linux alone), above what it held before.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from al_core.bounds import Doubles
from al_core.methods import diffusion
from al_core.neighbors import Cloud, Projected, hnsw, ivf, neighbors
from al_core.pool import Rows
from benchmarks.peers import peer
from benchmarks.record import write
from benchmarks.scale import Memory

Singles = npt.NDArray[np.float32]
Work = Callable[[], Any]

BLOCK = 20_000  # rows made at a time


def main() -> None:
    """Measure and write benchmarks/results/diffusion.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000, help="0: no search")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--neighbors", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--growth-rows", type=int, nargs="*", default=[10_000, 20_000, 50_000])
    parser.add_argument("--solve-rows", type=int, default=1_000_000, help="0: no solve")
    parser.add_argument("--solve-dim", type=int, default=16)
    parser.add_argument("--solve-index", choices=["exact", "ivf", "hnsw"], default="ivf")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--labeled", type=int, default=1000)
    parser.add_argument("--solve-repeats", type=int, default=3)
    arguments = parser.parse_args()
    figures: dict[str, Any] = {"sizes": vars(arguments), "threads": torch.get_num_threads()}
    if arguments.rows:
        figures["search"] = searches(embeddings(arguments.rows, arguments.dim), arguments)
        figures["growth"] = growth(arguments)
    if arguments.solve_rows:
        figures["solve"] = solves(embeddings(arguments.solve_rows, arguments.solve_dim), arguments)
    print(write("diffusion", figures, arguments.device).read_text())  # noqa: T201


def embeddings(rows: int, dim: int) -> Singles:
    """About 500 centres, through two random layers: 16 dimensions folded into more; in no order."""
    rng = np.random.default_rng(0)
    centers = 1.5 * rng.standard_normal((500, 16), np.float32)
    first, second = rng.standard_normal((16, 256), np.float32) / 4, rng.standard_normal((256, dim), np.float32) / 16
    x = np.empty((rows, dim), np.float32)
    for start in range(0, rows, BLOCK):
        num = min(BLOCK, rows - start)
        inner = centers[rng.integers(500, size=num)] + (0.1 + 1.2 * rng.random((num, 1), np.float32)) * rng.standard_normal((num, 16), np.float32)
        x[start : start + num] = np.maximum(np.tanh(inner @ first) @ second, 0)
    return x


def searches(x: Singles, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds and recall of each search, in turn."""
    k, rows = arguments.neighbors, np.arange(len(x))

    def ours(index: Any) -> Rows:
        return neighbors(x, rows, k, device=arguments.device, index=index)[0]

    work: dict[str, Work] = {"rondo, exact": functools.partial(ours, "exact")}
    faiss = peer("faiss")
    if faiss:
        faiss.omp_set_num_threads(torch.get_num_threads())
        work["faiss, exact"] = lambda: alone(faiss.IndexFlatL2(x.shape[1]), x, k)
        work |= {"rondo, ivf": lambda: ours("ivf"), "faiss, ivf": lambda: alone(ivf(Projected(Cloud(x, rows))), x, k)}
        work |= {"rondo, hnsw": lambda: ours("hnsw"), "faiss, hnsw": lambda: alone(hnsw(Projected(Cloud(x, rows)), k), x, k)}
    seconds, last = in_turn(work, arguments.repeats)
    truth = np.sort(last["rondo, exact"], axis=1)
    return {
        "all_seconds": seconds,
        "recall": {name: round(recall(found, truth), 4) for name, found in last.items()},
        "times_faster": {name: ratio(seconds[name], seconds[name.replace("faiss", "rondo")]) for name in work if name.startswith("faiss")},
    }


def alone(index: Any, x: Singles, k: int) -> Rows:
    """(n, k) rows that an index of faiss finds, the row itself left out, -1 where it finds too few."""
    index.add(x)
    found: Rows = index.search(x, k + 1)[1]
    found = np.where(found == np.arange(len(x))[:, None], -1, found)
    return np.take_along_axis(found, np.argsort(found < 0, axis=1, kind="stable"), axis=1)[:, :k]


def recall(found: Rows, truth: Rows) -> float:
    """Share of the true ones found."""
    n = len(truth)
    own = np.arange(n)[:, None]
    return float(np.isin((own * n + truth).ravel(), (own * n + found)[found >= 0]).mean())


def growth(arguments: argparse.Namespace) -> list[dict[str, float]]:
    """Seconds of the exact search over numbers of rows, and of faiss's; each once."""
    table, faiss = [], peer("faiss")
    for rows in arguments.growth_rows:
        x = embeddings(rows, arguments.dim)
        work: dict[str, Work] = {"rondo": functools.partial(neighbors, x, np.arange(rows), arguments.neighbors, device=arguments.device)}
        if faiss:
            work["faiss"] = functools.partial(lambda x: alone(faiss.IndexFlatL2(x.shape[1]), x, arguments.neighbors), x)
        seconds, _ = in_turn(work, 1)
        table.append({"rows": rows} | {name: each[0] for name, each in seconds.items()})
    return table


def solves(x: Singles, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds to make the graph, and of the solve over both layouts."""
    rows = np.arange(len(x))
    clock, figures = Clock(), {}  # type: tuple[Clock, dict[str, Any]]
    found, square = neighbors(x, rows, min(arguments.neighbors, len(x) - 1), device=arguments.device, index=arguments.solve_index)
    figures["seconds_of_neighbors"] = clock.lap()
    place = diffusion.layout(found)
    figures["seconds_of_layout"] = clock.lap()
    rng = np.random.default_rng(1)
    known, labels = rng.permutation(len(x))[: arguments.labeled], rng.integers(arguments.classes, size=arguments.labeled)
    diffusion.weigh(found, square, min(7, found.shape[1]))
    before = None
    for name, order in (("as they come", None), ("laid out", np.argsort(place))):
        clock.lap()
        listed = found.astype(np.int32) if order is None else place[found[order]].astype(np.int32)
        graph = diffusion.Graph(listed, square.copy() if order is None else square[order])
        seconds = clock.lap()
        found_here, reach = solved(graph, known if order is None else place[known], labels, arguments)
        figures[name] = {"seconds_of_graph": seconds} | found_here
        reach = reach if order is None else reach[place]
        figures[name]["difference_to_as_they_come"] = 0.0 if before is None else float(np.abs(reach - before).max())
        before = reach
        del graph, listed
    return figures


def solved(graph: diffusion.Graph, known: Rows, labels: Rows, arguments: argparse.Namespace) -> tuple[dict[str, Any], Doubles]:
    """Seconds of ours and of SciPy's, memory of ours, and the greatest difference; then the chance to meet a label."""
    memory = Memory()
    with memory:
        reach, _ = diffusion.diffused(graph, known, labels, arguments.steps, "margin", arguments.device)
    work: dict[str, Work] = {"rondo": lambda: diffusion.diffused(graph, known, labels, arguments.steps, "margin", arguments.device)}
    scipy = peer("scipy.sparse")
    if scipy:
        n, k = graph.listed.shape
        matrix = scipy.csr_matrix((graph.chance.ravel(), graph.listed.ravel(), np.arange(n + 1) * k), shape=(n, n))
        matrix = matrix + scipy.csr_matrix((graph.back_chance, graph.other, graph.start), shape=(n, n))
        work["scipy"] = lambda: looped(matrix, known, labels, arguments.classes, arguments.steps)
    seconds, last = in_turn(work, arguments.solve_repeats)
    figures: dict[str, Any] = {
        "all_seconds": seconds,
        "edges": int(graph.listed.size + graph.other.size),
        "peak_megabytes": round(memory.peak / 1e6),
    }
    if scipy:
        figures["times_faster"] = {"scipy": ratio(seconds["scipy"], seconds["rondo"])}
        figures["greatest_difference_of_reach"] = float(np.abs(last["scipy"].sum(axis=1) - reach).max())
    return figures, reach


def looped(matrix: Any, known: Rows, labels: Rows, classes: int, steps: int) -> Singles:
    """(n, classes) F, as one writes it down."""
    onehot = np.eye(classes, dtype=np.float32)[labels]
    f = np.zeros((matrix.shape[0], classes), np.float32)
    f[known] = onehot
    for _ in range(steps):
        f = matrix @ f
        f[known] = onehot
    return f


def in_turn(work: dict[str, Work], repeats: int) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds of each, so many times one after another, and what each gave last."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    last: dict[str, Any] = {}
    for _ in range(repeats):
        for name, each in work.items():
            clock = Clock()
            last[name] = each()
            seconds[name].append(clock.lap())
    return seconds, last


def ratio(slow: list[float], fast: list[float]) -> float:
    """Of the medians."""
    return round(statistics.median(slow) / statistics.median(fast), 2)


class Clock:
    """Seconds since it was made or asked last."""

    def __init__(self) -> None:
        self.started = time.perf_counter()

    def lap(self) -> float:
        """Seconds, and begin anew."""
        before, self.started = self.started, time.perf_counter()
        return round(self.started - before, 3)


if __name__ == "__main__":
    main()

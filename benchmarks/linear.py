"""The linear head beside scikit-learn's logistic regression: the same problem, solved until the gradient is as small.

    python -m benchmarks.linear [--rows 100000] [--dim 2048] [--classes 10] [--l2 0.01] [--repeats 1] [--threads 2] [--sklearn-rows 10000] [--device cpu]

Features are rectified random projections of overlapping clusters, as the last layer of a network has them: correlated, skewed, a few directions strong.
Ours standardises them; scikit-learn is given them standardised, in float64, and is stopped (lbfgs) by the same largest component of the gradient. It runs
on the first `--sklearn-rows` alone, beside ours on the same rows, with as many threads as OMP_NUM_THREADS says or there are cores. Memory is what the
process holds at most above what it held before.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from al_core.linear import TOLERANCE, Linear, fit
from al_core.seeds import generator
from benchmarks.record import write
from benchmarks.scale import Memory

Singles = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

HIDDEN = 64  # dimensions that the clusters live in
OVERLAP = 2.5  # their standard deviation, where their centres have 1


def main() -> None:
    """Measure and write benchmarks/results/linear.json, or linear-gpu.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--l2", type=float, default=0.01)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sklearn-rows", type=int, default=10_000, help="0: not beside it")
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    x, labels = examples(asked.rows, asked.dim, asked.classes)
    few = slice(0, asked.sklearn_rows)
    figures: dict[str, Any] = {"sizes": vars(asked), "alone": ours(x, labels, asked)}
    if asked.sklearn_rows:
        figures["beside scikit-learn"] = beside(x[few], labels[few], asked)
    print(write("linear", figures, asked.device).read_text())  # noqa: T201


def examples(rows: int, dim: int, classes: int) -> tuple[Singles, Rows]:
    """(rows, dim) features and (rows,) classes."""
    rng = generator(0, "linear")
    labels = rng.integers(classes, size=rows)
    centres = rng.standard_normal((classes, HIDDEN), np.float32)
    hidden = centres[labels] + OVERLAP * rng.standard_normal((rows, HIDDEN), np.float32)
    x = hidden @ rng.standard_normal((HIDDEN, dim), np.float32)
    x += rng.standard_normal(dim, np.float32)
    np.maximum(x, 0, out=x)
    return x, labels


def ours(x: Singles, labels: Rows, asked: argparse.Namespace) -> dict[str, Any]:
    """Seconds, memory, and the objective that is reached."""
    seconds, memory = [], Memory()
    for _ in range(asked.repeats):
        with memory:
            started = time.perf_counter()
            head = fit(x, labels, asked.classes, l2=asked.l2, device=torch.device(asked.device))
            seconds.append(round(time.perf_counter() - started, 2))
    return {"rows": len(x), "seconds": seconds, "peak_megabytes": round(memory.peak / 1e6), **judged(head, x, labels, asked)}


def beside(x: Singles, labels: Rows, asked: argparse.Namespace) -> dict[str, Any]:
    """Ours and scikit-learn's on the same rows."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    found = {"rondo": ours(x, labels, asked)}
    scale = StandardScaler().fit(x.astype(np.float64))
    standard = scale.transform(x.astype(np.float64))
    theirs = LogisticRegression(C=1 / (len(x) * asked.l2), tol=TOLERANCE * min(asked.l2, 1), max_iter=10_000)
    started = time.perf_counter()
    theirs.fit(standard, labels)
    seconds = time.perf_counter() - started
    weight = theirs.coef_ / scale.scale_
    head = Linear(weight.astype(np.float32), (theirs.intercept_ - weight @ scale.mean_).astype(np.float32))
    found["scikit-learn"] = {"seconds": [round(seconds, 2)], "iterations": int(theirs.n_iter_[0]), **judged(head, x, labels, asked)}
    ratio = seconds / float(np.median(found["rondo"]["seconds"]))
    return {**found, "times_faster": {"scikit-learn": round(ratio, 2)}}


def judged(head: Linear, x: Singles, labels: Rows, asked: argparse.Namespace) -> dict[str, float]:
    """The objective that a head reaches, in float64."""
    spread = x.std(0, dtype=np.float64)
    total = 0.0
    for start in range(0, len(x), 10_000):
        rows = slice(start, start + 10_000)
        logits = x[rows].astype(np.float64) @ head.weight.T.astype(np.float64) + head.bias
        logits -= logits.max(1, keepdims=True)
        total += float((np.log(np.exp(logits).sum(1)) - logits[np.arange(len(logits)), labels[rows]]).sum())
    ridge = asked.l2 / 2 * float(np.square(head.weight * spread).sum())
    return {"objective": round(total / len(x) + ridge, 8)}


if __name__ == "__main__":
    main()

"""Public k-center codes that benchmarks.kcenter runs beside Rondo, each out of its own files, which import much else."""

from __future__ import annotations

import abc
import ast
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Union

import numpy as np
import numpy.typing as npt
import torch

Singles = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Names = dict[str, Any]  # what the files define, by name


@dataclass(frozen=True)
class Peer:
    """A public code.

    Attributes:
        files: below the folder of clones, with the classes and functions that are read out of each.
        pick: (names, x, budget) -> picks, row 0 being labelled; an inexact one may begin elsewhere.
        exact: it makes the same picks as the definition, rounding aside.
        ordered: its picks come in the order in which they were made, not by their rows.
    """

    files: dict[str, tuple[str, ...]]
    pick: Callable[[Names, Singles, int], Rows]
    exact: bool = True
    ordered: bool = True

    def found(self, folder: Path) -> Callable[[Singles, int], Rows] | None:
        """What picks, or None with a word where a file or scikit-learn is missing."""
        missing = [path for path in self.files if not (folder / path).exists()]
        if missing:
            print(f"{missing[0].split('/')[0]} is not compared: clone it into the folder of --peers")  # noqa: T201
            return None
        names = surroundings()
        for path, wanted in self.files.items():
            tree = ast.parse((folder / path).read_text("utf-8"))
            body: list[ast.stmt] = [node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name in wanted]
            exec(compile(ast.Module(body, []), path, "exec"), names)  # noqa: S102
        return lambda x, budget: self.pick(names, x, budget)


class Flat:
    """What google's class inherits."""

    X: Singles

    def flatten_X(self) -> Singles:  # noqa: N802
        return self.X


def surroundings() -> Names:
    """What the files import, as far as what is read out of them needs it; bars of progress and lines about it are left out."""
    from sklearn.metrics import pairwise_distances, pairwise_distances_chunked
    from sklearn.utils.random import sample_without_replacement

    return {
        "np": SimpleNamespace(**vars(np) | {"in1d": np.isin}),  # NumPy's old name for it
        "torch": torch,
        "F": torch.nn.functional,
        "abc": abc,
        "Union": Union,
        "pairwise_distances": pairwise_distances,
        "pairwise_distances_chunked": pairwise_distances_chunked,
        "sample_without_replacement": sample_without_replacement,
        "SamplingMethod": Flat,
        "Strategy": object,
        "print": lambda *_: None,
    }


def bare(steps: range, **_: object) -> range:
    """In place of a bar of progress."""
    return steps


def google(names: Names, x: Singles, budget: int) -> Rows:
    """The steps of its `select_batch_`, whose last line NumPy 2 refuses."""
    peer = names["kCenterGreedy"](x, None, 0)
    peer.update_distances([0])
    picks: list[int] = []
    for _ in range(budget):
        picks.append(int(np.argmax(peer.min_distances)))
        peer.update_distances([picks[-1]])
    return np.array(picks)


def badge(names: Names, x: Singles, budget: int) -> Rows:
    """JordanAsh's."""
    return 1 + np.array(names["CoreSet"].furthest_first(None, x[1:], x[:1], budget))


def labelbench(names: Names, x: Singles, budget: int) -> Rows:
    """With a GB for its chunks."""
    names["tqdm"] = bare
    return 1 + np.array(names["CoresetSampling"].furthest_first(SimpleNamespace(working_memory_GB=1), x[1:], x[:1], budget))


def distil(names: Names, x: Singles, budget: int) -> Rows:
    """On the CPU."""
    at = torch.from_numpy(x)
    return 1 + np.array(names["CoreSet"].furthest_first(SimpleNamespace(device="cpu"), at[1:], at[:1], budget))


def deepcore(names: Names, x: Singles, budget: int) -> Rows:
    """Without the labelled row, which it returns too."""
    return np.array(names["k_center_greedy"](x, budget, names["euclidean_dist"], "cpu", already_selected=[0]))[1:]


def patchcore(names: Names, x: Singles, budget: int) -> Rows:
    """From ten rows at random, in a random projection."""
    names["tqdm"] = SimpleNamespace(tqdm=bare)
    with seeded():
        sampler = names["ApproximateGreedyCoresetSampler"]((budget + 0.5) / len(x), torch.device("cpu"))
        return np.array(sampler._compute_greedy_coreset_indices(sampler._reduce_features(torch.from_numpy(x))))


def anomalib(names: Names, x: Singles, budget: int) -> Rows:
    """From one row at random, in a random projection."""
    names["tqdm"] = bare
    with seeded():
        return np.array(names["KCenterGreedy"](torch.from_numpy(x), (budget + 0.5) / len(x)).select_coreset_idxs())


@contextlib.contextmanager
def seeded() -> Iterator[None]:
    """The global generators of torch and NumPy, which these codes draw from, at 0; torch's goes on afterwards as if nothing had been drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        yield


ANOMALIB = "anomalib/src/anomalib/models/components"
PEERS = {
    "google": Peer({"active-learning/sampling_methods/kcenter_greedy.py": ("kCenterGreedy",)}, google),
    "JordanAsh": Peer({"badge/query_strategies/core_set.py": ("CoreSet",)}, badge),
    "LabelBench": Peer({"LabelBench/LabelBench/strategy/strategy_impl/coreset_sampling.py": ("CoresetSampling",)}, labelbench),
    "DISTIL": Peer({"distil/distil/active_learning_strategies/core_set.py": ("CoreSet",)}, distil),
    "DeepCore": Peer(
        {"DeepCore/deepcore/methods/kcentergreedy.py": ("k_center_greedy",), "DeepCore/deepcore/methods/methods_utils/euclidean.py": ("euclidean_dist",)},
        deepcore,
        ordered=False,
    ),
    "patchcore": Peer(
        {"patchcore-inspection/src/patchcore/sampler.py": ("BaseSampler", "GreedyCoresetSampler", "ApproximateGreedyCoresetSampler")}, patchcore, exact=False
    ),
    "anomalib": Peer(
        {
            f"{ANOMALIB}/dimensionality_reduction/random_projection.py": ("NotFittedError", "SparseRandomProjection"),
            f"{ANOMALIB}/sampling/k_center_greedy.py": ("KCenterGreedy",),
        },
        anomalib,
        exact=False,
    ),
}

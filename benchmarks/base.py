"""MASE and BASE: what boundary distances cost beside the logits product that they follow, and beside tensors of rows x classes x dimensions.

    python -m benchmarks.base [--rows 1280000] [--dims 2048 512] [--classes 1000] [--budget 10000] [--device cpu] [--repeats 3]
    [--peer-rows 128] [--growth-rows 10000 100000 1000000] [--growth-budgets 100 1000 10000] [--peers DIR]

Every figure goes from embeddings to picks: the bare product computes all logits and forgets them; MASE and BASE compute them in the same way and select.
Both tensor forms run over `--peer-rows` rows alone and are given per row: one written here after the released code, the other, with `--peers DIR`, that
code itself (https://github.com/zeyademam/active_learning cloned into DIR). Their picks in float64 are compared with ours index by index.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import resource
import statistics
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from al_core import Pool, select
from al_core.methods.base import Boundaries, Distances, in_turn, quotas
from al_core.selection import lowest
from benchmarks.record import write

BLOCK_VALUES = {"cpu": 2**20, "cuda": 2**26}  # logits at a time
PEER_BATCH = 32  # rows at a time in the tensor forms: 262 MB a tensor at 1000 classes and 2048 dimensions


def main() -> None:
    """Measure and write benchmarks/results/base.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_280_000)
    parser.add_argument("--dims", type=int, nargs="+", default=[2048, 512])
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--budget", type=int, default=10_000)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peer-rows", type=int, default=128)
    parser.add_argument("--growth-rows", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--growth-budgets", type=int, nargs="*", default=[100, 1000, 10_000])
    parser.add_argument("--peers", type=Path, help="folder that holds a clone of zeyademam/active_learning")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {"rows": arguments.rows, "classes": arguments.classes, "budget": arguments.budget, "device": arguments.device}
    for dim in arguments.dims:
        scene = Scene(arguments.rows, dim, arguments.classes, arguments.device)
        figures[f"dim {dim}"] = found = against_product(scene, arguments.budget, arguments.repeats)
        found |= against_tensors(scene, arguments.peer_rows, arguments.repeats, arguments.peers, found["microseconds_a_row"]["mase"])
        if dim == min(arguments.dims):
            figures["growth"] = growth(scene, arguments.growth_rows, arguments.growth_budgets) | {"dim": dim}
    print(write("base", figures, arguments.device).read_text())  # noqa: T201


class Scene:
    """Clustered embeddings after a ReLU, with a head that has learnt the clusters, on the device."""

    def __init__(self, rows: int, dim: int, classes: int, device: str) -> None:
        self.device, self.block = device, max(1, BLOCK_VALUES[torch.device(device).type] // classes)
        draw = torch.Generator(device).manual_seed(0)
        self.weight = torch.randn(classes, dim, generator=draw, device=device) / dim**0.5
        self.weight *= torch.exp(0.2 * torch.randn(classes, 1, generator=draw, device=device))
        self.bias = 0.1 * torch.randn(classes, generator=draw, device=device)
        self.x = torch.empty(rows, dim, device=device)
        for part in self.parts(rows):
            x = torch.randn(self.x[part].shape, generator=draw, device=device)
            own = torch.randint(classes, (len(x),), generator=draw, device=device)
            x += 5 * self.weight[own] * torch.rand(len(x), 1, generator=draw, device=device)
            self.x[part] = x.relu_()

    def parts(self, rows: int, length: int | None = None) -> Iterator[slice]:
        """Slices over the rows."""
        length = length or self.block
        return (slice(start, min(start + length, rows)) for start in range(0, rows, length))

    def product(self, rows: int, length: int) -> None:
        """All logits, so many rows at a time, into one buffer."""
        out = torch.empty(length, len(self.weight), device=self.device)
        for part in self.parts(rows, length):
            torch.addmm(self.bias, self.x[part], self.weight.T, out=out[: part.stop - part.start])

    def distances(self, boundaries: Boundaries, rows: int) -> Iterator[tuple[slice, Distances]]:
        """Logits and distances, block by block."""
        out = torch.empty(self.block, len(self.weight), device=self.device)
        for part in self.parts(rows):
            yield part, boundaries.distances(torch.addmm(self.bias, self.x[part], self.weight.T, out=out[: part.stop - part.start]))

    def mase(self, rows: int, budget: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """MASE's picks."""
        boundaries = Boundaries(self.weight.cpu().numpy(), self.device)
        nearest = torch.cat([each.nearest for _, each in self.distances(boundaries, rows)])
        return lowest(nearest.cpu().numpy(), budget)

    def base(self, rows: int, budget: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """BASE's picks."""
        boundaries = Boundaries(self.weight.cpu().numpy(), self.device)
        return in_turn(lambda: self.distances(boundaries, rows), rows, *quotas(budget, len(self.weight), 0), self.device).rows

    def seconds(self, work: Callable[[], object]) -> float:
        """How long it takes."""
        self.wait()
        started = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - started

    def wait(self) -> None:
        """For what the device has been given to do."""
        if self.device != "cpu":
            torch.cuda.synchronize(self.device)

    def peak(self) -> float:
        """The most memory that this process, or its part of the device, has held, in MB."""
        if self.device != "cpu":
            return torch.cuda.max_memory_allocated(self.device) / 1e6
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def against_product(scene: Scene, budget: int, repeats: int) -> dict[str, Any]:
    """Seconds of the bare product, in blocks of our length or of eight times it, whichever is faster, and of both methods, in turn."""
    rows = len(scene.x)
    budget = min(budget, rows)
    work: dict[str, Callable[[], object]] = {
        "product": lambda: scene.product(rows, scene.block),
        "product in long blocks": lambda: scene.product(rows, 8 * scene.block),
        "mase": lambda: scene.mase(rows, budget),
        "base": lambda: scene.base(rows, budget),
    }
    scene.seconds(lambda: scene.product(min(rows, scene.block), scene.block))
    before = scene.peak()
    scene.mase(min(rows, 2 * scene.block), 1)
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(repeats):
        for name, each in work.items():
            seconds[name].append(scene.seconds(each))
    median = {name: statistics.median(each) for name, each in seconds.items()}
    bare = min(median["product"], median["product in long blocks"])
    return {
        "all_seconds": {name: [round(each, 3) for each in values] for name, values in seconds.items()},
        "mase_over_product": round(median["mase"] / bare, 3),
        "base_over_product": round(median["base"] / bare, 3),
        "product_gflops": round(2 * rows * scene.x.shape[1] * len(scene.weight) / bare / 1e9, 1),
        "microseconds_a_row": {name: round(1e6 * each / rows, 3) for name, each in median.items()},
        "extra_peak_megabytes": round(scene.peak() - before, 1),
    }


def against_tensors(scene: Scene, rows: int, repeats: int, peers: Path | None, ours: float) -> dict[str, Any]:
    """Time of the tensor forms over a few rows, against ours a row (in microseconds, picks included) over all, and whether float64 picks are equal."""
    rows = min(rows, len(scene.x))
    budget = max(1, rows // 4)
    x, weight, bias = scene.x[:rows], scene.weight, scene.bias
    forms: dict[str, Form] = {"tensors": TensorForm()}
    if peers:
        forms["zeyademam/active_learning"] = peer_form(peers, scene.device)
    else:
        sys.stderr.write("zeyademam/active_learning is skipped: no --peers\n")
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(repeats):
        for name, form in forms.items():
            seconds[name].append(scene.seconds(lambda form=form: form.distances(x, weight, bias)))  # type: ignore[misc]
    median = {name: 1e6 * statistics.median(each) / rows for name, each in seconds.items()}
    x, weight, bias = x.double(), weight.double(), bias.double()
    pool = Pool(logits=torch.addmm(bias, x, weight.T).cpu().numpy(), head=(weight.cpu().numpy(), bias.cpu().numpy()), device=scene.device)
    picks = {name: select(name, pool, budget=budget, seed=0).rows.tolist() for name in ("mase", "base")}
    equal = {form: {name: picks[name] == forms[form].query(name, x, weight, bias, budget) for name in picks} for form in forms}
    return {
        "microseconds_a_row_of_tensors": {name: round(each, 1) for name, each in median.items()},
        "times_faster": {name: round(each / ours, 1) for name, each in median.items()},
        "same_picks_in_float64": {"rows": rows, "budget": budget} | equal,
    }


class Form:
    """A way to MASE and BASE."""

    def distances(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(n,) predicted classes and (n, classes) distances to the boundaries, infinite for the predicted class."""
        raise NotImplementedError

    def query(self, name: str, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, budget: int) -> list[int]:
        """The picks of `mase` or `base`."""
        raise NotImplementedError


class TensorForm(Form):
    """The released code's steps: a difference of weights, a product and a move for every row and class, all of them kept."""

    def distances(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = [self.batch(each, weight, bias) for each in x.split(PEER_BATCH)]  # type: ignore[no-untyped-call]
        return torch.cat([each for each, _ in found]), torch.cat([each for _, each in found])

    def batch(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of some rows."""
        predicted = torch.addmm(bias, x, weight.T).argmax(dim=1)
        delta = weight[predicted][:, None, :] - weight  # (b, classes, d)
        gap = (x[:, None, :] * delta).sum(dim=2) + bias[predicted][:, None] - bias
        moves = -delta * (gap / (delta**2).sum(dim=2))[:, :, None]
        return predicted, torch.linalg.norm(moves, dim=2).nan_to_num_(nan=torch.inf)

    def query(self, name: str, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, budget: int) -> list[int]:
        predicted, to_class = self.distances(x, weight, bias)
        nearest = to_class.amin(dim=1)
        if name == "mase":
            return nearest.argsort(stable=True)[:budget].tolist()
        chosen: list[int] = []
        order, quota = quotas(budget, len(weight), 0)
        for number in order[quota[order] > 0].tolist():
            away = torch.where(predicted == number, nearest, to_class[:, number])
            away[chosen] = torch.inf
            chosen += away.argsort(stable=True)[: quota[number]].tolist()
        return chosen


def peer_form(peers: Path, device: str) -> Form:
    """The released samplers, over a stand-in for their data set and network; their base class, which asks for much more, is left out."""
    source = next(peers.glob("**/query_strategies/mase_sampler.py"), None)
    if source is None:
        raise SystemExit(f"{peers} holds no query_strategies/mase_sampler.py; clone https://github.com/zeyademam/active_learning into it")
    package, stand_in = types.ModuleType("query_strategies"), types.ModuleType("query_strategies.strategy")
    package.__path__ = [str(source.parent)]
    stand_in.Strategy = object  # type: ignore[attr-defined]
    sys.modules |= {"query_strategies": package, "query_strategies.strategy": stand_in}
    samplers: dict[str, Any] = {
        "mase": importlib.import_module("query_strategies.mase_sampler").MASESampler,
        "base": importlib.import_module("query_strategies.base_sampler").BASESampler,
    }
    if device == "cpu":  # one constant of theirs is on the GPU whatever the device
        torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]

    class Network(torch.nn.Module):
        """A head alone, called as theirs is."""

        def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype, device=weight.device)
            self.linear.load_state_dict({"weight": weight, "bias": bias})

        def forward(self, x: torch.Tensor, return_features: str = "", specify_input_layer: str = "") -> Any:
            """Logits, and with `return_features` the embeddings."""
            return (self.linear(x), x) if return_features else self.linear(x)

    class Released(Form):
        """Their samplers."""

        def sampler(self, name: str, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> Any:
            """One over these rows."""
            sampler = samplers[name].__new__(samplers[name])
            sampler.al_set = [(each, 0, row) for row, each in enumerate(x)]
            sampler.net, sampler.device, sampler.num_classes = Network(weight, bias), x.device, len(weight)
            sampler.logger, sampler.train_args = logging.getLogger("peer"), {"loader_te_args": {"batch_size": PEER_BATCH, "num_workers": 0}}
            sampler.available_query_idxs = lambda **_: np.arange(len(x))
            return sampler

        def distances(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            _, to_class, predicted, _ = self.sampler("mase", x, weight, bias).compute_margins(np.arange(len(x)))
            return predicted, to_class

        def query(self, name: str, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, budget: int) -> list[int]:
            picks: list[int] = self.sampler(name, x, weight, bias).query(budget)[0]
            return picks

    return Released()


def growth(scene: Scene, all_rows: list[int], budgets: list[int]) -> dict[str, Any]:
    """Seconds of the product and of both methods over the first rows, for several numbers of rows and picks; each once."""
    table = []
    for rows in (each for each in all_rows if each <= len(scene.x)):
        product = scene.seconds(lambda rows=rows: scene.product(rows, scene.block))  # type: ignore[misc]
        for budget in (each for each in budgets if each <= rows):
            mase = scene.seconds(lambda rows=rows, budget=budget: scene.mase(rows, budget))  # type: ignore[misc]
            base = scene.seconds(lambda rows=rows, budget=budget: scene.base(rows, budget))  # type: ignore[misc]
            table.append({"rows": rows, "budget": budget, "product": round(product, 3), "mase": round(mase, 3), "base": round(base, 3)})
    return {"table": table}


if __name__ == "__main__":
    main()

"""Processes that share a selection: real ones, over gloo, with the picks of one process."""

from __future__ import annotations

import json
import multiprocessing
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch.distributed
from numpy.lib.format import open_memmap

from al_core import Pool, Selection, select, softmax
from al_core.farthest import FarthestFirst
from al_core.methods import methods, uncertainty
from al_core.points import Points
from al_core.processes import ALONE, Processes, grouped

BUDGET = 40
SIGNALS = ("embeddings", "logits", "mc_probs", "predicted_loss", "discriminator")
MORE: list[tuple[str, dict[str, Any]]] = [
    ("badge", {"draw": "farthest"}),
    ("coreset", {"normalize": True}),
    ("entropy", {"stochastic": "power", "diversify": {"strength": 1.0}}),
    ("margin", {"partitions": 3}),
]
OF_HEADS = ("bald", "batchbald")  # once more with draws of the head in place of stored passes
CASES: list[tuple[str, dict[str, Any]]] = [(card.name, {}) for card in methods()] + MORE
SPAWN = multiprocessing.get_context("spawn")
FEW = {"margin", "base", "badge", "coreset"}  # run once more on a pool with fewer rows than processes


def write_signals(folder: Path, rows: int) -> None:
    """Every signal that is an array, as .npy files; embeddings lie in clusters, some of them twice."""
    rng = np.random.default_rng(rows)
    classes, dim = 7, 24
    embeddings = (rng.normal(size=(11, dim))[rng.integers(11, size=rows)] + 0.3 * rng.normal(size=(rows, dim))).astype(np.float32)
    embeddings[rows // 2 :: 97] = embeddings[: len(embeddings[rows // 2 :: 97])]
    weight = rng.normal(size=(classes, dim)).astype(np.float32)
    logits = embeddings @ weight.T
    noisy = np.exp(logits + rng.normal(size=(4, rows, classes)))
    arrays = {"embeddings": embeddings, "logits": logits, "mc_probs": noisy / noisy.sum(axis=2, keepdims=True)}
    arrays |= {"predicted_loss": rng.normal(size=rows), "discriminator": rng.uniform(size=rows), "weight": weight}
    for name, array in arrays.items():
        held = open_memmap(folder / f"{name}.npy", mode="w+", dtype=np.float32, shape=array.shape)
        held[...] = array
        held.flush()


def load_pool(folder: Path, *, drawn: bool = False, **more: Any) -> Pool:
    """A pool over memory maps, with labelled and excluded rows."""
    signals: dict[str, Any] = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in SIGNALS}
    weight = np.load(folder / "weight.npy")
    rows = np.arange(len(signals["logits"]))
    labeled = rows[5::13]
    head = (weight, np.zeros(len(weight), np.float32))
    if drawn:
        del signals["mc_probs"]
        mask = np.random.default_rng(0).random(size=(4, 1, weight.shape[1])) < 0.5
        signals["mc_heads"] = (weight * mask, np.zeros((4, len(weight))))
    return Pool(**signals, head=head, labeled=labeled, labels=labeled % len(weight), excluded=rows[3::26], truth=rows % len(weight), **more)


def every_case(folder: Path, few: Path, **more: Any) -> list[Selection]:
    pool, small, drawn = load_pool(folder, **more), load_pool(few, **more), load_pool(folder, drawn=True, **more)
    selections = [select(name, pool, budget=BUDGET, seed=3, **params) for name, params in CASES]
    selections += [select(name, small, budget=small.size, seed=3) for name in sorted(FEW)]
    return selections + [select(name, drawn, budget=BUDGET, seed=3) for name in OF_HEADS]


def saved(selections: list[Selection], path: Path) -> None:
    content = [{"rows": each.rows.tolist(), "scores": [None if np.isnan(s) else s.hex() for s in each.scores], "info": dict(each.info)} for each in selections]
    path.write_text(json.dumps(content), "utf-8")


def in_a_group(work: Callable[..., None], processes: int, folder: Path, *arguments: Any) -> None:
    """Run `work(rank, group, ...)` in so many processes."""
    started = [SPAWN.Process(target=join, args=(rank, work, processes, folder / "rendezvous", arguments)) for rank in range(processes)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    assert [process.exitcode for process in started] == [0] * processes


def join(rank: int, work: Callable[..., None], processes: int, meeting: Path, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    with grouped("gloo", init_method=f"file://{meeting}", rank=rank, world_size=processes, timeout=timedelta(seconds=120)) as group:
        work(rank, group, *arguments)


def select_all(rank: int, group: torch.distributed.ProcessGroup, folder: Path, few: Path, out: Path) -> None:
    with patch.object(uncertainty, "margin", wraps=softmax.margin) as margin:
        select("margin", load_pool(folder, process_group=group), budget=BUDGET, seed=3)
    looked_at = sum(len(call.args[0]) for call in margin.call_args_list)
    (out / f"looked_at{rank}").write_text(str(looked_at), "utf-8")
    saved(every_case(folder, few, process_group=group), out / f"{rank}.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("signals")
    write_signals(folder, 700)
    return folder


@pytest.fixture(scope="module")
def answers(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], list[list[Any]], Path]:
    """What one process picks, and what each of two picks."""
    few, out = tmp_path_factory.mktemp("few"), tmp_path_factory.mktemp("out")
    write_signals(few, 1)
    saved(every_case(folder, few), out / "alone.json")
    in_a_group(select_all, 2, out, folder, few, out)
    alone, *shared = (json.loads((out / f"{name}.json").read_text("utf-8")) for name in ("alone", 0, 1))
    return alone, shared, out


NAMES = [" ".join([name, *(f"{key}={value}" for key, value in params.items())]) for name, params in CASES] + [f"{name} of one row" for name in sorted(FEW)]
NAMES += [f"{name} over draws of the head" for name in OF_HEADS]


@pytest.mark.parametrize("number", range(len(NAMES)), ids=NAMES)
def test_every_process_picks_what_one_would(answers: tuple[list[Any], list[list[Any]], Path], number: int) -> None:
    alone, shared, _ = answers
    assert [each[number] for each in shared] == [alone[number]] * 2


def test_each_process_looks_at_its_share_alone(answers: tuple[list[Any], list[list[Any]], Path], folder: Path) -> None:
    looked_at = [int((answers[2] / f"looked_at{rank}").read_text("utf-8")) for rank in range(2)]
    assert sum(looked_at) == len(load_pool(folder).available)
    assert max(looked_at) - min(looked_at) <= 1


def sketched(processes: Processes) -> tuple[list[int], bool]:
    """The order in which rows that lie near few directions are picked, and whether sketches of them were made."""
    rng = np.random.default_rng(7)
    x = (rng.normal(size=(1500, 5)) @ rng.normal(size=(5, 300)) + 0.3 * rng.normal(size=(1500, 300))).astype(np.float32)
    greedy = FarthestFirst(Points.of(x, unit=True, processes=processes), np.arange(1, 1500), np.array([0]))
    greedy.patience = 0.0
    picks: list[int] = []
    for _ in range(600):
        picks.append(greedy.best()[0])
        greedy.take(picks[-1])
    return picks, greedy.sketches is not None


def sketch(rank: int, group: torch.distributed.ProcessGroup, out: Path) -> None:
    (out / f"sketched{rank}").write_text(json.dumps(sketched(Processes(group))), "utf-8")


def test_sketches_are_shared_too(tmp_path: Path) -> None:
    in_a_group(sketch, 2, tmp_path, tmp_path)
    picks, made = sketched(ALONE)
    assert made
    assert [json.loads((tmp_path / f"sketched{rank}").read_text("utf-8")) for rank in range(2)] == [[picks, True]] * 2


def ends_otherwise(rank: int, group: torch.distributed.ProcessGroup, folder: Path) -> None:
    def impatient(pool: Pool, budget: int, rng: np.random.Generator) -> Selection:
        return Selection(pool.available[rank : rank + budget], np.zeros(budget), {"rank": rank})

    module = sys.modules["al_core.select"]
    with patch.object(module, "build", lambda *_: impatient), patch.object(module, "needs", lambda _: ()):
        selection = select("robust-coreset", load_pool(folder, process_group=group), budget=3, seed=0)
    assert selection.info == {"rank": 0}


def test_what_the_first_process_found_holds_for_all(folder: Path, tmp_path: Path) -> None:
    in_a_group(ends_otherwise, 2, tmp_path, folder)


def disagree(rank: int, group: torch.distributed.ProcessGroup, folder: Path) -> None:
    expected = r"process \d was asked for a selection .* call it alike in all processes of the group"
    if rank == 0:
        expected = "process 1 was asked for a selection .*'margin', 5, 1, .*, this one for .*'margin', 5, 0, "
    with pytest.raises(ValueError, match=expected):
        select("margin", load_pool(folder, process_group=group), budget=5, seed=rank)
    with pytest.raises(ValueError, match="was asked for a selection"):  # as many rows, but others
        select("margin", load_pool(folder, process_group=group).without([10 + rank]), budget=5, seed=0)


def test_calls_that_differ_are_refused_in_every_process(folder: Path, tmp_path: Path) -> None:
    in_a_group(disagree, 2, tmp_path, folder)


def test_shares_make_up_all_rows_in_order() -> None:
    class Group:
        def __init__(self, rank: int, size: int) -> None:
            self.rank, self.size = lambda: rank, lambda: size

    rows = np.arange(100, 117)
    shares = [Processes(Group(rank, 5)).share(rows) for rank in range(5)]  # type: ignore[arg-type]
    assert np.concatenate(shares).tolist() == rows.tolist()
    assert {len(share) for share in shares} == {3, 4}

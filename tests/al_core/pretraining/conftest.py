"""Real processes of a torch.distributed group, over gloo."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from al_core.processes import grouped


def member(rank: int, meet: str, work: Callable[..., Any], arguments: tuple[Any, ...], results: str) -> None:
    """One process: join the group, work, and leave what came of it in a file."""
    torch.set_num_threads(1)
    with grouped("gloo", init_method=f"file://{meet}", rank=rank, world_size=2, timeout=timedelta(seconds=120)):
        torch.save(work(rank, *arguments), f"{results}.{rank}")
    assert not group_threads(), "the group outlived its end, and a thread of it may kill the process as it exits"


def group_threads() -> list[str]:
    """Threads of gloo's groups in this process, where Linux tells them."""
    return [name for task in Path("/proc/self/task").glob("*/comm") if "gloo" in (name := task.read_text("utf-8"))]


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[Any]]:
    """Runs `work(rank, *arguments)`, of a module, in two processes; what each gave. Starting them takes seconds."""

    def run(work: Callable[..., Any], *arguments: Any) -> list[Any]:
        tmp_path = tmp_path_factory.mktemp("processes")
        spawn = multiprocessing.get_context("spawn")
        processes = [spawn.Process(target=member, args=(rank, str(tmp_path / "meet"), work, arguments, str(tmp_path / "result"))) for rank in range(2)]
        for each in processes:
            each.start()
        for each in processes:
            each.join(120)
        assert [each.exitcode for each in processes] == [0, 0]
        return [torch.load(tmp_path / f"result.{rank}", weights_only=False) for rank in range(2)]

    return run

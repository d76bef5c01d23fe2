"""A function run by several processes of a torch.distributed group, on this machine and, where the same stage runs there too, on others."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

from tasks import environment
from tasks.environment import Description
from tasks.errors import RondoError
from tasks.params import Launch
from tasks.process import die_with_parent

Result = TypeVar("Result")

RENDEZVOUS = "RONDO_RENDEZVOUS"  # environment: host:port where the nodes meet, on one of them


class LaunchError(RondoError):
    """The processes could not be started, or one of them failed."""


def launched(function: Callable[..., Result], arguments: tuple[Any, ...], launch: Launch) -> tuple[Result, list[Description]]:
    """What the function gives in this node's first process, in the group's other processes it runs alike; and the environment of each, on all nodes.

    Args:
        function: of a module, since the processes import it; called with the arguments.
        arguments: picklable.
        launch: how many processes; one runs here, without a group, and no environment is told.

    Raises:
        LaunchError: a process failed, with what it said; or several nodes and no place to meet.
    """
    if launch.processes == launch.nodes == 1:
        return function(*arguments), []
    meet = os.environ.get(RENDEZVOUS, "")
    if launch.nodes > 1 and not meet:
        raise LaunchError(f"launch.nodes is {launch.nodes}, so {RENDEZVOUS} has to say where they meet: HOST:PORT of one of them, the same on all")
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=launch.nodes,
        max_nodes=launch.nodes,
        nproc_per_node=launch.processes,
        run_id="rondo",
        rdzv_backend="c10d",
        rdzv_endpoint=meet or "localhost:0",
        max_restarts=0,
        start_method="spawn",
        logs_specs=DefaultLogsSpecs(),
    )
    try:
        results: dict[int, tuple[Result, list[Description]]] = elastic_launch(config, member)(function, arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise LaunchError(f"process {rank} of {launch.processes * launch.nodes} failed: {said(failure.message)}") from error
    return results[min(results)]


def member(function: Callable[..., Result], arguments: tuple[Any, ...]) -> tuple[Result | None, list[Description]] | None:
    """Run the function as one process of the group; what it gives counts in the first of a node, and is not sent from the others."""
    die_with_parent()
    import torch
    from torch.distributed.elastic.multiprocessing.errors import record

    from al_core.processes import grouped

    local = int(os.environ["LOCAL_RANK"])
    if torch.cuda.is_available():
        torch.cuda.set_device(local)
    with grouped():
        result = record(function)(*arguments)
        environments = processes().gathered(environment.describe())  # after the function, which has used a GPU by now or never does
    return (result, environments) if local == 0 else None


def said(message: Any) -> str:
    """What a process said when it failed."""
    content = message.get("message", message) if isinstance(message, dict) else message
    return str(content)


def processes() -> Any:
    """The group that this process is a member of, or itself alone."""
    import torch.distributed

    from al_core.processes import ALONE, Processes

    return Processes(torch.distributed.group.WORLD) if torch.distributed.is_initialized() else ALONE

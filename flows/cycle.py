"""The labelling cycle as a Prefect flow: each run takes a workspace as far as it can go and ends in a named state.

Only paths and names pass between tasks; DVC is the cache and the only writer of results, so a run that is cut off or repeated does nothing twice.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed
from pydantic import Field

from flows import live, results, tracking
from tasks import rounds
from tasks.errors import RondoError
from tasks.lock import locked
from tasks.report import write_report
from tasks.workspace import Round, Workspace


@task(task_run_name="{name} {stage}", cache_policy=NO_CACHE)
def run_stage(root: str, name: str, stage: str) -> State[Any] | None:
    """Bring one stage up to date with `dvc repro --single-item`, its output in this task's log and its result in the artifacts."""
    this, logger = Round(Path(root), name), get_run_logger()
    try:
        with live.followed(Workspace(Path(root)), this, stage, logger.warning):
            changed = rounds.run_stage(this, stage, on_line=logger.info)
        if changed:
            results.publish(this, stage)
    except RondoError as error:  # its text is all that a user needs; no traceback
        return Failed(message=str(error), data=error)
    return None


@task(task_run_name="{name} report", cache_policy=NO_CACHE)
def report(root: str, name: str) -> None:
    """Write the round's report.html."""
    get_run_logger().info("report: %s", write_report(Workspace(Path(root)), name))


@task(task_run_name="{name} track", cache_policy=NO_CACHE)
def track(root: str, name: str) -> None:
    """Log the round to MLflow; nothing is added where it already is there."""
    get_run_logger().info("MLflow: %s", tracking.track(Workspace(Path(root)), name))


@flow(name="rondo-cycle", flow_run_name="{workspace.name}", description=__doc__, log_prints=True)
def cycle(
    workspace: Annotated[Path, Field(description="folder of the workspace")],
    max_rounds: Annotated[int | None, Field(ge=1, description="close at most this many rounds; empty: go on until people or the budget stop it")] = None,
) -> State[Any]:
    """Advance the workspace; ends in AwaitingLabels, RoundClosed or BudgetSpent."""
    found = Workspace.find(workspace)
    root = str(found.root)

    def finish(this: Round) -> None:
        report(root, this.name)
        track(root, this.name)

    def run(this: Round, stage: str) -> None:
        run_stage(root, this.name, stage, return_state=True).result()  # raises what the stage failed with

    try:
        with locked(found):
            state = rounds.advance(found, run, finish, max_rounds, on_line=get_run_logger().info)
    except RondoError as error:
        return Failed(message=str(error), data=error)
    return Completed(name=state.name, message=state.message)

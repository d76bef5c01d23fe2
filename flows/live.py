"""The curve of a training in MLflow while its stage runs, from the lines that the stage writes: a stage itself never needs a server."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from al_core.errors import first_line
from flows import tracking
from flows.addresses import redact
from tasks import git
from tasks.artifacts import PretrainCurve
from tasks.stage import scratch_of
from tasks.workspace import Round, Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient

CURVES = {"pretrain": PretrainCurve}  # stages that write one
SECONDS = 1.0  # between two looks at the file


@contextmanager
def followed(workspace: Workspace, this: Round, stage: str, warn: Callable[[str], object]) -> Iterator[None]:
    """Log a stage's curve while the block runs it: one run a pool or round and stage, which replaces that of an earlier try.

    Nothing is logged where the stage has no curve or is not run. What goes wrong with MLflow is told in one line and hinders nothing.
    """
    if stage not in CURVES:
        yield
        return
    follower = Follower(workspace, this, stage, warn)
    thread = threading.Thread(target=follower.watch, name=f"{stage} curve", daemon=True)
    thread.start()
    try:
        yield
        follower.succeeded = True
    finally:
        follower.over.set()
        thread.join()


class Follower:
    """Watches the file that a stage writes its curve to."""

    def __init__(self, workspace: Workspace, this: Round, stage: str, warn: Callable[[str], object]) -> None:
        self.workspace, self.this, self.stage, self.warn = workspace, this, stage, warn
        name = Path(CURVES[stage].file).name
        self.growing, self.whole = scratch_of(this.path, stage) / name, this.path / name
        self.over, self.succeeded = threading.Event(), False
        self.lines = 0  # logged
        self.run = ""

    def watch(self) -> None:
        """Until the stage is over."""
        try:
            while not self.over.wait(SECONDS):
                self.log(self.growing)
            if self.run:
                if self.succeeded:
                    self.log(self.whole)
                self.client.set_terminated(self.run, "FINISHED" if self.succeeded else "FAILED")
        except Exception as error:  # of MLflow's, of its database's, of the network's
            self.warn(f"MLflow does not show the curve of {self.this.name} {self.stage} ({redact(first_line(error))}); the stage goes on")

    def log(self, path: Path) -> None:
        """Log the lines that were not there at the last look."""
        lines = path.read_text("utf-8").splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]
        new = [json.loads(line) for line in whole[self.lines :]]
        if new and not self.run:
            self.client, self.run = self.begin()
        for line in new:
            epoch = line.pop("epoch")
            tracking.log(self.client, self.run, metrics=tracking.points({name: value for name, value in line.items() if value is not None}, epoch))
        self.lines = max(self.lines, len(whole))

    def begin(self) -> tuple[MlflowClient, str]:
        """A new run in place of that of an earlier try."""
        client, experiment = tracking.connected(self.workspace)
        begun = git.git(self.workspace.root, "rev-list", "--max-parents=0", "HEAD").split()[0]  # of this workspace alone; others may bear its name
        mine = {"round": self.this.name, "curve": self.stage, "workspace_commit": begun}
        for earlier in client.search_runs([experiment], " and ".join(f"tags.{key} = '{value}'" for key, value in mine.items())):
            client.delete_run(earlier.info.run_id)
        tags = {**mine, "code": self.this.params.code, **tracking.source(self.this)}
        run = client.create_run(experiment, tags=tags, run_name=f"{self.this.name} {self.stage}")
        tracking.log(client, run.info.run_id, tracking.flat(self.this.params.model_dump(mode="json", by_alias=True)[self.stage]))
        return client, str(run.info.run_id)

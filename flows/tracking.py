"""A closed round in MLflow: written from the round's files and dvc.lock alone, so a stage never needs a server and a replay makes no second truth.

One experiment a workspace, one parent run a round, one child run a stage. The key is (round, md5 of dvc.lock): a finished run with it is never
written again, one that was cut off is deleted and written anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.metadata
import json
import os
import posixpath
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from flows.addresses import redact, responds
from tasks import environment
from tasks.artifacts import AcquireReport, Batch, Estimate, ImportReport, IngestReport, Labels, Manifest, Metrics, Selection
from tasks.errors import ArtifactError, WorkspaceError
from tasks.models import Model
from tasks.params import Params
from tasks.rounds import summary
from tasks.workspace import Round, Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Metric
    from torch import nn

DATABASES = ("sqlite", "postgresql", "mysql", "mssql", "file", "")  # schemes where this process, not a server, decides where artifacts lie
PARAM_CHARS, PARAMS_A_BATCH, METRICS_A_BATCH = 6000, 100, 1000  # MLflow's limits
SETTINGS = {
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",  # unpickling runs whatever the file says
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}


def track(workspace: Workspace, name: str) -> str:
    """Write a round whose stages have all run to MLflow, or find it there; where it is, in one line.

    Raises:
        WorkspaceError: there is no such round, stages are missing, or MLflow does not take it.
        ArtifactError: a file of the round is missing or damaged.
    """
    this = workspace.find_round(name)
    require_tracked(this)
    configure()
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    uri = tracking_uri(workspace)
    lock = hashlib.md5((this.path / "dvc.lock").read_bytes(), usedforsecurity=False).hexdigest()
    try:
        client, experiment = connected(workspace)
        there = written(client, experiment, this, lock)
        run = there or write(client, experiment, workspace, this, lock)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        reason = redact(str(error).split("\n")[0])
        raise WorkspaceError(f"MLflow at {redact(uri)} does not take {name}: {reason}; the round is safe, close it again when this is mended") from error
    return f"{name} is run {run} of experiment {workspace.root.name!r} in {redact(uri)}{'; it was there already' if there else ''}"


def configure() -> None:
    """Settle what MLflow reads from the environment when it is imported."""
    for key, value in SETTINGS.items():
        os.environ.setdefault(key, value)


def connected(workspace: Workspace) -> tuple[MlflowClient, str]:
    """A client, and the id of the workspace's experiment.

    Raises:
        WorkspaceError: a server does not answer; and what MLflow raises.
    """
    configure()
    from mlflow import MlflowClient

    uri = tracking_uri(workspace)
    require_answer(uri)
    client = MlflowClient(tracking_uri=uri)
    return client, experiment_of(client, workspace, uri)


def tracking_uri(workspace: Workspace) -> str:
    """MLFLOW_TRACKING_URI, or else a database of the workspace's own."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(workspace.private / 'mlflow.db').absolute().as_posix()}"


def artifact_location(workspace: Workspace, uri: str) -> str | None:
    """Where artifacts go: into the workspace, unless a server decides."""
    return (workspace.private / "mlartifacts").absolute().as_uri() if urlsplit(uri).scheme.split("+")[0] in DATABASES else None


def require_tracked(this: Round) -> None:
    """Raise unless it is a round and complete."""
    if this.is_pool:
        raise WorkspaceError(f"{this.name} is a pool; rounds are tracked, each with its pool as data set")
    if this.unrun:
        raise WorkspaceError(f"{this.name} cannot be tracked: {', '.join(this.unrun)} did not run yet; `rondo run` runs what can run")


def require_answer(uri: str) -> None:
    """Raise where MLflow is a server that does not answer: the client would go on trying for minutes."""
    if urlsplit(uri).scheme in ("http", "https") and not responds(f"{uri.rstrip('/')}/health"):
        raise WorkspaceError(
            f"the MLflow server {redact(uri)} (MLFLOW_TRACKING_URI) does not answer; start it, or unset MLFLOW_TRACKING_URI to track inside the workspace"
        )


def experiment_of(client: MlflowClient, workspace: Workspace, uri: str) -> str:
    """Id of the workspace's experiment, made where it is missing."""
    name = workspace.root.name
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    return str(client.create_experiment(name, artifact_location(workspace, uri), tags={"mlflow.experimentKind": "custom_model_development"}))


# ---- once ----------------------------------------------------------------------------------------------------------------


def written(client: MlflowClient, experiment: str, this: Round, lock: str) -> str | None:
    """Id of the finished run with this round and lock; what was left half-written is deleted."""
    found = None
    for run in client.search_runs([experiment], f"tags.round = '{this.name}' and tags.dvc_lock_md5 = '{lock}'"):
        if run.info.status == "FINISHED":
            found = str(run.info.run_id)
        else:
            delete(client, experiment, run.info.run_id)
    return found


def delete(client: MlflowClient, experiment: str, parent: str) -> None:
    """Delete a run with its children and models; the parent last, so that a deletion that is cut off is found again."""
    for model in client.search_logged_models([experiment], f"source_run_id = '{parent}'"):
        client.delete_logged_model(model.model_id)
    for child in client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'"):
        client.delete_run(child.info.run_id)
    client.delete_run(parent)


def write(client: MlflowClient, experiment: str, workspace: Workspace, this: Round, lock: str) -> str:
    """Write the round; its run is marked as finished at the very end. Gives the run's id."""
    run = str(client.create_run(experiment, tags=tags(this, lock), run_name=this.name).info.run_id)
    try:
        log(client, run, flat(this.params.model_dump(mode="json", by_alias=True)))
        client.log_inputs(run, datasets(this))
        for stage in this.stages:
            write_stage(client, experiment, run, this, stage)
        for path in files(this):
            client.log_artifact(run, str(path))
        model = write_model(client, experiment, run, this)
        log(client, run, metrics=curve(workspace, this, model))
        client.set_terminated(run, "FINISHED")
    except BaseException:
        with contextlib.suppress(Exception):
            client.set_terminated(run, "FAILED")
        raise
    return run


def write_stage(client: MlflowClient, experiment: str, parent: str, this: Round, stage: str) -> None:
    """The child run of a stage: its knobs, the md5 of what it read and wrote, its seconds and counts."""
    tags = {"round": this.name, "stage": stage, "mlflow.parentRunId": parent, **source(this)}
    run = client.create_run(experiment, tags=tags, run_name=stage).info.run_id
    section = this.params.model_dump(mode="json", by_alias=True)[stage]
    log(client, run, flat(section) | hashes(this, stage), points(counts(this, stage), this.number))
    client.set_terminated(run, "FINISHED")


def log(client: MlflowClient, run: str, params: Mapping[str, str] | None = None, metrics: Sequence[Metric] = ()) -> None:
    """Params and metrics in as few calls as MLflow's limits allow."""
    from mlflow.entities import Param

    pairs = [Param(key, value) for key, value in (params or {}).items()]
    for start in range(0, len(pairs), PARAMS_A_BATCH):
        client.log_batch(run, params=pairs[start : start + PARAMS_A_BATCH])
    for start in range(0, len(metrics), METRICS_A_BATCH):
        client.log_batch(run, metrics=metrics[start : start + METRICS_A_BATCH])


# ---- what is logged --------------------------------------------------------------------------------------------------------


def tags(this: Round, lock: str) -> dict[str, str]:
    """What runs are found by."""
    params = this.params
    content = {
        "round": this.name,
        "dvc_lock_md5": lock,
        "code": params.code,
        "method": str(params.acquire.method["name"]),
        "seed": str(params.seed),
        "pool": pool_of(this).name,
        "mlflow.note.content": summary(this),
        **source(this),
    }
    flow_run = flow_run_id()
    return content | ({"prefect.flow_run_id": flow_run} if flow_run else {})


def source(this: Round) -> dict[str, str]:
    """What made the run, in the tags that MLflow's pages show; MLflow itself would put this machine's paths there."""
    return {"mlflow.source.name": f"rondo {this.params.code}", "mlflow.source.type": "LOCAL"}


def flow_run_id() -> str | None:
    """Id of the Prefect flow run that we are in, if any; Prefect is not imported only to find that out."""
    if "prefect" not in sys.modules:
        return None
    from prefect.runtime import flow_run

    return str(flow_run.id) if flow_run.id else None


def flat(content: dict[str, Any]) -> dict[str, str]:
    """Nested params as MLflow takes them: keys joined by dots, values cut at its limit, without credentials."""
    texts = {key: redact(text) for key, text in environment.flatten(content).items()}
    return {key: text if len(text) <= PARAM_CHARS else f"{text[: PARAM_CHARS - 1]}…" for key, text in texts.items()}


def hashes(this: Round, stage: str) -> dict[str, str]:
    """md5 by path in the workspace of what DVC recorded that the stage read and wrote."""
    found = {}
    for verb, key in (("reads", "deps"), ("writes", "outs")):
        for item in this.lock[stage].get(key, []):
            found[f"{verb}/{posixpath.normpath(posixpath.join(this.folder, item['path']))}"] = str(item["md5"])
    return found


def counts(this: Round, stage: str) -> dict[str, float]:
    """Seconds of the stage where they were measured, bytes it wrote, and the numbers of its report."""
    recorded = environment.load(this.path).get(stage, {})
    numbers = {"seconds": float(recorded["seconds"])} if "seconds" in recorded else {}
    numbers["output_bytes"] = float(sum(item["size"] for item in this.lock[stage].get("outs", [])))
    if stage == "acquire":
        acquired = AcquireReport.load(this.file(AcquireReport.file))
        numbers |= {key: float(getattr(acquired, key)) for key in ("acquired", "control", "unlabelled", "labelled")}
    if stage == "import-labels":
        imported = ImportReport.load(this.file(ImportReport.file))
        numbers |= {key: float(getattr(imported, key)) for key in ("batch", "labelled", "skipped", "unanswered")}
        numbers["rejected"] = float(sum(imported.rejected.values()))
    return numbers


def curve(workspace: Workspace, this: Round, model: str) -> list[Metric]:
    """The figures of this round and, so that a run alone shows the curve, of the rounds before it; recall by class of this round only."""
    before = [each for each in workspace.all("rounds") if each.number < this.number and each.file(Metrics.file).exists()]
    metrics = Metrics.load(this.file(Metrics.file))
    history = [point for each in before for point in points(figures(Metrics.load(each.file(Metrics.file))), each.number)]
    recall = {f"recall/{metric_name(name)}": estimate.value for name, estimate in metrics.recall.items() if estimate}
    return [*history, *points(figures(metrics), this.number, model), *points(recall, this.number)]


def figures(metrics: Metrics) -> dict[str, float]:
    """The round's figures under names that never change; those that could not be measured are left out."""
    numbers: dict[str, float | None] = {name: getattr(metrics, name) for name in ("labels", "train_accuracy", "temperature", "l2")}
    for name in Metrics.estimates():
        numbers |= interval(name, getattr(metrics, name))
    return {name: float(number) for name, number in numbers.items() if number is not None}


def interval(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    """A figure and both ends of its interval."""
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high} if estimate else {}


def points(numbers: Mapping[str, float], step: int, model: str | None = None) -> list[Metric]:
    """Metrics at one step, of a model too where one is given."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    return [Metric(name, value, now, step, model_id=model) for name, value in numbers.items()]


def metric_name(text: str) -> str:
    """The text with each character that MLflow refuses in a name replaced by its number: c++ is c_2b__2b_."""
    return re.sub(r"[^\w \-]", lambda match: f"_{ord(match[0]):x}_", text)[:200]


def pool_of(this: Round) -> Round:
    """The pool that the round looks at."""
    return Round(this.root, this.file("${pool}/params.yaml").parent.name)


def datasets(this: Round) -> list[DatasetInput]:
    """The pool and the labels by digest: names and hashes, never rows."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    pool = pool_of(this)
    counted = IngestReport.load(this.file(IngestReport.file))
    origin = json.dumps({"uri": redact(Params.load(pool.path / "params.yaml").ingest.source)})
    profile = json.dumps({"images": counted.images, "bytes": counted.bytes, "splits": counted.splits}, sort_keys=True)
    images = Dataset(pool.name, recorded(this, "embed", "deps", Manifest.file), "rondo", origin, profile=profile)
    labels = Dataset(f"{this.name} labels", recorded(this, "import-labels", "outs", Labels.file), "rondo", json.dumps({"uri": f"{this.folder}/labels.parquet"}))
    return [DatasetInput(each, [InputTag("mlflow.data.context", context)]) for each, context in ((images, "pool"), (labels, "train"))]


def recorded(this: Round, stage: str, key: str, file: str) -> str:
    """md5 of one file as DVC recorded it."""
    wanted = this.file(file)
    for item in this.lock[stage].get(key, []):
        if Path(os.path.normpath(this.path / item["path"])) == wanted:
            return str(item["md5"])
    raise ArtifactError(f"{this.folder}/dvc.lock has no {wanted.name} among {key} of {stage}; restore it with `git checkout {this.folder}/dvc.lock`")


def files(this: Round) -> Iterator[Path]:
    """What is kept beside the run."""
    required = [this.file(each.file) for each in (Selection, AcquireReport, Metrics)]
    for path in [*required, this.file(Batch.file) / "contact_sheet.png"]:
        if not path.exists():
            raise ArtifactError(f"{path} is missing; run the stage that writes it, or `dvc pull {path}`")
        yield path
    report = this.path / "report.html"
    if report.exists():
        yield report


# ---- the model -------------------------------------------------------------------------------------------------------------


def write_model(client: MlflowClient, experiment: str, run: str, this: Round) -> str:
    """The classifier as a LoggedModel of the run, exported by torch (pt2): no code and no pickle that needs trust. Gives its id.

    Takes (n, 3, S, S) float32 in [0, 1], gives (n, classes) logits; the classes are in the model's metadata, in order.
    """
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model as ModelFile

    model = Model.load(this.file(Model.file))
    if model.head is None:
        raise ArtifactError(f"{this.file(Model.file)} has no head; run retrain again")
    about = {"classes": model.head.classes, "encoder": model.encoder, "image_size": model.image_size}
    params = flat(about)
    marks = {"round": this.name, "code": this.params.code, "md5": recorded(this, "retrain", "outs", Model.file)}
    logged = client.create_logged_model(experiment, "classifier", source_run_id=run, tags=marks, params=params, model_type="image-classifier")
    meta = ModelFile(artifact_path="classifier", run_id=run, model_uuid=logged.model_id, model_id=logged.model_id, metadata=about)
    with tempfile.TemporaryDirectory() as scratch:
        save_pt2(model, Path(scratch) / "model", meta)
        client.log_model_artifacts(logged.model_id, str(Path(scratch) / "model"))
    client.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(run, [LoggedModelOutput(logged.model_id, this.number)])
    return str(logged.model_id)


def save_pt2(model: Model, folder: Path, meta: Any) -> None:
    """The classifier as a folder that MLflow loads and serves."""
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    assert model.head is not None
    size, float32 = model.image_size, np.dtype(np.float32)
    signature = ModelSignature(Schema([TensorSpec(float32, (-1, 3, size, size))]), Schema([TensorSpec(float32, (-1, len(model.head.classes)))]))
    pytorch_flavor().save_model(
        classifier(model),
        str(folder),
        mlflow_model=meta,
        signature=signature,
        input_example=np.full((2, 3, size, size), 0.5, np.float32),  # two: torch takes a batch of one for a constant
        serialization_format="pt2",
        pip_requirements=[
            f"{name}=={importlib.metadata.version(name).split('+')[0]}" for name in ("mlflow", "numpy", "torch")
        ],  # else MLflow runs it to find out
    )


def classifier(model: Model) -> nn.Module:
    """Encoder and head as one network, in evaluation mode on the CPU."""
    import torch

    assert model.head is not None
    encoder = model.network()
    head = torch.nn.Linear(encoder.dim, len(model.head.classes))
    head.load_state_dict({"weight": torch.from_numpy(model.head.weight.copy()), "bias": torch.from_numpy(model.head.bias.copy())})
    return torch.nn.Sequential(encoder, head).eval()


def pytorch_flavor() -> Any:
    """`mlflow.pytorch`, without the lightning that it would import where it finds it, for a callback that nobody uses here: that takes seconds."""
    absent: dict[str, Any] = {"pytorch_lightning": None} if "pytorch_lightning" not in sys.modules else {}  # None: Python takes it for not installed
    sys.modules.update(absent)
    try:
        return importlib.import_module("mlflow.pytorch")
    finally:
        for name in absent:
            del sys.modules[name]

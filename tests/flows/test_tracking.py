from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, Run

from flows import tracking
from tasks.artifacts import Metrics
from tasks.errors import ArtifactError, WorkspaceError
from tasks.models import Model
from tasks.workspace import Round, Workspace

STAGES = {"embed", "acquire", "export", "import-labels", "retrain"}


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def own(finished: Workspace, empty_database: Path, unset: None) -> Workspace:
    """Two closed rounds, none of them tracked."""
    finished.private.mkdir(exist_ok=True)
    shutil.copy(empty_database, finished.private / "mlflow.db")
    return finished


@pytest.fixture(scope="session")
def tracked(finished_once: Path, empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Both rounds tracked; not to be changed."""
    root = tmp_path_factory.mktemp("tracked") / "two words"
    shutil.copytree(finished_once, root, symlinks=True)
    workspace = Workspace(root)
    workspace.private.mkdir(exist_ok=True)
    shutil.copy(empty_database, workspace.private / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert tracking.track(workspace, "r001").startswith("r001 is run ")
        tracking.track(workspace, "r002")
    return workspace


def client_of(workspace: Workspace) -> MlflowClient:
    return MlflowClient(f"sqlite:///{workspace.private / 'mlflow.db'}")


def runs(workspace: Workspace, query: str = "") -> list[Run]:
    client = client_of(workspace)
    experiment = client.get_experiment_by_name(workspace.root.name)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], query))


def parent(workspace: Workspace, name: str) -> Run:
    (found,) = (run for run in runs(workspace) if run.info.run_name == name)
    return found


def models(workspace: Workspace) -> list[LoggedModel]:
    client = client_of(workspace)
    experiment = client.get_experiment_by_name(workspace.root.name)
    assert experiment is not None
    return list(client.search_logged_models([experiment.experiment_id]))


def rows(workspace: Workspace) -> dict[str, int]:
    """How much there is in the database and beside it, what is marked as deleted not counted."""
    with sqlite3.connect(workspace.private / "mlflow.db") as database:
        alive = "run_uuid in (select run_uuid from runs where lifecycle_stage = 'active')"
        count = {name: database.execute(f"select count(*) from {name} where {alive}").fetchone()[0] for name in ("runs", "params", "tags", "metrics")}
    return count | {"models": len(models(workspace))}


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


# ---- what is written -------------------------------------------------------------------------------------------------------


def test_a_parent_run_a_round_and_a_child_a_stage(tracked: Workspace) -> None:
    assert len(runs(tracked)) == 2 * (1 + len(STAGES))
    for name in ("r001", "r002"):
        run = parent(tracked, name)
        children = runs(tracked, f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")
        assert {child.info.run_name for child in children} == STAGES
        assert {each.info.status for each in [run, *children]} == {"FINISHED"}


def test_tags_say_what_the_round_was(tracked: Workspace) -> None:
    folder = tracked.root / "rounds" / "r002"
    frozen = yaml.safe_load((folder / "params.yaml").read_text())
    tags = parent(tracked, "r002").data.tags
    assert tags["round"] == "r002"
    assert tags["pool"] == "p001"
    assert tags["dvc_lock_md5"] == md5(folder / "dvc.lock")
    assert tags["code"] == frozen["code"]
    assert tags["seed"] == str(frozen["seed"])
    assert tags["method"] == frozen["acquire"]["method"]["name"]
    assert "prefect.flow_run_id" not in tags


def test_params_are_the_frozen_file(tracked: Workspace) -> None:
    frozen = yaml.safe_load((tracked.root / "rounds" / "r002" / "params.yaml").read_text())
    logged = parent(tracked, "r002").data.params
    assert logged["acquire.budget"] == str(frozen["acquire"]["budget"]) == "12"
    assert logged["import-labels.labeller"] == "oracle"
    assert {key.split(".")[0] for key in logged} == set(frozen)


def test_metrics_are_the_files_and_make_a_curve(tracked: Workspace) -> None:
    client, found = client_of(tracked), parent(tracked, "r002")
    files = [json.loads((tracked.root / "rounds" / name / "metrics.json").read_text()) for name in ("r001", "r002")]
    history = sorted(client.get_metric_history(found.info.run_id, "accuracy"), key=lambda point: point.step)
    assert [(point.step, point.value) for point in history] == [(1, files[0]["accuracy"]["value"]), (2, files[1]["accuracy"]["value"])]
    last, metrics = files[1], found.data.metrics
    assert metrics["labels"] == last["labels"] == 24
    assert (metrics["accuracy_low"], metrics["accuracy_high"]) == (last["accuracy"]["low"], last["accuracy"]["high"])
    for name in ("control_accuracy", "balanced_accuracy", "macro_f1", "nll", "brier", "ece", "ece_uncalibrated"):
        assert (metrics[name], metrics[f"{name}_low"]) == (last[name]["value"], last[name]["low"])
    assert (metrics["temperature"], metrics["l2"]) == (last["temperature"], last["l2"])
    assert {name.removeprefix("recall/"): value for name, value in metrics.items() if name.startswith("recall/")} == {
        name: estimate["value"] for name, estimate in last["recall"].items()
    }
    assert len(client.get_metric_history(found.info.run_id, "recall/zero")) == 1
    assert len(client.get_metric_history(parent(tracked, "r001").info.run_id, "accuracy")) == 1


def test_the_first_round_has_no_figure_on_the_control_arm(tracked: Workspace) -> None:
    assert "control_accuracy" not in parent(tracked, "r001").data.metrics


def test_children_know_seconds_counts_and_hashes(tracked: Workspace) -> None:
    folder = tracked.root / "rounds" / "r002"
    run = parent(tracked, "r002")
    children = {child.info.run_name: child.data for child in runs(tracked, f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")}
    times = json.loads((folder / "environment.json").read_text())["stages"]
    assert {stage: child.metrics["seconds"] for stage, child in children.items()} == {stage: entry["seconds"] for stage, entry in times.items()}
    assert (children["acquire"].metrics["acquired"], children["acquire"].metrics["control"]) == (9, 3)
    assert children["import-labels"].metrics["labelled"] == 12
    assert children["acquire"].params["writes/rounds/r002/selection.parquet"] == md5(folder / "selection.parquet")
    assert children["import-labels"].params["reads/rounds/r001/labels.parquet"] == md5(tracked.root / "rounds" / "r001" / "labels.parquet")
    assert children["acquire"].params["control"] == "0.25"


def test_artifacts_are_the_files(tracked: Workspace, tmp_path: Path) -> None:
    client, run = client_of(tracked), parent(tracked, "r002").info.run_id
    folder = tracked.root / "rounds" / "r002"
    expected = {
        path.name: md5(path) for path in [*(folder / n for n in ("selection.parquet", "acquire.json", "metrics.json")), folder / "batch/contact_sheet.png"]
    }
    assert {item.path for item in client.list_artifacts(run)} == set(expected)
    assert {name: md5(Path(client.download_artifacts(run, name, str(tmp_path)))) for name in expected} == expected


def test_the_report_is_kept_where_there_is_one(own: Workspace) -> None:
    (own.root / "rounds" / "r001" / "report.html").write_text("<p>hello</p>")
    tracking.track(own, "r001")
    assert "report.html" in {item.path for item in client_of(own).list_artifacts(parent(own, "r001").info.run_id)}


def test_data_sets_are_named_by_digest(tracked: Workspace) -> None:
    inputs = parent(tracked, "r002").inputs
    assert inputs is not None
    found = {item.dataset.name: item.dataset for item in inputs.dataset_inputs}
    assert found["p001"].digest == md5(tracked.root / "pools" / "p001" / "manifest.parquet")
    assert found["r002 labels"].digest == md5(tracked.root / "rounds" / "r002" / "labels.parquet")
    assert json.loads(found["p001"].source) == {"uri": tracked.params.ingest.source}
    assert json.loads(found["p001"].profile or "")["images"] == 90
    assert found["p001"].schema is None


def test_nothing_but_the_source_names_a_path_of_this_machine(tracked: Workspace) -> None:
    for run in runs(tracked):
        texts = [*run.data.tags.values(), *(value for key, value in run.data.params.items() if key != "ingest.source")]
        assert not [text for text in texts if str(tracked.root) in text or text.startswith("/")]
        assert "mlflow.user" not in run.data.tags


# ---- the model -------------------------------------------------------------------------------------------------------------


def test_the_model_gives_the_logits_of_the_files(tracked: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    import mlflow.pytorch

    saved = Model.load(tracked.root / "rounds" / "r002" / "model.safetensors")
    assert saved.head is not None
    (logged,) = (model for model in models(tracked) if model.source_run_id == parent(tracked, "r002").info.run_id)
    loaded = mlflow.pytorch.load_model(logged.artifact_location)
    for number in (1, 2, 5):
        images = torch.rand(number, 3, 8, 8, generator=torch.Generator().manual_seed(number))
        with torch.no_grad():
            expected = saved.head.logits(saved.network()(images).numpy())
            np.testing.assert_allclose(loaded(images).numpy(), expected, rtol=1e-5, atol=1e-5)
    served = mlflow.pyfunc.load_model(logged.artifact_location)
    np.testing.assert_allclose(served.predict(images.numpy()), expected, rtol=1e-5, atol=1e-5)
    assert served.metadata.metadata == {"classes": ["three", "two", "zero"], "encoder": "small", "image_size": 8}
    assert [tuple(item.shape) for item in (*served.metadata.signature.inputs, *served.metadata.signature.outputs)] == [(-1, 3, 8, 8), (-1, 3)]
    assert served.input_example.shape == (2, 3, 8, 8)


def test_the_model_is_ready_marked_and_measured(tracked: Workspace) -> None:
    (logged,) = (model for model in models(tracked) if model.source_run_id == parent(tracked, "r002").info.run_id)
    assert (logged.name, str(logged.status), logged.model_type) == ("classifier", "READY", "image-classifier")
    assert logged.tags["md5"] == md5(tracked.root / "rounds" / "r002" / "model.safetensors")
    assert logged.metrics is not None
    accuracy = Metrics.load(tracked.root / "rounds" / "r002" / "metrics.json").accuracy
    assert accuracy is not None
    assert {(metric.key, metric.value, metric.step) for metric in logged.metrics} >= {("accuracy", accuracy.value, 2), ("labels", 24.0, 2)}
    outputs = parent(tracked, "r002").outputs
    assert outputs is not None
    assert [output.model_id for output in outputs.model_outputs] == [logged.model_id]


def test_the_model_holds_no_pickle_that_could_run_code(tracked: Workspace) -> None:
    """Weights are raw bytes; the one pickle is torch's list of the example's tensors, which its restricted reader takes."""
    import io

    import torch

    for logged in models(tracked):
        folder = Path(logged.artifact_location.removeprefix("file://").replace("%20", " "))
        names = {path.name for path in folder.rglob("*") if path.is_file()}
        assert names == {"MLmodel", "model.pt2", "conda.yaml", "python_env.yaml", "requirements.txt", "input_example.json", "serving_input_example.json"}
        with zipfile.ZipFile(folder / "data" / "model.pt2") as archive:
            pickled = [name for name in archive.namelist() if archive.read(name)[:2] == b"PK" or archive.read(name)[:1] == b"\x80"]
            assert [name.split("/", 1)[1] for name in pickled] == ["data/sample_inputs/model.pt"]
            torch.load(io.BytesIO(archive.read(pickled[0])), weights_only=True)


def test_pickled_models_are_refused_by_what_track_sets(tracked: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from mlflow.exceptions import MlflowException

    flavor = tracking.pytorch_flavor()
    flavor.save_model(torch.nn.Linear(2, 2), str(tmp_path / "pickled"), serialization_format="pickle", pip_requirements=["torch"])
    for name, value in tracking.SETTINGS.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(MlflowException, match="pickle is disallowed"):
        flavor.load_model(str(tmp_path / "pickled"))


@pytest.mark.slow
def test_lightning_is_neither_imported_nor_hidden_afterwards() -> None:
    code = "import sys; from flows.tracking import pytorch_flavor; pytorch_flavor(); assert 'pytorch_lightning' not in sys.modules; import pytorch_lightning"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ---- once ------------------------------------------------------------------------------------------------------------------


def test_again_adds_nothing_and_says_so(tracked: Workspace, unset: None) -> None:
    before = rows(tracked)
    assert before["models"] == 2
    assert tracking.track(tracked, "r002").endswith("; it was there already")
    assert rows(tracked) == before


def test_what_a_killed_process_left_is_deleted_and_written_again(own: Workspace) -> None:
    tracking.track(own, "r001")
    whole, first = rows(own), parent(own, "r001").info.run_id
    client_of(own).update_run(first, status="RUNNING")  # as if it had been killed just before the end
    line = tracking.track(own, "r001")
    second = parent(own, "r001")
    assert second.info.run_id != first
    assert second.info.status == "FINISHED"
    assert not line.endswith("already")
    assert rows(own) == whole


def test_a_failure_half_way_leaves_no_finished_run(own: Workspace) -> None:
    sheet = own.root / "rounds" / "r001" / "batch" / "contact_sheet.png"
    sheet.rename(sheet.with_suffix(".away"))
    with pytest.raises(ArtifactError, match=r"contact_sheet\.png is missing; run the stage that writes it, or `dvc pull "):
        tracking.track(own, "r001")
    assert parent(own, "r001").info.status == "FAILED"
    sheet.with_suffix(".away").rename(sheet)
    tracking.track(own, "r001")
    assert parent(own, "r001").info.status == "FINISHED"
    assert len(runs(own)) == 1 + len(STAGES)
    assert len(models(own)) == 1


def test_another_lock_is_another_run(own: Workspace) -> None:
    tracking.track(own, "r001")
    with (own.root / "rounds" / "r001" / "dvc.lock").open("a") as file:
        file.write("# made again\n")
    tracking.track(own, "r001")
    assert len(runs(own, "tags.round = 'r001' and tags.pool = 'p001'")) == 2


def test_more_than_fits_in_one_call_is_written_in_several(own: Workspace) -> None:
    path = own.root / "rounds" / "r001" / "metrics.json"
    metrics = Metrics.load(path)
    some = metrics.recall["zero"]
    metrics.model_copy(update={"recall": {f"class {i}": some for i in range(1200)}}).save(path)
    tracking.track(own, "r001")
    run = parent(own, "r001")
    assert sum(name.startswith("recall/") for name in run.data.metrics) == 1200
    client = client_of(own)
    tracking.log(client, run.info.run_id, {f"extra{i}": "x" for i in range(250)})
    assert sum(name.startswith("extra") for name in client.get_run(run.info.run_id).data.params) == 250


# ---- borders ---------------------------------------------------------------------------------------------------------------


def test_no_credentials_reach_mlflow(own: Workspace) -> None:
    address = "s3://reader:hunter2@bucket/images?X-Amz-Signature=hunter3&page=1"
    for folder in ("pools/p001", "rounds/r001"):
        path = own.root / folder / "params.yaml"
        content = yaml.safe_load(path.read_text())
        content["ingest"]["source"] = address
        path.write_text(yaml.safe_dump(content))
    tracking.track(own, "r001")
    assert parent(own, "r001").data.params["ingest.source"] == "s3://***@bucket/images?X-Amz-Signature=***&page=1"
    files = [path for path in own.private.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not [path for path in files if b"hunter" in path.read_bytes()]


def test_metric_names_are_what_mlflow_takes() -> None:
    assert tracking.metric_name("T-shirt, größe L") == "T-shirt_2c_ größe L"
    assert tracking.metric_name("..") == "_2e__2e_"
    assert tracking.metric_name("c+") != tracking.metric_name("c#")


def test_long_params_are_cut_at_the_limit() -> None:
    logged = tracking.flat({"classes": ["x" * 7000], "short": "y"})
    assert len(logged["classes"]) == 6000
    assert logged["classes"].endswith("x…")
    assert logged["short"] == "y"


def test_an_unfinished_round_is_refused(own: Workspace) -> None:
    path = own.root / "rounds" / "r002" / "dvc.lock"
    content = yaml.safe_load(path.read_text())
    del content["stages"]["retrain"]
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(WorkspaceError, match="r002 cannot be tracked: retrain did not run yet; `rondo run` runs what can run"):
        tracking.track(own, "r002")


def test_pools_are_refused(own: Workspace) -> None:
    with pytest.raises(WorkspaceError, match="p001 is a pool; rounds are tracked, each with its pool as data set"):
        tracking.track(own, "p001")


def test_a_server_that_does_not_answer_is_named_without_its_password(finished: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:hunter2@127.0.0.1:9")
    with pytest.raises(WorkspaceError) as caught:
        tracking.track(finished, "r001")
    assert str(caught.value).startswith(r"the MLflow server http://***@127.0.0.1:9 (MLFLOW_TRACKING_URI) does not answer; start it, or unset")


def test_a_database_that_is_none_is_reported(own: Workspace) -> None:
    (own.private / "mlflow.db").write_text("not a database, " * 100)
    with pytest.raises(
        WorkspaceError, match=r"MLflow at sqlite:.* does not take r001: .*file is not a database; the round is safe, close it again when this is mended"
    ):
        tracking.track(own, "r001")


def test_a_hash_that_dvc_did_not_record_is_an_error(own: Workspace) -> None:
    path = own.root / "rounds" / "r001" / "dvc.lock"
    path.write_text(path.read_text().replace("manifest.parquet", "other.parquet"))
    with pytest.raises(ArtifactError, match=r"rounds/r001/dvc\.lock has no manifest\.parquet among deps of embed; restore it with `git checkout"):
        tracking.recorded(Round(own.root, "r001"), "embed", "deps", "${pool}/manifest.parquet")


def test_the_prefect_run_is_a_tag_inside_one(own: Workspace, prefect_server: None) -> None:
    from prefect import flow, task
    from prefect.cache_policies import NO_CACHE
    from prefect.runtime import flow_run

    @task(cache_policy=NO_CACHE)
    def track() -> None:
        tracking.track(own, "r001")

    @flow
    def cycle() -> str:
        track()
        return str(flow_run.id)

    assert cycle() == parent(own, "r001").data.tags["prefect.flow_run_id"]

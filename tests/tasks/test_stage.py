"""A stage's three faces come from one signature, and its outputs are saved all or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tasks import acquire, environment, rounds, stage
from tasks.artifacts import Selection
from tasks.errors import ArtifactError, WorkspaceError
from tasks.stage import all_stages, find, pipeline
from tasks.workspace import Workspace, dvc_yaml

ROOT = Path(__file__).parents[2]


def test_root_dvc_yaml_is_what_the_signatures_say() -> None:
    assert (ROOT / "dvc.yaml").read_text("utf-8") == dvc_yaml()


def test_stages_come_in_pipeline_order_and_each_reads_what_earlier_ones_wrote() -> None:
    written: set[str] = set()
    for each in all_stages():
        for artifact in each.reads.values():
            inside = artifact.file.startswith(("${here}", "${pool}"))
            assert not inside or artifact.file in written, (each.name, artifact.file)
        written |= {artifact.file for artifact in each.writes.values()}


def test_an_entry_by_hand() -> None:
    assert pipeline()["stages"]["acquire"] == {
        "cmd": "python -m tasks acquire",
        "desc": "Choose the images people should label next.",
        "deps": ["${here}/signals", "${pool}/manifest.parquet", "${previous}/labels.parquet", "${pool}/labels.parquet"],
        "params": ["acquire", "code", "round", "seed", "classes"],
        "outs": ["${here}/selection.parquet", {"${here}/acquire.json": {"cache": False}}],
    }


def test_every_params_section_belongs_to_a_stage_of_its_name() -> None:
    for each in all_stages():
        assert each.section is not None
        assert each.section[1].__name__.lower() == each.name.replace("-", "")


def test_an_unknown_stage_names_the_known_ones() -> None:
    with pytest.raises(WorkspaceError, match="unknown stage 'aquire'; the stages are ingest, pretrain"):
        find("aquire")


def test_importing_the_stages_does_not_import_torch() -> None:
    code = "import sys; from tasks.stage import all_stages; list(all_stages()); print({'torch', 'lightly', 'sklearn', 'prefect', 'mlflow'} & set(sys.modules))"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert said.strip() == "set()"


def test_a_stage_run_again_writes_the_same_bytes(finished: Workspace) -> None:
    this = finished.find_round("r002")
    before = (this.path / "selection.parquet").read_bytes()
    stage.execute("acquire", this.path)
    assert (this.path / "selection.parquet").read_bytes() == before


def test_a_stage_itself_notes_what_it_ran_on_so_that_killing_dvc_after_it_loses_nothing(finished: Workspace) -> None:
    this = finished.find_round("r002")
    (this.path / environment.FILE).unlink()
    stage.execute("acquire", this.path)
    noted = environment.load(this.path)
    assert noted["acquire"]["seconds"] > 0
    assert noted.keys() == {"acquire"}
    assert not rounds.run_stage(this, "acquire")
    assert environment.load(this.path) == noted  # DVC found nothing to do: the times are still those of the stage


def test_a_stage_that_fails_leaves_the_old_files_and_no_scratch(finished: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    this = finished.find_round("r002")
    before = {name: (this.path / name).read_bytes() for name in ("selection.parquet", "acquire.json")}

    def broken(*_: object) -> Selection:
        raise ValueError("boom")

    monkeypatch.setattr(acquire, "selection_of", broken)
    with pytest.raises(ValueError, match="boom"):
        stage.execute("acquire", this.path)
    assert {name: (this.path / name).read_bytes() for name in before} == before
    assert list(this.path.glob(".*")) == []


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a file system of a fixed size")
def test_a_full_disk_is_named_and_nothing_is_lost(finished: Workspace, tmp_path: Path) -> None:
    this = finished.find_round("r002")
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(small)], capture_output=True, check=False).returncode:
        pytest.skip("a file system of a fixed size cannot be mounted here")
    try:
        here = small / "round"
        here.mkdir()
        content = yaml.safe_load((this.path / "params.yaml").read_text("utf-8"))
        before = finished.root / "rounds/r001"
        wired = {"pool": str(finished.root / "pools/p001"), "previous": str(before), "model": str(before / "model.safetensors")}
        (here / "params.yaml").write_text(yaml.safe_dump(content | wired | {"code": "unfrozen"}), "utf-8")
        (small / "filler").write_bytes(bytes(480_000))
        with pytest.raises(ArtifactError, match=r"embed: the disk that holds .*/small/round is full .* free some space and run again: nothing was lost"):
            stage.execute("embed", here)
        assert {path.name for path in here.iterdir()} == {"params.yaml", ".embed.rows.partial"}
        (small / "filler").unlink()
        stage.execute("embed", here)
        assert json.loads((here / "signals/signals.json").read_text())["classes"] == ["three", "two", "zero"]
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), r"selection.parquet is missing; run the stage that writes it"),
        (lambda path: path.write_bytes(b"PAR1 no"), r"selection.parquet is not a readable Parquet file"),
    ],
)
def test_damaged_artifacts_are_named(finished: Workspace, damage: object, message: str) -> None:
    assert callable(damage)
    path = finished.find_round("r002").path / "selection.parquet"
    damage(path)
    with pytest.raises(ArtifactError, match=message):
        Selection.load(path)


def test_a_table_without_a_column_names_it(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "selection.parquet")
    with pytest.raises(ArtifactError, match=r"has no column 'rank'; it has \['id'\]"):
        Selection.load(tmp_path / "selection.parquet")
    pq.write_table(pa.table({"rank": ["a"]}), tmp_path / "selection.parquet")
    with pytest.raises(ArtifactError, match="column 'rank' is string, expected int32"):
        Selection.load(tmp_path / "selection.parquet")

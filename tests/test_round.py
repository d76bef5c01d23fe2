"""The house's acceptance test: a programme of two rounds, repeated, waited for, refused, reproduced."""

from __future__ import annotations

import csv
import json
import platform
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tasks import dvc, git, rounds
from tasks.artifacts import Known, Labels, Manifest, Metrics, Selection
from tasks.errors import AnswersError, ParamsError, WorkspaceError
from tasks.lock import locked
from tasks.models import Model
from tasks.params import Acquire, Programme, Retrain, Section
from tasks.reproduce import reproduce
from tasks.signals import Signals
from tasks.stage import execute
from tasks.workspace import Workspace
from tests.conftest import advance, run_rondo

Begun = Callable[..., Workspace]
COLD = "coreset, diffusion, maxherding, probcover, random, robust-coreset, typiclust"  # methods of a first round, as docs/methods/index.md has them


def silent(_: str) -> None:
    """In place of a screen."""


def head(workspace: Workspace) -> str:
    return git.git(workspace.root, "rev-parse", "HEAD")


def answer(workspace: Workspace, name: str, *, skip: int = 0) -> None:
    """Put true answers for all picks but the first `skip` into the answers folder, as a person's CSV."""
    this = workspace.find_round(name)
    truth = Known.load(this.file(Known.file)).frame.set_index("id")["label"]
    folder = workspace.root / this.answers
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "anna.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image_id", "label", "annotator"])
        writer.writerows([image, truth[image], "anna"] for image in Selection.load(this.path / "selection.parquet").frame["id"][skip:])


# ---- a programme ---------------------------------------------------------------------------------------------------------


def test_two_rounds_are_closed_committed_and_tagged(finished: Workspace) -> None:
    assert [each.name for each in finished.all("rounds")] == ["r001", "r002"]
    assert finished.closed() == {"p001", "r001", "r002"}
    assert git.changes(finished.root) == []
    for name, labels in (("r001", 12), ("r002", 24)):
        this = finished.find_round(name)
        assert list(this.lock) == list(this.stages)
        assert Metrics.load(this.path / "metrics.json").labels == labels


def test_the_first_round_starts_cold_and_the_second_uses_the_model(finished: Workspace) -> None:
    assert finished.find_round("r001").params.acquire.method == {"name": "random"}
    second = finished.find_round("r002").params
    assert second.acquire.method == {"name": "margin"}
    assert second.model == "../r001/model.safetensors"
    assert second.embed.signals == ("embeddings", "logits")


def test_a_round_says_of_its_pool_what_the_pool_was_made_with(with_pool: Begun) -> None:
    workspace = with_pool(pretrain={"method": "vicreg", "image_size": 64}, ingest={"source": "elsewhere", "test": 0.5})
    this = rounds.open_round(workspace)
    ours, pools, roots = (yaml.safe_load((workspace.root / folder / "params.yaml").read_text("utf-8")) for folder in (this.folder, "pools/p001", "."))
    for key in ("ingest", "pretrain"):
        assert ours[key] == pools[key] != roots[key]


def test_each_stage_says_in_a_line_what_came_of_it(with_pool: Begun, capsys: pytest.CaptureFixture[str]) -> None:
    workspace = with_pool(acquire={"method": {"name": "coreset"}, "budget": 12, "control": 0.25})
    this = rounds.open_round(workspace)
    for stage in this.stages:
        execute(stage, this.path)
    said = capsys.readouterr().err.splitlines()
    splits = Manifest.load(workspace.root / "pools/p001/manifest.parquet").frame["split"].value_counts()
    found = Metrics.load(this.path / "metrics.json").accuracy
    assert found is not None
    assert [line for line in said if not line.startswith("embed: ")] == [
        f"acquire: 9 by coreset, 3 for the control arm, of {splits['train']} unlabelled images",
        "export: 12 images to label, in batch/",
        "import-labels: 12 of 12 images labelled, 0 skipped, 0 unanswered",
        f"retrain: 12 labels, {100 * found.value:.1f}% of {splits['test']} test images right (95% interval {100 * found.low:.1f} to {100 * found.high:.1f})",
    ]


def test_picks_are_unlabelled_train_images_and_the_control_arm_is_flagged(finished: Workspace) -> None:
    manifest = Manifest.load(finished.root / "pools/p001/manifest.parquet").frame.set_index("id")
    first, second = (Selection.load(finished.find_round(name).path / "selection.parquet").frame for name in ("r001", "r002"))
    assert set(manifest.loc[second["id"], "split"]) == {"train"}
    assert not set(first["id"]) & set(second["id"])
    a, c = "acquired", "control"
    assert list(second["arm"]) == [a, a, c, a, a, a, c, a, a, a, c, a]  # nine and three, evenly
    assert (second["score"].isna() == (second["arm"] == c)).all()
    assert second.loc[second["arm"] == a, "score"].is_monotonic_increasing  # margin: the least sure first


def test_the_unbiased_figure_is_the_previous_models_on_the_control_arm(finished: Workspace) -> None:
    this = finished.find_round("r002")
    picks = Selection.load(this.path / "selection.parquet").frame
    labels = Labels.load(this.path / "labels.parquet").frame.set_index("id")["label"]
    control = picks[picks["arm"] == "control"]
    previous = Model.load(finished.find_round("r001").path / "model.safetensors")
    signals = Signals.load(this.path / "signals")
    manifest = Manifest.load(finished.root / "pools/p001/manifest.parquet")
    rows = [list(manifest.ids).index(image) for image in control["id"]]
    assert previous.head is not None
    expected = [previous.head.classes[i] for i in previous.head.logits(signals.array("embeddings")[rows]).argmax(axis=1)]
    right = sum(labels[image] == prediction for image, prediction in zip(control["id"], expected, strict=True))
    figure = Metrics.load(this.path / "metrics.json").control_accuracy
    assert figure is not None
    assert (figure.value, figure.n) == (right / 3, 3)
    assert Metrics.load(finished.find_round("r001").path / "metrics.json").control_accuracy is None


def test_labels_hold_all_that_is_known_with_where_it_came_from(finished: Workspace) -> None:
    frame = Labels.load(finished.find_round("r002").path / "labels.parquet").frame
    truth = Known.load(finished.root / "pools/p001/known.parquet").frame.set_index("id")["label"]
    assert (frame["label"] == truth[frame["id"]].to_numpy()).all()
    assert frame.groupby(["round", "arm"]).size().drop("p001").to_dict() == {
        ("r001", "acquired"): 9,
        ("r001", "control"): 3,
        ("r002", "acquired"): 9,
        ("r002", "control"): 3,
    }
    assert set(frame.loc[frame["round"] == "p001", "arm"]) == {"source"}


def test_a_further_cycle_changes_nothing_and_says_so(finished: Workspace) -> None:
    before = head(finished)
    state = advance(finished)
    assert state.name == rounds.BUDGET_SPENT
    more = "(for more, raise programme.budget in params.yaml and commit it)"
    assert state.message == f"all 24 labels of the programme are bought {more}; nothing to do, nothing changed"
    assert head(finished) == before
    assert git.changes(finished.root) == []


def test_whoever_may_read_the_round_may_read_all_of_it(finished: Workspace) -> None:
    """As files are made here; DVC may take the right to write."""
    folder, reading = finished.root / "rounds/r002", stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH
    usual = (folder / "params.yaml").stat().st_mode & reading
    assert {path.name: path.stat().st_mode & reading for path in folder.rglob("*") if path.is_file() and path.stat().st_mode & reading != usual} == {}


def test_outputs_hold_no_times_hosts_or_paths(finished: Workspace) -> None:
    telling = [str(finished.root.parent).encode(), str(Path.home()).encode() + b"/", platform.node().encode() + b"."]
    for this in (*finished.all("pools"), *finished.all("rounds")):
        for entry in this.lock.values():
            for out in entry["outs"]:
                path = this.path / out["path"]
                for file in [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]:
                    assert not any(word in file.read_bytes() for word in telling), file


# ---- waiting for people ----------------------------------------------------------------------------------------------------


def test_missing_answers_are_waited_for_and_then_taken(with_pool: Begun) -> None:
    workspace = with_pool(**{"import-labels": {"labeller": "files"}, "programme": {"budget": 12}})
    state = advance(workspace)
    assert state.name == rounds.AWAITING_LABELS
    assert state.message == (
        "r001 waits for labels: give rounds/r001/batch/ to the labellers and put their answers (CSV, JSONL or Label Studio JSON) "
        "into answers/r001/ (a folder you make)"
    )
    before, lock = head(workspace), (workspace.root / "rounds/r001/dvc.lock").read_bytes()
    assert advance(workspace) == state
    assert (head(workspace), (workspace.root / "rounds/r001/dvc.lock").read_bytes()) == (before, lock)
    assert git.changes(workspace.root) == []

    answer(workspace, "r001", skip=2)
    state = advance(workspace)
    assert state.name == rounds.AWAITING_LABELS
    assert "10 of 12" in state.message
    assert not (workspace.root / "answers/r001.dvc").exists()

    answer(workspace, "r001")
    assert advance(workspace).name == rounds.BUDGET_SPENT
    assert (workspace.root / "answers/r001.dvc").exists()
    assert git.changes(workspace.root) == []
    report = json.loads((workspace.root / "rounds/r001/import.json").read_text())
    assert (report["labelled"], report["by_annotator"]) == (12, {"anna": 12})


@pytest.mark.slow
def test_another_machine_takes_a_waiting_round_as_it_is(with_pool: Begun, tmp_path: Path) -> None:
    workspace = with_pool(**{"import-labels": {"labeller": "files"}, "programme": {"budget": 12}})
    state = advance(workspace)
    elsewhere = Workspace(tmp_path / "elsewhere" / "workspace")
    git.git(tmp_path, "clone", "--quiet", str(workspace.root), str(elsewhere.root))
    shutil.copytree(workspace.root.parent / "remote", elsewhere.root.parent / "remote")
    assert advance(elsewhere) == state
    assert head(elsewhere) == head(workspace)  # nothing was made again: not even the times in environment.json moved
    assert git.changes(elsewhere.root) == []
    for name in ("selection.parquet", "batch/batch.csv"):
        assert (elsewhere.root / "rounds/r001" / name).read_bytes() == (workspace.root / "rounds/r001" / name).read_bytes()


def test_a_round_whose_answers_changed_after_import_is_not_closed(with_pool: Begun) -> None:
    workspace = with_pool(**{"import-labels": {"labeller": "files"}, "programme": {"budget": 12}})
    advance(workspace)
    answer(workspace, "r001")
    this = workspace.find_round("r001")
    for stage in ("import-labels", "retrain"):
        rounds.run_stage(this, stage)
    assert (workspace.root / "answers/r001.dvc").exists()
    path = workspace.root / "answers/r001/anna.csv"
    path.write_text(path.read_text("utf-8").replace("anna", "annb", 1), "utf-8")
    with pytest.raises(WorkspaceError, match=r"r001 cannot be closed: answers/r001 changed since its stages ran"):
        rounds.close(this)
    assert "r001" not in workspace.closed()


@pytest.mark.slow
def test_answers_are_put_under_dvc_only_when_all_are_there(with_pool: Begun) -> None:
    workspace = with_pool(**{"import-labels": {"labeller": "files"}, "programme": {"budget": 12}})
    advance(workspace)
    this = workspace.find_round("r001")
    with pytest.raises(WorkspaceError, match="r001 waits for labels: give rounds/r001/batch/ to the labellers"):
        rounds.run_stage(this, "import-labels")
    answer(workspace, "r001", skip=4)
    with pytest.raises(WorkspaceError, match=r"r001 waits for labels in answers/r001/: 8 of 12"):
        rounds.run_stage(this, "import-labels")
    assert not (workspace.root / "answers/r001.dvc").exists()
    answer(workspace, "r001")
    assert rounds.run_stage(this, "import-labels")
    assert (workspace.root / "answers/r001.dvc").exists()
    assert advance(workspace).name == rounds.BUDGET_SPENT
    assert reproduce(workspace, "r001", silent).identical


@pytest.mark.slow
def test_a_round_is_not_closed_on_answers_that_dvc_does_not_hold(with_pool: Begun) -> None:
    workspace = with_pool(**{"import-labels": {"labeller": "files"}, "programme": {"budget": 12}})
    advance(workspace)
    answer(workspace, "r001")
    this = workspace.find_round("r001")
    for stage in ("import-labels", "retrain"):
        dvc.repro(workspace.root, this.folder, stage)  # by hand, past `rondo run`
    with pytest.raises(WorkspaceError, match=r"r001 cannot be closed: DVC does not hold answers/r001 yet; `rondo run` hands it over"):
        rounds.close(this)

    rounds.run_stage(this, "import-labels")
    path = workspace.root / "answers/r001/anna.csv"
    path.write_text(path.read_text("utf-8").replace("anna", "annb", 1), "utf-8")  # and imported so by the cycle, which runs what has changed
    finished: list[str] = []
    with pytest.raises(WorkspaceError, match=r"its labels come from other answers than answers/r001\.dvc holds; `dvc checkout answers/r001\.dvc` restores"):
        rounds.advance(workspace, rounds.run_stage, lambda each: finished.append(each.name))
    assert finished == []  # no report and no run in MLflow of a round that is not closed
    assert "r001" not in workspace.closed()

    dvc.dvc(workspace.root, "add", "answers/r001")
    assert advance(workspace).name == rounds.BUDGET_SPENT
    assert workspace.closed() == {"p001", "r001"}


def test_answers_that_cannot_be_read_stop_the_cycle_and_stay(with_pool: Begun) -> None:
    workspace = with_pool(**{"import-labels": {"labeller": "files"}})
    advance(workspace)
    folder = workspace.root / "answers/r001"
    folder.mkdir(parents=True)
    (folder / "ben.csv").write_bytes("image_id,label\nx,K\xe4se\n".encode("latin-1"))
    with pytest.raises(AnswersError, match=r"ben\.csv"):
        advance(workspace)
    assert (folder / "ben.csv").exists()
    assert not (workspace.root / "answers/r001.dvc").exists()


# ---- refusals --------------------------------------------------------------------------------------------------------------


def test_open_refuses_a_dirty_tree(with_pool: Begun) -> None:
    workspace = with_pool()
    (workspace.root / "notes.txt").write_text("x")
    with pytest.raises(WorkspaceError, match=r"(?s)not committed; commit them.*\?\? notes.txt"):
        rounds.open_round(workspace)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"acquire": {"budget": 1000}, "programme": {}}, r"acquire.budget is 1000 but only \d+ images are unlabelled; lower it, or add images"),
        ({"acquire": {"method": {"name": "margn"}}}, "acquire.method: unknown method 'margn'; did you mean 'margin'?"),
        ({"acquire": {"method": {"name": "margin", "heat": 1}}}, "acquire.method: margin has no parameter 'heat'"),
        (
            {"acquire": {"method": {"name": "margin"}, "cold_start": None}},
            "'margin' needs a model and there is none before the first round; these work without one: .*coreset.*random",
        ),
        (
            {"acquire": {"method": {"name": "margin"}, "cold_start": {"name": "entropy"}}},
            f"^acquire.cold_start 'entropy' itself needs a model; these work without one: {COLD}$",
        ),
        (
            {"acquire": {"method": {"name": "margin"}, "cold_start": {"name": "xyz"}}},
            f"^acquire.cold_start: unknown method 'xyz'; these can stand here: {COLD}$",
        ),
        ({"acquire": {"method": {"nam": "margin"}}}, r"expected a name and its parameters, such as \{name: margin\}"),
        ({"classes": ["one"]}, "a classifier needs two"),
        ({"embed": {"signals": ["logits"]}}, "embed.signals names logits, which takes a trained model"),
    ],
)
def test_open_refuses_a_round_that_cannot_be_run(with_pool: Begun, changes: dict[str, object], message: str) -> None:
    workspace = with_pool(**changes)
    with pytest.raises(ParamsError, match=message):
        rounds.open_round(workspace)
    assert workspace.all("rounds") == []
    assert git.changes(workspace.root) == []


@pytest.mark.slow
def test_a_later_round_takes_what_is_left_of_the_pool(with_pool: Begun) -> None:
    workspace = with_pool(programme={}, acquire={"budget": 60, "control": 0.25})
    state = advance(workspace)
    more = "(for more, add images to the source and `rondo open --new-pool`)"
    assert (state.name, state.message) == (rounds.BUDGET_SPENT, f"every image of the pool has an answer {more}; this run closed r001, r002")
    manifest = Manifest.load(workspace.root / "pools/p001/manifest.parquet").frame
    train = int((manifest["split"] == "train").sum())
    assert 60 < train < 120
    assert [each.params.acquire.budget for each in workspace.all("rounds")] == [60, train - 60]
    with pytest.raises(ParamsError, match=r"acquire.budget is 60 but only 0 images are unlabelled"):
        rounds.open_round(workspace)


def test_stages_are_run_in_order_and_only_those_of_the_round(with_pool: Begun) -> None:
    workspace = with_pool()
    this = rounds.open_round(workspace)
    done = run_rondo("run", "retrain", "--workspace", str(workspace.root), check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.strip() == (
        "error: r001: retrain comes after embed, acquire, export, import-labels, which did not run yet; `rondo run` runs what can run"
    )
    rounds.run_stage(this, "embed")
    with pytest.raises(WorkspaceError, match="r001: import-labels comes after acquire, export, which did not run yet"):
        rounds.run_stage(this, "import-labels")
    with pytest.raises(WorkspaceError, match="'ingest' is no stage of r001; these are: embed, acquire, export, import-labels, retrain"):
        rounds.run_stage(this, "ingest")


def test_a_second_round_cannot_be_opened_beside_an_open_one(with_pool: Begun) -> None:
    workspace = with_pool()
    rounds.open_round(workspace)
    with pytest.raises(WorkspaceError, match="r001 is still open"):
        rounds.open_round(workspace)


def test_open_again_drops_and_freezes_anew(with_pool: Begun) -> None:
    workspace = with_pool()
    this = rounds.open_round(workspace)
    assert this.params.acquire.method == {"name": "random"}
    path = workspace.root / "params.yaml"
    path.write_text(path.read_text("utf-8").replace("method: {name: margin}", "method: {name: coreset}"), "utf-8")
    git.commit(workspace.root, ["params.yaml"], "Core-set")
    assert rounds.drop(workspace) == "r001"
    assert git.changes(workspace.root) == []
    assert rounds.open_round(workspace).params.acquire.method["name"] == "coreset"


def test_a_first_pool_whose_source_was_mistyped_is_dropped_and_made_anew(begun: Begun, digits_folder: Path) -> None:
    workspace = begun(ingest={"source": "/no/such/folder", "labels": "ignore", "workers": 1})
    failed = run_rondo("open", cwd=workspace.root, check=False)
    assert failed.returncode == 1
    assert "source '/no/such/folder' does not exist" in failed.stderr
    assert "p001 keeps the params it was opened with; for others: edit params.yaml, commit it, and `rondo open --again --new-pool`" in failed.stderr
    path = workspace.root / "params.yaml"
    path.write_text(path.read_text("utf-8").replace("/no/such/folder", str(digits_folder)), "utf-8")
    git.commit(workspace.root, ["params.yaml"], "Correct the source")
    with pytest.raises(WorkspaceError, match=r"p001 is not finished yet; .* `rondo open --again --new-pool` drops it and makes it anew"):
        rounds.open_pool(workspace)
    again = run_rondo("open", "--again", cwd=workspace.root)
    assert again.stdout.startswith("dropped p001\n")
    assert "opened r001 over p001: random, 12 images" in again.stdout
    assert workspace.find_round("p001").params.ingest.source == str(digits_folder)
    assert workspace.closed() == {"p001"}
    assert git.changes(workspace.root) == []


def test_a_later_pool_that_another_version_began_is_dropped_and_the_first_stays(with_pool: Begun) -> None:
    workspace = with_pool()
    path = rounds.open_pool(workspace).path / "params.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text("utf-8")) | {"code": "0.0.1"}), "utf-8")
    with pytest.raises(WorkspaceError, match=r"p002 was opened with Rondo 0\.0\.1, this is .*`rondo open --again --new-pool` \(drops"):
        rounds.run_pool(workspace.find_round("p002"), rounds.run_stage)
    assert rounds.drop(workspace) == "p002"
    assert [each.name for each in workspace.all("pools")] == ["p001"]
    assert git.changes(workspace.root) == []
    with pytest.raises(WorkspaceError, match="no round is open and no pool is unfinished, so there is nothing to drop"):
        rounds.drop(workspace)
    assert rounds.open_pool(workspace).name == "p002"


def test_a_round_with_answers_is_not_dropped(with_pool: Begun) -> None:
    workspace = with_pool(**{"import-labels": {"labeller": "files"}})
    advance(workspace)
    answer(workspace, "r001")
    with pytest.raises(WorkspaceError, match="answers/r001 holds answers for r001"):
        rounds.drop(workspace)


def test_another_version_of_the_code_is_refused(with_pool: Begun) -> None:
    workspace = with_pool()
    this = rounds.open_round(workspace)
    path = this.path / "params.yaml"
    content = yaml.safe_load(path.read_text("utf-8"))
    path.write_text(yaml.safe_dump(content | {"code": "0.0.1"}), "utf-8")
    with pytest.raises(WorkspaceError, match=r"r001 was opened with Rondo 0\.0\.1, this is .*rondo open --again"):
        rounds.run_stage(this, "embed")
    assert not (this.path / "signals").exists()


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [("params.yaml", "l2: 0.001", "l2: 0.002"), ("dvc.yaml", "cmd: python -m tasks retrain", "cmd: nice python -m tasks retrain")],
)
def test_a_round_whose_frozen_files_changed_is_neither_tracked_nor_closed(
    finished: Workspace, monkeypatch: pytest.MonkeyPatch, file: str, before: str, after: str
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    git.git(finished.root, "tag", "--delete", "round-r002")
    path = finished.root / "rounds/r002" / file
    content = path.read_text("utf-8")
    assert before in content
    path.write_text(content.replace(before, after), "utf-8")
    done = run_rondo("close", "--workspace", str(finished.root), check=False)
    assert done.returncode == 1
    assert f"error: r002 cannot be closed: rounds/r002/{file} changed since its stages ran" in done.stderr
    assert not (finished.private / "mlflow.db").exists()
    assert not (finished.root / "rounds/r002/report.html").exists()
    assert "r002" not in finished.closed()


def test_an_incomplete_round_is_not_closed(with_pool: Begun) -> None:
    workspace = with_pool()
    this = rounds.open_round(workspace)
    with pytest.raises(WorkspaceError, match="embed, acquire, export, import-labels, retrain did not run yet"):
        rounds.close(this)


def test_a_half_opened_round_is_opened_again(with_pool: Begun) -> None:
    workspace = with_pool(programme={"budget": 12})
    (workspace.root / "rounds/r001").mkdir(parents=True)
    (workspace.root / "rounds/r001/params.yaml").write_text("round: half", "utf-8")
    assert advance(workspace).name == rounds.BUDGET_SPENT
    assert workspace.closed() == {"p001", "r001"}


def test_a_closing_that_was_cut_off_before_its_tag_is_finished(finished: Workspace) -> None:
    before = head(finished)
    git.git(finished.root, "tag", "--delete", "round-r002")
    assert rounds.open_now(finished).name == "r002"
    assert advance(finished).name == rounds.BUDGET_SPENT
    assert finished.closed() == {"p001", "r001", "r002"}
    assert head(finished) == before


@pytest.mark.parametrize("missing", [["pool-p001"], ["round-r002"], ["round-r001"], ["pool-p001", "round-r001", "round-r002"]])
def test_a_clone_without_its_tags_closes_nothing_again(finished: Workspace, tmp_path: Path, missing: list[str]) -> None:
    clone = Workspace(tmp_path / "elsewhere" / "workspace")
    git.git(tmp_path, "clone", "--quiet", str(finished.root), str(clone.root))
    git.git(clone.root, "tag", "--delete", *missing)
    before, names = (head(clone), clone.closed()), ", ".join(tag.split("-")[1] for tag in missing)
    message = f"{names} closed elsewhere, but the git tags that say so are not here; fetch the tags: git fetch --tags"
    for step in (advance, rounds.open_now, rounds.refuse_open, rounds.drop):
        with pytest.raises(WorkspaceError, match=message):
            step(clone)
    assert f"next: {message}" in " ".join(run_rondo("status", "--workspace", str(clone.root)).stdout.split())
    assert (head(clone), clone.closed()) == before
    git.git(clone.root, "fetch", "--quiet", "--tags")
    assert rounds.open_or_none(clone) is None


def test_a_lock_file_that_was_cut_in_half_is_put_back(finished: Workspace) -> None:
    path = finished.root / "rounds/r002/dvc.lock"
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    with locked(finished):
        pass
    assert path.read_bytes() == whole[:100]  # the last holder ended well, so this is somebody's own doing
    (finished.private / "lock").write_text("12345")  # killed
    with locked(finished):
        assert path.read_bytes() == whole


# ---- reproduce -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def second_clone(finished: Workspace, tmp_path: Path) -> Workspace:
    """A clone elsewhere, with an empty cache; what it needs comes from the DVC remote."""
    root = tmp_path / "elsewhere" / "workspace"
    git.git(tmp_path, "clone", "--quiet", str(finished.root), str(root))
    shutil.move(str(finished.root.parent / "remote"), str(root.parent / "remote"))
    shutil.rmtree(finished.root)
    return Workspace(root)


def test_a_second_clone_reproduces_a_round_bit_for_bit(second_clone: Workspace) -> None:
    assert not (second_clone.root / ".dvc/cache").exists()
    comparison = reproduce(second_clone, "r002", silent)
    assert comparison.identical
    outputs = {row.path for row in comparison.rows if row.role == "output"}
    assert {"./signals", "./selection.parquet", "./batch", "./labels.parquet", "./model.safetensors", "./metrics.json"} <= outputs
    assert git.changes(second_clone.root) == []
    assert not list((second_clone.private / "reproduce").iterdir())


@pytest.mark.slow
def test_one_altered_byte_of_the_answers_and_what_follows_from_it_are_named(with_pool: Begun) -> None:
    workspace = with_pool(**{"import-labels": {"labeller": "files"}, "programme": {"budget": 12}})
    advance(workspace)
    answer(workspace, "r001")
    advance(workspace)
    path = workspace.root / "answers/r001/anna.csv"
    path.write_text(path.read_text("utf-8").replace("anna", "annb", 1), "utf-8")  # in place, as by accident
    comparison = reproduce(workspace, "r001", silent)
    assert (comparison.identical, comparison.altered) == (False, ["answers/r001"])
    assert all(row.same for row in comparison.rows)

    dvc.dvc(workspace.root, "add", "answers/r001")  # and on purpose, into the record
    git.commit(workspace.root, ["answers/r001.dvc"], "Alter an answer")
    git.git(workspace.root, "tag", "--force", "round-r001")
    comparison = reproduce(workspace, "r001", silent)
    differing = {(row.stage, row.role, row.path) for row in comparison.rows if not row.same}
    assert not comparison.identical
    assert differing == {
        ("import-labels", "input", "../../answers/r001"),
        ("import-labels", "output", "./labels.parquet"),
        ("import-labels", "output", "./import.json"),
        ("retrain", "input", "./labels.parquet"),  # whose annotators the classifier does not see
    }


def test_an_open_round_cannot_be_reproduced(with_pool: Begun) -> None:
    workspace = with_pool()
    rounds.open_round(workspace)
    with pytest.raises(WorkspaceError, match="r001 is not closed yet"):
        reproduce(workspace, "r001", silent)
    with pytest.raises(WorkspaceError, match="there is no 'r009'"):
        reproduce(workspace, "r009", silent)


def test_dvc_repro_by_hand_finds_a_closed_round_up_to_date(finished: Workspace) -> None:
    said = dvc.dvc(finished.root, "repro", "rounds/r002/dvc.yaml")
    assert "Data and pipelines are up to date" in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"acquire": {"method": {"name": "margni"}}}, "acquire.method: unknown method 'margni'; did you mean 'margin'?"),
        ({"acquire": {"cold_start": {"name": "radnom"}}}, "acquire.cold_start: unknown method 'radnom'; did you mean 'random'?"),
        (
            {"retrain": {"mode": "linear-sgd", "ensemble": 5}},
            "retrain.ensemble is 5, but retrain.mode linear-sgd trains none; take linear, finetune or scratch, or set it to null",
        ),
        (
            {"embed": {"signals": ["mc_probs"]}},
            "embed.signals names mc_probs, which takes a trained model, and before the first round there is only the encoder; take mc_probs out "
            "and put it back for the second round",
        ),
        (
            {"retrain": {"mode": "finetune", "warm_start": True}},
            "retrain.warm_start is true, but before the first round there is no model to start from; set it to false for this round",
        ),
        ({"retrain": {"mode": "finetune", "loss_prediction": {"bogus": 1}}}, "retrain.loss_prediction has no parameter 'bogus'; it takes cut, margin, weight"),
        (
            {"embed": {"signals": ["discriminator"], "vaal": {"bogus": 1}}},
            "embed.vaal has no parameter 'bogus'; it takes adversary, batch_size, beta, epochs, image_size, latent, learning_rate, vae_steps, width",
        ),
        ({"classes": ["0"]}, "classes is ['0']; a classifier needs two: list the answers people may give in params.yaml, classes: [...]"),
        (
            {"acquire": {"method": {"name": "learning-loss"}}},
            "acquire.method 'learning-loss' reads predicted_loss, but retrain.loss_prediction is null: no model would predict it, "
            "and the second round could not be opened; set retrain.loss_prediction to {} and retrain.mode to finetune",
        ),
    ],
)
def test_what_no_round_bears_is_refused_before_the_pool_is_made(begun: Callable[..., Workspace], changes: dict[str, object], message: str) -> None:
    workspace = begun(**changes)
    with pytest.raises(ParamsError) as caught:
        rounds.open_pool(workspace)
    assert str(caught.value) == message
    assert workspace.all("pools") == []


@pytest.mark.parametrize("wrong", [{"acquire": Acquire(method={"name": "margni"})}, {"retrain": Retrain(warm_start=True)}])
def test_params_are_looked_at_where_a_round_will_be_opened_with_them(finished: Workspace, wrong: dict[str, Section]) -> None:
    """Not where the budget is spent, nor while a round is open, whose own are frozen."""

    def change(**update: Section) -> None:
        (finished.root / "params.yaml").write_text(finished.params.model_copy(update=update).dump(), "utf-8")

    change(programme=Programme(budget=36))
    git.commit(finished.root, ["params.yaml"], "Buy more")
    before = finished.params
    change(**wrong)
    with pytest.raises(ParamsError):
        rounds.check_ahead(finished)
    change(programme=Programme(budget=24))
    rounds.check_ahead(finished)
    (finished.root / "params.yaml").write_text(before.dump(), "utf-8")
    rounds.open_round(finished)
    change(**wrong)
    rounds.check_ahead(finished)

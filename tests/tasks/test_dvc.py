"""What DVC says reaches the user: its errors in full, its advice not."""

from __future__ import annotations

import pytest

from tasks import dvc
from tasks.errors import WorkspaceError
from tasks.workspace import Workspace


def test_a_stage_that_dvc_does_not_know_is_said_in_its_words(finished: Workspace) -> None:
    with pytest.raises(WorkspaceError) as caught:
        dvc.repro(finished.root, "rounds/r001", "ingest")
    assert str(caught.value) == "rounds/r001: ingest failed\nStage 'ingest' not found inside 'rounds/r001/dvc.yaml' file"


def test_an_input_that_is_not_there_is_said_in_its_words(finished: Workspace) -> None:
    (finished.root / "rounds/r001/labels.parquet").unlink()
    with pytest.raises(WorkspaceError, match=r"rounds/r001: retrain failed\n.*rounds/r001/labels\.parquet"):
        dvc.repro(finished.root, "rounds/r001", "retrain")


def test_what_cannot_be_added_is_said_in_its_words(finished: Workspace) -> None:
    with pytest.raises(WorkspaceError, match=r"answers/r009: `dvc add` failed\n.*answers.* does not exist"):
        dvc.add(finished.root, "answers/r009")


def test_a_remote_that_cannot_be_written_is_said_in_its_words(finished: Workspace) -> None:
    remote = finished.root.parent / "remote"
    remote.rename(remote.with_name("away"))
    remote.touch()  # a file where the folder was: also root cannot write into it
    with pytest.raises(WorkspaceError, match=r"`dvc push` failed; check the remote with `dvc remote list`\n.*Not a directory: '.*/remote/"):
        dvc.push(finished.root, ["rounds/r001/dvc.yaml"])


def test_a_stage_s_lines_come_without_dvc_s_advice(finished: Workspace) -> None:
    said: list[str] = []
    dvc.repro(finished.root, "rounds/r002", "acquire", "--force", on_line=said.append)
    assert "> python -m tasks acquire" in said
    assert [line for line in said if not line.strip() or "git add" in line or "autostage" in line or "dvc push" in line] == []


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("> python\nTraceback\nerror: no room\nfree some\nERROR: failed to reproduce 'x': failed to run: python", "no room\nfree some"),
        ("WARNING: x\nERROR: failed to reproduce 'x': missing data 'y'\n\nHaving any troubles? Hit us up", "failed to reproduce 'x': missing data 'y'"),
        ("ERROR: failed to pull - files:\na\nb", "failed to pull - files:\na\nb"),
        ("Killed\n", "Killed"),
    ],
)
def test_last_words(output: str, words: str) -> None:
    assert dvc.last_words(output) == words

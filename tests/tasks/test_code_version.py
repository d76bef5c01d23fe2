"""The version that rounds are frozen with, of a checkout made here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import doctor
from tasks import code_version, git
from tasks.errors import WorkspaceError


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A git repository in place of Rondo's own."""
    git.git(tmp_path, "init", "--quiet")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/stage.py").write_bytes("größe = 1\n".encode("latin-1"))  # no UTF-8
    (tmp_path / "README.md").write_text("x")
    git.commit(tmp_path, ["tasks", "README.md"], "First")
    monkeypatch.setattr(code_version, "SOURCE", tmp_path)
    code_version.code_version.cache_clear()
    yield tmp_path
    code_version.code_version.cache_clear()


def version() -> str:
    code_version.code_version.cache_clear()
    return code_version.code_version()


def test_a_commit_and_each_edit_of_the_stages_have_versions_of_their_own(checkout: Path) -> None:
    number, commit = version().split("+")
    assert git.git(checkout, "rev-parse", "HEAD").startswith(commit)
    assert len(commit) == 10
    (checkout / "README.md").write_text("y")
    assert version() == f"{number}+{commit}"
    seen = {version()}
    for content in (b"gr\xf6\xdfe = 2\n", b"gr\xf6\xdfe = 3\n"):
        (checkout / "tasks/stage.py").write_bytes(content)
        seen.add(version())
    (checkout / "tasks/new.py").write_text("")
    seen.add(version())
    (checkout / "tasks/new.py").write_text("x = 1")
    seen.add(version())
    assert len(seen) == 5
    assert all(each.startswith(f"{number}+{commit}") for each in seen)


def test_a_folder_that_git_does_not_trust_is_an_error_with_its_remedy(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    with pytest.raises(WorkspaceError, match=r"(?s)dubious ownership.*git config --global --add safe\.directory"):
        version()
    finding = doctor.rondo()
    assert not finding.fine
    assert "dubious ownership" in finding.found
    assert "git config --global --add safe.directory" in finding.remedy


def test_a_checkout_without_git_is_an_error_with_its_remedy(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(WorkspaceError, match="git is not installed or not on the PATH; install it"):
        version()

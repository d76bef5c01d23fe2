"""Where things lie in a workspace."""

from __future__ import annotations

from pathlib import Path

from tasks.workspace import Workspace


def test_rounds_come_by_number_and_other_folders_are_none(tmp_path: Path) -> None:
    for name in ("r1000", "r999", "r002", "r003-old", "r0x4", "s005", "r06"):
        (tmp_path / "rounds" / name).mkdir(parents=True)
        (tmp_path / "rounds" / name / "params.yaml").touch()
    (tmp_path / "rounds" / "r007").mkdir()  # without params
    assert [each.name for each in Workspace(tmp_path).all("rounds")] == ["r002", "r999", "r1000"]
    assert Workspace(tmp_path).all("pools") == []

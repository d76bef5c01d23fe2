"""What `rondo status` prints."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from tasks import failure, rounds, status
from tasks.artifacts import Estimate, Metrics
from tasks.errors import WorkspaceError
from tasks.report import write_report
from tasks.workspace import Workspace


def shown(workspace: Workspace) -> str:
    """What `rondo status` prints, on one line."""
    said = io.StringIO()
    Console(width=200, file=said).print(status.render(workspace))
    return " ".join(said.getvalue().split())


def test_status_says_what_keeps_a_round_from_being_opened(begun: Callable[..., Workspace]) -> None:
    workspace = begun()
    way = "`rondo cycle` takes in the source, trains an encoder and opens the first round"
    assert shown(workspace).endswith(f"next: {way}")
    (workspace.root / "params.yaml").write_text(f"{workspace.params.dump()}\n# more", "utf-8")
    assert shown(workspace).endswith(f"next: commit or undo params.yaml; then {way}")


def test_status_and_report_say_that_probabilities_are_worse_than_equal_ones(finished: Workspace) -> None:
    path = finished.root / "rounds/r002/metrics.json"
    metrics = Metrics.load(path)
    assert "worse" not in shown(finished)
    metrics.model_copy(update={"nll": Estimate(value=4.0, low=3.0, high=5.0, n=9)}).save(path)
    told = "model gives test images probabilities that are worse than equal ones: a negative log-likelihood of 4.00, where 3 equal ones have 1.10"
    assert f"r002: this round's {told}" in shown(finished)
    assert f"<strong>Beware</strong>: this round&#x27;s {told}." in write_report(finished, "r002").read_text("utf-8")


def test_a_failure_is_remembered_until_a_stage_succeeds(with_pool: Callable[..., Workspace]) -> None:
    workspace = with_pool()
    this = rounds.open_round(workspace)
    shard = next((workspace.root / "pools/p001/shards").iterdir())
    content = shard.read_bytes()
    shard.chmod(0o644)
    shard.write_bytes(content[:600])
    with pytest.raises(WorkspaceError, match="embed failed"):
        rounds.run_stage(this, "embed")
    assert "rounds/r001: embed failed " in shown(workspace)
    shard.write_bytes(content)
    rounds.run_stage(this, "embed")
    assert "failed" not in shown(workspace)
    failure.note(this, "later")
    rounds.run_stage(this, "acquire")
    assert "later" not in shown(workspace)


def test_in_80_columns_no_figure_of_the_status_is_cut(finished: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = ["12345", "91.2 [88.0, 94.1]", "90.1 [80.0, 95.0]"]
    monkeypatch.setattr(status, "round_cells", lambda *_: ["awaiting labels", "robust-coreset", *figures])
    said = io.StringIO()
    Console(width=80, file=said).print(status.render(finished))
    cells = [line.split("│")[1:-1] for line in said.getvalue().splitlines() if line.startswith("│")]
    first = cells[: len(cells) // 2]  # of two rounds alike
    columns = ["".join(cell.strip() for cell in column) for column in zip(*first, strict=True)]
    assert columns == ["r001", "awaitinglabels", "robust-coreset", *figures]

"""`rondo status`: a workspace at a glance."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from tasks import failure
from tasks.artifacts import Estimate, IngestReport, Metrics
from tasks.errors import ArtifactError, WorkspaceError
from tasks.retrain import doubted
from tasks.rounds import cut_off, open_state, remaining, uncommitted, unfinished, why_spent
from tasks.workspace import Round, Workspace


def render(workspace: Workspace) -> Group:
    """The pools, the table of rounds, and what happens next."""
    closed = workspace.closed()
    pools = [Text(pool_line(pool, pool.name in closed)) for pool in workspace.all("pools")]
    table = Table(caption="accuracy in % with its 95% interval; on control arm: the model before, on images drawn uniformly", caption_justify="left")
    for heading in ("round", "state", "method", "labels", "test accuracy", "on control arm"):
        words = heading in ("state", "method")  # which go over several lines where figures would be cut
        table.add_column(heading, justify="right" if heading == "labels" else "left", no_wrap=not words, overflow="fold")
    for this in workspace.all("rounds"):
        table.add_row(this.name, *round_cells(this, this.name in closed))
    warnings = [Text(line, "yellow") for line in (doubt(workspace), failure.last(workspace)) if line]
    return Group(Text(str(workspace.root), "bold"), *pools, *([table] if table.rows else []), *warnings, Text(f"next: {what_next(workspace)}"))


def pool_line(pool: Round, closed: bool) -> str:
    """What a pool holds."""
    path = pool.path / "ingest.json"
    size = f"{IngestReport.load(path).images:,} images" if path.exists() else "not read yet"
    encoder = pool.params.pretrain
    return f"{pool.name}: {size}, {encoder.encoder} encoder ({encoder.method}){'' if closed else ', being made'}"


def round_cells(this: Round, closed: bool) -> list[str]:
    """State, method, labels and accuracy of a round."""
    path = this.path / "metrics.json"
    metrics = Metrics.load(path) if path.exists() else None
    state = "closed" if closed else open_state(this)
    numbers = [str(metrics.labels), interval(metrics.accuracy), interval(metrics.control_accuracy)] if metrics else ["", "", ""]
    return [state, str(this.params.acquire.method["name"]), *numbers]


def interval(estimate: Estimate | None) -> str:
    """`91.2 [88.0, 94.1]` in percent, or a dash."""
    return f"{100 * estimate.value:.1f} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]" if estimate else "-"


def doubt(workspace: Workspace) -> str | None:
    """What is wrong with the newest model's probabilities."""
    trained = [each for each in workspace.all("rounds") if (each.path / "metrics.json").exists()]
    if not trained:
        return None
    params, metrics = trained[-1].params, Metrics.load(trained[-1].path / "metrics.json")
    text = doubted(metrics, len(params.classes or []), params.retrain)
    return text and f"{trained[-1].name}: {text}"


def what_next(workspace: Workspace) -> str:
    """One sentence on what to do or what the next cycle does."""
    try:
        going_on = unfinished(workspace)
    except WorkspaceError as error:
        return str(error)
    if going_on:
        text = open_state(going_on[-1], long=True)
        return text if text.startswith(going_on[-1].name) else f"{going_on[-1].name}: {text}"
    if not workspace.all("pools"):
        return f"{commit_first(workspace)}`rondo cycle` takes in the source, trains an encoder and opens the first round"
    try:
        spent = why_spent(workspace)
    except ArtifactError as error:
        return f"`rondo cycle` goes on; how much is unlabelled cannot be told here: {error}"
    if spent:
        return f"nothing: {spent}"
    left = remaining(workspace, workspace.params)
    return f"{commit_first(workspace)}`rondo cycle` opens the next round" + (f" ({left} labels left to buy)" if left is not None else "")


def commit_first(workspace: Workspace) -> str:
    """What stands in the way of opening anything; empty if nothing does."""
    dirty = [line[3:] for line in uncommitted(workspace, [folder for folder, _ in cut_off(workspace)])]  # a run settles those itself
    return f"commit or undo {', '.join(dirty[:5])}{', ...' if len(dirty) > 5 else ''}; then " if dirty else ""

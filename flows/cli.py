"""The command line. Each command imports what it needs itself, so that `rondo --help` answers at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tasks.workspace import Round, Workspace

app = typer.Typer(
    name="rondo",
    help="Active learning in rounds: choose what people should label next, take their answers, retrain; every round versioned, tracked and reproducible.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

Where = Annotated[Path, typer.Option("--workspace", "-w", help="Folder of the workspace; any folder inside it will do.")]
Name = Annotated[str | None, typer.Argument(help="Round, such as r003; the newest if left out.")]


class SourceLabels(StrEnum):
    """What becomes of the labels that the source carries."""

    KEEP = "keep"
    IGNORE = "ignore"


class Labeller(StrEnum):
    """Who answers."""

    FILES = "files"
    ORACLE = "oracle"


def main() -> None:
    """Entry point: run the command; an error that the user can act on is printed as its text alone."""
    from tasks.errors import RondoError

    try:
        app()
    except RondoError as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        sys.exit(1)


def print_version(wanted: bool) -> None:
    """Print the version and exit."""
    if wanted:
        from tasks.code_version import code_version

        typer.echo(f"rondo {code_version()}")
        raise typer.Exit


@app.callback()
def before(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=print_version)] = False,
) -> None:
    """Options before the command."""


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Folder to make the workspace in; empty or new.")],
    source: Annotated[str, typer.Option(help="Folder of images (class sub-folders are labels), .csv/.jsonl list, torchvision://NAME, or example://digits.")],
    labels: Annotated[
        SourceLabels, typer.Option(help="The source's labels of train images: **keep** = known from the start, **ignore** = for the oracle.")
    ] = SourceLabels.KEEP,
    labeller: Annotated[Labeller, typer.Option(help="**files** = people's answers in answers/rNNN/, **oracle** = the source's own labels.")] = Labeller.FILES,
    budget: Annotated[int, typer.Option(min=1, help="Labels a round.")] = 100,
    programme: Annotated[int | None, typer.Option(min=1, help="Labels to buy in all; none: no limit.")] = None,
    classes: Annotated[str | None, typer.Option(help="Answers people may give, by commas; default: those of the source's labels.")] = None,
    encoder: Annotated[
        str | None,
        typer.Option(help="small (images up to about 32 px), resnet18 or another of torchvision, timm/NAME; default: by the source."),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Schedule of pretraining: **tiny** (small network, minutes of a CPU), **cifar** (SimCLR, ResNet-18, images of 32 px) or **imagenet** "
            "(MoCo v2, ResNet-50, 224 px), as published: hours to days of GPUs. Default: by the source."
        ),
    ] = None,
) -> None:
    """Make a workspace: a git + DVC repository with a commented params.yaml."""
    from tasks.sources import check_source
    from tasks.starting import departures, starting_params
    from tasks.workspace import init as make

    check_source(source, Path())
    params = starting_params(
        source,
        labels=labels.value,
        labeller=labeller.value,
        budget=budget,
        programme=programme,
        classes=classes.split(",") if classes else None,
        encoder=encoder,
        preset=preset,
    )
    workspace = make(folder, params)
    if left := departures(preset, params.pretrain):
        typer.echo(left)
    typer.echo(f"Made {workspace.root}. Look at {workspace.root / 'params.yaml'}, then:\n  rondo cycle --workspace {folder}")


@app.command("open")
def open_(
    workspace: Where = Path(),
    again: Annotated[bool, typer.Option("--again", help="First drop the open round, if nobody has answered yet, or an unfinished pool.")] = False,
    new_pool: Annotated[bool, typer.Option("--new-pool", help="First make a new pool of what the source has now.")] = False,
) -> None:
    """Open the next round: freeze params.yaml and the pipeline into rounds/rNNN and commit them. Makes the pool first where there is none."""
    from tasks import rounds

    with holding(workspace) as found:
        rounds.recover(found)
        if again:
            typer.echo(f"dropped {rounds.drop(found)}")
        rounds.refuse_open(found)
        pools = found.all("pools")
        pool = rounds.open_pool(found) if new_pool or not pools else pools[-1]
        if pool.name not in found.closed():
            rounds.run_pool(pool, running(), typer.echo)
        this = rounds.open_round(found)
    method = this.params.acquire.method
    typer.echo(f"opened {this.name} over {pool.name}: {method['name']}, {this.params.acquire.budget} images; `rondo run` goes on")


@app.command()
def run(
    stage: Annotated[str | None, typer.Argument(help="One stage of the open round; all that can run if left out.")] = None,
    workspace: Where = Path(),
) -> None:
    """Run the open round's stages, without Prefect, until people's answers are needed or all have run."""
    from tasks import rounds

    with holding(workspace) as found:
        rounds.recover(found)
        this = rounds.open_now(found)
        if stage:
            rounds.run_stage(this, stage, typer.echo)
            return
        missing = rounds.run_round(this, running(), typer.echo)
    typer.echo(missing or f"{this.name}: all stages have run; `rondo close` closes it")


@app.command()
def close(workspace: Where = Path()) -> None:
    """Close the open round: report, MLflow, commit, push to the DVC remote, git tag."""
    from flows import tracking
    from tasks import rounds
    from tasks.report import write_report

    with holding(workspace) as found:
        this = rounds.open_now(found)
        rounds.require_complete(this)
        rounds.require_unaltered(this)
        typer.echo(f"report: {write_report(found, this.name)}")
        typer.echo(f"MLflow: {tracking.track(found, this.name)}")
        rounds.close(this, typer.echo, just_run=True)
    typer.echo(f"closed {this.name} (git tag {this.tag})")


@app.command()
def status(workspace: Where = Path()) -> None:
    """Show every round: state, method, labels, accuracy, and what happens next."""
    from rich.console import Console

    from tasks.status import render
    from tasks.workspace import Workspace

    Console().print(render(Workspace.find(workspace)))


@app.command()
def reproduce(name: Annotated[str, typer.Argument(help="Closed round or pool, such as r002 or p001.")], workspace: Where = Path()) -> None:
    """Run a closed round again from its tag, aside, and compare every output's hash. Exit code 1 if any differs."""
    from rich.console import Console

    from tasks.reproduce import render
    from tasks.reproduce import reproduce as replay

    with holding(workspace) as found:
        comparison = replay(found, name, typer.echo)
    Console().print(render(comparison))
    raise typer.Exit(0 if comparison.identical else 1)


@app.command()
def report(name: Name = None, workspace: Where = Path()) -> None:
    """Write the round's report.html: picks, learning curve, class balance, map, confusion matrix, times, hashes."""
    from tasks.report import write_report
    from tasks.workspace import Workspace

    found = Workspace.find(workspace)
    rounds = found.all("rounds")
    typer.echo(write_report(found, name or (rounds[-1].name if rounds else "r001")))


@app.command()
def acquire(
    what_if: Annotated[list[str], typer.Option("--what-if", help="Method to try: its name, or YAML such as '{name: margin, partitions: 4}'.")],
    workspace: Where = Path(),
) -> None:
    """Show what other methods would pick for the open round, and how many of these picks are the round's own too. Changes nothing.

    Works while a round is open that has its picks: from `rondo run` (or `rondo cycle`) on, until it is closed, such as while people label.
    A method can be tried that reads what the round has computed: embeddings, the model's logits, and what `embed.signals` names.
    """
    from rich.console import Console

    from tasks import rounds
    from tasks.select_files import named
    from tasks.what_if import render
    from tasks.what_if import what_if as compare

    with holding(workspace) as found:
        this = rounds.open_now(found)
        Console().print(render(this, compare(this, [named(each) for each in what_if])))


@app.command()
def select(
    method: Annotated[str, typer.Argument(help="Name of the method; `rondo methods` lists them.")],
    budget: Annotated[int, typer.Option(min=1, help="How many rows to pick.")],
    out: Annotated[Path, typer.Option(help="Parquet file to write: row, score, in pick order.")],
    seed: Annotated[int, typer.Option(min=0, help="Of every random choice.")] = 0,
    param: Annotated[list[str] | None, typer.Option(help="Parameter of the method as key=value, the value as in YAML: draw=farthest. May be repeated.")] = None,
    embeddings: Annotated[Path | None, typer.Option(help=".npy: (n, d) floats.")] = None,
    logits: Annotated[Path | None, typer.Option(help=".npy: (n, classes) floats.")] = None,
    head: Annotated[Path | None, typer.Option(help="Safetensors file: weight (classes, d) and bias (classes,) of the layer that makes the logits.")] = None,
    mc_probs: Annotated[Path | None, typer.Option(help=".npy: (passes, n, classes) class probabilities of several stochastic passes.")] = None,
    mc_heads: Annotated[
        Path | None, typer.Option(help="In place of mc_probs, safetensors: weight (passes, classes, d) and bias (passes, classes) of draws of the head.")
    ] = None,
    predicted_loss: Annotated[Path | None, typer.Option(help=".npy: (n,) predicted losses.")] = None,
    discriminator: Annotated[Path | None, typer.Option(help=".npy: (n,) probabilities of being labelled.")] = None,
    labeled: Annotated[Path | None, typer.Option(help=".npy: (m,) row numbers whose labels are known.")] = None,
    labels: Annotated[Path | None, typer.Option(help=".npy: (m,) class numbers of those rows, in the same order.")] = None,
    excluded: Annotated[Path | None, typer.Option(help=".npy: Row numbers that may neither be picked nor count as known.")] = None,
    groups: Annotated[Path | None, typer.Option(help=".npy: (n,) group numbers, for quotas.")] = None,
    truth: Annotated[Path | None, typer.Option(help=".npy: (n,) class numbers of all rows, for methods that only backtests can run.")] = None,
    device: Annotated[str, typer.Option(help="Where to compute, as torch names it: cpu, cuda, cuda:1.")] = "cpu",
) -> None:
    """Pick rows from files of signals (.npy, memory-mapped), without a workspace.

    Several processes share the work when torchrun starts them: torchrun --standalone --nproc-per-node 2 $(command -v rondo) select ...
    """
    from rich.console import Console

    import al_core
    from tasks.progress import Told
    from tasks.select_files import Files, Picks, launched, parsed, render, writable
    from tasks.select_files import select as pick

    files = Files(embeddings, logits, head, mc_probs, mc_heads, predicted_loss, discriminator, labeled, labels, excluded, groups, truth)
    knobs = parsed(param or [])
    with launched(device) as launch:
        if launch.speaks:
            writable(out)
        pool = files.pool(launch.device, launch.group)
        with al_core.listening(Told(method) if launch.speaks else None):
            selection = pick(method, pool, budget, seed, knobs)
    if launch.speaks:
        Picks.of_selection(selection).save(out)
        Console().print(render(method, pool, selection, out))


@app.command()
def cycle(
    workspace: Where = Path(),
    rounds: Annotated[int | None, typer.Option(min=1, help="Close at most this many rounds; default: until people or the budget stop it.")] = None,
) -> None:
    """Advance the workspace as far as it can go, as a Prefect flow (on an embedded server unless PREFECT_API_URL names one)."""
    from tasks.rounds import check_ahead
    from tasks.workspace import Workspace

    found = Workspace.find(workspace)
    check_ahead(found)
    servers_at_home(found)
    from flows.cycle import cycle as flow

    state: Any = flow(found.root, rounds, return_state=True)
    if state.is_failed() or state.is_crashed():
        from tasks.errors import RondoError

        error = state.result(raise_on_failure=False)
        if isinstance(error, RondoError):
            raise error
        typer.secho(f"error: {state.message}", fg="red", err=True)
        raise typer.Exit(1)
    typer.echo(f"{state.name}: {state.message}")
    where_to_look(found)


@app.command()
def methods(name: Annotated[str | None, typer.Argument(help="Method; all of them, in a table, if left out.")] = None) -> None:
    """List the acquisition methods, or show what one does, reads and costs."""
    from rich.console import Console

    from tasks.method_cards import card, table

    Console().print(card(name) if name else table())


@app.command()
def ui(workspace: Where = Path()) -> None:
    """Serve the Prefect and MLflow pages of this workspace on this machine until Ctrl-C."""
    from flows.servers import serve
    from tasks.workspace import Workspace

    found = Workspace.find(workspace)
    servers_at_home(found)
    serve(found, typer.echo)


@app.command()
def doctor(workspace: Where = Path()) -> None:
    """Check versions, devices, git, DVC, remote, servers and disk; each problem with its remedy. Exit code 1 if there is one."""
    from rich.console import Console

    from flows.doctor import examine, render

    findings = examine(workspace)
    Console().print(render(findings))
    raise typer.Exit(1 if any(not finding.fine for finding in findings) else 0)


# ---- what several commands need ------------------------------------------------------------------------------------------


@contextmanager
def holding(start: Path) -> Iterator[Workspace]:
    """The workspace that `start` lies in, locked against other writers."""
    from tasks.lock import locked
    from tasks.workspace import Workspace

    found = Workspace.find(start)
    with locked(found):
        yield found


def running() -> Callable[[Round, str], None]:
    """How stages run without Prefect: one after another, their output on the screen."""
    from tasks import rounds

    def run_and_show(this: Round, stage: str) -> None:
        typer.secho(f"{this.name} {stage}", bold=True)
        rounds.run_stage(this, stage, typer.echo)

    return run_and_show


def servers_at_home(workspace: Workspace) -> None:
    """Without a Prefect server of the user's choice, keep the embedded one's database in the workspace. Before prefect is imported."""
    workspace.private.mkdir(exist_ok=True)
    if "PREFECT_API_URL" not in os.environ:
        os.environ.setdefault("PREFECT_HOME", str(workspace.private / "prefect"))
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")  # its first start makes a database, on a busy machine slowly


def where_to_look(workspace: Workspace) -> None:
    """Say where a person finds what the cycle made."""
    reports = [path for each in workspace.all("rounds") if (path := each.path / "report.html").exists()]
    if reports:
        typer.echo(f"  report      {reports[-1]}")
    typer.echo(f"  rounds      rondo status --workspace {workspace.root}")
    typer.echo(f"  Prefect UI and MLflow UI: rondo ui --workspace {workspace.root}")

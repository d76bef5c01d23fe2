"""The life of a round: open (freeze), run, wait for answers, close. Every step may be cut off at any moment and simply done again."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tasks import dvc, git
from tasks.answers import check_classes, read, validate
from tasks.artifacts import Answers, IngestReport, Labels, Manifest, PreviousLabels, Selection, StartLabels
from tasks.code_version import code_version
from tasks.errors import AnswersError, ArtifactError, ParamsError, RondoError, WorkspaceError
from tasks.params import Params
from tasks.stage import AFTER_ANSWERS, BEFORE_ANSWERS, POOL_STAGES, pipeline
from tasks.workspace import Round, Workspace, dvc_yaml

RunStage = Callable[[Round, str], object]
OnLine = Callable[[str], None]


@dataclass(frozen=True)
class State:
    """Where a workspace stands: one of the names below, and what to do next in words."""

    name: str
    message: str


AWAITING_LABELS, ROUND_CLOSED, BUDGET_SPENT = "AwaitingLabels", "RoundClosed", "BudgetSpent"


# ---- open ----------------------------------------------------------------------------------------------------------------


def open_pool(workspace: Workspace) -> Round:
    """Freeze the next pool: the images that exist now, and an encoder for them."""
    refuse_dirty(workspace)
    refuse_open(workspace)
    pools = workspace.all("pools")
    if pools and pools[-1].name not in workspace.closed():
        raise WorkspaceError(f"{pools[-1].name} is not finished yet; `rondo cycle` or `rondo open` finishes it")
    pool = Round(workspace.root, f"p{len(pools) + 1:03}")
    previous = f"../{pools[-1].name}" if pools else None
    params = frozen(workspace.params, round=pool.name, pool=".", previous=previous, here=".", model="encoder.safetensors", answers="known.parquet")
    freeze(workspace, pool, params)
    return pool


def open_round(workspace: Workspace) -> Round:
    """Freeze the next round over the newest pool with what `params.yaml` says now.

    Raises:
        WorkspaceError: the tree is dirty, a round is open, or the pool is not made yet.
        ParamsError: this round cannot be run with these params: no model for the method, too large a budget, no classes.
    """
    refuse_dirty(workspace)
    rounds = workspace.all("rounds")
    closed = workspace.closed()
    refuse_open(workspace)
    pools = [pool for pool in workspace.all("pools") if pool.name in closed]
    if not pools:
        raise WorkspaceError("there is no finished pool yet; `rondo open` makes one first")
    fetch_tables(workspace)
    name, pool, last = f"r{len(rounds) + 1:03}", pools[-1], rounds[-1] if rounds else None
    base = workspace.params
    params = frozen(
        base,
        round=name,
        pool=f"../../{pool.folder}",
        previous=f"../{last.name}" if last else f"../../{pool.folder}",
        model=f"../{last.name}/model.safetensors" if last else f"../../{pool.folder}/encoder.safetensors",
        here=".",
        answers=f"../../{pool.folder}/known.parquet" if base.import_labels.labeller == "oracle" else f"../../answers/{name}",
        classes=base.classes or classes_of(pool),
    )
    this = Round(workspace.root, name)
    freeze(workspace, this, checked(params, workspace, last or pool, pool, has_model=last is not None))
    return this


def checked(params: Params, workspace: Workspace, before: Round, pool: Round, *, has_model: bool) -> Params:
    """The round's params with method, signals and budget settled, or an error that says why the round cannot be run."""
    from al_core import registry

    acquire = params.acquire
    method = settle_method(acquire.method, "acquire.method")
    if registry.card(method["name"]).needs_model and not has_model:
        working = ", ".join(card.name for card in registry.methods() if not card.needs_model)
        if acquire.cold_start is None:
            raise ParamsError(
                f"acquire.method {method['name']!r} needs a model and there is none before the first round; "
                f"these work without one: {working}; name one in acquire.method, or in acquire.cold_start for rounds like this"
            )
        method = settle_method(acquire.cold_start, "acquire.cold_start")
        if registry.card(method["name"]).needs_model:
            raise ParamsError(f"acquire.cold_start {method['name']!r} itself needs a model; these work without one: {working}")
    check_classes(params.classes)
    if len(params.classes or []) < 2:
        raise ParamsError(f"classes is {params.classes}; a classifier needs two: list the answers people may give in params.yaml, classes: [...]")
    left = unlabelled(pool, before)
    allowed = remaining(workspace, params)
    if allowed == 0:
        raise ParamsError(f"programme.budget of {params.programme.budget} labels is spent; raise it in params.yaml to open another round")
    budget = min(acquire.budget, allowed or acquire.budget)
    if budget > left:
        raise ParamsError(
            f"acquire.budget is {budget} but only {left} images are unlabelled; lower it, or add images to the source and `rondo open --new-pool`"
        )
    signals = tuple(dict.fromkeys((*params.embed.signals, *(need for need in registry.card(method["name"]).needs if need in ("embeddings", "logits")))))
    return params.model_copy(
        update={
            "embed": params.embed.model_copy(update={"signals": signals}),
            "acquire": acquire.model_copy(update={"method": method, "budget": budget}),
        }
    )


def unlabelled(pool: Round, before: Round) -> int:
    """How many train images of the pool nobody has answered for, `before` being the last round, or the pool itself."""
    manifest = Manifest.load(pool.path / "manifest.parquet").frame
    known = PreviousLabels.load(before.path / "labels.parquet").joined(StartLabels.load(pool.path / "labels.parquet"))
    return int(((manifest["split"] == "train") & ~manifest["id"].isin(known.frame["id"])).sum())


def fetch_tables(workspace: Workspace) -> None:
    """Bring what `unlabelled` reads: a fresh clone has none of it."""
    pool, last = workspace.all("pools")[-1], workspace.all("rounds")[-1:]
    dvc.fetch_missing(workspace.root, [f"{pool.folder}/manifest.parquet", *(f"{each.folder}/labels.parquet" for each in (pool, *last))])


def settle_method(spec: dict[str, Any], where: str) -> dict[str, Any]:
    """`{name: ..., parameter: ...}` checked, with every parameter explicit."""
    from al_core import registry

    if not isinstance(spec.get("name"), str):
        raise ParamsError(f"{where} is {spec}; expected a name and its parameters, such as {{name: margin}}")
    try:
        return registry.parameters(registry.build(spec["name"], {key: value for key, value in spec.items() if key != "name"}))
    except (ValueError, ImportError) as error:
        raise ParamsError(f"{where}: {error}") from error


def remaining(workspace: Workspace, params: Params) -> int | None:
    """Labels that the programme may still buy; None: no limit."""
    if params.programme.budget is None:
        return None
    bought = [each.params.acquire.budget for each in workspace.all("rounds")]
    return max(0, params.programme.budget - sum(bought))


def classes_of(pool: Round) -> list[str]:
    """The classes that the source's labels name, in order."""
    return sorted(IngestReport.load(pool.path / "ingest.json").known)


def frozen(params: Params, **wiring: object) -> Params:
    """Params with the wiring of one folder, the code that opens it, and the image it runs in."""
    return params.model_copy(update={**wiring, "code": code_version(), "image": os.environ.get("RONDO_IMAGE")})


def freeze(workspace: Workspace, this: Round, params: Params) -> None:
    """Write the folder's `params.yaml` and `dvc.yaml` in one step and commit them."""
    content = yaml.safe_load((workspace.root / "dvc.yaml").read_text("utf-8"))
    check_pipeline(content)
    scratch = workspace.private / "opening"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    (scratch / "params.yaml").write_text(f"# Frozen when {this.name} was opened: what is here is what ran.\n{params.dump()}", "utf-8")
    (scratch / "dvc.yaml").write_text(dvc_yaml(this.stages, content), "utf-8")
    this.path.parent.mkdir(exist_ok=True)
    scratch.replace(this.path)
    git.commit(workspace.root, [this.folder], f"Open {this.name}")


def check_pipeline(content: object) -> None:
    """Raise where the workspace's `dvc.yaml` names other files or params than this version's stages do; the commands may differ."""
    expected = pipeline()["stages"]
    found = content.get("stages", {}) if isinstance(content, dict) else {}
    for name, entry in expected.items():
        for key, value in entry.items():
            if key not in ("cmd", "desc") and found.get(name, {}).get(key) != value:
                raise WorkspaceError(f"dvc.yaml: {key} of {name} is not what this version of Rondo reads and writes; renew it: python -m tasks dvc > dvc.yaml")


def refuse_open(workspace: Workspace) -> None:
    """Raise if a round is open: there is one at a time."""
    rounds = workspace.all("rounds")
    if rounds and rounds[-1].name not in workspace.closed():
        raise WorkspaceError(f"{rounds[-1].name} is still open; finish it with `rondo run` and `rondo close`, or drop it with `rondo open --again`")


def refuse_dirty(workspace: Workspace, besides: str | None = None) -> None:
    """Raise if anything is not committed, but for one folder: a round must be reproducible from its tag."""
    dirty = [line for line in git.changes(workspace.root) if besides is None or not line[3:].startswith(f"{besides}/")]
    dirty = [line for line in dirty if line != "?? dvc.lock"]  # of the example that `dvc repro` runs here; DVC wants it unignored
    if dirty:
        shown = "\n".join(dirty[:10]) + ("\n..." if len(dirty) > 10 else "")
        raise WorkspaceError(
            f"the work tree has changes that are not committed; commit them (git add -A && git commit) or undo them, then open again:\n{shown}"
        )


def drop(workspace: Workspace) -> str:
    """Take the open round back: its folder goes, its opening stays in git's history.

    Raises:
        WorkspaceError: no round is open, or people have already answered for it.
    """
    this = open_now(workspace)
    refuse_dirty(workspace, besides=this.folder)
    if (workspace.root / f"{this.answers}.dvc").exists() or any((workspace.root / this.answers).glob("*")):
        raise WorkspaceError(f"{this.answers} holds answers for {this.name}; finish the round (`rondo run`), or move them away first")
    remove(workspace, this.folder)
    git.commit(workspace.root, [this.folder], f"Drop {this.name}")
    return this.name


def remove(workspace: Workspace, folder: str) -> None:
    """Delete a folder, whole or not at all: out of the way in one step first."""
    aside = workspace.private / "dropped"
    shutil.rmtree(aside, ignore_errors=True)
    (workspace.root / folder).replace(aside)
    shutil.rmtree(aside, ignore_errors=True)


def open_now(workspace: Workspace) -> Round:
    """The round that is open.

    Raises:
        WorkspaceError: none is.
    """
    rounds = workspace.all("rounds")
    if not rounds or rounds[-1].name in workspace.closed():
        raise WorkspaceError("no round is open; `rondo open` opens the next one")
    return rounds[-1]


# ---- run -----------------------------------------------------------------------------------------------------------------


def run_stage(this: Round, stage: str, on_line: OnLine | None = None) -> bool:
    """Bring one stage of a pool or round up to date, fetching what it reads; False where DVC finds nothing changed and nothing is done."""
    before = this.lock.get(stage)
    if stage == AFTER_ANSWERS[0]:
        keep_answers(this)
    fetch_made(this, stage, on_line)
    dvc.fetch_missing(this.root, inputs(this, stage), on_line)
    dvc.repro(this.root, this.folder, stage, on_line=on_line)
    return this.lock.get(stage) != before


def fetch_made(this: Round, stage: str, on_line: OnLine | None) -> None:
    """Bring what the stage made on another machine, so that it is not made again under the hands of people who are labelling; made again if lost."""
    outs = [os.path.normpath(f"{this.folder}/{out['path']}") for out in this.lock.get(stage, {}).get("outs", [])]
    with contextlib.suppress(ArtifactError):
        dvc.fetch_missing(this.root, outs, on_line)


def inputs(this: Round, stage: str) -> list[str]:
    """What a stage reads from other folders, relative to the workspace."""
    from tasks.stage import find, resolve

    params = this.params
    files = [resolve(kind.file, params) for kind in find(stage).reads.values()]
    if stage == "ingest" and params.previous:  # no dependency in dvc.yaml, since the first pool has none
        files = [f"{params.previous}/manifest.parquet", f"{params.previous}/shards"]
    paths = [os.path.normpath(f"{this.folder}/{file}") for file in files]
    return [path for path in paths if not path.startswith(f"{this.folder}/")]


def waiting(this: Round) -> str | None:
    """What is still missing from people's answers, in words; None when the round can go on.

    Raises:
        AnswersError: a file of answers cannot be read.
    """
    params = this.params
    if params.import_labels.labeller == "oracle" or (this.root / f"{this.answers}.dvc").exists():
        return None
    folder = this.root / this.answers
    batch = f"{this.folder}/batch"
    if not folder.exists() or not any(path for path in folder.iterdir() if not path.name.startswith(".")):
        return f"{this.name} waits for labels: give {batch}/ to the labellers and put their answers (CSV, JSONL or Label Studio JSON) into {this.answers}/"
    selection, manifest = Selection.load(this.path / "selection.parquet"), Manifest.load(this.file(Manifest.file))
    checked = validate(read(Answers(folder)), selection, manifest, known_before(this), params.classes or [])
    if checked.enough(params.import_labels.min_answered):
        return None
    return f"{this.name} waits for labels in {this.answers}/: {checked.summary()}"


def known_before(this: Round) -> Labels:
    """What is known before a round's own answers."""
    return PreviousLabels.load(this.file(PreviousLabels.file)).joined(StartLabels.load(this.file(StartLabels.file)))


def keep_answers(this: Round) -> None:
    """Put the answers under DVC, once: from here on they are immutable source data."""
    if this.params.import_labels.labeller == "files" and not (this.root / f"{this.answers}.dvc").exists():
        dvc.add(this.root, this.answers)


def save(this: Round, message: str, on_line: OnLine | None = None) -> bool:
    """Commit what the stages recorded and send their outputs to the remote; False if nothing was new."""
    committed = git.commit(this.root, held_by_git(this), message)
    send(this, on_line)
    return committed


def held_by_git(this: Round) -> list[str]:
    """What belongs to a pool or round in git: its folder, less what is ignored, and the pointer to its answers."""
    pointer = f"{this.answers}.dvc"
    return [this.folder, pointer] if (this.root / pointer).exists() else [this.folder]


def send(this: Round, on_line: OnLine | None = None) -> None:
    """Push the outputs, and the answers, to the DVC remote, if there is one."""
    dvc.push(this.root, [f"{this.folder}/dvc.yaml", *held_by_git(this)[1:]], on_line)


def altered(this: Round) -> list[str]:
    """Files here that are not as recorded, as `dvc status` finds them; those that are not here at all do not count."""
    text = dvc.dvc(this.root, "status", "--json", f"{this.folder}/dvc.yaml", *held_by_git(this)[1:])
    said = json.loads(text[text.index("{") :])  # warnings may stand before it
    changes = [change for entry in said.values() for change in entry if isinstance(change, dict)]
    found = {path for change in changes for kind in ("changed deps", "changed outs") for path, what in change.get(kind, {}).items() if what == "modified"}
    return sorted(found)


def require_complete(this: Round) -> None:
    """Raise unless all stages have run."""
    missing = [stage for stage in this.stages if stage not in this.lock]
    if missing:
        raise WorkspaceError(f"{this.name} cannot be closed: {', '.join(missing)} did not run yet; `rondo run` runs what can run")


def close(this: Round, on_line: OnLine | None = None, *, just_run: bool = False) -> None:
    """Commit, push and tag; the tag comes last, so that a closed round is whole. Stages that have `just_run` are not looked at once more.

    Raises:
        WorkspaceError: stages are missing, or files changed since they ran.
    """
    require_complete(this)
    changed = [] if just_run else altered(this)
    if changed:
        raise WorkspaceError(
            f"{this.name} cannot be closed: {', '.join(changed)} changed since its stages ran; `dvc checkout` restores, `rondo run` runs them anew"
        )
    git.commit(this.root, held_by_git(this), f"Close {this.name}")
    send(this, on_line)
    git.tag(this.root, this.tag, summary(this))


def summary(this: Round) -> str:
    """One line about a pool or round, for its tag."""
    name = "ingest.json" if this.is_pool else "metrics.json"
    content = json.loads((this.path / name).read_text("utf-8"))
    if this.is_pool:
        return f"{this.name}: {content['images']} images"
    accuracy = content["accuracy"]
    return f"{this.name}: {content['labels']} labels" + (f", accuracy {accuracy['value']:.3f}" if accuracy else "")


def run_pool(pool: Round, run: RunStage, on_line: OnLine | None = None) -> None:
    """All of a pool: its stages, then close."""
    for stage in POOL_STAGES:
        run(pool, stage)
    close(pool, on_line, just_run=True)


def run_round(this: Round, run: RunStage, on_line: OnLine | None = None) -> str | None:
    """The open round's stages, as far as they can go; what it waits for, or None when all have run."""
    for stage in BEFORE_ANSWERS:
        run(this, stage)
    missing = waiting(this)
    if missing is not None:
        save(this, f"{this.name}: batch of {this.params.acquire.budget} for labelling", on_line)
        return missing
    for stage in AFTER_ANSWERS:
        run(this, stage)
    return None


def advance(workspace: Workspace, run: RunStage, finish: Callable[[Round], None], max_rounds: int | None = None, on_line: OnLine | None = None) -> State:
    """Take the workspace as far as it can go: the pool, then round after round until people, the budget or `max_rounds` stop it.

    Args:
        workspace: what to advance; recovered first from whatever cut an earlier run off.
        run: brings one stage up to date.
        finish: called for each round whose stages have run, before it is closed: report, tracking.
        max_rounds: how many rounds to close at most; None: no limit.
        on_line: gets DVC's output.
    """
    recover(workspace)
    closed: list[str] = []
    while True:
        this = next((each for each in reversed(workspace.all("rounds")) if each.name not in workspace.closed()), None)
        if this is None:
            if max_rounds is not None and len(closed) >= max_rounds:
                return State(ROUND_CLOSED, f"closed {', '.join(closed)}; the next run opens the next round")
            pools = workspace.all("pools")
            pool = pools[-1] if pools else open_pool(workspace)
            if pool.name not in workspace.closed():
                run_pool(pool, run, on_line)
            fetch_tables(workspace)
            spent = why_spent(workspace)
            if spent:
                return State(BUDGET_SPENT, f"{spent}; " + (f"closed {', '.join(closed)}" if closed else "nothing to do, nothing changed"))
            this = open_round(workspace)
        missing = run_round(this, run, on_line)
        if missing is not None:
            return State(AWAITING_LABELS, missing)
        finish(this)
        close(this, on_line, just_run=True)
        closed.append(this.name)


def open_state(this: Round, *, long: bool = False) -> str:
    """What an open pool or round does next, in a word or in a sentence."""
    missing = [stage for stage in this.stages if stage not in this.lock]
    if not missing:
        return "`rondo cycle` or `rondo close` closes it" if long else "complete"
    if missing[0] == AFTER_ANSWERS[0]:
        try:
            reason = waiting(this)
        except RondoError as error:
            return str(error) if long else "unreadable answers" if isinstance(error, AnswersError) else "data not here"
        if reason is not None:
            return reason if long else "awaiting labels"
    return f"`rondo cycle` or `rondo run` goes on with {missing[0]}" if long else f"before {missing[0]}"


def why_spent(workspace: Workspace) -> str | None:
    """Why no further round can be opened, or None if one can."""
    params = workspace.params
    if remaining(workspace, params) == 0:
        return f"all {params.programme.budget} labels of the programme are bought"
    rounds, pools = workspace.all("rounds"), workspace.all("pools")
    before = rounds[-1] if rounds else pools[-1]
    if unlabelled(pools[-1], before) == 0:
        return "every image of the pool has an answer"
    return None


def recover(workspace: Workspace) -> None:
    """Finish what was cut off: a folder that never reached git holds nothing but frozen files and is opened again; a dropped one is let go."""
    for line in git.changes(workspace.root, "pools", "rounds"):
        folder = Path(line[3:]).parent.as_posix()
        if line.endswith("/params.yaml") and "D" in line[:2] and not (workspace.root / folder).exists():
            git.commit(workspace.root, [folder], f"Drop {Path(folder).name}")
        elif line.endswith("/params.yaml") and line[:2] in ("??", "A "):
            git.git(workspace.root, "rm", "-r", "--quiet", "--cached", "--ignore-unmatch", "--", folder)
            remove(workspace, folder)

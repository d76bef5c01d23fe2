"""The life of a round: open (freeze), run, wait for answers, close. Every step may be cut off at any moment and simply done again."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tasks import dvc, failure, git
from tasks.answers import check_classes, read, validate
from tasks.artifacts import Answers, IngestReport, Labels, Manifest, PreviousLabels, Selection, StartLabels
from tasks.code_version import code_version
from tasks.errors import AnswersError, ArtifactError, ParamsError, RondoError, WorkspaceError
from tasks.params import Embed, Params, Pretrain, Retrain, Section, SignalName
from tasks.pretrain import CHECKPOINT, chosen
from tasks.signals import check_without_model
from tasks.stage import AFTER_ANSWERS, BEFORE_ANSWERS, POOL_STAGES, pipeline
from tasks.weights import settle_weights
from tasks.workspace import Round, Workspace, dvc_yaml

if TYPE_CHECKING:
    from al_core.selection import Method

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
        raise WorkspaceError(
            f"{pools[-1].name} is not finished yet; `rondo cycle` or `rondo open` finishes it, `rondo open --again --new-pool` drops it and makes it anew"
        )
    check_ahead(workspace)
    pool = Round(workspace.root, f"p{len(pools) + 1:03}")
    previous = f"../{pools[-1].name}" if pools else None
    encoder = "encoder.safetensors"
    params = frozen(workspace.params, round=pool.name, pool=".", previous=previous, here=".", model=encoder, start=encoder, answers="known.parquet")
    pretrain = settle_weights(settle_pretrain(params.pretrain), workspace.root, pool.folder)
    freeze(workspace, pool, params.model_copy(update={"pretrain": pretrain}))
    return pool


def check_ahead(workspace: Workspace) -> None:
    """Raise on params that will keep the next round from being opened, before a server starts for it, or days go into its pool.

    Nothing where none is to be opened: one is open, or the budget is spent.

    Raises:
        ParamsError: they cannot be read, name a method, an encoder or a training that does not exist, or ask for a first round in vain, or for one that
            takes a model.
        WorkspaceError: tags are missing.
    """
    if open_or_none(workspace):
        return
    params = workspace.params
    if remaining(workspace, params) == 0:
        return
    first = not workspace.all("rounds")
    method = settle_method(params.acquire.method, "acquire.method")
    check_retrain(params.retrain, has_model=not first)
    settle_retrain(params.retrain)
    settle_embed(params.embed)
    if params.classes is not None:
        check_enough(params.classes)
    if first:
        if params.acquire.cold_start is not None:
            settle_method(params.acquire.cold_start, "acquire.cold_start", cold=True)
        cold_method(method, params)
        check_without_model(params.embed.signals)
    if not workspace.all("pools"):
        settle_pretrain(params.pretrain)


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
    encoder = f"../../{pool.folder}/encoder.safetensors"
    model = f"../{last.name}/model.safetensors" if last else encoder
    params = frozen(
        base,
        **of_pool(pool),
        round=name,
        pool=f"../../{pool.folder}",
        previous=f"../{last.name}" if last else f"../../{pool.folder}",
        model=model,
        start=model if base.retrain.warm_start else encoder,
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
    if not has_model:
        method = cold_method(method, params)
        check_without_model(params.embed.signals)
    check_enough(params.classes)
    check_retrain(params.retrain, has_model=has_model)
    if params.retrain.warm_start:
        check_warm_start(params.classes, before, pool)
    left = unlabelled(pool, before)
    allowed = remaining(workspace, params)
    if allowed == 0:
        raise ParamsError(f"programme.budget of {params.programme.budget} labels is spent; raise it in params.yaml to open another round")
    budget = min(acquire.budget, allowed or acquire.budget)
    if has_model and left > 0:  # the pool's tail; a first round that does not fit is a mistake
        budget = min(budget, left)
    if budget > left:
        raise ParamsError(
            f"acquire.budget is {budget} but only {left} images are unlabelled; lower it, or add images to the source and `rondo open --new-pool`"
        )
    signals = tuple(dict.fromkeys((*params.embed.signals, *(need for need in registry.needs(built(method)) if need in typing.get_args(SignalName)))))
    if has_model:
        check_signals(signals, before)
    return params.model_copy(
        update={
            "embed": settle_embed(params.embed.model_copy(update={"signals": signals})),
            "acquire": acquire.model_copy(update={"method": method, "budget": budget}),
            "retrain": settle_retrain(params.retrain),
        }
    )


def cold_method(method: dict[str, Any], params: Params) -> dict[str, Any]:
    """What a first round picks by: the method, or `acquire.cold_start` where the method reads what only a trained model can give.

    Raises:
        ParamsError: there is no cold start, it needs a model itself, or the first round's model would be of no use to the method.
    """
    from al_core import registry

    if not needs_model(method):
        return method
    working, spec = ", ".join(usable(cold=True)), params.acquire.cold_start
    if spec is None:
        raise ParamsError(
            f"acquire.method {method['name']!r} needs a model and there is none before the first round; "
            f"these work without one: {working}; name one in acquire.method, or in acquire.cold_start for rounds like this"
        )
    if "predicted_loss" in registry.needs(built(method)) and params.retrain.loss_prediction is None:
        raise ParamsError(
            f"acquire.method {method['name']!r} reads predicted_loss, but retrain.loss_prediction is null: no model would predict it, "
            "and the second round could not be opened; set retrain.loss_prediction to {} and retrain.mode to finetune"
        )
    cold = settle_method(spec, "acquire.cold_start", cold=True)
    if needs_model(cold):
        raise ParamsError(f"acquire.cold_start {cold['name']!r} itself needs a model; these work without one: {working}")
    return cold


def check_enough(classes: list[str] | None) -> None:
    """Raise on classes that nothing can be told apart by."""
    check_classes(classes)
    if len(classes or []) < 2:
        raise ParamsError(f"classes is {classes}; a classifier needs two: list the answers people may give in params.yaml, classes: [...]")


def check_retrain(params: Retrain, *, has_model: bool) -> None:
    """Raise on a training that the mode does not do, or that takes a model of a round before where there is none."""
    if params.ensemble and params.mode == "linear-sgd":
        raise ParamsError(
            f"retrain.ensemble is {params.ensemble}, but retrain.mode linear-sgd trains none; take linear, finetune or scratch, or set it to null"
        )
    if params.loss_prediction is not None and params.mode in ("linear", "linear-sgd"):
        raise ParamsError(
            f"retrain.loss_prediction is trained together with an encoder, and retrain.mode {params.mode} trains none; "
            "take mode finetune or scratch, or set it to null"
        )
    if params.warm_start and params.mode != "finetune":
        raise ParamsError(f"retrain.warm_start is true, but only retrain.mode finetune starts from a model, and it is {params.mode}; set it to false")
    if params.warm_start and not has_model:
        raise ParamsError("retrain.warm_start is true, but before the first round there is no model to start from; set it to false for this round")


def check_warm_start(classes: list[str] | None, last: Round, pool: Round) -> None:
    """Raise where this round's classifier could not start from the model of the round before."""
    if last.params.classes != classes:
        raise ParamsError(
            f"retrain.warm_start is true, but the model of {last.name} knows the classes {last.params.classes} and this round has {classes}; "
            "set it to false for this round"
        )
    theirs, ours = (architecture(each) for each in (Round(last.root, Path(last.params.pool).name), pool))
    if theirs != ours:
        raise ParamsError(
            f"retrain.warm_start is true, but the model of {last.name} is {theirs} and the encoder of {pool.name} is {ours}; set it to false for this round"
        )


def architecture(pool: Round) -> str:
    """Of a pool's encoder, in words."""
    pretrain = pool.params.pretrain
    return f"{pretrain.encoder} at {pretrain.image_size} px with the {pretrain.stem} stem"


def check_signals(signals: Sequence[str], before: Round) -> None:
    """Raise where the model of the round before was not trained to give what is read."""
    if "predicted_loss" in signals and before.params.retrain.loss_prediction is None:
        raise ParamsError(
            f"predicted_loss is read, but the model of {before.name} was trained without a module that predicts it; for now take another method, "
            "and set retrain.loss_prediction to {} and retrain.mode to finetune: the round after can have it"
        )


def settle_retrain(params: Retrain) -> Retrain:
    """The section with every parameter of a loss prediction module explicit."""
    from tasks.loss_prediction import loss_recipe

    recipe = loss_recipe(params.loss_prediction)
    return params if recipe is None else params.model_copy(update={"loss_prediction": dict(vars(recipe))})


def unlabelled(pool: Round, before: Round) -> int:
    """How many train images of the pool nobody has answered for, `before` being the last round, or the pool itself."""
    manifest = Manifest.load(pool.path / "manifest.parquet").frame
    known = PreviousLabels.load(before.path / "labels.parquet").joined(StartLabels.load(pool.path / "labels.parquet"))
    return int(((manifest["split"] == "train") & ~manifest["id"].isin(known.frame["id"])).sum())


def fetch_tables(workspace: Workspace) -> None:
    """Bring what `unlabelled` reads: a fresh clone has none of it."""
    pool, last = workspace.all("pools")[-1], workspace.all("rounds")[-1:]
    dvc.fetch_missing(workspace.root, [f"{pool.folder}/manifest.parquet", *(f"{each.folder}/labels.parquet" for each in (pool, *last))])


def settle_pretrain(params: Pretrain) -> Pretrain:
    """The section checked, with every parameter of its method explicit."""
    from al_core import encoders

    try:
        encoder = encoders.build(params.encoder, seed=0, image_size=params.image_size, stem=params.stem)
    except (ValueError, ImportError) as error:
        raise ParamsError(f"pretrain: {error}") from error
    if params.method == "none":
        return params
    from al_core.pretraining import build
    from al_core.pretraining.augment import Augment
    from al_core.pretraining.train import Recipe, check_views

    processes = params.launch.processes * params.launch.nodes
    try:
        method = build(params.method, params.objective)
        method.check(epochs=params.epochs, processes=processes)
    except ValueError as error:
        raise ParamsError(f"pretrain.objective: {error}") from error
    try:
        Recipe(**chosen(Recipe, params)).check(processes)
        check_views(encoder, method.views(params.image_size, params.min_crop, Augment(**chosen(Augment, params))))
    except ValueError as error:
        raise ParamsError(str(error)) from error
    return params.model_copy(update={"objective": dict(vars(method))})


def settle_embed(params: Embed) -> Embed:
    """The section checked, with every parameter of what it trains explicit."""
    if "discriminator" not in params.signals:
        return params
    from tasks.vaal import recipe_of

    return params.model_copy(update={"vaal": dict(vars(recipe_of(params.vaal)))})


def settle_method(spec: dict[str, Any], where: str, *, cold: bool = False) -> dict[str, Any]:
    """`{name: ..., parameter: ...}` checked, with every parameter explicit; `cold`: of a round before which there is no model."""
    from al_core import registry
    from al_core.pool import SIGNALS

    if not isinstance(spec.get("name"), str):
        raise ParamsError(f"{where} is {spec}; expected a name and its parameters, such as {{name: margin}}")
    try:
        registry.card(spec["name"])
    except ValueError as error:
        raise ParamsError(f"{where}: unknown method {spec['name']!r}; {registry.nearest(spec['name'], usable(cold=cold), 'these can stand here:')}") from error
    except ImportError as error:
        raise ParamsError(f"{where}: {error}") from error
    try:
        method = built(spec)
    except ValueError as error:
        raise ParamsError(f"{where}: {error}") from error
    for need in registry.needs(method):
        if not SIGNALS[need].in_rounds:
            raise ParamsError(f"{where}: {spec['name']} reads {need}, which a round does not have: {SIGNALS[need].made_by}")
    return registry.parameters(method)


def usable(*, cold: bool = False) -> list[str]:
    """Names of the methods that a round can pick by; `cold`: before there is a model."""
    from al_core import registry
    from al_core.pool import SIGNALS

    return [card.name for card in registry.methods() if all(SIGNALS[need].in_rounds for need in card.needs) and not (cold and card.needs_model)]


def built(spec: dict[str, Any]) -> Method:
    """The method that `{name: ..., parameter: ...}` describes."""
    from al_core import registry

    return registry.build(spec["name"], {key: value for key, value in spec.items() if key != "name"})


def needs_model(spec: dict[str, Any]) -> bool:
    """Whether the method, or what is laid over it, reads what only a trained model can give."""
    from al_core import registry
    from al_core.pool import SIGNALS

    return any(SIGNALS[need].from_model for need in registry.needs(built(spec)))


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


def of_pool(pool: Round) -> dict[str, Section]:
    """The sections that the pool was made with; what the workspace's say by now comes into force with the next pool."""
    params = pool.params
    return {stage: getattr(params, stage) for stage in POOL_STAGES}


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
    this = open_or_none(workspace)
    if this:
        raise WorkspaceError(f"{this.name} is still open; finish it with `rondo run` and `rondo close`, or drop it with `rondo open --again`")


def refuse_dirty(workspace: Workspace, besides: Sequence[str] = ()) -> None:
    """Raise if anything else is not committed: a round must be reproducible from its tag."""
    dirty = uncommitted(workspace, besides)
    if dirty:
        shown = "\n".join(dirty[:10]) + ("\n..." if len(dirty) > 10 else "")
        raise WorkspaceError(
            f"the work tree has changes that are not committed; commit them (git add -A && git commit) or undo them, then open again:\n{shown}"
        )


def uncommitted(workspace: Workspace, besides: Sequence[str]) -> list[str]:
    """What is not committed, as `git status` prints it, but for some files and folders."""
    changes = [(line, line[3:].strip('"')) for line in git.changes(workspace.root)]
    lines = [line for line, path in changes if not any(path == each or path.startswith(f"{each}/") for each in besides)]
    return [line for line in lines if line != "?? dvc.lock"]  # of the example that `dvc repro` runs here; DVC wants it unignored


def drop(workspace: Workspace) -> str:
    """Take back the open round, or else the newest pool if it is not finished: its folder goes, its opening stays in git's history.

    Raises:
        WorkspaceError: all is closed, or people have already answered for the round.
    """
    this = next(reversed(unfinished(workspace)), None)
    if this is None:
        raise WorkspaceError("no round is open and no pool is unfinished, so there is nothing to drop; `rondo open` opens the next round")
    refuse_dirty(workspace, besides=held_by_git(this))
    if (workspace.root / f"{this.answers}.dvc").exists() or any((workspace.root / this.answers).glob("*")):
        raise WorkspaceError(f"{this.answers} holds answers for {this.name}; finish the round (`rondo run`), or move them away first")
    remove(workspace, this.folder)
    failure.forget(workspace.root)
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
    this = open_or_none(workspace)
    if this is None:
        raise WorkspaceError("no round is open; `rondo open` opens the next one")
    return this


def open_or_none(workspace: Workspace) -> Round | None:
    """The round that is open, if one is; see `unfinished`."""
    return next((each for each in unfinished(workspace) if not each.is_pool), None)


def unfinished(workspace: Workspace) -> list[Round]:
    """The newest pool and the newest round, as far as they do not carry their closing tags.

    Raises:
        WorkspaceError: tags are missing of what is closed, as in a clone that was made without them.
    """
    closed = workspace.closed()
    pools, rounds = workspace.all("pools"), workspace.all("rounds")
    newest = [*pools[-1:], *rounds[-1:]]
    lost = [each.name for each in (*pools, *rounds) if each.name not in closed and (each not in newest or closed_elsewhere(each))]
    if lost:
        raise WorkspaceError(
            f"{', '.join(lost)} closed elsewhere, but the git tags that say so are not here; fetch the tags: git fetch --tags "
            "(if the remote does not have them, where they were closed: git push --tags)"
        )
    return [each for each in newest if each.name not in closed]


def closed_elsewhere(this: Round) -> bool:
    """Whether git's history closes it and this clone did not; a closing that was cut off here is in the reflog, and its tag is still to come."""
    message = f"Close {this.name}"
    if message not in git.git(this.root, "log", f"--grep=^{message}$", "--format=%s").splitlines():
        return False
    return not any(line.endswith(f": {message}") for line in git.git(this.root, "reflog", "--format=%gs").splitlines())


# ---- run -----------------------------------------------------------------------------------------------------------------


def run_stage(this: Round, stage: str, on_line: OnLine | None = None) -> bool:
    """Bring one stage of a pool or round up to date, fetching what it reads; False where DVC finds nothing changed and nothing is done.

    Raises:
        WorkspaceError: it is no stage of this one, an earlier one did not run yet, answers are missing, or it failed.
    """
    if stage not in this.stages:
        raise WorkspaceError(f"{stage!r} is no stage of {this.name}; these are: {', '.join(this.stages)}")
    before, unrun = this.lock.get(stage), this.unrun
    earlier = [each for each in this.stages[: this.stages.index(stage)] if each in unrun]
    if earlier:
        raise WorkspaceError(f"{this.name}: {stage} comes after {', '.join(earlier)}, which did not run yet; `rondo run` runs what can run")
    if stage == AFTER_ANSWERS[0]:
        keep_answers(this)
    fetch_made(this, stage, on_line)
    dvc.fetch_missing(this.root, inputs(this, stage), on_line)
    try:
        dvc.repro(this.root, this.folder, stage, on_line=on_line)
    except WorkspaceError as error:
        failure.note(this, str(error))
        raise
    failure.forget(this.root)
    if stage == "pretrain":
        (this.path / CHECKPOINT).unlink(missing_ok=True)  # not before DVC has the encoder
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
        files = [f"{params.previous}/manifest.parquet", f"{params.previous}/shards", f"{params.previous}/pack"]
    if stage == "pretrain" and params.pretrain.weights_sha256 and not Path(params.pretrain.weights or "").is_absolute():
        files.append(str(params.pretrain.weights))  # of the workspace; the stage compares its hash
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
        return (
            f"{this.name} waits for labels: give {batch}/ to the labellers and put their answers (CSV, JSONL or Label Studio JSON) "
            f"into {this.answers}/ (a folder you make)"
        )
    selection, manifest = Selection.load(this.path / "selection.parquet"), Manifest.load(this.file(Manifest.file))
    checked = validate(read(Answers(folder)), selection, manifest, known_before(this), params.classes or [])
    if checked.enough(params.import_labels.min_answered):
        return None
    return f"{this.name} waits for labels in {this.answers}/: {checked.summary()}"


def known_before(this: Round) -> Labels:
    """What is known before a round's own answers."""
    return PreviousLabels.load(this.file(PreviousLabels.file)).joined(StartLabels.load(this.file(StartLabels.file)))


def keep_answers(this: Round) -> None:
    """Put the answers under DVC, once and all of them: from here on they are immutable source data.

    Raises:
        WorkspaceError: some are missing still.
    """
    missing = waiting(this)
    if missing is not None:
        raise WorkspaceError(missing)
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
    found = set()
    for target, changes in said.items():
        for change in changes:
            if isinstance(change, str):  # "changed command"
                found.add(target.partition(":")[0])
            else:  # of params.yaml it says what became of each key, of other files one word
                files = [file for kind in ("changed deps", "changed outs") for file in change.get(kind, {}).items()]
                found |= {path for path, what in files if what == "modified" or isinstance(what, dict)}
    return sorted(found)


def require_complete(this: Round) -> None:
    """Raise unless all stages have run, on answers that DVC holds."""
    missing = this.unrun
    if missing:
        raise WorkspaceError(f"{this.name} cannot be closed: {', '.join(missing)} did not run yet; `rondo run` runs what can run")
    if not this.is_pool and this.params.import_labels.labeller == "files":
        require_kept(this)


def require_kept(this: Round) -> None:
    """Raise unless the answers that were imported are those that DVC holds."""
    pointer = this.root / f"{this.answers}.dvc"
    if not pointer.exists():
        raise WorkspaceError(f"{this.name} cannot be closed: DVC does not hold {this.answers} yet; `rondo run` hands it over")
    kept = yaml.safe_load(pointer.read_text("utf-8"))["outs"][0]["md5"]
    imported = {os.path.normpath(f"{this.folder}/{dep['path']}"): dep["md5"] for dep in this.lock[AFTER_ANSWERS[0]]["deps"]}
    if imported.get(this.answers) != kept:
        raise WorkspaceError(
            f"{this.name} cannot be closed: its labels come from other answers than {this.answers}.dvc holds; "
            f"`dvc checkout {this.answers}.dvc` restores those, `dvc add {this.answers}` keeps the others; then `rondo run`"
        )


def require_unaltered(this: Round) -> None:
    """Raise if a file changed since the stages ran."""
    changed = altered(this)
    if changed:
        raise WorkspaceError(
            f"{this.name} cannot be closed: {', '.join(changed)} changed since its stages ran; "
            "`dvc checkout` or `git checkout` restores, `rondo run` runs them anew"
        )


def close(this: Round, on_line: OnLine | None = None, *, just_run: bool = False) -> None:
    """Commit, push and tag; the tag comes last, so that a closed round is whole. Stages that have `just_run` are not looked at once more.

    Raises:
        WorkspaceError: stages are missing, DVC does not hold the answers, or files changed since the stages ran.
    """
    require_complete(this)
    if not just_run:
        require_unaltered(this)
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
    """All of a pool: its stages, then close.

    Raises:
        WorkspaceError: a stage failed; says how to get away from params that cannot work.
    """
    for stage in POOL_STAGES:
        try:
            run(pool, stage)
        except WorkspaceError as error:
            remedy = f"{pool.name} keeps the params it was opened with; for others: edit params.yaml, commit it, and `rondo open --again --new-pool`"
            raise WorkspaceError(f"{error}\n{remedy}") from error
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
        this = open_or_none(workspace)
        if this is None:
            if max_rounds is not None and len(closed) >= max_rounds:
                return State(ROUND_CLOSED, f"this run closed {', '.join(closed)}; the next run opens the next round")
            pools = workspace.all("pools")
            pool = pools[-1] if pools else open_pool(workspace)
            if pool.name not in workspace.closed():
                run_pool(pool, run, on_line)
            fetch_tables(workspace)
            spent = why_spent(workspace)
            if spent:
                return State(BUDGET_SPENT, f"{spent}; " + (f"this run closed {', '.join(closed)}" if closed else "nothing to do, nothing changed"))
            this = open_round(workspace)
        missing = run_round(this, run, on_line)
        if missing is not None:
            return State(AWAITING_LABELS, missing)
        require_complete(this)
        finish(this)
        close(this, on_line, just_run=True)
        closed.append(this.name)


def open_state(this: Round, *, long: bool = False) -> str:
    """What an open pool or round does next, in a word or in a sentence."""
    missing = this.unrun
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
        return f"all {params.programme.budget} labels of the programme are bought (for more, raise programme.budget in params.yaml and commit it)"
    rounds, pools = workspace.all("rounds"), workspace.all("pools")
    before = rounds[-1] if rounds else pools[-1]
    if unlabelled(pools[-1], before) == 0:
        return "every image of the pool has an answer (for more, add images to the source and `rondo open --new-pool`)"
    return None


def recover(workspace: Workspace) -> None:
    """Finish what was cut off: a folder that never reached git holds nothing but frozen files and is opened again; a dropped one is let go."""
    for folder, dropped in cut_off(workspace):
        if dropped:
            git.commit(workspace.root, [folder], f"Drop {Path(folder).name}")
        else:
            git.git(workspace.root, "rm", "-r", "--quiet", "--cached", "--ignore-unmatch", "--", folder)
            remove(workspace, folder)


def cut_off(workspace: Workspace) -> list[tuple[str, bool]]:
    """Folders of pools and rounds whose opening or (true) whose dropping did not come to its commit."""
    found = []
    for line in git.changes(workspace.root, "pools", "rounds"):
        folder = Path(line[3:]).parent.as_posix()
        dropped = "D" in line[:2] and not (workspace.root / folder).exists()
        if line.endswith("/params.yaml") and (dropped or line[:2] in ("??", "A ")):
            found.append((folder, dropped))
    return found

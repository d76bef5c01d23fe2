"""`params.yaml`: what every knob is, its default and its meaning. The commented file of a workspace is rendered from here."""

from __future__ import annotations

import difflib
import json
import typing
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks.errors import ParamsError

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]


UNION = ("literal['auto']", "constrained-float")  # what pydantic appends to the place of a knob that is auto or a number


class Section(BaseModel):
    """Strict and frozen: an unknown key or a wrong type is an error, never a guess."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True, allow_inf_nan=False)


class Programme(Section):
    """The labelling programme as a whole."""

    budget: Positive | None = Field(None, description="labels to buy in all; the cycle ends in BudgetSpent when they are bought; null: no limit")


class Cache(Section):
    """Every image of a pool once more, at one size."""

    size: Positive = Field(256, description="pixels of a side; what stages look at may be smaller, else they read the images themselves")
    format: Literal["jpeg", "raw"] = Field(
        "jpeg", description="jpeg: quality 90; raw: the pixels, larger (size x size x 3 bytes an image) and many times faster to read"
    )


class Ingest(Section):
    """Source to pool. Runs when a pool is made, not in every round."""

    source: str = Field("example://digits", description="folder, .csv/.jsonl list (uri[,label][,split]), torchvision://NAME, example://digits")
    labels: Literal["keep", "ignore"] = Field(
        "keep", description="labels that the source carries for train images: keep = known from the start; ignore = seen by the oracle alone"
    )
    test: Fraction = Field(0.2, description="share of the labelled images held out for testing, chosen by image id; only where the source has no test split")
    max_pixels: Positive = Field(50_000_000, description="larger images go to quarantine (decompression bombs)")
    shard_megabytes: Positive = Field(256, description="size at which a new tar shard is begun")
    workers: Positive = Field(2, description="processes that read and decode; does not change the result")
    cache: Cache | None = Field(
        None, description="a pack of all images as squares, which spares stages decoding large files, such as {size: 256, format: jpeg}; null: none"
    )


class Launch(Section):
    """Processes that do a stage's work together, one on each GPU."""

    processes: Positive = Field(1, description="on this machine")
    nodes: Positive = Field(1, description="machines that run the stage at the same time; RONDO_RENDEZVOUS says where they meet")


class Pretrain(Section):
    """Self-supervised training of the encoder. Runs when a pool is made, not in every round."""

    method: Literal["simclr", "mocov2", "vicreg", "barlow-twins", "dino", "swav", "none"] = Field(
        "simclr", description="self-supervised method; none: the encoder keeps the weights that it begins with"
    )
    objective: dict[str, Any] = Field({}, description="parameters of the method, such as {temperature: 0.2}; `rondo open` writes every one out")
    encoder: str = Field(
        "small",
        description="small: 4 convolutions, for images up to about 32 px; bayesian-cnn; torchvision's by name, such as resnet18; timm's as timm/NAME",
    )
    stem: Literal["standard", "cifar"] = Field("standard", description="cifar: a ResNet's first layers for images up to about 64 px, 3x3 and no max-pooling")
    weights: str | None = Field(None, description="what training starts from: a .safetensors, .pth, .pt or .ckpt file; timm: published ones; null: random")
    weights_sha256: str | None = Field(None, description="of the file of weights; set by `rondo open`")
    image_size: Positive = Field(32, description="pixels; images are resized to image_size x image_size")
    epochs: Positive = Field(20, description="passes over the pool")
    batch_size: Annotated[int, Field(ge=2)] = Field(256, description="images a step, of all processes together; never more than there are train images")
    accumulate: Positive = Field(1, description="parts that a step is done in where memory is short; images are contrasted within a part alone")
    optimizer: Literal["adamw", "sgd", "lars"] = Field("adamw", description="adamw for batches of hundreds, lars for thousands, sgd as MoCo has it")
    learning_rate: Annotated[float, Field(gt=0)] = Field(0.003, description="peak; before it a linear rise, after it a cosine")
    learning_rate_end: Annotated[float, Field(ge=0)] = Field(0.0, description="what the cosine falls to")
    warmup_epochs: Annotated[float, Field(ge=0)] = Field(1.0, description="epochs of the rise")
    momentum: Fraction = Field(0.9, description="of sgd and lars")
    weight_decay: Annotated[float, Field(ge=0)] = Field(1e-4, description="of matrices and convolutions; biases and batch norm are left free")
    weight_decay_end: Annotated[float, Field(ge=0)] | None = Field(None, description="what it goes to along a cosine; null: stays")
    clip: Annotated[float, Field(gt=0)] | None = Field(None, description="largest norm of the gradient; null: any")
    min_crop: Annotated[float, Field(gt=0, le=1)] = Field(0.4, description="smallest share of the image that a random crop keeps")
    color: Annotated[float, Field(ge=0)] = Field(0.5, description="strength of colour jitter; 0 for grey images")
    grey: Fraction = Field(0.2, description="share of views that lose their colour")
    flip: bool = Field(True, description="mirror left-right; false where it changes the meaning (digits, text)")
    rotate: Annotated[float, Field(ge=0, le=180)] = Field(0.0, description="largest random rotation, degrees")
    blur: Fraction = Field(0.0, description="share of views that are blurred; 0.5 for images of some 200 px, 0 for small ones")
    solarize: Fraction = Field(0.0, description="share of views whose bright pixels are inverted")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="of the encoder's products; bfloat16 halves the time on a GPU")
    compile: bool = Field(False, description="by torch.compile: minutes at the start, less time a step after")
    threads: Positive = Field(1, description="of the CPU; another number gives other last bits, and more than there are idle cores take longer")
    workers: Annotated[int, Field(ge=0)] = Field(2, description="loader processes; does not change the result")
    launch: Launch = Field(Launch(), description="processes that train together, and machines")


SignalName = Literal["embeddings", "logits", "mc_probs", "predicted_loss", "discriminator"]


class Embed(Section):
    """Signals for the method."""

    signals: tuple[SignalName, ...] = Field(("embeddings",), description="what to compute; `rondo open` adds what the method reads")
    passes: Annotated[int, Field(ge=2)] = Field(
        100, description="stochastic passes of the model, for methods that read mc_probs; an ensemble has as many as members"
    )
    dropout: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.5, description="share of an embedding's coordinates that a pass drops before the head; an encoder with dropout drops as it was trained"
    )
    vaal: dict[str, Any] = Field(
        {}, description="parameters of VAAL's networks, for methods that read discriminator, such as {epochs: 20}; `rondo open` writes every one out then"
    )
    batch_size: Positive = Field(256, description="images a step")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="of the encoder's products; bfloat16 is faster and rounds to 3 digits")
    processes: Positive = Field(1, description="processes of this machine that share the work, one on each GPU; does not change the result")
    workers: Annotated[int, Field(ge=0)] = Field(2, description="loader processes; does not change the result")


class Acquire(Section):
    """Which images to label next."""

    method: dict[str, Any] = Field({"name": "margin"}, description="name and parameters of the acquisition method; `rondo methods` lists them")
    cold_start: dict[str, Any] | None = Field({"name": "random"}, description="method of a first round, where `method` needs a model; null: refuse")
    budget: Positive = Field(100, description="images a round, both arms together")
    control: Fraction = Field(0.1, description="share of the budget drawn uniformly at random: an unbiased sample that shows whether the method pays")


class Export(Section):
    """The batch for the labellers."""

    url_prefix: str = Field("", description="put before each uri in the labelling tool's tasks, such as https://host/bucket/")
    images: bool = Field(True, description="copy the picked images into batch/images/")
    suggestions: bool = Field(False, description="show labellers what the model expects; saves clicks, but whoever follows it flatters the model")
    columns: Positive = Field(10, description="images a row in the contact sheet")


class ImportLabels(Section):
    """Answers to labels."""

    labeller: Literal["files", "oracle"] = Field(
        "files", description="files: people's answers in answers/rNNN/; oracle: the source's labels (demos, backtests)"
    )
    noise: Fraction = Field(0.0, description="oracle only: share of answers replaced by another class")
    min_answered: Fraction = Field(1.0, description="share of the batch that must be answered before the round goes on")


class Scratch(Section):
    """Training from random weights."""

    min_steps: Positive = Field(2000, description="epochs are added until it comes to so many steps: few labels make short epochs")
    learning_rate: Annotated[float, Field(gt=0)] = Field(0.002, description="peak of the cosine schedule (AdamW)")


class Sgd(Section):
    """A linear head by SGD, as Emam et al. 2021 train it."""

    epochs: Positive = Field(60, description="passes over the embeddings")
    batch_size: Positive = Field(128, description="examples a step")
    learning_rate: Annotated[float, Field(gt=0)] = Field(15.0, description="of the first epochs; 15 is for features of MoCo v2 and tens of thousands of labels")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="share of the last step that is kept")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0001, description="of weight and bias")
    step_epochs: Positive = Field(20, description="after so many epochs, and again, the rate is multiplied by step_factor")
    step_factor: Annotated[float, Field(gt=0, le=1)] = Field(0.1, description="see step_epochs")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="share of an embedding's coordinates that a step drops; that of embed.dropout for passes of a head trained with it, 0 in the paper"
    )
    start: Annotated[float, Field(ge=0)] = Field(0.001, description="standard deviation of the weights at the start")


class Retrain(Section):
    """The classifier of the round."""

    mode: Literal["linear", "linear-sgd", "finetune", "scratch"] = Field(
        "linear",
        description="linear: logistic regression on frozen embeddings; linear-sgd: the same by Emam et al.'s recipe; finetune: all weights; "
        "scratch: all weights, from random ones",
    )
    warm_start: bool = Field(
        False, description="finetune: from the previous round's model, its head too, rather than from the pool's encoder; rounds then depend on their order"
    )
    l2: Literal["auto"] | Annotated[float, Field(gt=0)] = Field(
        0.001, description="strength of the ridge on the head's weights, per example (finetune: at its start); auto: by cross-validation on the labels"
    )
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="none: every label counts alike; balanced: every class does, however few labels it has"
    )
    ensemble: Annotated[int, Field(ge=2)] | None = Field(
        None,
        description="linear: so many more heads, on examples drawn anew; finetune, scratch: so many more networks, from other seeds; they stand for passes "
        "with dropout (mc_probs); null: none",
    )
    loss_prediction: dict[str, Any] | None = Field(
        None,
        description="finetune, scratch: train a module that predicts losses, for methods that read predicted_loss, such as {weight: 1.0}, or {}; null: none",
    )
    epochs: Positive = Field(30, description="finetune, scratch: passes over the labelled images")
    batch_size: Positive = Field(64, description="images a step, of training and of predicting")
    flip: bool = Field(True, description="finetune, scratch: mirror left-right; false where it changes the meaning")
    workers: Annotated[int, Field(ge=0)] = Field(2, description="loader processes; does not change the result")
    learning_rate: Annotated[float, Field(gt=0)] = Field(0.0005, description="finetune: peak of the cosine schedule (AdamW)")
    scratch: Scratch = Field(Scratch(), description="how scratch trains")
    sgd: Sgd = Field(Sgd(), description="how linear-sgd trains")


class Params(Section):
    """Everything a round is opened with. `rondo open` freezes it, with the wiring filled in, into rounds/rNNN/params.yaml."""

    seed: Annotated[int, Field(ge=0)] = Field(0, description="of every random choice; each (seed, round, stage, purpose) has a generator of its own")
    classes: list[str] | None = Field(None, description="the answers people may give; null: the classes that the source's labels name")
    programme: Programme = Programme()
    ingest: Ingest = Ingest()
    pretrain: Pretrain = Pretrain()
    embed: Embed = Embed()
    acquire: Acquire = Acquire()
    export: Export = Export()
    import_labels: ImportLabels = Field(ImportLabels(), alias="import-labels")
    retrain: Retrain = Retrain()
    round: str = Field("r001", description="set by `rondo open`, like all below; here they serve the example that `dvc repro` runs in this folder")
    pool: str = Field("example/pool", description="folder of the pool")
    previous: str | None = Field("example/pool", description="folder of the round before (of the pool, for the first round; of the pool before, in a pool)")
    model: str = Field("example/pool/encoder.safetensors", description="what embed looks with: the previous round's model, or the pool's encoder")
    start: str = Field(
        "example/pool/encoder.safetensors", description="what retrain starts from: the pool's encoder, or the previous round's model (warm_start)"
    )
    here: str = Field("example/round", description="folder of the round")
    answers: str = Field("example/pool/known.parquet", description="what the labellers returned; the oracle's are the source's own labels")
    code: str = Field("unfrozen", description="version of Rondo that the round was opened with; stages refuse to run under another")
    image: str | None = Field(None, description="container image that the round was opened with (RONDO_IMAGE)")

    @classmethod
    def load(cls, path: Path) -> Params:
        """Read and check a `params.yaml`.

        Raises:
            ParamsError: naming the key, what was got, what is expected, and the nearest known key.
        """
        try:
            content = yaml.load(path.read_text("utf-8"), UniqueKeys)
        except FileNotFoundError as error:
            raise ParamsError(f"{path} is missing; is this a workspace? `rondo init DIR --source SOURCE` makes one") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ParamsError(f"{path} is not YAML: {error}") from error
        if not isinstance(content, dict):
            raise ParamsError(f"{path} holds {type(content).__name__}, expected sections such as `acquire:`")
        return cls.check(content, str(path))

    @classmethod
    def check(cls, content: dict[str, Any], where: str) -> Params:
        """The params that plain values mean; `where` begins each line of an error."""
        try:
            return cls.model_validate_json(json.dumps(content), strict=True)
        except ValidationError as error:
            raise ParamsError("\n".join(f"{where}: {line}" for line in explain(cls, error))) from error
        except TypeError as error:  # a YAML date or set
            raise ParamsError(f"{where}: {error}; put the value in quotes") from error

    def dump(self) -> str:
        """The file's text with every value explicit, as frozen rounds hold it."""
        return yaml.safe_dump(self.model_dump(mode="json", by_alias=True), sort_keys=False, allow_unicode=True, width=1000)


class UniqueKeys(yaml.SafeLoader):
    """YAML in which no key stands twice: of a section that does, YAML's own loader would drop the first half in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for place, key in enumerate(keys):
            if any(key.value == before.value for before in keys[:place]):
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is written twice; put both into one", key.start_mark)
        return super().construct_mapping(node, deep)


def explain(model: type[BaseModel], error: ValidationError) -> Iterator[str]:
    """One line a problem: where, what was got, what is expected, what to do. What each kind that a knob may be of expects is joined by *or*."""
    wrong: dict[str, tuple[Any, list[str]]] = {}
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            *parents, key = problem["loc"]
            known = sorted(field.alias or name for name, field in section(model, parents).model_fields.items())
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
            yield f"unknown key {where!r}; {hint}"
        else:
            where = ".".join(str(part) for part in problem["loc"] if part not in UNION)
            wrong.setdefault(where, (problem["input"], []))[1].append(problem["msg"][0].lower() + problem["msg"][1:])
    for where, (got, expected) in wrong.items():
        yield f"{where} is {got!r}; {' or '.join(expected)}"


def section(model: type[BaseModel], path: list[int | str]) -> type[BaseModel]:
    """The model of the section at `path`, whose parts are keys as written in the file."""
    for part in path:
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        annotation = fields[str(part)].annotation
        (model,) = (kind for kind in (annotation, *typing.get_args(annotation)) if isinstance(kind, type) and issubclass(kind, BaseModel))
    return model


def render(params: Params) -> str:
    """The commented `params.yaml` of a workspace."""
    lines = ["# What the next round opens with. Edit, commit, then `rondo open` (or `rondo cycle`): rounds already open or closed do not change.", ""]
    for name, field in Params.model_fields.items():
        key, value = field.alias or name, getattr(params, name)
        if isinstance(value, Section):
            lines += ["", f"{key}:  # {(type(value).__doc__ or '').strip()}"]
            for inner, inner_field in type(value).model_fields.items():
                lines.append("  " + entry(inner, getattr(value, inner), inner_field.description, inner_field.annotation))
        else:
            if key == "round":
                lines.append("")
            lines.append(entry(key, value, field.description, field.annotation))
    return "\n".join(lines) + "\n"


def entry(key: str, value: Any, description: str | None, annotation: Any) -> str:
    """`key: value  # meaning (choices)` on one line."""
    plain = list(value) if isinstance(value, tuple) else value.model_dump() if isinstance(value, Section) else value
    text = yaml.safe_dump(plain, default_flow_style=True, width=10_000, allow_unicode=True).removesuffix("...\n").strip()
    choices = [str(choice) for choice in typing.get_args(annotation)] if typing.get_origin(annotation) is Literal else []
    missing = not all(choice in (description or "") for choice in choices)
    return f"{key}: {text}  # {description}" + (f" ({' | '.join(choices)})" if missing else "")

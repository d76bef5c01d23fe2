"""Backbones: networks by name, less their classifiers; small ones of our own, and those of torchvision and timm."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from al_core.errors import first_line
from al_core.resizing import SquareAvgPool2d, bicubic

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and standard deviation of its channels, as most published weights expect
TIMM = "timm/"  # before the names of timm's models
STEMS = ("standard", "cifar")
USUAL_SIZE = 224  # pixels at which the stages of networks that take any size are looked up
VITS = ("vision_transformer", "deit")  # timm's modules of networks whose tokens stand where `pos_embed` says, and nothing else does
TRUNKS = {"regnet": "trunk_output", "mnasnet": "layers", "maxvit": "blocks", "vit": "encoder.layers"}  # of torchvision's; others have `features`, or are it


@dataclass(frozen=True)
class Backbone:
    """A network that gives (B, dim) embeddings of normalised (B, 3, S, S) images."""

    body: nn.Module
    stages: tuple[str, ...]  # modules inside `body` that give feature maps or tokens, low to high; four where there are as many
    mean: Sequence[float] = IMAGENET[0]  # of the channels, as its published weights expect
    std: Sequence[float] = IMAGENET[1]


def backbone(name: str, image_size: int, stem: str) -> Backbone:
    """The network with random weights, drawn from torch's global generator.

    Raises:
        ValueError: unknown name or stem, a stem that the network cannot have, or an image size that it does not take.
    """
    make = maker(name)
    try:
        made = make(name, image_size)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ValueError(f"encoder {name!r} does not take images of {image_size} px: {first_line(error)}") from error
    if stem not in STEMS:
        raise ValueError(f"unknown stem {stem!r}; the stems are {', '.join(STEMS)}")
    if stem == "cifar":
        use_cifar_stem(made.body, name)
    return made


def maker(name: str) -> Callable[[str, int], Backbone]:
    """What makes the network of that name.

    Raises:
        ValueError: unknown name; says which are near.
    """
    if name in OWN:
        return OWN[name]
    if name in (timm_names() if name.startswith(TIMM) else torchvision_names()):
        return from_timm if name.startswith(TIMM) else from_torchvision
    near = near_names(name)
    hint = f"did you mean {' or '.join(near)}?" if near else f"they are {', '.join(OWN)}, torchvision's (resnet50, ...) and timm's ({TIMM}resnet50, ...)"
    raise ValueError(f"unknown encoder {name!r}; {hint}")


def near_names(name: str) -> list[str]:
    """Up to three names like this one, of timm's where it says so or where there are no others."""
    others = [] if name.startswith(TIMM) else difflib.get_close_matches(name, [*OWN, *torchvision_names()])
    return others or [TIMM + each for each in difflib.get_close_matches(name.removeprefix(TIMM), [each.removeprefix(TIMM) for each in timm_names()])]


def torchvision_names() -> list[str]:
    """Of torchvision's classifiers."""
    from torchvision import models

    names: list[str] = models.list_models(module=models)
    return names


def timm_names() -> list[str]:
    """Of timm's models, with the prefix."""
    import timm

    return [TIMM + name for name in timm.list_models()]


# ---- our own ----------------------------------------------------------------------------------------------------------------


def small(name: str, image_size: int) -> Backbone:
    """Four 3x3 convolutions with batch norm, each but the first halving the sides, then the mean over places: for images of about 8 to 32 px."""
    widths = (3, 16, 32, 64, 128)
    layers: list[nn.Module] = []
    for index, (width_in, width_out) in enumerate(pairwise(widths)):
        convolution = nn.Conv2d(width_in, width_out, 3, stride=1 if index == 0 else 2, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(width_out), nn.ReLU()]
    return Backbone(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), ("2", "5", "8", "11"))


def bayesian_cnn(name: str, image_size: int) -> Backbone:
    """The network of Gal, Islam & Ghahramani 2017 (https://arxiv.org/abs/1703.02910) up to its last dropout: for images of some 28 px.

    Two 4x4 convolutions of 32 filters, 2x2 max-pooling, dropout 0.25, 128 units, dropout 0.5. It takes three channels where theirs takes one.
    """
    side = (image_size - 6) // 2  # each convolution takes 3 off, the pooling halves
    if side < 1:
        raise ValueError("it needs 8 px at least")
    convolutions = [nn.Conv2d(3, 32, 4), nn.ReLU(), nn.Conv2d(32, 32, 4), nn.ReLU()]
    dense = [nn.Linear(32 * side * side, 128), nn.ReLU(), nn.Dropout(0.5)]
    return Backbone(nn.Sequential(*convolutions, nn.MaxPool2d(2), nn.Dropout(0.25), nn.Flatten(), *dense), ("1", "3"))


OWN: dict[str, Callable[[str, int], Backbone]] = {"small": small, "bayesian-cnn": bayesian_cnn}


# ---- torchvision's and timm's ------------------------------------------------------------------------------------------------


def from_torchvision(name: str, image_size: int) -> Backbone:
    """One of torchvision's classifiers up to its last layer: of VGG and AlexNet the embedding is the second layer of 4096 units, after its dropout."""
    from torchvision import models

    family = name.split("_")[0]
    sized: dict[str, dict[str, object]] = {"vit": {"image_size": image_size}, "maxvit": {"input_size": (image_size, image_size)}}
    alone: dict[str, object] = {"aux_logits": False, "init_weights": True}  # no second and third classifier
    options = {**sized, "googlenet": alone, "inception": alone}.get(family, {})
    body = models.get_model(name, weights=None, **options)
    *_, last = (each for each, module in body.named_modules() if isinstance(module, nn.Linear | nn.Conv2d))
    body.set_submodule(last, nn.Identity())
    if family.startswith(("alexnet", "vgg")):
        body.avgpool = SquareAvgPool2d(body.avgpool.output_size[0])
    trunk = next((path for prefix, path in TRUNKS.items() if family.startswith(prefix)), "features" if hasattr(body, "features") else "")
    children = [f"{trunk}.{child}".removeprefix(".") for child, _ in body.get_submodule(trunk).named_children()]
    return Backbone(body, stages(body, children, image_size if family in sized else USUAL_SIZE))


def from_timm(name: str, image_size: int, *, pretrained: bool = False) -> Backbone:
    """One of timm's models without its classifier; its own pooling gives the embedding. `pretrained` weights come from its cache or the network."""
    import timm

    name = name.removeprefix(TIMM)
    about = timm.get_pretrained_cfg(name)
    assert about is not None, f"timm says nothing of its own {name}"
    sized = about.fixed_input_size
    create = partial(timm.create_model, name, pretrained=pretrained, num_classes=0)
    body = made_for(image_size, name, create) if sized else create()
    info = getattr(body, "feature_info", [])
    known = {path for path, _ in body.named_modules()}
    places = [each["module"] for each in (info if isinstance(info, list) else info.get_dicts()) if each.get("module") in known]
    return Backbone(body, stages(body, places or [each for each, _ in body.named_children()], image_size if sized else USUAL_SIZE), about.mean, about.std)


def made_for(image_size: int, name: str, create: Callable[..., Any]) -> Any:
    """A network whose weights depend on the size of images; most then take others as well, since they resample where their tokens stand."""
    from timm.models import is_model_in_modules

    if is_model_in_modules(name, VITS):
        vit = create(img_size=image_size)
        vit.patch_embed.strict_img_size = False  # `position_embeddings` gives it those for another size
        return vit
    try:
        return create(img_size=image_size, dynamic_img_size=True)
    except TypeError:  # has no such argument
        return create(img_size=image_size)


def position_embeddings(body: Any, size: int) -> dict[str, Tensor]:
    """By name, what a ViT that `made_for` made needs in place of its own to take images of so many pixels a side; {} of another network.

    timm would resample them as well, but so that no gradient is to be had of CUDA's deterministic algorithms.
    """
    patches: Any = getattr(body, "patch_embed", None)
    if getattr(patches, "strict_img_size", True) or getattr(body, "dynamic_img_size", True) or patches.img_size == (size, size):
        return {}
    rows, columns = patches.grid_size
    prefix, grid = body.pos_embed.split([body.pos_embed.shape[1] - rows * columns, rows * columns], dim=1)  # classes and registers stand nowhere
    resized = bicubic(grid.unflatten(1, (rows, columns)).movedim(3, 1), patches.dynamic_feat_size((size, size)))
    return {"pos_embed": torch.cat([prefix, resized.movedim(1, 3).flatten(1, 2)], 1)}


def use_cifar_stem(body: nn.Module, name: str) -> None:
    """Let a ResNet see small images whole: its first convolution 3x3 with stride 1, no max-pooling (Chen et al. 2020, appendix B.9)."""
    first, pool = getattr(body, "conv1", None), getattr(body, "maxpool", None)
    if not isinstance(first, nn.Conv2d) or pool is None:
        raise ValueError(f"stem 'cifar' replaces the first convolution and the max-pooling of a ResNet; encoder {name!r} has no such pair: use stem 'standard'")
    convolution = nn.Conv2d(first.in_channels, first.out_channels, 3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    body.conv1, body.maxpool = convolution, nn.Identity()


# ---- shapes ----------------------------------------------------------------------------------------------------------------


def stages(body: nn.Module, names: Sequence[str], image_size: int) -> tuple[str, ...]:
    """Of modules that follow each other, the last of each of the four smallest maps; four evenly spaced where all are of one size, as in a ViT."""
    sides = {name: shape[2] if len(shape) == 4 else shape[1] for name, shape in shapes(body, names, image_size).items() if len(shape) > 2}
    last = {side: name for name, side in sides.items() if side > 1}
    if len(last) > 1:
        return tuple(sorted(last.values(), key=list(sides).index)[-4:])
    spread = list(sides)
    return tuple(spread[len(spread) * part // 4 - 1] for part in range(1, 5) if len(spread) * part // 4 > 0)


def shapes(body: nn.Module, names: Sequence[str], image_size: int) -> dict[str, torch.Size]:
    """Shape of what each module gives for one image, in the order in which they run; "" is the body itself. Nothing is computed."""
    found: dict[str, torch.Size] = {}

    def note(name: str) -> Callable[[nn.Module, object, object], None]:
        return lambda module, given, output: found.update({name: output.shape}) if isinstance(output, Tensor) else None

    hooks = [body.get_submodule(name).register_forward_hook(note(name)) for name in names]
    training = {name: module.training for name, module in body.named_modules()}
    states = {name: tensor.to("meta") for name, tensor in [*body.named_parameters(), *body.named_buffers()]}
    try:
        with torch.no_grad():
            torch.func.functional_call(body.eval(), states, torch.empty(1, 3, image_size, image_size, device="meta"))
    finally:
        for hook in hooks:
            hook.remove()
        for name, module in body.named_modules():
            module.training = training[name]
    return found

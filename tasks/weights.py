"""Weights that a user brings: a file of tensors, read without running anything in it, and fitted to an encoder by name and shape."""

from __future__ import annotations

import hashlib
import math
import os
import pickle
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from al_core.errors import first_line
from tasks.errors import ArtifactError, ParamsError
from tasks.progress import say

if TYPE_CHECKING:
    from torch import Tensor

    from al_core.encoders import Encoder
    from tasks.params import Pretrain

PICKLES = (".pth", ".pt", ".ckpt")
LEVELS = ("state_dict", "teacher", "model", "student")  # where published checkpoints keep the network
HEADS = ("fc", "head", "heads", "classifier", "last_linear", "projection_head", "prototypes")  # what stands on an encoder; left out
TIMM = "timm"


def load_weights(encoder: Encoder, weights: str, expected: str | None) -> None:
    """Give the encoder the weights that `pretrain.weights` names.

    Args:
        encoder: changed in place.
        weights: a file's path, or `timm`: what timm has published for the encoder.
        expected: sha256 of the file when the pool was opened; None: not checked.

    Raises:
        ArtifactError: the file is missing, changed, damaged, would run code, or holds another network.
        ParamsError: timm has no weights for the encoder, or they cannot be had.
    """
    if weights == TIMM:
        tensors = published(encoder)
    else:
        path = Path(weights)
        found = sha256(path)
        if expected not in (None, found):
            raise ArtifactError(f"{path} has sha256 {found}, but {expected} when the pool was opened; put that file back, or open the pool again")
        tensors = read(path)
    encoder.body.load_state_dict(fitted(tensors, encoder, weights), strict=False)


def settle_weights(params: Pretrain, root: Path, folder: str) -> Pretrain:
    """The section as a pool freezes it: the file of weights as the pool's folder finds it, with its sha256.

    Args:
        params: as the workspace's params.yaml has them; a relative path starts from its folder.
        root: the workspace.
        folder: of the pool, inside it.
    """
    if params.weights is None or params.weights == TIMM:
        return params.model_copy(update={"weights_sha256": None})
    path = (root / params.weights).resolve()
    found = sha256(path)
    if params.weights_sha256 not in (None, found):
        raise ParamsError(f"pretrain.weights_sha256 is {params.weights_sha256}, but {path} has {found}; name the file that is meant, or set it to null")
    inside = path.is_relative_to(root.resolve())
    weights = os.path.relpath(path, root.resolve() / folder) if inside else str(path)
    return params.model_copy(update={"weights": weights, "weights_sha256": found})


def sha256(path: Path) -> str:
    """Of the file's bytes."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ArtifactError(f"the weights {path} cannot be read: {error.strerror}; pretrain.weights names a .safetensors, .pth, .pt or .ckpt file") from error


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name; nothing in it is run.

    Raises:
        ArtifactError: another kind of file, one that is damaged, or a pickle of more than tensors and plain values.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.suffix not in (".safetensors", *PICKLES):
        raise ArtifactError(f"{path} is no file of weights by its name; expected .safetensors, .pth, .pt or .ckpt")
    try:
        content: object = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ArtifactError(
            f"{path} is damaged, or holds more than tensors and plain values, and reading that could run code: it was not read "
            "(save its state_dict alone, best as .safetensors, on a machine that trusts it)"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ArtifactError(f"{path} is damaged or no file of weights: {first_line(error)}") from error
    return tensors_in(content, path)


def tensors_in(content: object, path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, at its top or one level below."""
    from torch import Tensor

    while isinstance(content, Mapping) and (level := next((each for each in LEVELS if isinstance(content.get(each), Mapping)), None)):
        say(f"weights: {path.name}: its {level!r}")
        content = content[level]
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)} if isinstance(content, Mapping) else {}
    if not tensors:
        raise ArtifactError(f"{path} holds no tensors by name, at its top or under {', '.join(LEVELS)}; save the network's state_dict")
    return tensors


def published(encoder: Encoder) -> dict[str, Tensor]:
    """What timm has published for one of its encoders, from its cache or the network."""
    from al_core import backbones

    if not encoder.name.startswith(backbones.TIMM):
        raise ParamsError(f"pretrain.weights is 'timm', but encoder {encoder.name!r} is none of timm's; choose timm/NAME, or name a file of weights")
    try:
        return backbones.from_timm(encoder.name, encoder.image_size, pretrained=True).body.state_dict()
    except Exception as error:  # of several libraries: no weights of that name, no network, a hub that refuses
        raise ParamsError(
            f"pretrain.weights is 'timm', but the weights of {encoder.name!r} cannot be had here ({type(error).__name__}: {first_line(error)}); "
            "fetch them on a machine with network, save model.state_dict() as .safetensors, and name that file"
        ) from error


def fitted(tensors: Mapping[str, Tensor], encoder: Encoder, name: str) -> dict[str, Tensor]:
    """Of a checkpoint's tensors, those of the encoder's body by its own names.

    A prefix such as `module.encoder_q.` is found by what fits best (of equals, the first in the file), classifiers and projection heads are left out, and
    positions of a ViT for another image size are interpolated.

    Raises:
        ArtifactError: another architecture.
    """
    wanted = encoder.body.state_dict()
    prefix = best_prefix(tensors, wanted)
    inside = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    given = {key: placed(value, wanted[key].shape) if key in wanted else value for key, value in inside.items()}
    missing = [key for key in wanted if key not in given and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in given if key not in wanted and key.split(".")[0] not in HEADS]
    other = [key for key in given if key in wanted and given[key].shape != wanted[key].shape]
    if missing or unexpected or other:
        shapes = [f"{key} is {tuple(given[key].shape)}, expected {tuple(wanted[key].shape)}" for key in other]
        raise ArtifactError(
            f"the weights {name} are not those of encoder {encoder.name!r} (stem {encoder.stem}, {encoder.image_size} px): of its {len(wanted)} tensors "
            f"{some(missing)} missing, {some(shapes)} of another shape; {some(unexpected)} unexpected; name the architecture that they come from in "
            "pretrain.encoder and pretrain.stem"
        )
    left = len(tensors) - sum(key in wanted for key in given)
    say(f"weights: {len(wanted)} tensors from {name}" + (f", names less {prefix!r}" if prefix else "") + (f", {left} left out" if left else ""))
    return {key: value.to(wanted[key].dtype) for key, value in given.items() if key in wanted}


def best_prefix(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """What stands before the encoder's names in the checkpoint."""
    fits = Counter(key.removesuffix(name) for name in wanted for key in tensors if key == name or key.endswith(f".{name}"))
    order = list(tensors)
    first = {prefix: next(place for place, key in enumerate(order) if key.startswith(prefix)) for prefix in fits}
    return min(fits, key=lambda prefix: (-fits[prefix], first[prefix]), default="")


def some(names: list[str]) -> str:
    """How many, and the first three."""
    return f"{len(names)}" + (f" ({'; '.join(names[:3])}{'; ...' if len(names) > 3 else ''})" if names else "")


def placed(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A checkpoint's tensor in the encoder's shape where that is the same content: a lone number, with or without an axis, and positions of a ViT."""
    return value.reshape(shape) if value.numel() == math.prod(shape) == 1 else positions(value, shape)


def positions(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(1, extra + m * m, d) positions of a ViT's tokens for another number of patches, (1, extra + n * n, d), by bicubic interpolation; else as it is."""
    import torch
    from torch.nn.functional import interpolate

    if value.ndim != 3 or len(shape) != 3 or value.shape == shape or value.shape[::2] != shape[::2]:
        return value
    for extra in (0, 1, 2, 5):  # class and register tokens come first, and have no place
        m, n = (math.isqrt(max(length - extra, 0)) for length in (value.shape[1], shape[1]))
        if m and n and m * m == value.shape[1] - extra and n * n == shape[1] - extra:
            grid = value[:, extra:].reshape(1, m, m, -1).permute(0, 3, 1, 2).float()
            moved = interpolate(grid, size=(n, n), mode="bicubic", align_corners=True)
            return torch.cat([value[:, :extra], moved.permute(0, 2, 3, 1).reshape(1, n * n, -1).to(value.dtype)], dim=1)
    return value

"""The state of a long training on disk, so that a stage that is cut off goes on where it was: one file, safetensors, replaced as a whole."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from tasks.environment import Description
from tasks.errors import ArtifactError
from tasks.progress import say

SECONDS = 600.0  # between two that are kept within an epoch
TENSOR = "$tensor"  # stands for a tensor in the state's JSON


@dataclass
class Checkpoint:
    """Where a run's state is kept.

    Args:
        path: of the file; nothing but this run writes it.
        inputs: fingerprint of what the run depends on; a state of other inputs is not gone on from.
        here: the environments of the run's processes, kept with the state.

    Attributes:
        earlier: the environments of the runs that the state loaded is from.
    """

    path: Path
    inputs: str
    here: list[Description] = field(default_factory=list)
    earlier: list[Description] = field(init=False, default_factory=list)
    kept: float = field(default_factory=time.monotonic)

    def due(self) -> bool:
        """Whether the last one is old enough."""
        return time.monotonic() - self.kept >= SECONDS

    def load(self) -> dict[str, Any] | None:
        """The state that was kept last.

        Raises:
            ArtifactError: the file is damaged.
        """
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                about = json.loads(file.metadata()["rondo"])
                tensors = {name: file.get_tensor(name) for name in file.keys()} if about["inputs"] == self.inputs else {}  # noqa: SIM118
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{self.path} is damaged ({error}); delete it, and the training starts from the beginning") from error
        if about["inputs"] != self.inputs:
            say(f"{self.path.name} is of other params or images; the training starts from the beginning")
            return None
        self.earlier = about["environments"]
        state: dict[str, Any] = filled(about["state"], tensors)
        return state

    def save(self, state: dict[str, Any]) -> None:
        """Keep nested dicts and lists of tensors and plain values; a process that is killed here leaves the one before."""
        tensors: dict[str, torch.Tensor] = {}
        environments = [*self.earlier, *(each for each in self.here if each not in self.earlier)]
        about = json.dumps({"inputs": self.inputs, "environments": environments, "state": taken_out(state, tensors, "")})
        beside = self.path.with_name(f"{self.path.stem}.new.partial")  # which git ignores
        save_file(tensors, beside, {"rondo": about})
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.replace(self.path)
        self.kept = time.monotonic()


def taken_out(value: Any, tensors: dict[str, torch.Tensor], path: str) -> Any:
    """The value with its tensors put aside, under names that lead back. Of dicts, the keys and their types are kept."""
    if isinstance(value, torch.Tensor):
        tensors[path] = value.detach().cpu().contiguous().clone()  # a clone, since safetensors refuses tensors that share memory
        return {TENSOR: path}
    if isinstance(value, dict):
        return {"$items": [[key, taken_out(each, tensors, f"{path}/{key}")] for key, each in value.items()]}
    if isinstance(value, list | tuple):
        return [taken_out(each, tensors, f"{path}/{index}") for index, each in enumerate(value)]
    return value


def filled(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """The value with its tensors put back."""
    if isinstance(value, dict):
        return tensors[value[TENSOR]] if TENSOR in value else {key: filled(each, tensors) for key, each in value["$items"]}
    return [filled(each, tensors) for each in value] if isinstance(value, list) else value

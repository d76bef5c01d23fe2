"""Networks on disk: an encoder, with or without the head that classifies its embeddings, as safetensors with one line of JSON about it."""

from __future__ import annotations

import hashlib
import json
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tasks.artifacts import Artifact
from tasks.errors import ArtifactError

if TYPE_CHECKING:
    from torch import nn

    from al_core.encoders import Encoder

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Head:
    """Linear classifier on embeddings: logits = embeddings @ weight.T + bias.

    Weight and bias are divided by the temperature already, so that whoever takes the softmax, here or in a method, has calibrated probabilities.
    """

    weight: npt.NDArray[np.float32]  # (classes, d)
    bias: npt.NDArray[np.float32]  # (classes,)
    classes: list[str]
    temperature: float = 1.0  # that held-out labels asked for; 1: as trained

    def logits(self, embeddings: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """(n, d) to (n, classes)."""
        logits: npt.NDArray[np.float32] = embeddings @ self.weight.T + self.bias
        return logits


@dataclass(frozen=True)
class Members:
    """An ensemble: heads on the embeddings of the model that they are members of, or each on those of an encoder of its own."""

    weight: npt.NDArray[np.float32]  # (members, classes, d)
    bias: npt.NDArray[np.float32]  # (members, classes)
    encoders: tuple[dict[str, Array], ...] = ()  # state of each one's own, of the model's architecture; empty: all are on the model's

    def divided(self, divisor: np.float32) -> Members:
        """At a temperature."""
        return Members(self.weight / divisor, self.bias / divisor, self.encoders)

    def tensors(self) -> dict[str, Array]:
        """What is stored of it, by name."""
        encoders = {f"members.{number}.{name}": value for number, each in enumerate(self.encoders) for name, value in each.items()}
        return {"members.weight": self.weight, "members.bias": self.bias, **encoders}

    @classmethod
    def taken(cls, tensors: dict[str, Any]) -> Members | None:
        """Those that are stored, which are taken out of the tensors; None: there are none."""
        if "members.weight" not in tensors:
            return None
        weight, bias = tensors.pop("members.weight"), tensors.pop("members.bias")
        encoders: list[dict[str, Array]] = [{} for _ in weight]
        for key in [each for each in tensors if each.startswith("members.")]:
            _, number, name = key.split(".", 2)
            encoders[int(number)][name] = tensors.pop(key)
        return cls(weight, bias, tuple(encoders) if any(encoders) else ())


@dataclass(frozen=True)
class Model(Artifact):
    """The classifier of a round."""

    file = "${here}/model.safetensors"

    encoder: str  # of the architecture
    stem: str  # of the architecture
    image_size: int  # pixels of a side
    weights: dict[str, Array]  # the encoder's state
    head: Head | None = None
    members: Members | None = None  # that stand for several passes of the model
    loss: dict[str, Array] | None = None  # state of the loss prediction module

    @classmethod
    def of(cls, encoder: Encoder, head: Head | None = None) -> Self:
        """The artifact of a network."""
        weights: dict[str, Array] = {key: value.cpu().numpy() for key, value in encoder.state_dict().items()}
        return cls(encoder.name, encoder.stem, encoder.image_size, weights, head)

    def classifier(self, head: Head, members: Members | None = None) -> Model:
        """This encoder with a head."""
        return Model(self.encoder, self.stem, self.image_size, self.weights, head, members)

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return self.network().dim

    def network(self) -> Encoder:
        """The encoder, in evaluation mode on the CPU."""
        import torch

        from al_core.encoders import build

        encoder = build(self.encoder, seed=0, image_size=self.image_size, stem=self.stem)
        try:
            encoder.load_state_dict({key: torch.from_numpy(value.copy()) for key, value in self.weights.items()})
        except RuntimeError as error:
            raise ArtifactError(f"the weights are not those of encoder {self.encoder!r}: {error}; restore the file with `dvc checkout`") from error
        return encoder.eval()

    @property
    def classes(self) -> list[str]:
        """Of the head, in its order."""
        assert self.head is not None
        return self.head.classes

    def whole(self) -> nn.Module:
        """Encoder and head as one network that gives logits, in evaluation mode on the CPU."""
        import torch
        from torch import nn

        assert self.head is not None
        head = nn.Linear(self.head.weight.shape[1], self.head.weight.shape[0])
        with torch.no_grad():
            head.weight.copy_(torch.from_numpy(self.head.weight.copy()))
            head.bias.copy_(torch.from_numpy(self.head.bias.copy()))
        return nn.Sequential(self.network(), head).eval()

    def others(self) -> list[Model]:
        """The members that have encoders of their own, each as a model."""
        if self.members is None or not self.members.encoders:
            return []
        heads = [Head(weight, bias, self.classes) for weight, bias in zip(self.members.weight, self.members.bias, strict=True)]
        return [Model(self.encoder, self.stem, self.image_size, *each) for each in zip(self.members.encoders, heads, strict=True)]

    def with_predicted_loss(self) -> nn.Module:
        """The encoder with its loss prediction module: embeddings, and behind them the predicted loss; in evaluation mode on the CPU."""
        import torch

        from al_core.loss_prediction import LossPrediction, WithPredictedLoss, watched

        assert self.loss is not None
        widths = [each.shape[1] for name, each in self.loss.items() if name.startswith("maps.") and name.endswith(".weight")]
        module = LossPrediction(widths)
        module.load_state_dict({key: torch.from_numpy(value.copy()) for key, value in self.loss.items()})
        return WithPredictedLoss(watched(self.network()), module).eval()

    def digest(self) -> str:
        """sha256 of the encoder alone: equal for models that differ in their heads only."""
        total = hashlib.sha256(f"{self.encoder} {self.stem} {self.image_size}".encode())
        for name in sorted(self.weights):
            total.update(name.encode() + np.ascontiguousarray(self.weights[name]).tobytes())
        return total.hexdigest()

    @classmethod
    def load(cls, path: Path) -> Self:
        if not path.exists():
            raise ArtifactError(f"{path} is missing; run the stage that writes it, or `dvc pull {path}`")
        try:
            with safe_open(path, framework="numpy") as file:
                about = json.loads(file.metadata()["rondo"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            head = Head(tensors.pop("head.weight"), tensors.pop("head.bias"), about["classes"], about.get("temperature", 1.0)) if "classes" in about else None
            members = Members.taken(tensors)
            loss = {name.removeprefix("loss."): tensors.pop(name) for name in sorted(tensors) if name.startswith("loss.")}
            return cls(about["encoder"], about["stem"], about["image_size"], tensors, head, members, loss or None)
        except (SafetensorError, LookupError, TypeError, ValueError) as error:
            raise ArtifactError(f"{path} is not a Rondo model ({error}); restore it with `dvc checkout {path}`") from error

    def save(self, path: Path) -> None:
        about: dict[str, object] = {"encoder": self.encoder, "stem": self.stem, "image_size": self.image_size}
        tensors = dict(self.weights)
        if self.head:
            about |= {"classes": self.head.classes, "temperature": self.head.temperature}
            tensors |= {"head.weight": self.head.weight, "head.bias": self.head.bias}
        if self.members:
            tensors |= self.members.tensors()
        if self.loss:
            tensors |= {f"loss.{name}": value for name, value in self.loss.items()}
        # one key of metadata: safetensors writes several in no fixed order
        write_tensors(path, tensors, {"rondo": json.dumps(about, sort_keys=True)})


def write_tensors(path: Path, tensors: dict[str, Array], about: dict[str, str] | None = None) -> None:
    """A safetensors file that others may read as they may its neighbours; the library by itself makes one that is its owner's alone."""
    path.touch()
    mode = path.stat().st_mode
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, path, about)
    path.chmod(stat.S_IMODE(mode))


class PoolEncoder(Model):
    """The encoder that pretraining left."""

    file = "${pool}/encoder.safetensors"


class StartModel(Model):
    """What the round's classifier starts from: the pool's encoder, or the previous round's model (`retrain.warm_start`)."""

    file = "${start}"


class CurrentModel(Model):
    """What the round looks with: the previous round's model, or the pool's encoder."""

    file = "${model}"

"""MC dropout: passes of a network whose dropout stays on, each with masks of its own, as draws from what the network might have become.

Gal & Ghahramani 2016 (https://arxiv.org/abs/1506.02142); for active learning Gal, Islam & Ghahramani 2017 (https://arxiv.org/abs/1703.02910). Only
dropout layers drop: all else, batch norm too, stays in evaluation mode. What comes before the first of them is the same in every pass and is
computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeGuard

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from al_core.seeds import generator

Masks = Literal["shared", "fresh"]
Forward = Callable[..., object]  # of any module: what it takes and gives is its own affair

ELEMENTWISE, CHANNELWISE = (nn.Dropout,), (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
OTHERS = (nn.AlphaDropout, nn.FeatureAlphaDropout)


def dropout_layers(network: nn.Module) -> list[nn.Module]:
    """The layers that drop something, in order of definition; those of rate 0 are left out.

    Raises:
        ValueError: alpha dropout, which is no mask that multiplies.
    """
    for name, module in network.named_modules():
        if isinstance(module, OTHERS):
            raise ValueError(f"layer {name} is {type(module).__name__}; passes are drawn with Dropout, Dropout1d, Dropout2d and Dropout3d alone")
    return [module for module in network.modules() if isinstance(module, ELEMENTWISE + CHANNELWISE) and module.p > 0]


def mc_passes(network: nn.Module, x: Tensor, *, passes: int, seed: int, masks: Masks = "shared", row: int = 0) -> Iterator[Tensor]:
    """What the network makes of a batch, (B, ...), pass by pass. The network is put in evaluation mode, and is not to be used while a pass runs.

    Args:
        network: takes x; its first axis is the batch wherever something is dropped.
        x: (B, ...).
        passes: how many.
        seed: equal seeds give equal masks, on every device.
        masks: shared: pass t drops the same for every row of every batch, so that it is one and the same network, as BatchBALD takes it; fresh: every
            row of the batch has masks of its own.
        row: number of the batch's first row in the pool; fresh masks are drawn by it.

    Raises:
        ValueError: no layer drops anything.
    """
    if not dropout_layers(network):
        raise ValueError("the network has no dropout layer, so all its passes are alike; build one with dropout, or draw heads with mc_heads")
    network.eval()
    before = Before()
    for number in range(passes):
        purpose = (number,) if masks == "shared" else (number, row)
        with dropping(network, Dropper(seed, purpose, masks), before):
            output = network(x)
        yield output


class McDropout(nn.Module):
    """Class probabilities of several passes of a network that gives logits: (B, ...) to (B, passes, classes). See `mc_passes`; masks are shared."""

    def __init__(self, network: nn.Module, *, passes: int, seed: int) -> None:
        super().__init__()
        self.network, self.passes, self.seed = network, passes, seed

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([logits.softmax(1) for logits in mc_passes(self.network, x, passes=self.passes, seed=self.seed)], 1)


def mc_heads(
    weight: npt.NDArray[np.float32], bias: npt.NDArray[np.float32], *, passes: int, dropout: float, seed: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Draws of a linear head under dropout on what it takes: the same passes as `mc_passes` makes of it behind a dropout layer, masks shared.

    A mask over the embeddings is a mask over the columns of the weight, so that the draws stand for the passes over any number of rows.

    Args:
        weight: (classes, d).
        bias: (classes,).
        passes: how many draws.
        dropout: share of the embedding's coordinates that a pass sets to 0; the others are scaled by 1 / (1 - dropout).
        seed: equal seeds give equal draws.

    Returns:
        weight (passes, classes, d) and bias (passes, classes), as `Pool` takes them for `mc_heads`.

    Raises:
        ValueError: fewer than 2 passes, which could not disagree, or a rate that is not between 0 and 1.
    """
    if passes < 2:
        raise ValueError(f"passes is {passes}; passes can disagree only if there are at least 2")
    if not 0 < dropout < 1:
        raise ValueError(f"dropout is {dropout}; expected above 0 and below 1")
    kept = np.stack([mask((weight.shape[1],), dropout, seed, (number, 0)) for number in range(passes)])  # (passes, d)
    return weight * kept[:, None, :], np.tile(bias, (passes, 1))


def mask(shape: tuple[int, ...], rate: float, seed: int, purpose: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """0 where something is dropped, with probability `rate`, and 1 / (1 - rate) where not."""
    kept = generator(seed, "dropout", *purpose).random(shape, dtype=np.float32) >= rate
    return np.float32(1 / max(1 - rate, 1e-30)) * kept.astype(np.float32)


class Dropper:
    """The masks of one pass: each call of a dropout layer takes the next."""

    def __init__(self, seed: int, purpose: tuple[int, ...], masks: Masks) -> None:
        self.seed, self.purpose, self.masks = seed, purpose, masks
        self.calls = 0

    def __call__(self, layer: nn.Module, x: Tensor) -> Tensor:
        """x with a part of it dropped, as the layer would in training."""
        assert isinstance(layer, ELEMENTWISE + CHANNELWISE)
        dropped = x.shape[1:] if isinstance(layer, ELEMENTWISE) else (x.shape[1], *(1 for _ in x.shape[2:]))
        shape = tuple(dropped) if self.masks == "shared" else (len(x), *dropped)
        kept = torch.from_numpy(mask(shape, layer.p, self.seed, (*self.purpose, self.calls)))
        self.calls += 1
        return x * kept.to(x.device, x.dtype)


class Before:
    """What modules made before the first dropout layer: recorded in the first pass, repeated in the others, in the order of the calls."""

    def __init__(self) -> None:
        self.outputs: list[object] = []
        self.recording = True
        self.calls = 0

    def __call__(self, forward: Forward, *args: object, **kwargs: object) -> object:
        """What forward gives, or gave."""
        at, self.calls = self.calls, self.calls + 1
        if self.recording:
            self.outputs.append(forward(*args, **kwargs))
        elif at >= len(self.outputs):
            return forward(*args, **kwargs)
        return copied(self.outputs[at])  # which the network may write into


def copied(output: object) -> object:
    """A module's output with tensors of its own."""
    if isinstance(output, Tensor):
        return output.clone()
    return tuple(map(copied, output)) if type(output) is tuple else output


@contextmanager
def dropping(network: nn.Module, dropper: Dropper, before: Before) -> Iterator[None]:
    """Run a block in which the dropout layers drop, and what came before the first one is repeated; then give the modules their own forward back."""
    patched: list[nn.Module] = []
    before.calls = 0

    def patch(module: nn.Module, forward: Forward) -> None:
        module.__dict__["forward"] = forward
        patched.append(module)

    def dropped(layer: nn.Module) -> Forward:
        def forward(x: Tensor) -> Tensor:
            before.recording = False
            return dropper(layer, x)

        return forward

    for layer in dropout_layers(network):
        patch(layer, dropped(layer))
    for module, forward in steady(network):
        patch(module, lambda *args, forward=forward, **kwargs: before(forward, *args, **kwargs))
    for module, head, tail in split(network):
        patch(module, in_turn(before, head, tail))
    try:
        yield
    finally:
        for module in patched:
            del module.__dict__["forward"]


def steady(module: nn.Module) -> Iterator[tuple[nn.Module, Forward]]:
    """The largest parts without dropout, with their forward; but for those of a Sequential, see `split`."""
    if not dropout_layers(module):
        yield module, module.forward
    elif chained(module):
        yield from steady(first_dropping(module)[1])
    elif not isinstance(module, ELEMENTWISE + CHANNELWISE):
        for child in module.children():
            yield from steady(child)


def split(network: nn.Module) -> Iterator[tuple[nn.Sequential, list[nn.Module], list[nn.Module]]]:
    """Each Sequential that drops something, with its layers before that and the others: of the former, only what the last one gives need be kept."""
    for module in network.modules():
        if chained(module) and dropout_layers(module):
            place, _ = first_dropping(module)
            yield module, list(module)[:place], list(module)[place:]


def chained(module: nn.Module) -> TypeGuard[nn.Sequential]:
    """Whether it runs its layers one after the other; a subclass of Sequential may do otherwise."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def first_dropping(layers: nn.Sequential) -> tuple[int, nn.Module]:
    """Place and layer of the first that drops something."""
    return next((place, layer) for place, layer in enumerate(layers) if dropout_layers(layer))


def in_turn(before: Before, head: list[nn.Module], tail: list[nn.Module]) -> Forward:
    """Forward of a Sequential whose head is steady."""

    def through(x: object, layers: list[nn.Module]) -> object:
        for layer in layers:
            x = layer(x)
        return x

    return lambda x: through(before(through, x, head) if head else x, tail)

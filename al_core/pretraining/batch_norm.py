"""Batch norm over the images of all processes, so that they train as one process with the whole batch would."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Network = TypeVar("Network", bound=nn.Module)


def synchronised(network: Network, group: ProcessGroup | None, device: torch.device) -> Network:
    """The network, its batch norms replaced in place by such that share their statistics over the group; as it is without one.

    On CUDA these are torch's own, which work nowhere else.
    """
    if group is None:
        return network
    if device.type == "cuda":
        converted: Network = nn.SyncBatchNorm.convert_sync_batchnorm(network, group)  # type: ignore[no-untyped-call]
        return converted
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, _BatchNorm) and not isinstance(child, Synchronised):
                setattr(parent, name, Synchronised.like(child, group))
    return network


class Synchronised(_BatchNorm):
    """Batch norm with the statistics of a group of processes, of as many images each; gradients flow through these statistics to all of them."""

    group: ProcessGroup

    @classmethod
    def like(cls, other: _BatchNorm, group: ProcessGroup) -> Synchronised:
        """One with the parameters and running statistics of another, not copies of them."""
        new = cls(other.num_features, other.eps, other.momentum, other.affine, other.track_running_stats)
        new.group = group
        for name, parameter in other.named_parameters():
            new.register_parameter(name, parameter)
        for name, buffer in other.named_buffers():
            new.register_buffer(name, buffer)
        return new.train(other.training)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions will do."""

    def forward(self, input: Tensor) -> Tensor:  # (b, c, ...) -> (b, c, ...)
        if not self.training:
            return super().forward(input)
        over = [each for each in range(input.ndim) if each != 1]
        shape = [1, -1] + [1] * (input.ndim - 2)
        exact = input.to(torch.promote_types(input.dtype, torch.float32))  # as torch's own, whose statistics are never bfloat16
        mean = self.shared(exact.mean(over))
        around = exact - mean.view(shape)
        variance = self.shared(around.square().mean(over))
        self.remember(mean.detach(), variance.detach(), self.group.size() * input.numel() // input.shape[1])
        scaled = around * (variance + self.eps).rsqrt().view(shape)
        moved = scaled * self.weight.view(shape) + self.bias.view(shape) if self.affine else scaled
        return moved.to(input.dtype)

    def shared(self, values: Tensor) -> Tensor:
        """Mean over the processes."""
        mean: Tensor = Summed.apply(values, weakref.ref(self.group)) / self.group.size()
        return mean

    @torch.no_grad()
    def remember(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Move the running statistics towards those of a batch of so many values a channel."""
        if not self.track_running_stats or self.num_batches_tracked is None or self.running_mean is None or self.running_var is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * count / (count - 1), share)


class Summed(torch.autograd.Function):
    """Sum over the processes of a group, of values and of gradients.

    A thread of the group keeps the sum, and with it the graph that made it, for a moment after all have it. The graph therefore must not own the group:
    a group that is destroyed in this moment would wait for its thread to end and the thread for the interpreter, which kills the process at exit. torch's
    `torch.distributed.nn.functional.all_reduce` owns it.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: weakref.ref[ProcessGroup]) -> Tensor:
        """(...) -> (...)"""
        ctx.group, alive = group, group()
        if alive is None:
            raise RuntimeError("the group of processes ended before the backward pass")
        total = values.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total, group=alive)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """(...) -> (...)"""
        return Summed.apply(gradients[0], ctx.group), None

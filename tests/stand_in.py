"""A stand-in for a GPU, where there is none: a device of torch's that keeps its tensors in the CPU's memory and refuses what CUDA refuses.

Operations between its tensors and the CPU's fail, but for numbers and indices, as does reading its tensors with NumPy, so that code which passes on it has put
everything where it belongs. It also notes operations that CUDA has no deterministic algorithm for. It computes with the CPU's kernels: of CUDA's rounding,
streams, memory and speed it says nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils import _pytree
from torch.utils._mode_utils import no_dispatch
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretend"
aten = torch.ops.aten

COPIES = (aten._to_copy.default, aten.copy_.default)
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)
# by https://docs.pytorch.org/docs/stable/generated/torch.use_deterministic_algorithms.html of torch 2.15, without a last underscore
NOT_DETERMINISTIC = {
    "_adaptive_avg_pool2d_backward",
    "_adaptive_avg_pool3d_backward",
    "_ctc_loss_backward",
    "_embedding_bag_dense_backward",
    "_upsample_bicubic2d_aa_backward",
    "_upsample_bilinear2d_aa_backward",
    "adaptive_max_pool2d_backward",
    "avg_pool3d_backward",
    "fractional_max_pool2d_backward",
    "fractional_max_pool3d_backward",
    "grid_sampler_2d_backward",
    "grid_sampler_3d_backward",
    "histc",
    "max_unpool2d",
    "max_unpool3d",
    "median",
    "nll_loss2d_forward",
    "put",
    "reflection_pad1d_backward",
    "reflection_pad2d_backward",
    "reflection_pad3d_backward",
    "scatter_reduce",
    "upsample_bicubic2d_backward",
    "upsample_bilinear2d_backward",
    "upsample_linear1d_backward",
    "upsample_trilinear3d_backward",
}
noted: set[str] = set()  # of those, the ones that ran while deterministic algorithms were asked for; CUDA would have failed


class OnDevice(torch.Tensor):
    """A tensor of the device; `held` has its values."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> OnDevice:
        it: OnDevice = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=torch.device(NAME, 0)
        )
        it.held = held
        return it

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"{self.held!r} on {NAME}"

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return computed(operation, *args, **kwargs or {})


def computed(operation: Any, *args: Any, **kwargs: Any) -> Any:
    """What an operation gives that has a tensor of the device among its arguments, or is to make one."""
    if operation not in COPIES and operation._can_decompose() and operation.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd):
        return operation.decompose(*args, **kwargs)
    name = operation._schema.name.removeprefix("aten::")
    weighed = name == "bincount" and len(args) + len(kwargs) > 1
    if torch.are_deterministic_algorithms_enabled() and (name.removesuffix("_") in NOT_DETERMINISTIC or weighed):
        noted.add(name)
    given = _pytree.tree_leaves((args, kwargs))
    ours = {id(each.held): each for each in given if isinstance(each, OnDevice)}
    theirs = {id(each): each for each in given if isinstance(each, torch.Tensor) and not isinstance(each, OnDevice)}
    if operation not in COPIES and ours:
        indices = {id(each) for each in args[1] if each is not None} if operation in INDEXED and isinstance(args[0], OnDevice) else set()
        for each in theirs.values():
            if each.dim() > 0 and id(each) not in indices:
                raise RuntimeError(f"Expected all tensors to be on the same device, but {name} got some of {NAME} and {tuple(each.shape)} of the CPU")
    if any(isinstance(each, torch.Generator) for each in given):
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but {name} got the CPU's")
    there = torch.device(kwargs.get("device") or NAME)
    on_cpu = kwargs | {"device": torch.device("cpu")} if "device" in kwargs else kwargs
    args_held, kwargs_held = _pytree.tree_map_only(OnDevice, lambda each: each.held, (args, on_cpu))
    with torch._C._AutoDispatchBelowAutograd():
        result = operation(*args_held, **kwargs_held)
    if operation is aten.copy_.default:
        return args[0]
    if torch.Tag.inplace_view in operation.tags:
        with no_dispatch():
            operation(*args, **kwargs)  # the outer tensor takes the new shape, too
        return args[0]

    def outer(each: torch.Tensor) -> torch.Tensor:
        if there.type == "cpu" or id(each) in theirs:
            return each
        return ours[id(each)] if id(each) in ours else OnDevice(each)

    return _pytree.tree_map_only(torch.Tensor, outer, result)


class Module:
    """What torch asks of a device's module, `torch.pretend`."""

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def is_initialized() -> bool:
        return True

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def device_count() -> int:
        return 1

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        """Layers draw from the CPU's generator."""

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16]


@contextmanager
def registered() -> Iterator[None]:
    """Let this process know the device; torch forgets no device again, so it is for processes that do nothing else."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=Module())
    library: Any = torch.library.Library("_", "IMPL")  # type: ignore[no-untyped-call]
    library.fallback(computed, "PrivateUse1")
    library.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")  # bfloat16 asked for stays float32
    made = torch.tensor

    def tensor(data: Any, *, device: Any = None, **kwargs: Any) -> torch.Tensor:  # torch's own knows no device that is written in Python
        there = device is not None and torch.device(device).type == NAME
        return made(data, **kwargs).to(device) if there else made(data, device=device, **kwargs)

    torch.tensor = tensor  # type: ignore[assignment]
    yield
    torch.tensor = made
    del library

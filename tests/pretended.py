"""A device that only pretends to be one, so that a machine without a GPU shows what would happen on a GPU.

Its tensors live in the CPU's memory and its operations are the CPU's, so that it gives the CPU's numbers. Everything
else is as on a GPU: torch takes it for a device of its own (the autograd engine, the optimisers, autocast and the
gradient scaler too), and every operation passes :class:`tests.watch.Watch`.

:func:`installed` changes torch for the rest of the process, so this belongs in a process of its own.
"""

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import return_and_correct_aliasing

NAME = "pretended"

aten = torch.ops.aten

# They take room or look at it; no kernel runs
NO_KERNEL = {
    aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided, aten.detach, aten.set_,
    aten.record_stream, aten._local_scalar_dense, aten.lift_fresh, aten.resize_,
}  # fmt: skip

# The CPU has no fast float16 for them: it computes in float32 and rounds the results, as GPUs do
SLOW_IN_HALF = {aten.convolution, aten.convolution_backward, aten.mm, aten.addmm, aten.bmm, aten.baddbmm}

# As torch.autocast sorts them for GPUs: these in the lower precision, these in the widest of their inputs, the rest of
# those that it knows in float32 (torch/amp documentation, "CUDA Op-Specific Behavior")
LOWER = {
    "_convolution", "addbmm", "addmm", "addmv", "addr", "baddbmm", "bmm", "chain_matmul", "conv1d", "conv2d", "conv3d",
    "conv_tbc", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution", "einsum", "gru_cell",
    "linalg_multi_dot", "linalg_vecdot", "linear", "lstm_cell", "matmul", "mm", "mv", "prelu", "rnn_relu_cell",
    "rnn_tanh_cell", "scaled_dot_product_attention",
}  # fmt: skip
WIDEST = {
    "addcdiv", "addcmul", "atan2", "bilinear", "cross", "dot", "grid_sampler", "index_put", "scatter_add", "tensordot",
    "vdot",
}  # fmt: skip


class Pretended(Tensor):
    """A tensor of the pretended device, around one of the CPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Pretended":
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )
        made.inner = inner
        return made

    def __init__(self, inner: Tensor) -> None:
        pass

    @property  # type: ignore[override]
    def data(self) -> "Pretended":
        return self.detach()

    @data.setter
    def data(self, value: "Pretended") -> None:  # as `Module.to` does
        Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.inner = value.inner

    def tolist(self) -> Any:
        return self.cpu().tolist()  # torch refuses it for classes of tensors; on a GPU, this is what it does

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run_on_cpu(func, args, kwargs or {})


def is_pretended(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _each(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """``change`` of everything of a kind among an operation's arguments or results, which are nested no other way."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)([_each(item, kind, change) for item in value])
    return value


def tensors_in(values: Iterable[Any]) -> list[Tensor]:
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += tensors_in(value)
    return found


@dataclass(frozen=True)
class _Nature:
    """What an operation is, by its schema.

    Attributes:
        name: for people.
        returns_an_argument: whether it gives back what it was given, as a view or changed.
        runs: whether it runs a kernel, so is not only a view.
    """

    name: str
    returns_an_argument: bool
    runs: bool


@functools.cache
def nature_of(func: Any) -> _Nature:
    aliases = [entry.alias_info for entry in func._schema.returns if entry.alias_info is not None]
    is_written = any(argument.alias_info and argument.alias_info.is_write for argument in func._schema.arguments)
    is_view = bool(aliases) and not any(alias.is_write for alias in aliases)
    packet = func.overloadpacket
    return _Nature(str(packet), bool(aliases) or is_written, packet not in NO_KERNEL and not is_view)


def run_on_cpu(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Runs an operation on the CPU, and gives tensors of the device where a GPU would."""
    if func.overloadpacket is aten.record_stream:
        return None
    target = kwargs.get("device")
    inner = _each(list(args), Pretended, lambda tensor: tensor.inner)
    named = {name: _each(value, Pretended, lambda tensor: tensor.inner) for name, value in kwargs.items()}
    if is_pretended(target):
        named["device"] = torch.device("cpu")
    in_half = func.overloadpacket in SLOW_IN_HALF and any(t.dtype is torch.float16 for t in tensors_in(inner))
    if in_half:
        inner = _each(inner, Tensor, lambda tensor: tensor.float() if tensor.dtype is torch.float16 else tensor)
    result = func(*inner, **named)
    if in_half:
        result = _each(result, Tensor, Tensor.half)
    from_device = any(isinstance(tensor, Pretended) for tensor in tensors_in((*args, *kwargs.values())))
    if not (from_device if target is None else is_pretended(target)):
        return result
    result = _each(result, Tensor, Pretended)
    if nature_of(func).returns_an_argument:
        return return_and_correct_aliasing(func, tuple(args), dict(kwargs), result)
    return result


class PinnedMemory:
    """Stands for pinned memory, which only machines with a device have: remembers what was asked to be there."""

    def __init__(self) -> None:
        self._storages: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()

    def pin(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self._storages[storage._cdata] = storage
        return tensor

    def holds(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._storages


class _Backend:
    """What torch asks of a device's module."""

    def is_initialized(self) -> bool:
        return True

    is_available = is_initialized

    def _is_in_bad_fork(self) -> bool:
        return False

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


def _autocast_like_a_gpu() -> list[torch.library.Library]:
    """Teaches torch.autocast the operations that it knows for GPUs; they last as long as what is returned."""
    key = "AutocastPrivateUse1"
    library, others = torch.library.Library("aten", "IMPL"), torch.library.Library("_", "IMPL")
    others.fallback(torch.library.fallthrough_kernel, key)

    def cast_to(choose: Any, operation: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            dtype = choose([tensor for tensor in tensors_in((*args, *kwargs.values())) if _is_castable(tensor)])

            def cast(tensor: Tensor) -> Tensor:
                return tensor.to(dtype) if _is_castable(tensor) else tensor

            with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)):
                kwargs = {name: _each(value, Pretended, cast) for name, value in kwargs.items()}
                return operation(*_each(args, Pretended, cast), **kwargs)

        return run

    for name in torch._C._dispatch_get_registrations_for_dispatch_key("AutocastCUDA"):
        namespace, _, rest = name.partition("::")
        packet, _, overload = rest.partition(".")
        if namespace != "aten":
            continue
        if packet in LOWER:
            choose = lambda tensors: torch.get_autocast_dtype(NAME)  # noqa: E731
        elif packet in WIDEST:
            choose = lambda tensors: max((t.dtype for t in tensors), key=lambda d: d.itemsize, default=None)  # noqa: E731
        else:
            choose = lambda tensors: torch.float32  # noqa: E731
        library.impl(name, cast_to(choose, getattr(getattr(aten, packet), overload or "default")), key)
    return [library, others]


def _is_castable(leaf: Any) -> bool:
    return isinstance(leaf, Pretended) and leaf.is_floating_point() and leaf.dtype is not torch.float64


@contextlib.contextmanager
def installed() -> Iterator[PinnedMemory]:
    """Gives torch the device, for the rest of the process."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Backend())
    autocast = _autocast_like_a_gpu()
    memory = PinnedMemory()
    # what the optimisers take together, they would not of an unknown class of tensors
    supported = [Tensor, torch.nn.Parameter, Pretended]
    with (
        mock.patch("torch.optim.optimizer._foreach_supported_types", supported),
        mock.patch("torch.utils._foreach_utils._foreach_supported_types", supported),
        mock.patch.object(Tensor, "pin_memory", lambda tensor, *device: memory.pin(tensor.clone())),
        mock.patch.object(Tensor, "is_pinned", lambda tensor, *device: memory.holds(tensor)),
        torch.autograd.set_multithreading_enabled(False),
    ):
        yield memory
    del autocast

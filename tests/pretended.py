"""A device that only pretends to be one, so that a machine without a GPU shows what would happen on a GPU.

Its tensors live in the CPU's memory and its operations are the CPU's, so that it gives the CPU's numbers. Everything
else is as on a GPU: torch takes it for a device of its own (the autograd engine, the optimisers, autocast and the
gradient scaler too), a tensor of it mixes with no other, and every operation passes a :class:`Watch`, which notes what
would make the host wait, what is copied from the host, and how many kernels run.

:func:`install` changes torch for the rest of the process, so this belongs in a process of its own.
"""

import contextlib
import functools
import linecache
import os
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from unittest import mock

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

NAME = "pretended"

aten = torch.ops.aten

# What reads a value, or a number of elements that depends on values, from the device; and decompositions, whose
# libraries say in the device's memory whether they could be done
WAIT = {
    aten._local_scalar_dense, aten.item, aten.is_nonzero, aten.equal, aten.nonzero, aten.argwhere, aten.masked_select,
    aten._unique, aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.bincount, aten._linalg_eigh,
    aten._linalg_svd, aten._linalg_solve_ex, aten.linalg_lstsq, aten.linalg_eig, aten._linalg_check_errors,
}  # fmt: skip
CHECKED = {aten.linalg_cholesky_ex, aten.linalg_inv_ex, aten.linalg_ldl_factor_ex, aten.linalg_lu_factor_ex}
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


@dataclass(eq=False)
class Record:
    """What happened in a stretch of a program.

    Attributes:
        waits: how often the host would have waited, by place and operation.
        mixed, doubles: places of operations on tensors of two devices, and of those that made float64.
        kernels: operations that run on the device.
        sent: bytes from the host to the device.
        shapes: of all that was computed, in order.
    """

    waits: Counter[str] = field(default_factory=Counter)
    mixed: Counter[str] = field(default_factory=Counter)
    doubles: Counter[str] = field(default_factory=Counter)
    kernels: int = 0
    sent: int = 0
    shapes: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)


def _place(what: str) -> str:
    """``what``, and the lines of this project that led there, the innermost first."""
    calls = []
    frame = sys._getframe(1)
    while frame is not None and len(calls) < 3:
        path = frame.f_code.co_filename
        if f"{os.sep}src{os.sep}" in path:
            calls.append(f"{Path(path).name}:{frame.f_lineno} {linecache.getline(path, frame.f_lineno).strip()}")
        frame = frame.f_back
    return " < ".join([what, *calls])


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
        return _run(func, args, kwargs or {})


def _is_pretended(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _each(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """``change`` of everything of a kind among an operation's arguments or results, which are nested no other way."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)([_each(item, kind, change) for item in value])
    return value


def _tensors_in(values: Iterable[Any]) -> list[Tensor]:
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += _tensors_in(value)
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
def _nature(func: Any) -> _Nature:
    aliases = [entry.alias_info for entry in func._schema.returns if entry.alias_info is not None]
    is_written = any(argument.alias_info and argument.alias_info.is_write for argument in func._schema.arguments)
    is_view = bool(aliases) and not any(alias.is_write for alias in aliases)
    packet = func.overloadpacket
    return _Nature(str(packet), bool(aliases) or is_written, packet not in NO_KERNEL and not is_view)


def _run(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Runs an operation on the CPU, and gives tensors of the device where a GPU would."""
    if func.overloadpacket is aten.record_stream:
        return None
    target = kwargs.get("device")
    inner = _each(list(args), Pretended, lambda tensor: tensor.inner)
    named = {name: _each(value, Pretended, lambda tensor: tensor.inner) for name, value in kwargs.items()}
    if _is_pretended(target):
        named["device"] = torch.device("cpu")
    in_half = func.overloadpacket in SLOW_IN_HALF and any(t.dtype is torch.float16 for t in _tensors_in(inner))
    if in_half:
        inner = _each(inner, Tensor, lambda tensor: tensor.float() if tensor.dtype is torch.float16 else tensor)
    result = func(*inner, **named)
    if in_half:
        result = _each(result, Tensor, Tensor.half)
    if target is not None and not _is_pretended(target):
        return result
    if not _is_pretended(target) and not any(isinstance(t, Pretended) for t in _tensors_in((*args, *kwargs.values()))):
        return result
    result = _each(result, Tensor, Pretended)
    if _nature(func).returns_an_argument:
        return return_and_correct_aliasing(func, tuple(args), dict(kwargs), result)
    return result


class Watch(TorchDispatchMode):
    """Runs the operations of the pretended device, and notes them in :attr:`record`.

    Args:
        pinned: what counts as pinned memory.
    """

    def __init__(self, pinned: "PinnedMemory") -> None:
        super().__init__()
        self.record = Record()
        self._pinned = pinned

    def __enter__(self) -> Self:
        self._lifts_cpu_tensors = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # so that `torch.tensor(..., device=...)` shows its copy
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch._C._set_only_lift_cpu_tensors(self._lifts_cpu_tensors)
        super().__exit__(*error)

    @contextlib.contextmanager
    def noting(self, record: Record) -> Iterator[Record]:
        """Notes in ``record`` instead."""
        before, self.record = self.record, record
        try:
            yield record
        finally:
            self.record = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = _tensors_in((*args, *kwargs.values()))
        ours = [tensor for tensor in tensors if isinstance(tensor, Pretended)]
        if kwargs.get("pin_memory"):
            return self._pinned.pin(_run(func, args, {**kwargs, "pin_memory": False}))
        if not ours and not _is_pretended(kwargs.get("device")):
            return func(*args, **kwargs)
        self._look(func, args, kwargs, ours, [tensor for tensor in tensors if not isinstance(tensor, Pretended)])
        result = _run(func, args, kwargs)
        self._look_at_result(func, result)
        return result

    def _look(self, func: Any, args: Any, kwargs: Any, ours: list[Tensor], others: list[Tensor]) -> None:
        packet, record = func.overloadpacket, self.record
        name = _nature(func).name
        if packet in (aten._to_copy, aten.copy_):
            self._look_at_copy(func, args, kwargs, others)
        elif packet in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_):
            self._look_at_index(name, args, others)
        elif any(tensor.ndim for tensor in others):
            record.mixed[_place(name)] += 1
        if packet in WAIT or (packet in CHECKED and kwargs.get("check_errors")):
            record.waits[_place(name)] += 1
        if packet is aten.repeat_interleave and kwargs.get("output_size") is None:
            record.waits[_place(name)] += 1

    def _look_at_copy(self, func: Any, args: Any, kwargs: Any, others: list[Tensor]) -> None:
        if func.overloadpacket is aten.copy_:
            target, source = args[0], args[1]
            non_blocking = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
            to_device, from_device = isinstance(target, Pretended), isinstance(source, Pretended)
        else:
            source, non_blocking = args[0], kwargs.get("non_blocking", False)
            from_device, wanted = isinstance(source, Pretended), kwargs.get("device")
            to_device = from_device if wanted is None else _is_pretended(wanted)
        if to_device == from_device:
            return
        if to_device:
            self.record.sent += source.numel() * source.element_size()
        host = source if to_device else (args[0] if func.overloadpacket is aten.copy_ else None)
        if not non_blocking or host is None or not self._pinned.holds(host):
            self.record.waits[_place(f"copy {'to' if to_device else 'from'} the device, not from pinned memory")] += 1

    def _look_at_index(self, name: str, args: Any, others: list[Tensor]) -> None:
        indices = [index for index in args[1] if index is not None]
        if any(not isinstance(index, Pretended) for index in indices):
            self.record.waits[_place(f"{name} by a list or a tensor of the CPU")] += 1
            self.record.sent += sum(i.numel() * i.element_size() for i in indices if not isinstance(i, Pretended))
        if any(tensor.ndim and not any(tensor is index for index in indices) for tensor in others):
            self.record.mixed[_place(name)] += 1
        masks = [index for index in indices if index.dtype in (torch.bool, torch.uint8)]
        # one value where a mask is true needs no list of places
        if masks and not (len(args) > 2 and args[2].numel() == 1 and len(indices) == 1):
            self.record.waits[_place(f"{name} by a mask")] += 1

    def _look_at_result(self, func: Any, result: Any) -> None:
        record = self.record
        made = [tensor for tensor in _tensors_in([result]) if isinstance(tensor, Pretended)]
        nature = _nature(func)
        if any(tensor.dtype is torch.float64 for tensor in made):
            record.doubles[_place(nature.name)] += 1
        if nature.runs:
            record.kernels += 1
            record.shapes.append((nature.name, tuple(made[0].shape) if made else ()))


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
            dtype = choose([tensor for tensor in _tensors_in((*args, *kwargs.values())) if _is_castable(tensor)])

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
def pretended_device() -> Iterator[tuple[torch.device, Watch]]:
    """The device, and what watches it. torch has one more device for the rest of the process."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Backend())
    autocast = _autocast_like_a_gpu()
    memory = PinnedMemory()
    watch = Watch(memory)
    with (
        # what the optimisers take together, they would not of an unknown class of tensors
        mock.patch("torch.optim.optimizer._foreach_supported_types", [Tensor, torch.nn.Parameter, Pretended]),
        mock.patch("torch.utils._foreach_utils._foreach_supported_types", [Tensor, torch.nn.Parameter, Pretended],
                   create=True),
        mock.patch.object(Tensor, "pin_memory", lambda tensor, *device: memory.pin(tensor.clone())),
        mock.patch.object(Tensor, "is_pinned", lambda tensor, *device: memory.holds(tensor)),
        torch.autograd.set_multithreading_enabled(False),
        watch,
    ):  # fmt: skip
        yield torch.device(NAME, 0), watch
    del autocast

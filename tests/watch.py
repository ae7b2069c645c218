"""What happens to the pretended device: waits of the host, copies from it, kernels, mixed devices."""

import contextlib
import functools
import linecache
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from unittest import mock

from src.parallel.virtual import Players
from tests.pretended import (
    NAME,
    PinnedMemory,
    Pretended,
    aten,
    installed,
    is_pretended,
    nature_of,
    run_on_cpu,
    tensors_in,
)

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# What reads a value, or a number of elements that depends on values, from the device; and decompositions, whose
# libraries say in the device's memory whether they could be done
WAIT = {
    aten._local_scalar_dense, aten.item, aten.is_nonzero, aten.equal, aten.nonzero, aten.argwhere, aten.masked_select,
    aten._unique, aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.bincount, aten._linalg_eigh,
    aten._linalg_svd, aten._linalg_solve_ex, aten.linalg_lstsq, aten.linalg_eig, aten._linalg_check_errors,
}  # fmt: skip
CHECKED = {aten.linalg_cholesky_ex, aten.linalg_inv_ex, aten.linalg_ldl_factor_ex, aten.linalg_lu_factor_ex}


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


class Watch(TorchDispatchMode):
    """Runs the operations of the pretended device, and notes them in :attr:`record`.

    Args:
        pinned: what counts as pinned memory.
    """

    def __init__(self, pinned: PinnedMemory) -> None:
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
        tensors = tensors_in((*args, *kwargs.values()))
        if kwargs.get("pin_memory"):
            return self._pinned.pin(run_on_cpu(func, args, {**kwargs, "pin_memory": False}))
        if not is_pretended(kwargs.get("device")) and not any(isinstance(tensor, Pretended) for tensor in tensors):
            return func(*args, **kwargs)
        self._look(func, args, kwargs, [tensor for tensor in tensors if not isinstance(tensor, Pretended)])
        result = run_on_cpu(func, args, kwargs)
        self._look_at_result(func, result)
        return result

    def _look(self, func: Any, args: Any, kwargs: Any, others: list[Tensor]) -> None:
        packet, record = func.overloadpacket, self.record
        name = nature_of(func).name
        if packet in (aten._to_copy, aten.copy_):
            self._look_at_copy(func, args, kwargs)
        elif packet in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_):
            self._look_at_index(name, args, others)
        elif any(tensor.ndim for tensor in others):
            record.mixed[_place(name)] += 1
        if packet in WAIT or (packet in CHECKED and kwargs.get("check_errors")):
            record.waits[_place(name)] += 1
        if packet is aten.repeat_interleave and kwargs.get("output_size") is None:
            record.waits[_place(name)] += 1

    def _look_at_copy(self, func: Any, args: Any, kwargs: Any) -> None:
        if func.overloadpacket is aten.copy_:
            target, source = args[0], args[1]
            non_blocking = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
            to_device, from_device = isinstance(target, Pretended), isinstance(source, Pretended)
        else:
            source, non_blocking = args[0], kwargs.get("non_blocking", False)
            from_device, wanted = isinstance(source, Pretended), kwargs.get("device")
            to_device = from_device if wanted is None else is_pretended(wanted)
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
        made = [tensor for tensor in tensors_in([result]) if isinstance(tensor, Pretended)]
        nature = nature_of(func)
        if any(tensor.dtype is torch.float64 for tensor in made):
            record.doubles[_place(nature.name)] += 1
        if nature.runs:
            record.kernels += 1
            record.shapes.append((nature.name, tuple(made[0].shape) if made else ()))


@contextlib.contextmanager
def pretended_device() -> Iterator[tuple[torch.device, Watch]]:
    """The device, and what watches it; see :func:`tests.pretended.installed`."""
    with installed() as memory, Watch(memory) as watch, _in_threads_of_ranks(watch):
        yield torch.device(NAME, 0), watch


@contextlib.contextmanager
def _in_threads_of_ranks(watch: Watch) -> Iterator[None]:
    """A mode is of one thread; each virtual rank has its own."""
    real = Players.run

    def watched(task: Callable[[], Any]) -> Any:
        TorchDispatchMode.__enter__(watch)
        try:
            return task()
        finally:
            TorchDispatchMode.__exit__(watch, None, None, None)

    def run(players: Players, tasks: Sequence[Callable[[], Any]], *rest: Any) -> list[Any]:
        return real(players, [functools.partial(watched, task) for task in tasks], *rest)

    with mock.patch.object(Players, "run", run):
        yield

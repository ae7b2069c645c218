"""The collectives that the rest uses.

Every one is a no-op in a single process without a process group, so no caller asks how it was started. In the
thread of a virtual rank (:mod:`src.parallel.virtual`) they join the ranks of the process first.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from . import virtual
from .transfer import sent


def is_active() -> bool:
    return not _is_alone and dist.is_available() and dist.is_initialized()


_is_alone = False


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Inside, this process does as if there were no others."""
    global _is_alone
    before, _is_alone = _is_alone, True
    try:
        yield
    finally:
        _is_alone = before


def rank() -> int:
    one = virtual.here()
    if one is not None:
        return one.players.first + one.number
    return dist.get_rank() if is_active() else 0


def world_size() -> int:
    one = virtual.here()
    if one is not None:
        return one.players.world_size
    return dist.get_world_size() if is_active() else 1


def is_main() -> bool:
    return rank() == 0


def barrier() -> None:
    one = virtual.here()
    if one is not None:
        one.meet(_barrier_together, None)
    elif is_active():
        # a CPU tensor goes over gloo on every backend, so that no GPU stream is blocked
        dist.all_reduce(torch.zeros(1))


def _barrier_together(values: list[None]) -> list[None]:
    barrier()
    return values


def all_reduce_(tensor: Tensor, op: Any = dist.ReduceOp.SUM) -> Tensor:
    """Reduces over all ranks in place and returns the tensor. No gradient."""
    one = virtual.here()
    if one is not None:
        reduced: Tensor = one.meet(partial(_reduced_together, op), tensor)
        return reduced
    if world_size() > 1:
        dist.all_reduce(tensor, op=op)
    return tensor


@torch.no_grad()
def _reduced_together(op: Any, tensors: list[Tensor]) -> list[Tensor]:
    reductions: dict[Any, Callable[[Tensor], Tensor]] = {
        dist.ReduceOp.SUM: lambda stacked: stacked.sum(dim=0),
        dist.ReduceOp.MAX: lambda stacked: stacked.amax(dim=0),
        dist.ReduceOp.MIN: lambda stacked: stacked.amin(dim=0),
    }
    total = all_reduce_(reductions[op](torch.stack(tensors)), op)
    return [tensor.copy_(total) for tensor in tensors]


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total, None


def sum_with_gradient(tensor: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """The sum over the processes of a group (None: all) and the virtual ranks of each, as a new tensor.

    Its gradient is summed over the ranks too: that of the sum of all ranks' losses, as for one joined batch.
    """
    one = virtual.here()
    if one is not None:
        across = partial(sum_with_gradient, group=group)
        total: Tensor = one.meet(partial(_summed_together, one.players.count, across), tensor)
        return total
    return tensor if world_size() == 1 else _Sum.apply(tensor, group)


def sum_in_process(tensor: Tensor, together: int) -> Tensor:
    """The sum over ``together`` consecutive virtual ranks of this process, with gradient, as a new tensor."""
    one = virtual.here()
    assert one is not None
    total: Tensor = one.meet(partial(_summed_together, together, lambda total: total), tensor)
    return total


def _summed_together(together: int, across: Callable[[Tensor], Tensor], tensors: list[Tensor]) -> list[Tensor]:
    totals: list[Tensor] = []
    for first in range(0, len(tensors), together):
        totals += [across(torch.stack(tensors[first : first + together]).sum(dim=0))] * together
    return totals


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        parts = [torch.empty_like(tensor) for _ in range(world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = all_reduce_(grads[0].clone(memory_format=torch.contiguous_format))
        return total.chunk(world_size())[rank()]


def gather_with_gradient(tensor: Tensor) -> Tensor:
    """(n, ...) on each rank -> (W n, ...) in rank order, with equal n.

    Its gradient is summed over the ranks. When every rank then computes the loss of the whole batch, averaging the
    parameters' gradients over the ranks gives exactly those of one process.
    """
    one = virtual.here()
    if one is not None:
        gathered: Tensor = one.meet(lambda parts: [gather_with_gradient(torch.cat(parts))] * len(parts), tensor)
        return gathered
    return tensor if world_size() == 1 else _Gather.apply(tensor)


@torch.no_grad()
def permute_rows(tensor: Tensor, order: Tensor) -> Tensor:
    """Deals the rows of all ranks out anew. No gradient.

    Args:
        tensor: (n, ...) on each rank, with equal n; their rows are numbered in rank order.
        order: (W n,) int64 on the CPU, a permutation that all ranks know: row i of the result, counted over the ranks
            in the same way, is row ``order[i]``.

    Each rank sends every other one only what that one needs.
    """
    one = virtual.here()
    if one is not None:
        dealt: Tensor = one.meet(lambda parts: list(permute_rows(torch.cat(parts), order).chunk(len(parts))), tensor)
        return dealt
    count, ranks, mine = len(tensor), world_size(), rank()
    if ranks == 1:
        return tensor[sent(order, tensor.device)]
    wanted = order.view(ranks, count)
    owner = wanted // count
    to_each = [wanted[r][owner[r] == mine] - mine * count for r in range(ranks)]
    from_each = torch.bincount(owner[mine], minlength=ranks).tolist()
    outgoing = tensor[sent(torch.cat(to_each), tensor.device)].contiguous()
    received = torch.empty_like(outgoing)
    dist.all_to_all_single(received, outgoing, from_each, [len(rows) for rows in to_each])
    # they come grouped by the rank that owned them, within it in the order in which they are wanted
    arrival = torch.argsort(owner[mine], stable=True)
    return received[sent(torch.argsort(arrival), tensor.device)]


def all_gather_rows(tensor: Tensor) -> Tensor:
    """(n_r, ...) on each rank -> (sum of n_r, ...), in rank order; the ranks may have different n_r. No gradient."""
    one = virtual.here()
    if one is not None:
        rows: Tensor = one.meet(lambda parts: [all_gather_rows(torch.cat(parts))] * len(parts), tensor)
        return rows
    if world_size() == 1:
        return tensor
    count = torch.tensor([len(tensor)], device=tensor.device)
    counts = [torch.zeros_like(count) for _ in range(world_size())]
    dist.all_gather(counts, count)
    sizes = [int(c) for c in counts]
    padded = tensor.new_zeros(max(sizes), *tensor.shape[1:])
    padded[: len(tensor)] = tensor
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def gather_to_main(value: Any, group: dist.ProcessGroup | None = None) -> list[Any] | None:
    """One picklable value of each rank, as a list on the main rank and None on the others.

    ``group`` is of all ranks, for another thread than the one that uses the usual group.
    """
    if world_size() == 1:
        return [value]
    gathered: list[Any] | None = [None] * world_size() if is_main() else None
    dist.gather_object(value, gathered, dst=0, group=group)
    return gathered


def gather_everywhere(value: Any) -> list[Any]:
    """One picklable value of each rank, as a list on every rank."""
    if world_size() == 1:
        return [value]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def broadcast_object(value: Any) -> Any:
    """The main rank's picklable value, on every rank."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def broadcast_(tensors: list[Tensor]) -> None:
    """Overwrites the tensors with the main rank's."""
    one = virtual.here()
    if one is not None:
        one.meet(_broadcast_together, tensors)
        return
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


@torch.no_grad()
def _broadcast_together(lists: list[list[Tensor]]) -> list[None]:
    broadcast_(lists[0])
    for tensors in lists[1:]:
        for tensor, source in zip(tensors, lists[0], strict=True):
            tensor.copy_(source)
    return [None] * len(lists)

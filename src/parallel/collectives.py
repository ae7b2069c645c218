"""The collectives that the rest uses.

Every one is a no-op in a single process without a process group, so no caller asks how it was started.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .transfer import sent


def is_active() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if is_active() else 0


def world_size() -> int:
    return dist.get_world_size() if is_active() else 1


def is_main() -> bool:
    return rank() == 0


def barrier() -> None:
    if is_active():
        # a CPU tensor goes over gloo on every backend, so that no GPU stream is blocked
        dist.all_reduce(torch.zeros(1))


def all_reduce_(tensor: Tensor, op: Any = dist.ReduceOp.SUM) -> Tensor:
    """Reduces over all ranks in place and returns the tensor. No gradient."""
    if world_size() > 1:
        dist.all_reduce(tensor, op=op)
    return tensor


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
    """The sum over the ranks of a group (None: all), as a new tensor.

    Its gradient is summed over the ranks too: that of the sum of all ranks' losses, as for one joined batch.
    """
    return tensor if world_size() == 1 else _Sum.apply(tensor, group)


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
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)

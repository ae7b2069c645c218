"""Batch norm whose statistics span several ranks, on GPUs (torch's own) and on the CPU (ours)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import UserError
from . import collectives, virtual


class CPUSyncBatchNorm(_BatchNorm):
    """Synchronised batch norm for CPU tensors, (B, C) or (B, C, ...), over gloo.

    ``torch.nn.SyncBatchNorm`` refuses CPU tensors, which would leave "two ranks equal one process on the whole batch"
    untestable without GPUs. Mean and variance are reduced over the ranks of ``process_group`` with their gradients.
    """

    def __init__(self, *args: object, process_group: dist.ProcessGroup | None = None, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.process_group = process_group

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions, got {input.dim()}")

    def sum(self, tensor: Tensor) -> Tensor:
        """Over the ranks that share statistics, with gradient."""
        return collectives.sum_with_gradient(tensor, self.process_group)

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        axes = [axis for axis in range(input.dim()) if axis != 1]
        shape = [1, -1] + [1] * (input.dim() - 2)
        x = input.float()
        sums = self.sum(torch.cat([x.sum(axes), x.new_tensor([x.numel() / x.shape[1]])]))
        count = sums[-1:]
        mean = sums[:-1] / count
        centred = x - mean.view(shape)
        variance = self.sum(centred.square().sum(axes)) / count
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                assert self.num_batches_tracked is not None
                self.num_batches_tracked.add_(1)
                share = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
                self.running_mean.lerp_(mean.detach(), share)
                self.running_var.lerp_(variance.detach() * count / (count - 1), share)
        y = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(input.dtype)


class VirtualSyncBatchNorm(CPUSyncBatchNorm):
    """Batch norm that ranks of a process share, and perhaps those of other processes.

    Args:
        together: how many consecutive ranks of this process; all of them where other processes share it, too.
        across: whether they do; then ``process_group`` is that of the processes.
        of_all: whether all ranks share it, however many there are.
    """

    def __init__(self, *args: object, together: int, across: bool, of_all: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.together, self.across, self.of_all = together, across, of_all

    def sum(self, tensor: Tensor) -> Tensor:
        if virtual.here() is None or self.across:
            return super().sum(tensor)
        return collectives.sum_in_process(tensor, self.together)

    def forward(self, input: Tensor) -> Tensor:
        if virtual.here() is None and not self.across:  # a batch of all those ranks
            return _BatchNorm.forward(self, input)
        return super().forward(input)


def ranks_in_one_batch(module: nn.Module) -> int:
    """How many ranks of a process batch norms of the module take their statistics over."""
    return max((one.together for one in module.modules() if isinstance(one, VirtualSyncBatchNorm)), default=1)


def of_all_ranks(module: nn.Module) -> bool:
    """Whether batch norms of the module take the statistics of all ranks."""
    return any(isinstance(one, VirtualSyncBatchNorm) and one.of_all for one in module.modules())


def process_group_of(group_size: int) -> dist.ProcessGroup | None:
    """The group of ``group_size`` consecutive ranks that this rank belongs to; None stands for the whole world.

    Every rank creates every group, in the same order, as torch demands. 0, or a size of at least the world, is the
    whole world. Raises UserError when the groups would not be equal.
    """
    world = collectives.world_size()
    if group_size == 0 or group_size >= world:
        return None
    if world % group_size:
        raise UserError(f"--syncbn_process_group_size {group_size} does not divide the {world} processes")
    groups = [dist.new_group(list(range(first, first + group_size))) for first in range(0, world, group_size)]
    own = groups[collectives.rank() // group_size]
    assert isinstance(own, dist.ProcessGroup)
    return own


def convert(module: nn.Module, group_size: int = 0, device_type: str = "cpu", virtual_ranks: int = 1) -> nn.Module:
    """Replaces every batch norm by its synchronised form, sharing parameters and buffers; one rank: unchanged.

    Args:
        module: any module, not yet wrapped in DDP.
        group_size: how many consecutive ranks share their statistics; 0 = all.
        device_type: where the module will run.
        virtual_ranks: how many ranks each process plays.

    Raises UserError when the groups would not be equal.
    """
    processes = collectives.world_size()
    if virtual_ranks > 1:
        ranks = processes * virtual_ranks
        size = min(group_size or ranks, ranks)
        if size == 1:
            return module
        if (virtual_ranks % size and size % virtual_ranks) or ranks % size:
            raise UserError(
                f"batch norms over {size} ranks: neither a divisor nor a multiple of the {virtual_ranks} ranks that "
                "each process plays"
            )
        across = size > virtual_ranks
        group = process_group_of(size // virtual_ranks) if across else None
        together = min(size, virtual_ranks)
        make = partial(
            VirtualSyncBatchNorm, process_group=group, together=together, across=across, of_all=not group_size
        )
        return _replaced(module, make)
    if processes == 1:
        return module
    group = process_group_of(group_size)
    if device_type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module, group)
    return _replaced(module, partial(CPUSyncBatchNorm, process_group=group))


def _replaced(module: nn.Module, make: Callable[..., CPUSyncBatchNorm]) -> nn.Module:
    if isinstance(module, _BatchNorm):
        synced = make(module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats)
        synced.weight, synced.bias = module.weight, module.bias
        synced.running_mean, synced.running_var = module.running_mean, module.running_var
        synced.num_batches_tracked = module.num_batches_tracked
        synced.train(module.training)
        return synced
    for name, child in module.named_children():
        setattr(module, name, _replaced(child, make))
    return module

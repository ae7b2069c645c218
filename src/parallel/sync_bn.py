"""Batch norm whose statistics span several ranks, on GPUs (torch's own) and on the CPU (ours)."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import UserError
from . import collectives


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

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        axes = [axis for axis in range(input.dim()) if axis != 1]
        shape = [1, -1] + [1] * (input.dim() - 2)
        x = input.float()
        count = collectives.sum_with_gradient(x.new_tensor([x.numel() / x.shape[1]]), self.process_group)
        mean = collectives.sum_with_gradient(x.sum(axes), self.process_group) / count
        centred = x - mean.view(shape)
        variance = collectives.sum_with_gradient(centred.square().sum(axes), self.process_group) / count
        if self.running_mean is not None and self.running_var is not None:
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


def convert(module: nn.Module, group_size: int = 0, device_type: str = "cpu") -> nn.Module:
    """Replaces every batch norm by its synchronised form, sharing parameters and buffers; one process: unchanged.

    Args:
        module: any module, not yet wrapped in DDP.
        group_size: how many consecutive ranks share their statistics; 0 = all.
        device_type: where the module will run.
    """
    if collectives.world_size() == 1:
        return module
    group = process_group_of(group_size)
    if device_type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module, group)
    return _convert_cpu(module, group)


def _convert_cpu(module: nn.Module, group: dist.ProcessGroup | None) -> nn.Module:
    if isinstance(module, _BatchNorm):
        synced = CPUSyncBatchNorm(
            module.num_features,
            module.eps,
            module.momentum,
            module.affine,
            module.track_running_stats,
            process_group=group,
        )
        synced.weight, synced.bias = module.weight, module.bias
        synced.running_mean, synced.running_var = module.running_mean, module.running_var
        synced.num_batches_tracked = module.num_batches_tracked
        synced.train(module.training)
        return synced
    for name, child in module.named_children():
        setattr(module, name, _convert_cpu(child, group))
    return module

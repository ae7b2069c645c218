"""Parameters, gradients and optimiser state shared out over the ranks (FSDP2), for networks that are too wide for one.

A sharded parameter is a ``DTensor``; checkpoints hold whole tensors, so a run may change between sharded and not.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from ..errors import UserError
from . import collectives


def shard(
    method: nn.Module,
    backbones: Mapping[nn.Module, Sequence[nn.Module]],
    device: torch.device,
    calls: Sequence[str] = (),
    by_turns: bool = False,
) -> None:
    """Shares out a method's parameters, in place; the optimiser must be made afterwards.

    Each residual block is gathered when it runs and given back after; the rest of a backbone, and the rest of the
    method, are one unit each. Gradients are averaged over the ranks as DDP does.

    Args:
        method: on the device already, batch norms converted.
        backbones: parts of it that may also be called on their own, such as the one that evaluations call and its
            moving averages, each with its units, see :func:`src.models.backbones.residual_blocks`.
        device: all ranks have one of this type.
        calls: methods of ``method`` besides ``forward`` that use its parameters, and do not call it.
        by_turns: several ranks of this process are in ``method`` at a time, see :mod:`src.parallel.virtual`. What of it
            is outside of backbones then stays whole until :func:`give_back`.

    Raises UserError without a process group.
    """
    if not collectives.is_active():
        raise UserError("--shard shares parameters out over processes: start with torchrun or srun")
    mesh = init_device_mesh(device.type, (collectives.world_size(),))
    for backbone, blocks in backbones.items():
        for block in blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(backbone, mesh=mesh)
        for name in ("feature_map", "forward_features", "forward_head"):
            if hasattr(backbone, name):
                register_fsdp_forward_method(backbone, name)
    # what is left is kept whole from the forward to the backward pass; after a call alone it would stay so, and changes
    # of the parameters that follow would be lost
    fully_shard(method, mesh=mesh, reshard_after_forward=False if by_turns else True if calls else None)
    if by_turns:
        method.set_reshard_after_backward(False, recurse=False)  # type: ignore[operator]
    for name in calls:
        register_fsdp_forward_method(method, name)


def give_back(method: nn.Module) -> None:
    """Leaves each rank its part of what is whole; nothing where the method is not sharded."""
    if isinstance(method, FSDPModule):
        method.reshard()


def is_sharded(module: nn.Module) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def whole(value: Any) -> Any:
    """The value with every sharded tensor in it put together; to be called by all ranks, as this communicates."""
    if isinstance(value, DTensor):
        return value.full_tensor()
    if isinstance(value, Mapping):
        return {key: whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [whole(item) for item in value]
    return value


def part_like(template: Tensor, tensor: Tensor) -> Tensor:
    """This rank's part of a whole tensor, where the template is sharded; else the tensor itself."""
    if not isinstance(template, DTensor):
        return tensor
    tensor = tensor.to(template.device)
    return distribute_tensor(tensor, template.device_mesh, template.placements, src_data_rank=None)

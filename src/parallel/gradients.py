"""Means of gradients over the processes."""

import warnings
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from . import collectives

BUCKET = 8_000_000  # numbers that are sent at once


def averaging_gradients(method: nn.Module, device: torch.device) -> nn.Module:
    """The module, whose backward passes leave the means over the processes as gradients."""
    with warnings.catch_warnings():
        # torch 2.15 prefers a name for `broadcast_buffers` that torch 2.11 does not know
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(
            method,
            device_ids=[device.index] if device.type == "cuda" else None,
            # batch-norm statistics are made equal where they are read; queues differ between ranks on purpose
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )


@torch.no_grad()
def average_gradients_(parameters: Iterable[nn.Parameter]) -> None:
    """Gradients become their means over the processes, which must have the same ones."""
    if collectives.world_size() == 1:
        return
    bucket: list[Tensor] = []
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    for number, gradient in enumerate(gradients, start=1):
        bucket.append(gradient)
        following = gradients[number] if number < len(gradients) else None
        if following is None or following.dtype != gradient.dtype or sum(map(Tensor.numel, bucket)) > BUCKET:
            flat = torch.cat([one.reshape(-1) for one in bucket])
            dist.all_reduce(flat)
            flat /= collectives.world_size()
            for one, mean in zip(bucket, flat.split([one.numel() for one in bucket]), strict=True):
                one.copy_(mean.view(one.shape))
            bucket = []

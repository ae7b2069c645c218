"""Whether numbers are finite, asked on the device: one answer, for which the host waits once."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from ..parallel import collectives


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested dicts and lists; of a sharded one this rank's part."""
    if isinstance(value, DTensor):
        yield value.to_local()
    elif isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)


@torch.no_grad()
def all_finite_everywhere(tensors: Iterable[Tensor], device: torch.device) -> bool:
    """Whether no value of any rank's tensors is infinite or no number. Every rank must call it."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        if tensor.is_floating_point() and tensor.numel():
            by_device.setdefault(tensor.device, []).append(tensor)
    # the largest magnitude is no number where any value is none; unlike a sum it cannot overflow
    largest = [
        torch.stack([norm.float() for norm in torch._foreach_norm(some, ord=float("inf"))]).max().to(device)
        for some in by_device.values()
    ]
    broken = sum((~torch.isfinite(norm) for norm in largest), torch.zeros((), device=device))
    return not bool(collectives.all_reduce_(broken.float()).item())

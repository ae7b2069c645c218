"""The exponential moving average of a network's parameters: momentum encoders, teachers, mean students."""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def momentum_copy(online: Network) -> Network:
    """A copy of the whole state whose parameters get no gradient."""
    return copy.deepcopy(online).requires_grad_(False)


@torch.no_grad()
def update_momentum_copy(average: nn.Module, online: nn.Module, momentum: float) -> None:
    """``average <- momentum * average + (1 - momentum) * online`` for every parameter, in one call for all of them.

    Buffers, so batch-norm statistics, are left alone: they come from the average's own forward passes, as in MoCo
    (He et al. 2020, arXiv 1911.05722).
    """
    averaged: list[Tensor] = list(average.parameters())
    source: list[Tensor] = list(online.parameters())
    if not averaged:
        return  # a head that is none
    torch._foreach_lerp_(averaged, source, 1.0 - momentum)  # one pass over the memory

"""Small networks on top of a backbone: projectors and prototypes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def projector(width: int, hidden: int, out: int, batch_norm: bool = True) -> nn.Module:
    """SwAV's projection head: linear - batch norm - ReLU - linear, or one linear layer when ``hidden`` is 0.

    Keys are those of the published files: ``0``, ``1``, ``3`` (without batch norm, as the published ResNet-50 w5:
    ``0``, ``2``), or ``weight`` and ``bias`` for the linear head.
    """
    if hidden == 0:
        return nn.Linear(width, out)
    layers: list[nn.Module] = [nn.Linear(width, hidden)]
    if batch_norm:
        layers.append(nn.BatchNorm1d(hidden))
    return nn.Sequential(*layers, nn.ReLU(inplace=True), nn.Linear(hidden, out))


class Prototypes(nn.Linear):
    """K vectors that samples are compared with: (n, D) unit rows -> (n, K) cosine scores, while rows are unit."""

    def __init__(self, dim: int, count: int) -> None:
        super().__init__(dim, count, bias=False)

    def heads(self) -> list["Prototypes"]:
        return [self]


class MultiPrototypes(nn.Module):
    """Several independent sets of prototypes, named ``prototypes0``, ``prototypes1``, ... as published."""

    def __init__(self, dim: int, counts: Sequence[int]) -> None:
        super().__init__()
        for i, count in enumerate(counts):
            self.add_module(f"prototypes{i}", Prototypes(dim, count))

    def heads(self) -> list[Prototypes]:
        return [head for head in self.children() if isinstance(head, Prototypes)]


@torch.no_grad()
def normalize_rows_(weight: Tensor) -> None:
    """Scales every row (a prototype) to unit L2 norm, in place."""
    weight.copy_(F.normalize(weight, dim=1))

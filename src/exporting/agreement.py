"""Whether what was exported computes what the backbone does."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..errors import UserError

TOLERANCE = 1e-4  # of the largest feature


@torch.no_grad()
def require_agreement(
    backbone: nn.Module, other: Callable[[Tensor], Tensor], shapes: Sequence[tuple[int, ...]], who: str
) -> None:
    """Shows both random images of these shapes; raises UserError where features differ by more than TOLERANCE."""
    generator = torch.Generator().manual_seed(0)
    for shape in shapes:
        images = torch.randn(shape, generator=generator)
        expected, found = backbone(images), other(images)
        if found.shape != expected.shape:
            raise UserError(f"{who} gives features of shape {tuple(found.shape)} instead of {tuple(expected.shape)}")
        if not bool(torch.isfinite(expected).all()):
            raise UserError("the network gives features that are not finite")
        difference = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
        if not difference <= TOLERANCE:  # nan is not
            raise UserError(f"{who} gives other features: they differ by {difference:.2g} of the largest one")

"""Montages: four patches of four images in one (JigClu, Chen et al. 2021, arXiv 2103.15106; W2SSL).

An image has P parts (2: halves that overlap, or 4: quarters), each cropped and augmented to a patch. The P n patches
of a global batch of n images are dealt out over P n slots by one permutation: slot j holds source ``order[j]``, where
source ``part * n + i`` is that part of image i. Of the M = P n / 4 montages of a view, montage m has

    slot m      | slot M + m
    ------------+------------
    slot 2M + m | slot 3M + m

Shape suffixes: M = montages of all ranks, m = of this rank, C = channels, p = side of a patch.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..parallel import collectives


def assemble(cells_4mCpp: Tensor) -> Tensor:
    """Top left, top right, bottom left, bottom right, (4, m, C, p, p) -> montages (m, C, 2p, 2p)."""
    top = torch.cat([cells_4mCpp[0], cells_4mCpp[1]], dim=3)
    bottom = torch.cat([cells_4mCpp[2], cells_4mCpp[3]], dim=3)
    return torch.cat([top, bottom], dim=2)


def decouple(features_MC22: Tensor) -> Tensor:
    """The four cells of every montage's features, (M, C, 2, 2) -> (4M, C): row j belongs to slot j."""
    return features_MC22.flatten(2).permute(2, 0, 1).flatten(0, 1)


def pool_quarters(feature_map: Tensor) -> Tensor:
    """(m, C, h, w) -> (m, C, 2, 2): resized bilinearly to 8x8, then the mean of each quarter.

    Of 7x7 positions the middle row and column count for both sides.
    """
    return F.adaptive_avg_pool2d(F.interpolate(feature_map, size=(8, 8), mode="bilinear", align_corners=False), 2)


def deal_out(patches: list[Tensor], order: Tensor) -> Tensor:
    """This rank's montages of one view.

    Args:
        patches: P tensors (b, C, p, p), the parts of this rank's b images.
        order: (P n,) int64 on the CPU, the permutation, the same on every rank.

    Returns:
        (m, C, 2p, 2p) with m = P b / 4: montages r m to (r + 1) m of all, on rank r.
    """
    parts, images = len(patches), len(patches[0])
    ranks = collectives.world_size()
    total = images * ranks
    # the ranks hold their rows part by part, so that source (part, image) is this row of all:
    part, image = order // total, order % total
    row = (image // images) * (parts * images) + part * images + image % images
    slots = torch.arange(parts * total).view(4, ranks, -1).transpose(0, 1)  # rank by rank, cell by cell
    cells = collectives.permute_rows(torch.cat(patches), row[slots.flatten()])
    return assemble(cells.view(4, -1, *cells.shape[1:]))

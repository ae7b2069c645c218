"""TWIST's and DINO's vision transformers (arXiv 2010.11929, 2104.14294): timm's, but for the position table.

timm's resampling of the position table for other image sizes gives other values than the published models were trained
with, and it starts the class token otherwise; the rest is numerically the same, so it is timm's.
"""

from functools import partial
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import Tensor, nn
from torch.nn import functional as F

# name -> width, heads; 12 blocks of patches of 16 pixels each
VITS = {"vit_t": (192, 3), "vit_s": (384, 6), "vit_b": (768, 12)}
DEPTH, PATCH, SIDE = 12, 16, 14


class VisionTransformer(TimmViT):
    """(n, 3, h, w) -> the class token after the final norm, (n, F). Names of parameters are timm's, as published.

    Args:
        name: one of VITS.
        drop_path: stochastic depth, from 0 in the first block to this in the last.
        channels: of the images.
    """

    def __init__(self, name: str, drop_path: float = 0.0, channels: int = 3) -> None:
        width, heads = VITS[name]
        super().__init__(
            img_size=SIDE * PATCH,
            patch_size=PATCH,
            in_chans=channels,
            embed_dim=width,
            depth=DEPTH,
            num_heads=heads,
            num_classes=0,
            drop_path_rate=drop_path,
            dynamic_img_size=True,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
        )
        self.feature_width = width
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        for token in (self.pos_embed, self.cls_token):
            assert token is not None
            nn.init.trunc_normal_(token, std=0.02)

    def freeze_embedding(self) -> None:
        """No gradient for the patches' projection."""
        self.patch_embed.proj.requires_grad_(False)

    def _pos_embed(self, x: Tensor) -> Tensor:
        rows, columns = x.shape[1:3]
        assert self.cls_token is not None
        assert self.pos_embed is not None
        tokens = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x.flatten(1, 2)], dim=1)
        return self.pos_drop(tokens + interpolate_positions(self.pos_embed, rows, columns))


def interpolate_positions(table: Tensor, rows: int, columns: int) -> Tensor:
    """The position table (1, 1 + 14 * 14, F) for rows x columns patches; the class token's entry is kept.

    Bicubic, with the *scale* (side + 0.1) / 14 rather than a size: torch then maps coordinates by that scale, so the
    0.1, which was meant against rounding, is part of the result.
    """
    if rows == columns == SIDE:
        return table
    grid = table[:, 1:].reshape(1, SIDE, SIDE, -1).permute(0, 3, 1, 2)
    scale: Any = ((rows + 0.1) / SIDE, (columns + 0.1) / SIDE)
    grid = F.interpolate(grid, scale_factor=scale, mode="bicubic")
    assert grid.shape[-2:] == (rows, columns)
    return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)

"""What a network sees where: attention of a transformer's heads, and the colours of its patches or last map."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UserError
from ..models.backbones import features_and_map


@torch.no_grad()
def last_map(backbone: nn.Module, images: Tensor) -> Tensor | None:
    """(n, C, h, w): a convolutional network's last map, or the last tokens of a transformer's patches.

    None for networks whose last layer has no places.
    """
    if not hasattr(backbone, "patch_embed"):
        try:
            return features_and_map(backbone, images)[1].float()
        except (UserError, AttributeError):
            return None
    model: Any = backbone
    tokens = model.forward_features(images).float()
    if tokens.ndim == 4:  # of windows: rows and columns stay, channels come last
        is_last = getattr(model, "output_fmt", "NHWC") == "NHWC"
        return tokens.permute(0, 3, 1, 2) if is_last else tokens
    grid = _grid(model, images)
    if tokens.ndim != 3 or tokens.shape[1] <= grid[0] * grid[1] - 1:
        return None
    patches = tokens[:, tokens.shape[1] - grid[0] * grid[1] :]
    return patches.transpose(1, 2).unflatten(2, grid)


@torch.no_grad()
def attention_of_heads(backbone: nn.Module, images: Tensor) -> Tensor | None:
    """(n, heads, h, w): how much the class token looks at each patch in the last block; sums to at most 1.

    As DINO draws it (Caron et al. 2021, arXiv 2104.14294, figure 1). None for networks without such a token.
    """
    model: Any = backbone
    blocks = getattr(model, "blocks", None)
    attention: Any = getattr(blocks[-1], "attn", None) if isinstance(blocks, nn.Sequential) and len(blocks) else None
    known = all(hasattr(attention, name) for name in ("qkv", "num_heads", "scale"))
    if not known or getattr(attention, "qkv", None) is None or getattr(model, "cls_token", None) is None:
        return None
    if getattr(attention, "rope", None) is not None or getattr(model, "rope", None) is not None:
        return None  # positions that are turned inside: the plain product would not be what it computes
    seen: list[Tensor] = []
    handle = attention.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    try:
        model.forward_features(images)
    finally:
        handle.remove()
    if not seen:
        return None
    x = seen[0]
    query, key, _ = attention.qkv(x).unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    query = getattr(attention, "q_norm", nn.Identity())(query)
    key = getattr(attention, "k_norm", nn.Identity())(key)
    weights = (query[:, :, :1] * attention.scale @ key.transpose(-2, -1)).softmax(dim=-1)[:, :, 0]
    grid = _grid(model, images)
    return weights[..., weights.shape[-1] - grid[0] * grid[1] :].unflatten(-1, grid).float()


def _grid(model: Any, images: Tensor) -> tuple[int, int]:
    side = model.patch_embed.patch_size
    rows, columns = side if isinstance(side, (tuple, list)) else (side, side)
    return images.shape[-2] // rows, images.shape[-1] // columns


def as_colours(maps_nChw: Tensor) -> np.ndarray:
    """(n, h, w, 3) uint8: the three main directions of all places of all images as red, green and blue.

    Each is stretched from its 2nd to its 98th percentile; of the two signs of a direction, the one whose largest weight
    is positive.
    """
    n, channels, h, w = maps_nChw.shape
    places = maps_nChw.permute(0, 2, 3, 1).reshape(-1, channels).double()
    centred = places - places.mean(dim=0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    directions = directions[:3]
    largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
    values = centred @ (directions * largest.sign()).T
    values = F.pad(values, (0, 3 - values.shape[1]))
    low, high = (torch.quantile(values, share, dim=0) for share in (0.02, 0.98))
    levels = ((values - low) / (high - low).clamp_min(1e-12)).clamp(0, 1) * 255
    found: np.ndarray = levels.round().byte().reshape(n, h, w, 3).cpu().numpy()
    return found

"""What a network sees where: attention of a transformer's heads, and the colours of its patches or last map."""

from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from torch import Tensor, nn
from torch.nn import functional as F

from ..models.backbones.resnet import ResNet


@torch.no_grad()
def last_map(backbone: nn.Module, images: Tensor) -> Tensor | None:
    """(n, C, h, w): a convolutional network's last map, or the last tokens of a transformer's patches.

    None for networks whose last layer has no places, or whose layout cannot be told.
    """
    if isinstance(backbone, ResNet):
        return backbone.feature_map(images).float()
    model: Any = backbone
    found = model.forward_features(images) if hasattr(model, "forward_features") else None
    width = getattr(model, "num_features", None)
    if not isinstance(found, Tensor):
        return None
    if found.ndim == 4 and found.shape[1] == width:
        return found.float()
    if found.ndim == 4 and found.shape[3] == width:  # channels last, as in transformers of windows
        return found.permute(0, 3, 1, 2).float()
    grid = _grid(model, images)
    if found.ndim != 3 or found.shape[2] != width or grid is None:
        return None
    prefix = getattr(model, "num_prefix_tokens", 0)
    if found.shape[1] != prefix + grid[0] * grid[1]:
        return None
    return found[:, prefix:].transpose(1, 2).unflatten(2, grid).float()


@torch.no_grad()
def attention_of_heads(backbone: nn.Module, images: Tensor) -> Tensor | None:
    """(n, heads, h, w): how much the class token looks at each patch in the last block; sums to at most 1.

    As DINO draws it (Caron et al. 2021, arXiv 2104.14294, figure 1). None for networks other than timm's plain vision
    transformers: what others compute between a class token and the patches differs.
    """
    from timm.models.vision_transformer import VisionTransformer

    if not isinstance(backbone, VisionTransformer) or backbone.cls_token is None:
        return None
    attention: Any = getattr(backbone.blocks[-1], "attn", None)
    grid = _grid(backbone, images)
    if type(attention).__name__ != "Attention" or grid is None:  # others, of talking heads say, compute something else
        return None
    seen: list[Tensor] = []
    handle = attention.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    try:
        backbone.forward_features(images)
    finally:
        handle.remove()
    if not seen or seen[0].shape[1] != backbone.num_prefix_tokens + grid[0] * grid[1]:
        return None
    query, key, _ = attention.qkv(seen[0]).unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    query, key = attention.q_norm(query), attention.k_norm(key)
    weights = (query[:, :, :1] * attention.scale @ key.transpose(-2, -1)).softmax(dim=-1)[:, :, 0]
    return weights[..., backbone.num_prefix_tokens :].unflatten(-1, grid).float()


def _grid(model: Any, images: Tensor) -> tuple[int, int] | None:
    """Rows and columns of a transformer's patches; None for networks that have none."""
    side = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if side is None:
        return None
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


def as_heat(weights_hw: Tensor) -> np.ndarray:
    """(h, w) -> (h, w, 3) uint8, from dark to bright."""
    values = weights_hw.cpu().numpy()
    values = (values - values.min()) / max(float(values.max() - values.min()), 1e-12)
    return (colormaps["inferno"](values)[..., :3] * 255).round().astype(np.uint8)

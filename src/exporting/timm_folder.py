"""A backbone as a folder that timm loads from the Hugging Face Hub or from the disk."""

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints.files import write_json
from ..checkpoints.weights import write_weights
from ..errors import UserError
from ..models.backbones import ALIASES, feature_width
from ..models.pretrained import Pretrained, with_positions_of
from .agreement import require_agreement

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
# TWIST's transformers are timm's, but for how they resample positions
_TRANSFORMERS = {"vit_t": "vit_tiny_patch16_224", "vit_s": "vit_small_patch16_224", "vit_b": "vit_base_patch16_224"}


def timm_name(loaded: Pretrained) -> str:
    """What timm calls the network; raises UserError for one that it does not have."""
    spec = loaded.spec
    name = ALIASES.get(spec.arch, spec.arch)
    name = _TRANSFORMERS.get(name, name)
    import timm

    if spec.width != 1 or spec.stem != "imagenet" or not timm.is_model(name):
        shape = f"{spec.name} with --stem {spec.stem}" if spec.stem != "imagenet" else spec.name
        raise UserError(f"timm has no {shape}: write a file instead (.safetensors, .pth or .onnx)")
    return name


def write_folder(folder: Path, loaded: Pretrained, size: int) -> None:
    """Writes ``model.safetensors`` and ``config.json`` once timm makes of them what the backbone is.

    Args:
        folder: made where there is none.
        loaded: the backbone and what is known of it.
        size: side of the images; a transformer's position table is resampled to it.
    """
    import timm

    name = timm_name(loaded)
    told: Mapping[str, Any] = loaded.told
    arguments: dict[str, Any] = {"in_chans": loaded.spec.channels}
    state = loaded.backbone.state_dict()
    if hasattr(loaded.backbone, "pos_embed"):
        arguments["img_size"] = size
        state = _at_size(loaded.backbone, timm.create_model(name, num_classes=0, **arguments), state, size)
    resize = told.get("eval_resize") or round(size * 256 / 224)
    config = {
        "architecture": name,
        "num_classes": 0,
        "num_features": feature_width(loaded.backbone),
        "model_args": arguments,
        "pretrained_cfg": {
            "tag": told.get("method") or "self_supervised",
            "num_classes": 0,
            "input_size": [loaded.spec.channels, size, size],
            "crop_pct": size / max(size, resize),
            "interpolation": "bilinear",
            "mean": list(told["mean"]),
            "std": list(told["std"]),
            "custom_load": False,
        },
    }
    with tempfile.TemporaryDirectory() as trial:
        for place in (Path(trial), folder):
            write_weights(place / WEIGHTS, state, told)
            write_json(place / CONFIG, config)
            again = timm.create_model(f"local-dir:{place}", pretrained=True).eval()
            require_agreement(loaded.backbone, again, [(2, loaded.spec.channels, size, size)], "timm")


def _at_size(backbone: nn.Module, other: nn.Module, state: Mapping[str, Tensor], size: int) -> dict[str, Tensor]:
    """The entries with the position table that the backbone itself has at this size."""
    from ..models.backbones.vit import SIDE, VisionTransformer, interpolate_positions

    if not isinstance(backbone, VisionTransformer):
        return with_positions_of(other, dict(state))
    side: Any = backbone.patch_embed.patch_size
    patches = size // side[0]
    table = state["pos_embed"]
    assert table.shape[1] == 1 + SIDE * SIDE
    with torch.no_grad():
        table = interpolate_positions(table, patches, patches)
    assert math.isqrt(table.shape[1] - 1) == patches
    return {**state, "pos_embed": table}

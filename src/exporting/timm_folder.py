"""A backbone as a folder that timm loads from the Hugging Face Hub or from the disk."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints.files import write_json
from ..checkpoints.weights import write_weights
from ..errors import UserError, first_line
from ..models.backbones import ALIASES, feature_width, require_size, takes_sizes
from ..models.pretrained import Pretrained
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
        size: side of the images.
    """
    name, channels = timm_name(loaded), loaded.spec.channels
    told: Mapping[str, Any] = loaded.told
    require_size(loaded.backbone, size, channels)
    state = loaded.backbone.state_dict()
    arguments: dict[str, Any] = {"in_chans": channels}
    if loaded.spec.arch in _TRANSFORMERS:
        arguments["img_size"] = size
        state = _at_size(state, size // 16)
    elif takes_sizes(name):
        arguments["dynamic_img_size"] = True
    resize = told.get("eval_resize") or round(size * 256 / 224)
    config = {
        "architecture": name,
        "num_classes": 0,
        "num_features": feature_width(loaded.backbone),
        "model_args": arguments,
        "pretrained_cfg": {
            "tag": told.get("method") or "self_supervised",
            "num_classes": 0,
            "input_size": [channels, size, size],
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
            again = _loaded_by_timm(place)
            require_agreement(loaded.backbone, again, [(2, channels, size, size)], "timm")


def _loaded_by_timm(folder: Path) -> nn.Module:
    import timm

    try:
        return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    except Exception as error:  # of networks that it builds for one size only
        raise UserError(f"timm cannot load what was written: {first_line(error)}") from None


def _at_size(state: Mapping[str, Tensor], patches: int) -> dict[str, Tensor]:
    """The entries of TWIST's transformers with the position table that they have at so many patches a side."""
    from ..models.backbones.vit import interpolate_positions

    with torch.no_grad():
        return {**state, "pos_embed": interpolate_positions(state["pos_embed"], patches, patches)}

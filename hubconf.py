"""torch.hub entry points: the published SwAV backbones, and checkpoints of your own.

    torch.hub.load("path/to/this/repository", "resnet50", source="local")             # SwAV, 800 epochs; downloads
    torch.hub.load("path/to/this/repository", "checkpoint", "runs/swav/checkpoint.pth.tar", source="local")

Nothing is downloaded unless one of the first four is called with ``pretrained=True``.
"""

from typing import Any

import torch
import torchvision

from src.errors import UserError
from src.files import describe_mismatch
from src.layouts import backbone_in, weights_in
from src.pretrained import BackboneSpec, load_backbone

dependencies = ["torch", "torchvision", "timm", "numpy", "tqdm"]

PUBLISHED = "https://dl.fbaipublicfiles.com/deepcluster/"


def _download(file: str) -> dict[str, torch.Tensor]:
    url = PUBLISHED + file
    content = torch.hub.load_state_dict_from_url(url, map_location="cpu", weights_only=True)
    return backbone_in(weights_in(content, url), url)[0]


def _fill(backbone: torch.nn.Module, file: str) -> None:
    state = _download(file)
    problem = describe_mismatch(backbone.state_dict(), state, file)
    if problem:
        raise UserError(problem)
    backbone.load_state_dict(state)


def resnet50(pretrained: bool = True, **options: Any) -> torch.nn.Module:
    """torchvision's ResNet-50 with SwAV's backbone (800 epochs); its ``fc`` stays random."""
    model = torchvision.models.resnet50(weights=None, **options)
    if pretrained:
        state = _download("swav_800ep_pretrain.pth.tar")
        result = model.load_state_dict(state, strict=False)
        if set(result.missing_keys) != {"fc.weight", "fc.bias"} or result.unexpected_keys:
            raise UserError(f"the published file does not fit: missing {result.missing_keys}")
    return model


def _wide(arch: str, pretrained: bool) -> torch.nn.Module:
    backbone = BackboneSpec(arch).build()
    if pretrained:
        _fill(backbone, f"swav_RN50{arch.removeprefix('resnet50')}_400ep_pretrain.pth.tar")
    return backbone


def resnet50w2(pretrained: bool = True) -> torch.nn.Module:
    """Twice as wide a ResNet-50 (SwAV, 400 epochs): (n, 3, h, w) -> (n, 4096)."""
    return _wide("resnet50w2", pretrained)


def resnet50w4(pretrained: bool = True) -> torch.nn.Module:
    """Four times as wide a ResNet-50 (SwAV, 400 epochs): (n, 3, h, w) -> (n, 8192)."""
    return _wide("resnet50w4", pretrained)


def resnet50w5(pretrained: bool = True) -> torch.nn.Module:
    """Five times as wide a ResNet-50 (SwAV, 400 epochs): (n, 3, h, w) -> (n, 10240)."""
    return _wide("resnet50w5", pretrained)


def checkpoint(path: str, arch: str | None = None) -> torch.nn.Module:
    """The backbone of a checkpoint of ours or of any published layout, in eval mode: (n, 3, h, w) -> (n, F)."""
    return load_backbone(path, BackboneSpec(arch) if arch else None).backbone

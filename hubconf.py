"""torch.hub entry points: the published SwAV backbones, and checkpoints of your own.

    torch.hub.load("path/to/this/repository", "resnet50", source="local")             # SwAV, 800 epochs; downloads
    torch.hub.load("path/to/this/repository", "checkpoint", "runs/swav/checkpoint.pth.tar", source="local")

Nothing is downloaded unless one of the first four is called with ``pretrained=True``.
"""

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch
import torchvision

dependencies = ["torch", "torchvision", "timm", "numpy", "tqdm"]


def _part(name: str) -> Any:
    """A module of this repository's ``src``, imported under another name: the caller may have a ``src``, too."""
    package = "ssl_vision_hub"
    if package not in sys.modules:
        folder = Path(__file__).resolve().parent / "src"
        spec = importlib.util.spec_from_file_location(package, folder / "__init__.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[package] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[package])
    return importlib.import_module(f"{package}.{name}")


_files, _layouts, _pretrained = _part("checkpoints.files"), _part("checkpoints.layouts"), _part("models.pretrained")
UserError = _part("errors").UserError

PUBLISHED = "https://dl.fbaipublicfiles.com/deepcluster/"


def _download(file: str) -> dict[str, torch.Tensor]:
    url = PUBLISHED + file
    content = torch.hub.load_state_dict_from_url(url, map_location="cpu", weights_only=True)
    return _layouts.backbone_in(_layouts.weights_in(content, url), url)[0]


def _fill(backbone: torch.nn.Module, file: str) -> None:
    state = _download(file)
    problem = _files.describe_mismatch(backbone.state_dict(), state, file)
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
    backbone = _pretrained.BackboneSpec(arch).build()
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
    return _pretrained.load_backbone(path, _pretrained.Hints(arch)).backbone

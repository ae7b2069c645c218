"""torch.hub entry points: the published backbones, and checkpoints of your own.

    torch.hub.load("path/to/this/repository", "resnet50", source="local")             # SwAV, 800 epochs; downloads
    torch.hub.load("path/to/this/repository", "selav2_400ep_pretrain", source="local")
    torch.hub.load("path/to/this/repository", "checkpoint", "runs/swav/checkpoint.pth.tar", source="local")

Every name of docs/zoo.md is an entry point. Nothing is downloaded unless one is called with ``pretrained=True``.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision

dependencies = ["torch", "torchvision", "timm", "numpy", "tqdm", "filelock", "fsspec", "aiohttp"]


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


_pretrained, _zoo = _part("models.pretrained"), _part("models.zoo")
UserError = _part("errors").UserError


def resnet50(pretrained: bool = True, **options: Any) -> torch.nn.Module:
    """torchvision's ResNet-50 with SwAV's backbone (800 epochs); its ``fc`` stays random."""
    model = torchvision.models.resnet50(weights=None, **options)
    if pretrained:
        state = checkpoint("swav_800ep_pretrain").state_dict()
        result = model.load_state_dict(state, strict=False)
        if set(result.missing_keys) != {"fc.weight", "fc.bias"} or result.unexpected_keys:
            raise UserError(f"the published file does not fit: missing {result.missing_keys}")
    return model


def _published(name: str, pretrained: bool) -> torch.nn.Module:
    if pretrained:
        return checkpoint(name)
    backbone: torch.nn.Module = _pretrained.BackboneSpec(_zoo.ZOO[name].arch).build()
    return backbone


def resnet50w2(pretrained: bool = True) -> torch.nn.Module:
    """Twice as wide a ResNet-50 (SwAV, 400 epochs): (n, 3, h, w) -> (n, 4096)."""
    return _published("swav_RN50w2_400ep_pretrain", pretrained)


def resnet50w4(pretrained: bool = True) -> torch.nn.Module:
    """Four times as wide a ResNet-50 (SwAV, 400 epochs): (n, 3, h, w) -> (n, 8192)."""
    return _published("swav_RN50w4_400ep_pretrain", pretrained)


def resnet50w5(pretrained: bool = True) -> torch.nn.Module:
    """Five times as wide a ResNet-50 (SwAV, 400 epochs): (n, 3, h, w) -> (n, 10240)."""
    return _published("swav_RN50w5_400ep_pretrain", pretrained)


def checkpoint(path: str, arch: str | None = None) -> torch.nn.Module:
    """The backbone of a checkpoint of ours or in any published layout, by path or by a name of docs/zoo.md.

    In eval mode: (n, 3, h, w) -> (n, F).
    """
    return _pretrained.load_backbone(path, _pretrained.Hints(arch)).backbone


def _entry_point(name: str) -> Callable[[bool], torch.nn.Module]:
    def load(pretrained: bool = True) -> torch.nn.Module:
        return _published(name, pretrained)

    entry = _zoo.ZOO[name]
    load.__name__ = name
    load.__doc__ = f"{entry.arch} ({entry.method}, {entry.run}), in eval mode: (n, 3, h, w) -> (n, F)."
    return load


globals().update({name: _entry_point(name) for name in _zoo.ZOO if _zoo.ZOO[name].layout != "classifier"})

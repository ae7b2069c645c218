"""Reads a backbone out of a checkpoint, with every entry accounted for."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from src.backbones import create_backbone, initialize
from src.checkpoint import FORMAT, describe_mismatch, read_file
from src.errors import UserError

# Parts of published files that belong to a pre-training head, not to the backbone.
HEAD_PREFIXES = ("projection_head.", "prototypes.")


@dataclass(frozen=True)
class BackboneSpec:
    """What :func:`src.backbones.create_backbone` needs to know."""

    arch: str = "resnet50"
    width: float = 1.0
    stem: str = "imagenet"

    def build(self) -> nn.Module:
        return create_backbone(self.arch, width=self.width, stem=self.stem)


@dataclass(frozen=True)
class Pretrained:
    """A backbone with its weights.

    Attributes:
        backbone: on the CPU, in eval mode.
        spec: how it was built.
        settings: the flags of the run that trained it; empty for files that do not say.
        description: one line that says what was loaded.
    """

    backbone: nn.Module
    spec: BackboneSpec
    settings: Mapping[str, Any]
    description: str


def load_backbone(path: str | Path, spec: BackboneSpec | None = None) -> Pretrained:
    """Reads a checkpoint of ours, or a published SwAV file (flat or under ``state_dict``, prefix ``module.``).

    Args:
        path: the file.
        spec: the architecture; a checkpoint of ours knows its own, which wins. Default: ResNet-50.

    Raises UserError when an entry of the backbone is missing, unexpected or of another shape.
    """
    content = read_file(path)
    settings: Mapping[str, Any] = {}
    if isinstance(content, dict) and content.get("format") == FORMAT:
        settings = content["settings"]
        spec = BackboneSpec(settings["arch"], settings.get("width", 1.0), settings.get("stem", "imagenet"))
        prefix = "backbone."
        state = {n[len(prefix) :]: t for n, t in content["state_dict"].items() if n.startswith(prefix)}
        origin = f"step {content['step']} of a {settings['method']} run"
    else:
        state = _published_backbone(content, path)
        origin = "published layout"
    spec = spec or BackboneSpec()
    backbone = spec.build()
    problem = describe_mismatch(backbone.state_dict(), state, path)
    if problem:
        raise UserError(f"{problem} ({spec.arch}); is --arch right?")
    backbone.load_state_dict(state)
    backbone.eval()
    return Pretrained(backbone, spec, settings, f"{spec.arch} from {path}: {len(state)} entries ({origin})")


def _published_backbone(content: Any, path: str | Path) -> dict[str, Tensor]:
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state or not all(isinstance(t, Tensor) for t in state.values()):
        raise UserError(f"{path} holds no weights that this program knows")
    named = {name.replace("module.", ""): tensor for name, tensor in state.items()}
    return {name: tensor for name, tensor in named.items() if not name.startswith(HEAD_PREFIXES)}


def random_backbone(spec: BackboneSpec, seed: int) -> nn.Module:
    """A freshly initialised backbone, in eval mode: the baseline of every evaluation."""
    torch.manual_seed(seed)
    backbone = spec.build()
    initialize(backbone)
    return backbone.eval()

"""Reads a backbone out of a checkpoint, with every entry accounted for."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints.files import describe_mismatch, read_file
from ..checkpoints.layouts import backbone_in, family_of, resnet_in, weights_in
from ..checkpoints.store import FORMAT
from ..errors import UserError
from .backbones import BackboneSpec, initialize

# What --key may be for checkpoints of ours -> where those weights are: the first of these prefixes that some name has
_ONLINE, _TEACHER = ("backbone.",), ("teacher.backbone.", "teacher_backbone.", "momentum_backbone.")
OWN_KEYS = {"auto": _ONLINE, "none": _ONLINE, "backbone": _ONLINE, "teacher_backbone": _TEACHER}

# Where our methods keep their heads
OWN_HEADS: tuple[str, ...] = ("head.", "projection_head.", "projection.", "projection_heads.", "fc_crop.")


@dataclass(frozen=True)
class Pretrained:
    """A backbone with its weights.

    Attributes:
        backbone: on the CPU, in eval mode.
        spec: how it was built.
        settings: the flags of the run that trained it, and ``batch``, its images of a step; empty for files that do
            not say.
        description: one line that says what was loaded.
        family: the method that trained it, as in src/layouts.py; "" if the file does not tell.
        head: the entries of the head on it, under the head's own names; empty for files without one.
        queue: a MoCo's queue of keys, (C, K), where the file has one.
    """

    backbone: nn.Module
    spec: BackboneSpec
    settings: Mapping[str, Any]
    description: str
    family: str = ""
    head: Mapping[str, Tensor] = field(default_factory=dict)
    queue: Tensor | None = None


def load_backbone(path: str | Path, spec: BackboneSpec | None = None, key: str = "auto") -> Pretrained:
    """Reads a checkpoint of ours, or published weights in any of :data:`src.checkpoints.layouts.LAYOUTS`.

    Args:
        path: the file.
        spec: the architecture. A checkpoint of ours knows its own, which wins; the keys of a ResNet tell it, too, so
            that only other networks need it.
        key: the entry of the file that holds the weights, see :func:`src.checkpoints.layouts.weights_in`.

    Raises UserError when an entry of the backbone is missing, unexpected or of another shape.
    """
    content = read_file(path)
    settings: Mapping[str, Any] = {}
    if isinstance(content, dict) and content.get("format") == FORMAT:
        settings = {**content["settings"], "batch": content["batch_size"]}
        family = settings["method"]
        spec = BackboneSpec(settings["arch"], settings.get("width", 1.0), settings.get("stem", "imagenet"))
        prefix = _prefix_of(content["state_dict"], key, path)
        state = {n[len(prefix) :]: t for n, t in content["state_dict"].items() if n.startswith(prefix)}
        origin = f"step {content['step']} of a {settings['method']} run"
        named, head_prefixes = content["state_dict"], OWN_HEADS
    else:
        named = weights_in(content, path, key)
        state, layout = backbone_in(named, path)
        head_prefixes = layout.projector
        family = family_of(content, path, key)
        origin = f"layout {layout.name}, {len(named) - len(state)} entries of heads and others left out"
        if spec is None:
            found = resnet_in(state)
            if found is None:
                raise UserError(f"{path} is not a ResNet: pass its --arch")
            spec = BackboneSpec(*found)
    backbone = spec.build()
    problem = describe_mismatch(backbone.state_dict(), state, path)
    if problem:
        raise UserError(f"{problem} ({spec.arch}); is --arch right?")
    backbone.load_state_dict(state)
    backbone.eval()
    description = f"{spec.arch} from {path}: {len(state)} entries ({origin})"
    on_top = next((p for p in head_prefixes if any(name.startswith(p) for name in named)), None)
    head = {n[len(on_top) :]: t for n, t in named.items() if n.startswith(on_top)} if on_top else {}
    queue = named.get("queue")
    if queue is not None and (queue.ndim != 2 or "queue_ptr" not in named):
        queue = None  # SwAV's is another thing
    return Pretrained(backbone, spec, settings, description, family, head, queue)


def _prefix_of(state: Mapping[str, Tensor], key: str, path: str | Path) -> str:
    """Below which names of a checkpoint of ours the weights are that ``--key`` asks for."""
    for prefix in OWN_KEYS.get(key, ()):
        if any(name.startswith(prefix) for name in state):
            return prefix
    raise UserError(f"{path} has no {key!r}: expected one of {', '.join(OWN_KEYS)}")


def fingerprint(network: nn.Module) -> str:
    """A digest of all weights: a file of the same name may hold other ones tomorrow."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def name_of_weights(path: str) -> str:
    """What to call a file: its name without the ending; of a run's checkpoint, with the run's folder before it."""
    stem = Path(path).name.partition(".")[0]
    if stem not in ("checkpoint", "backbone") and not stem.startswith(("step-", "ckp-")):
        return stem
    return "-".join([*[p.name for p in Path(path).absolute().parents if p.name != "checkpoints"][:1], stem])


def random_backbone(spec: BackboneSpec, seed: int) -> nn.Module:
    """A freshly initialised backbone, in eval mode: the baseline of every evaluation."""
    torch.manual_seed(seed)
    backbone = spec.build()
    initialize(backbone)
    return backbone.eval()

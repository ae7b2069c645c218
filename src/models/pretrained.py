"""Reads a backbone out of a checkpoint, with every entry accounted for."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..checkpoints.files import describe_mismatch, read_file
from ..checkpoints.layouts import backbone_in, family_of, resnet_in, weights_in
from ..checkpoints.run_file import FORMAT, check_run
from ..checkpoints.weights import require_finite, told_about
from ..errors import UserError
from . import hubs, zoo
from .backbones import BackboneSpec, initialize

# What --key may be for checkpoints of ours -> where those weights are: the first of these prefixes that some name has
_ONLINE, _TEACHER = ("backbone.",), ("teacher.backbone.", "teacher_backbone.", "momentum_backbone.")
OWN_KEYS = {"auto": _ONLINE, "none": _ONLINE, "backbone": _ONLINE, "teacher_backbone": _TEACHER}

# Where our methods keep their heads
OWN_HEADS: tuple[str, ...] = ("head.", "projection_head.", "projection.", "projection_heads.", "fc_crop.")


@dataclass(frozen=True)
class Hints:
    """What a user says about a network, see :class:`src.models.backbones.BackboneSpec`; None leaves it to the file."""

    arch: str | None = None
    width: float | None = None
    stem: str | None = None
    channels: int | None = None


@dataclass(frozen=True)
class Pretrained:
    """A backbone with its weights.

    Attributes:
        backbone: on the CPU, in eval mode.
        spec: how it was built.
        settings: the flags of the run that trained it, and ``batch``, its images of a step; or the few that a plain
            file tells; empty for files that do not say.
        description: one line that says what was loaded.
        family: the method that trained it, as in src/layouts.py; "" if the file does not tell.
        head: the entries of the head on it, under the head's own names; empty for files without one.
        queue: a MoCo's queue of keys, (C, K), where the file has one.
        others: names of the file's entries that are neither the backbone's nor the head's.
    """

    backbone: nn.Module
    spec: BackboneSpec
    settings: Mapping[str, Any]
    description: str
    family: str = ""
    head: Mapping[str, Tensor] = field(default_factory=dict)
    queue: Tensor | None = None
    others: tuple[str, ...] = ()

    @property
    def told(self) -> dict[str, Any]:
        """What a plain file of these weights should tell, see :func:`src.checkpoints.weights.write_weights`."""
        return {**self.settings, **vars(self.spec), "method": self.family}


def load_backbone(path: str | Path, spec: "BackboneSpec | Hints | None" = None, key: str = "auto") -> Pretrained:
    """Reads a checkpoint of ours, or published weights in any of :data:`src.checkpoints.layouts.LAYOUTS`.

    Args:
        path: the file, a name of :data:`src.models.zoo.ZOO`, or one that :func:`src.models.hubs.read` takes.
        spec: the architecture, or what the user says about it. Files of ours tell all of it, and the entries of ResNets
            all but the kind of a 3x3 stem.
        key: the entry of the file that holds the weights, see :func:`src.checkpoints.layouts.weights_in`.

    Raises UserError when an entry of the backbone is missing, unexpected, of another shape or not finite, when the file
    says something else than ``spec``, and when neither says enough.
    """
    published = None if Path(path).exists() else zoo.ZOO.get(str(path))
    path = path if hubs.is_of_a_hub(str(path)) else zoo.located(path)
    found = _found(path, key, published)
    spec = spec or Hints()
    if published and spec.arch is None and not resnet_in(found.state):
        spec = replace(spec, arch=published.arch)
    spec = _spec_of(path, spec, found.settings, found.state)
    if published:
        _require_same(spec, published, path)
    backbone = spec.build()
    state = {**_behind_the_pooling(backbone, found), **found.state}
    # batch norm's counters, which no evaluation reads: old files and detectron2's have none, and torch does without
    counters = {n: t for n, t in backbone.state_dict().items() if n.endswith("num_batches_tracked") and n not in state}
    state = with_positions_of(backbone, {**state, **counters})
    problem = describe_mismatch(backbone.state_dict(), state, path)
    if problem:
        raise UserError(f"{problem} ({spec.arch}); is --arch right?")
    require_finite(state, path)
    backbone.load_state_dict(state)
    backbone.eval()
    description = f"{spec.arch} from {path}: {len(state) - len(counters)} entries ({found.origin})"
    on_top = next((p for p in found.head_prefixes if any(name.startswith(p) for name in found.named)), None)
    head = {n[len(on_top) :]: t for n, t in found.named.items() if n.startswith(on_top)} if on_top else {}
    queue = found.named.get("queue")
    if queue is not None and (queue.ndim != 2 or "queue_ptr" not in found.named):
        queue = None  # SwAV's is another thing
    others = [n for n in found.named if not (on_top and n.startswith(on_top)) and n not in found.of_backbone]
    return Pretrained(backbone, spec, found.settings, description, found.family, head, queue, tuple(others))


class _Found(NamedTuple):
    """What a file holds: the backbone's entries under its own names, and all under the file's."""

    state: dict[str, Tensor]
    named: Mapping[str, Tensor]
    of_backbone: frozenset[str]
    head_prefixes: tuple[str, ...]
    settings: Mapping[str, Any]
    family: str
    origin: str


def _found(path: str | Path, key: str, published: zoo.Published | None) -> _Found:
    if hubs.is_of_a_hub(str(path)):
        entries = hubs.read(str(path))
        return _Found(dict(entries), entries, frozenset(entries), (), told_about(entries), "", "without the classifier")
    content = read_file(path)
    settings = run_settings(content, path)
    if settings is not None:
        family = settings.get("family", settings["method"])
        named = content["state_dict"]
        prefix = _prefix_of(named, key, path)
        state = {n[len(prefix) :]: t for n, t in named.items() if n.startswith(prefix)}
        of_backbone = frozenset(n for n in named if n.startswith(prefix))
        origin = f"step {content['step']} of a {settings['method']} run"
        return _Found(state, named, of_backbone, OWN_HEADS, settings, family, origin)
    settings = told_about(content)
    named = weights_in(content, path, key)
    state, layout = backbone_in(named, path)
    of_backbone = frozenset(f"{layout.backbone}{name}" for name in state)
    family = settings.get("method") or (published.method if published else family_of(content, path, key))
    origin = f"layout {layout.name}, {len(named) - len(state)} entries of heads and others left out"
    return _Found(state, named, of_backbone, layout.projector, settings, family, origin)


def _behind_the_pooling(backbone: nn.Module, found: _Found) -> dict[str, Tensor]:
    """The backbone's own entries among those that look like a classifier's: ``head.norm`` of ConvNeXt, say."""
    named = {name.removeprefix("module."): tensor for name, tensor in found.named.items()}
    expected = backbone.state_dict()
    return {name: named[name] for name in expected if name in named and named[name].shape == expected[name].shape}


def with_positions_of(backbone: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same entries, with a transformer's position table resampled (bicubic, as timm does it) to the network's grid.

    A network cut for 224 pixels thus takes the weights of one that was trained with another size.
    """
    own, given = getattr(backbone, "pos_embed", None), state.get("pos_embed")
    if own is None or given is None or own.shape == given.shape or own.ndim != 3 or given.ndim != 3:
        return state
    first = int(getattr(backbone, "num_prefix_tokens", 1)) if not getattr(backbone, "no_embed_class", False) else 0
    side = math.isqrt(own.shape[1] - first)
    if own.shape[-1] != given.shape[-1] or math.isqrt(given.shape[1] - first) ** 2 != given.shape[1] - first:
        return state
    from timm.layers.pos_embed import resample_abs_pos_embed

    table = resample_abs_pos_embed(given.float(), [side, side], num_prefix_tokens=first)
    return {**state, "pos_embed": table.to(given.dtype)}


def _spec_of(
    path: object, hints: "BackboneSpec | Hints", settings: Mapping[str, Any], state: Mapping[str, Tensor]
) -> BackboneSpec:
    """How a network was built: by what its file tells, by its entries, by what the user says."""
    found = resnet_in(state)
    if settings:
        told: dict[str, Any] = {"width": 1.0, "stem": "imagenet", "channels": 3}
        told |= {name: settings[name] for name in ("arch", *told) if settings.get(name) is not None}
    else:
        told = {name: value for name, value in (found._asdict() if found else {}).items() if value is not None}
    said = {name: getattr(hints, name) for name in ("arch", "width", "stem", "channels")}
    said = {name: value for name, value in said.items() if value is not None}
    if not settings and "arch" in said:
        told.pop("width", None)  # resnet50w2 may stand for a resnet50 of width 2: their shapes are compared
    if found and found.stem is None and said.get("stem") == "imagenet":
        raise UserError(f"{path} has a 3x3 stem for small images, no ImageNet stem")
    for name in ("stem", "channels"):
        if name in said and name in told and said[name] != told[name]:
            raise UserError(f"{path} has --{name} {told[name]}, not {said[name]}")
    known = {**told, **said}
    if "arch" not in known:
        raise UserError(f"{path} is not a ResNet: pass its --arch")
    if found and "stem" not in known:
        raise UserError(
            f"{path} is a {found.arch} with a 3x3 first convolution, and does not tell what follows: say --stem small, "
            "small_pool or small_padded"
        )
    return BackboneSpec(**known)


def _require_same(spec: BackboneSpec, published: zoo.Published, path: object) -> None:
    """Raises UserError where a published file is of another network than it was."""
    if spec.name != published.arch:
        width = "" if spec.width == 1 else f" of width {spec.width:g}"
        raise UserError(f"{path} holds a {spec.arch}{width}, and {published.name} is a {published.arch}")


def run_settings(content: Any, path: object) -> dict[str, Any] | None:
    """Settings of the run that wrote a checkpoint, and ``batch``; None for files of others.

    Raises UserError for a checkpoint that lacks what every one has.
    """
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        return None
    check_run(content, path)
    settings = {**content["settings"], "batch": content["batch_size"]}
    lacking = [name for name in ("method", "arch") if not isinstance(settings.get(name), str)]
    if lacking:
        raise UserError(f"{path}: its settings do not say the {' and the '.join(lacking)}")
    return settings


def _prefix_of(state: Mapping[str, Tensor], key: str, path: str | Path) -> str:
    """Below which names of a checkpoint of ours the weights are that ``--key`` asks for."""
    for prefix in OWN_KEYS.get(key, ()):
        if any(name.startswith(prefix) for name in state):
            return prefix
    raise UserError(f"{path} has no {key!r}: expected one of {', '.join(OWN_KEYS)}")


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """A digest of all weights: a file of the same name may hold other ones tomorrow."""
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def name_of_weights(path: str) -> str:
    """What to call a file: its name without the ending; of a run's checkpoint, with the run's folder before it."""
    if hubs.is_of_a_hub(path):
        return path.replace(":", "-").replace("/", "-")
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

"""The key layouts of published self-supervised weights: which entries are the backbone's, told by the keys alone."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from ..errors import UserError


class Layout(NamedTuple):
    """One way of laying out a file, its keys taken without ``module.``.

    Attributes:
        name: for messages.
        family: the method that such files come from; "" where they do not tell.
        marker: a prefix that tells the layout; the first one in LAYOUTS that some key starts with decides.
        backbone: the prefix of the backbone's entries.
        head: what lies below that prefix and is not the backbone's.
        others: prefixes of what else such a file holds.
        projector: where the head lies, the first of these that some key starts with.
    """

    name: str
    family: str
    marker: str
    backbone: str
    head: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    projector: tuple[str, ...] = ()


LAYOUTS = (
    Layout(
        "DisCo",
        "disco",
        "teacher_encoder_q.",
        "encoder_q.",
        ("fc.", "classifier."),
        ("encoder_k.", "teacher_encoder_q.", "teacher_encoder_k.", "queue"),
        ("encoder_q.fc.", "encoder_q.classifier."),
    ),
    Layout(
        "MoCo-v2",
        "moco-v2",
        "encoder_q.",
        "encoder_q.",
        ("fc.", "classifier."),
        ("encoder_k.", "queue"),
        ("encoder_q.fc.", "encoder_q.classifier."),
    ),
    Layout(
        "W2SSL",
        "w2ssl",
        "base_encoder.fc_crop.",
        "base_encoder.",
        ("fc_crop.", "fc_loc."),
        ("momentum_encoder.", "predictor."),
        ("base_encoder.fc_crop.",),
    ),
    Layout(
        "MoCo-v3",
        "moco-v3",
        "base_encoder.",
        "base_encoder.",
        ("fc.", "head."),
        ("momentum_encoder.", "predictor."),
        ("base_encoder.fc.", "base_encoder.head."),
    ),
    Layout("TWIST", "twist", "projection_heads.", "backbone.", (), ("projection_heads.",), ("projection_heads.",)),
    Layout(
        "INTL",
        "intl",
        "projection.",
        "backbone.",
        ("fc.",),
        ("projection.", "momentum_backbone.", "momentum_projection."),
        ("projection.",),
    ),
    Layout(
        "SwAV, DeepCluster-v2 or SeLa-v2",
        "swav",
        "projection_head.",
        "",
        ("projection_head.", "prototypes."),
        (),
        ("projection_head.",),
    ),
    Layout("CW-RGP", "cw-rgp", "model.", "model.", ("fc.",), ("head.",), ("head.",)),
    Layout("backbone with a prefix", "", "backbone.", "backbone.", ("fc.",)),
    Layout("torchvision or timm", "", "", "", ("fc.", "head.", "classifier."), (), ("fc.", "head.", "classifier.")),
)

# Entries of a checkpoint that may hold the weights, in this order
CONTAINERS = ("backbone", "state_dict", "model", "teacher_backbone")


def weights_in(content: Any, path: object, key: str = "auto") -> dict[str, Tensor]:
    """The named tensors of a file's content, without the prefix ``module.``.

    Args:
        content: what was loaded.
        path: for messages.
        key: the entry that holds them; ``auto`` (``none`` in TWIST's program) is the first of CONTAINERS that the file
            has, else the file itself.
    """
    state = content
    if key not in ("auto", "none"):
        if not isinstance(content, dict) or key not in content:
            raise UserError(f"{path} has no entry {key!r}")
        state = content[key]
    elif isinstance(content, dict):
        state = next((content[name] for name in CONTAINERS if isinstance(content.get(name), dict)), content)
    if not isinstance(state, Mapping) or not state or not all(isinstance(t, Tensor) for t in state.values()):
        raise UserError(f"{path} holds no weights that this program knows")
    return {re.sub(r"(^|\.)module\.", r"\1", name): tensor for name, tensor in state.items()}


def layout_of(names: Iterable[str]) -> Layout:
    """The first of LAYOUTS whose marker some name starts with; the last one fits everything."""
    names = list(names)
    return next(layout for layout in LAYOUTS if any(name.startswith(layout.marker) for name in names))


def family_of(content: Any, path: object, key: str = "auto") -> str:
    """The method that a file comes from, told by any of its entries; "" where they do not tell."""
    entries = [key]
    if key in ("auto", "none") and isinstance(content, dict):
        entries += [name for name in CONTAINERS if isinstance(content.get(name), dict)]
    families = (layout_of(weights_in(content, path, entry)).family for entry in entries)
    return next(filter(None, families), "")


def backbone_in(state: Mapping[str, Tensor], path: object) -> tuple[dict[str, Tensor], Layout]:
    """The backbone's entries under the backbone's own names, and the layout they were in.

    Every other entry must be one that the layout is known to have; raises UserError for one that is not.
    """
    layout = layout_of(state)
    backbone: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in state.items():
        inside = name[len(layout.backbone) :]
        if layout.others and name.startswith(layout.others):
            continue
        if not name.startswith(layout.backbone):
            unknown.append(name)
        elif not (layout.head and inside.startswith(layout.head)):
            backbone[inside] = tensor
    if unknown:
        raise UserError(
            f"{path} looks like a {layout.name} file, but holds {len(unknown)} entries that those do not have "
            f"(such as {unknown[0]})"
        )
    return backbone, layout


class ResNetShape(NamedTuple):
    """What a ResNet's entries tell. ``stem`` is None where they fit several: with a 3x3 first convolution."""

    arch: str
    width: float
    stem: str | None
    channels: int


def resnet_in(backbone: Mapping[str, Tensor]) -> ResNetShape | None:
    """The shape of a ResNet by its entries; None when they are not a ResNet of ours."""
    if "layer1.0.conv1.weight" not in backbone or "conv1.weight" not in backbone:
        return None
    depths = [len({n.split(".")[1] for n in backbone if n.startswith(f"layer{i}.")}) for i in (1, 2, 3, 4)]
    bottleneck = "layer1.0.conv3.weight" in backbone
    names = {
        (False, (2, 2, 2, 2)): "resnet18",
        (False, (3, 4, 6, 3)): "resnet34",
        (True, (3, 4, 6, 3)): "resnet50",
        (True, (3, 4, 23, 3)): "resnet101",
        (True, (3, 8, 36, 3)): "resnet152",
        (True, (3, 24, 36, 3)): "resnet200",
    }
    name = names.get((bottleneck, tuple(depths)))  # type: ignore[arg-type]
    first = backbone["conv1.weight"]
    if name is None or first.ndim != 4:
        return None
    return ResNetShape(name, first.shape[0] / 64, None if first.shape[2] == 3 else "imagenet", first.shape[1])

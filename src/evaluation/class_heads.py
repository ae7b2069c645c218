"""Heads that put images into classes without labels: TWIST's, and the prototypes of SwAV and its relatives."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from ..checkpoints.files import describe_mismatch, read_file
from ..checkpoints.run_file import FORMAT, check_run
from ..checkpoints.weights import require_finite
from ..errors import UserError
from ..models import zoo
from ..models.heads import Prototypes, TwistHead, projector


class ClassHead(NamedTuple):
    """A head (n, F) -> logits (n, K), on the CPU in eval mode, and the temperature of its probabilities."""

    module: nn.Module
    temperature: float
    classes: int


class PrototypeHead(nn.Module):
    """(n, F) -> cosine scores with the prototypes, (n, K): a projection head, then the first set of prototypes."""

    def __init__(self, projection_head: nn.Module, prototypes: Prototypes) -> None:
        super().__init__()
        self.projection_head, self.prototypes = projection_head, prototypes

    def forward(self, features: Tensor) -> Tensor:
        return self.prototypes(F.normalize(self.projection_head(features), dim=1))


def load_class_head(path: str | Path, key: str = "auto", activation: str | None = None) -> ClassHead | None:
    """The head in a checkpoint of ours, or in a full one of TWIST, SwAV or DeepCluster-v2; None if there is none.

    Args:
        path: the file.
        key: ``teacher_backbone`` means the teacher's head.
        activation: of TWIST's head; files of ours know it, in others it is ReLU.
    """
    path = zoo.located(path)
    content = read_file(path)
    state, settings = _named_tensors(content, "teacher" if key.startswith("teacher") else "model", path)
    if any(name.startswith("projection_heads.") for name in state):
        return _twist(state, settings, path, activation)
    if "projection_head.0.weight" in state and any(name.startswith("prototypes.") for name in state):
        return _prototypes(state, settings, path)
    return None


def _named_tensors(content: Any, network: str, path: object) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    if not isinstance(content, dict):
        return {}, {}
    if content.get("format") == FORMAT:
        check_run(content, path)
        state, settings = content["state_dict"], content["settings"]
        if network == "teacher":
            state = {n.removeprefix("teacher."): t for n, t in state.items() if n.startswith("teacher.")}
        return state, settings
    found = next((content[n] for n in (network, "state_dict") if isinstance(content.get(n), dict)), content)
    named = {n: t for n, t in found.items() if isinstance(n, str) and isinstance(t, Tensor)}
    return {re.sub(r"^module\.", "", n): t for n, t in named.items()}, {}


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}


def _twist(
    state: Mapping[str, Tensor], settings: Mapping[str, Any], path: str | Path, activation: str | None
) -> ClassHead:
    own = {
        # names of an older release of TWIST
        re.sub(r"^cls_heads\.0\.1\.", "norm.", re.sub(r"^cls_heads\.0\.0\.", "last_linear.", name)): tensor
        for name, tensor in _below(state, "projection_heads.").items()
    }
    try:
        hidden, width = own["projection_head.0.weight"].shape
        classes = len(own["last_linear.weight"])
    except KeyError as error:
        raise UserError(f"{path}: TWIST's head lacks {error.args[0]}") from None
    norm = "bn" if "projection_head.1.running_mean" in own else "ln" if "projection_head.1.weight" in own else "none"
    head = TwistHead(
        width,
        hidden,
        classes,
        activation=activation or settings.get("act", "relu"),
        norm=norm,
        last_norm="norm.running_mean" in own,
    )
    return ClassHead(_filled(head, own, path), settings.get("tau", 1.0), classes)


def _prototypes(state: Mapping[str, Tensor], settings: Mapping[str, Any], path: str | Path) -> ClassHead:
    name = "prototypes.weight" if "prototypes.weight" in state else "prototypes.prototypes0.weight"
    if name not in state:
        raise UserError(f"{path} has prototypes of an unknown kind")
    classes, dim = state[name].shape
    hidden, width = state["projection_head.0.weight"].shape
    projection = projector(width, hidden, dim, batch_norm="projection_head.1.running_mean" in state)
    head = PrototypeHead(projection, Prototypes(dim, classes))
    own = {n: t for n, t in state.items() if n.startswith("projection_head.")} | {"prototypes.weight": state[name]}
    return ClassHead(_filled(head, own, path), settings.get("temperature", 0.1), classes)


def _filled(head: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> nn.Module:
    problem = describe_mismatch(head.state_dict(), state, path)
    if problem:
        raise UserError(problem)
    require_finite(state, path)
    head.load_state_dict(state)
    return head.eval()

"""Checkpoints of ours under the names of published programs, for their own evaluation and transfer code."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ..errors import UserError

# Prefixes of ours -> theirs, in the order of their files
_W2SSL = (
    ("backbone.", "module.base_encoder."),
    ("fc_crop.", "module.base_encoder.fc_crop."),
    ("fc_loc.", "module.base_encoder.fc_loc."),
    ("momentum_backbone.", "module.momentum_encoder."),
    ("momentum_fc_crop.", "module.momentum_encoder.fc_crop."),
    ("fc_loc.", "module.momentum_encoder.fc_loc."),
    ("predictor.", "module.predictor."),
)


def _w2ssl(content: Mapping[str, Any]) -> dict[str, Any]:
    """The program averages a second ``fc_loc`` that nothing ever reads; the trained one stands in its place."""
    state: dict[str, Tensor] = content["state_dict"]
    named = {
        theirs + name.removeprefix(ours): tensor
        for ours, theirs in _W2SSL
        for name, tensor in state.items()
        if name.startswith(ours)
    }
    return {"epoch": content["epoch"], "arch": content["settings"]["arch"], "state_dict": named}


PUBLISHED: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {"w2ssl": _w2ssl}


def in_published_layout(content: Mapping[str, Any], path: object) -> dict[str, Any]:
    """What the method's own program would have saved; raises UserError for methods whose layout is not known."""
    method = content["settings"].get("method")
    if method not in PUBLISHED:
        raise UserError(f"{path} is a {method} run: --layout published is there for {', '.join(PUBLISHED)}")
    return PUBLISHED[method](content)

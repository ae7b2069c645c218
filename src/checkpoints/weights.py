"""Plain files of weights, for other programs; what their entries do not tell is written where those look past it.

PyTorch's state dicts carry ``_metadata`` beside their entries, and safetensors files a header: both keep how the
network was built (a stem leaves no trace in the entries) and how it wants to see images.
"""

import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import UserError
from .files import write_atomically

NAME = "ssl-vision-training"
# Settings of a run that whoever reads its weights needs
TOLD = (
    *("method", "arch", "width", "stem", "channels", "mean", "std", "eval_size", "eval_resize"),
    *("exif_orientation", "value_range"),
)


def write_weights(path: str | Path, state: Mapping[str, Tensor], settings: Mapping[str, Any]) -> None:
    """Writes a state dict as ``.safetensors``, or in PyTorch's format under every other ending.

    Args:
        path: of the file.
        state: name -> tensor.
        settings: of the network and its run; those of TOLD are kept.
    """
    told = {name: settings[name] for name in TOLD if settings.get(name) is not None}
    told = {name: list(value) if isinstance(value, tuple) else value for name, value in told.items()}
    entries = OrderedDict((name, tensor.detach().cpu().contiguous()) for name, tensor in state.items())
    if Path(path).suffix == ".safetensors":
        header = {"format": "pt", "architecture": str(told.get("arch", "")), NAME: json.dumps(told)}
        content = save(dict(entries), metadata=header)
        write_atomically(Path(path), lambda file: file.write(content))
        return
    entries._metadata = OrderedDict({NAME: told})  # type: ignore[attr-defined]
    write_atomically(Path(path), lambda file: torch.save(entries, file))


def read_safetensors(path: str | Path) -> "OrderedDict[str, Tensor]":
    """The same entries, with what is told about them; raises UserError for a damaged file."""
    try:
        with safe_open(path, framework="pt") as file:
            entries = OrderedDict((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118
            header = file.metadata() or {}
        told = json.loads(header.get(NAME, "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is torn or not a safetensors file ({str(error).splitlines()[0]})") from None
    entries._metadata = OrderedDict({NAME: told})  # type: ignore[attr-defined]
    return entries


def told_about(content: Any) -> dict[str, Any]:
    """What :func:`write_weights` wrote along; nothing in files of others."""
    metadata = getattr(content, "_metadata", None)
    told = metadata.get(NAME) if isinstance(metadata, Mapping) else None
    return {str(name): value for name, value in told.items() if name in TOLD} if isinstance(told, Mapping) else {}


def require_finite(state: Mapping[str, Tensor], path: object) -> None:
    """Raises UserError where weights are infinite or no numbers: nothing that is computed with them means anything."""
    broken = [name for name, t in state.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]
    if broken:
        raise UserError(f"{path}: {len(broken)} of {len(state)} entries are not finite (such as {broken[0]})")

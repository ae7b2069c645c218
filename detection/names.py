"""Names of a ResNet's entries: torchvision's, which are ours, and detectron2's."""

import io
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from src.errors import UserError

import numpy as np
import torch
from torch import Tensor

_RULES = (
    (r"^layer(\d)\.", lambda m: f"res{int(m[1]) + 1}."),
    (r"\bbn([123])\.", r"conv\1.norm."),
    (r"\bdownsample\.0\.", "shortcut."),
    (r"\bdownsample\.1\.", "shortcut.norm."),
)


def to_detectron2(state: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Renames a ResNet without classifier, and leaves out the counters of batch norms, which detectron2 has not."""
    model = {}
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        renamed = name if name.startswith("layer") else f"stem.{name}"
        for pattern, replacement in _RULES:
            renamed = re.sub(pattern, replacement, renamed)
        model[renamed] = tensor.detach().cpu().numpy()
    return model


def to_torchvision(model: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """The way back."""
    state = {}
    for name, array in model.items():
        renamed = re.sub(r"^stem\.", "", name)
        renamed = re.sub(r"^res(\d)\.", lambda m: f"layer{int(m[1]) - 1}.", renamed)
        renamed = re.sub(r"\bshortcut\.norm\.", "downsample.1.", renamed)
        renamed = re.sub(r"\bshortcut\.", "downsample.0.", renamed)
        renamed = re.sub(r"\bconv([123])\.norm\.", r"bn\1.", renamed)
        state[renamed] = torch.from_numpy(np.array(array))
    return state


class _OnlyArrays(pickle.Unpickler):
    """Loads plain values and numpy arrays, and refuses everything else, which could run code."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {"_reconstruct", "ndarray", "dtype", "scalar", "_frombuffer"}
        if module.partition(".")[0] == "numpy" and name in allowed:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise pickle.UnpicklingError(f"it holds a {module}.{name}")


class Weights(NamedTuple):
    """A file for detectron2's ``MODEL.WEIGHTS``: its arrays, and the method that trained them, "" if unknown."""

    model: dict[str, np.ndarray]
    method: str


def read_pickle(path: str | Path) -> Weights:
    """Reads such a file; raises UserError for anything else."""
    try:
        content = _OnlyArrays(io.BytesIO(Path(path).read_bytes())).load()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except Exception as error:  # foreign bytes fail in many ways
        raise UserError(f"{path} is not a pickle of weights for detectron2 ({str(error).splitlines()[0]})") from None
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or not all(isinstance(array, np.ndarray) for array in model.values()):
        raise UserError(f"{path} is not a pickle of weights for detectron2: it has no model of arrays")
    return Weights(model, str(content.get("method", "")))

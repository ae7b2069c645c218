"""The file of a run's checkpoint: what it must hold to be one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import UserError
from .checksum import FIELD, is_intact
from .files import read_file

FORMAT = "ssl-vision-training/1"


def read_run(path: str | Path) -> dict[str, Any]:
    """A checkpoint of ours; raises UserError for anything else."""
    content = read_file(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path} is not a training checkpoint of this program")
    check_run(content, path)
    return content


# Entries of a checkpoint, and the largest count that one may have: more is a damaged file
_ENTRIES: dict[str, type] = {
    **dict.fromkeys(("epoch", "step", "steps_per_epoch", "world_size", "batch_size"), int),
    **dict.fromkeys(("state_dict", "optimizer", "scaler", "settings"), dict),
    "per_rank": list,
}
_MOST = 10**15


def check_run(content: Mapping[str, Any], path: object) -> None:
    """Raises UserError where an entry of a checkpoint is missing, of another type, out of all bounds or not the one
    that its check sum is for."""
    for name, kind in _ENTRIES.items():
        value = content.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise UserError(f"{path} is damaged: its {name} is {type(value).__name__}, expected {kind.__name__}")
        if isinstance(value, int) and not 0 <= value <= _MOST:
            raise UserError(f"{path} is damaged: its {name} is {value}")
    if min(content["steps_per_epoch"], content["world_size"], content["batch_size"]) < 1:
        raise UserError(f"{path} is damaged: it has no steps, processes or images")
    if len(content["per_rank"]) != content["world_size"]:
        raise UserError(f"{path} is damaged: it has {len(content['per_rank'])} of {content['world_size']} processes")
    if not all(isinstance(n, str) and isinstance(t, Tensor) for n, t in content["state_dict"].items()):
        raise UserError(f"{path} is damaged: its state_dict holds other things than tensors")
    if not all(isinstance(part, dict) and {"buffers", "rng"} <= part.keys() for part in content["per_rank"]):
        raise UserError(f"{path} is damaged: its per_rank lacks buffers or random states")
    if FIELD in content and not is_intact(content):
        raise UserError(
            f"{path} is damaged: what it holds does not fit its check sum (whoever changes a file on purpose removes "
            f"its entry {FIELD!r})"
        )

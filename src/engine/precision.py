"""The type of the forward pass."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import UserError
from ..settings import setting


@dataclass(frozen=True)
class PrecisionSettings:
    """Precision"""

    precision: str = setting(
        "auto",
        "type of the forward pass; auto is bf16 on GPUs that have it, fp16 on others, fp32 on the CPU. Default: auto, "
        "or fp32 where the published program has no mixed precision",
        choices=["auto", "fp32", "bf16", "fp16"],
    )
    use_fp16: bool = setting(
        True, "the published code's flag: false is --precision fp32, true is --precision auto", flags=["--amp"]
    )

    @classmethod
    def published(cls, mixed: bool, given: Mapping[str, Any]) -> "PrecisionSettings":
        """The default of a program with or without mixed precision, in view of what the user gave."""
        return cls("auto" if mixed and given.get("use_fp16", True) else "fp32")


@dataclass(frozen=True)
class Precision:
    """The type of the forward pass, and whether gradients need loss scaling."""

    name: str
    dtype: torch.dtype | None

    def autocast(self, device: torch.device) -> torch.autocast:
        """What forward passes are made in; without an effect for fp32."""
        return torch.autocast(device.type, dtype=self.dtype, enabled=self.dtype is not None)

    @property
    def scales_loss(self) -> bool:
        return self.dtype is torch.float16


def choose_precision(name: str, device: torch.device) -> Precision:
    """``auto`` is bf16 on GPUs that have it, fp16 on other GPUs, fp32 on the CPU (which is faster there)."""
    if name == "auto":
        if device.type == "cpu":
            name = "fp32"
        else:
            name = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if name == "fp16" and device.type == "cpu":
        raise UserError("--precision fp16 needs a GPU; use fp32 or bf16 on the CPU")
    dtypes = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
    if name not in dtypes:
        raise UserError(f"--precision {name!r}: expected auto, fp32, bf16 or fp16")
    return Precision(name, dtypes[name])

"""The type of the forward pass."""

from dataclasses import dataclass

import torch

from ..errors import UserError


@dataclass(frozen=True)
class Precision:
    """The type of the forward pass, and whether gradients need loss scaling."""

    name: str
    dtype: torch.dtype | None

    @property
    def scales_loss(self) -> bool:
        return self.dtype is torch.float16


def choose_precision(name: str, device: torch.device) -> Precision:
    """``auto`` is bf16 on GPUs that have it, fp16 on other GPUs, fp32 on the CPU (which is faster there)."""
    if name == "auto":
        if device.type != "cuda":
            name = "fp32"
        else:
            name = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if name == "fp16" and device.type != "cuda":
        raise UserError("--precision fp16 needs a GPU; use fp32 or bf16 on the CPU")
    dtypes = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
    if name not in dtypes:
        raise UserError(f"--precision {name!r}: expected auto, fp32, bf16 or fp16")
    return Precision(name, dtypes[name])

"""A question that all ranks answer at the same step, without waiting for the device."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .collectives import world_size


class Agreement:
    """Whether any rank has raised its flag, asked every step without waiting for the device.

    The ranks exchange one byte over gloo while the step runs and read the answer one step later, so all of them see
    it at the same step. One process answers at once.
    """

    def __init__(self) -> None:
        self._pending: tuple[Any, Tensor] | None = None

    def any(self, flag: bool) -> bool:
        if world_size() == 1:
            return flag
        answer = False
        if self._pending is not None:
            work, tensor = self._pending
            work.wait()
            answer = bool(tensor.item())
        ours = torch.tensor([int(flag)], dtype=torch.uint8)
        self._pending = (dist.all_reduce(ours, op=dist.ReduceOp.MAX, async_op=True), ours)
        return answer

    def finish(self) -> None:
        """Completes the exchange under way; to be called by all ranks at the same step."""
        if self._pending is not None:
            self._pending[0].wait()
            self._pending = None

"""torch's SGD, Adam and AdamW in one kernel, which leave out a step that overflowed without the host looking at it."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .layerwise import LayerwiseSGD, Norms


class SGD(LayerwiseSGD):
    """``torch.optim.SGD`` with momentum: ``m <- momentum * m + g + weight_decay * w``, ``w <- w - lr * m``.

    torch's own fused one starts with momentum that nobody has set where the first step overflows, as it usually does
    when a loss scaler begins.
    """

    def rescale_(self, params: list[Tensor], grads: list[Tensor], norms: Norms, group: dict[str, Any]) -> None:
        if group["weight_decay"]:
            torch._foreach_add_(grads, params, alpha=group["weight_decay"])


def adam(params: Iterable[Any], **options: Any) -> torch.optim.Adam:
    """``torch.optim.Adam``, fused where the parameters are on a GPU."""
    return _fused_on_a_device(torch.optim.Adam, params, options)


def adamw(params: Iterable[Any], **options: Any) -> torch.optim.AdamW:
    """``torch.optim.AdamW``, fused where the parameters are on a GPU."""
    return _fused_on_a_device(torch.optim.AdamW, params, options)


def _fused_on_a_device(kind: Any, params: Iterable[Any], options: dict[str, Any]) -> Any:
    groups = [*params]
    tensors = (tensor for group in groups for tensor in (group["params"] if isinstance(group, dict) else [group]))
    return kind(groups, fused=next(tensors).device.type not in ("cpu", "meta") or None, **options)

"""LARS in the two variants that TWIST and MoCo-v3 (hence W2SSL) train with."""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from .layerwise import LayerwiseSGD, Norms


class LARS(LayerwiseSGD):
    """Layer-wise adaptive rate scaling (You et al. 2017, arXiv 1708.03888).

    With ``u = g + weight_decay * w`` and norms over the whole tensor,

    =====================  ============================================================  =========================
    ``variant``            rescaled gradient                                             momentum
    =====================  ============================================================  =========================
    ``"twist"``            ``eta |w| / (|g| + weight_decay |w|) * u``; 0 where ``w``     ``m <- momentum m + lr u'``,
                           is 0, so that such a tensor never moves                       ``w <- w - m``
    ``"moco-v3"``          ``eta |w| / |u| * u``; ``u`` itself where a norm is 0         ``m <- momentum m + u'``,
                                                                                         ``w <- w - lr m``
    =====================  ============================================================  =========================

    Groups with ``adapt: False`` (biases and norms by convention) take ``u`` itself. Give them ``weight_decay: 0`` if
    they are not to decay either. With the learning rate inside the buffer, lowering it does not shrink what the
    buffer already holds.

    Args:
        params: parameters or groups.
        lr, momentum, weight_decay: as above.
        trust_coefficient: eta above.
        variant: see the table.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        variant: Literal["twist", "moco-v3"] = "moco-v3",
    ) -> None:
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay)
        self.trust_coefficient = trust_coefficient
        self.variant = variant
        self.lr_in_buffer = variant == "twist"

    def rescale_(self, params: list[Tensor], grads: list[Tensor], norms: Norms, group: dict[str, Any]) -> None:
        decay, adapt = group["weight_decay"], group.get("adapt", True)
        grad_norm = norms(grads) if adapt and self.variant == "twist" else None
        if decay:
            torch._foreach_add_(grads, params, alpha=decay)
        if not adapt:
            return
        param_norm = norms(params)
        if grad_norm is not None:
            bottom = grad_norm + decay * param_norm
            factor = self.trust_coefficient * param_norm / torch.where(bottom == 0, 1.0, bottom)
        else:
            update_norm = norms(grads)
            moves = (param_norm != 0) & (update_norm != 0)
            factor = torch.where(moves, self.trust_coefficient * param_norm / update_norm, 1.0)
        torch._foreach_mul_(grads, list(factor.unbind()))


def split_by_adaptation(named: Iterable[tuple[str, Tensor]], exempt: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Two groups: tensors that decay and adapt, and those that do neither.

    The second holds one-dimensional parameters, names that end in ``.bias``, and names that contain one of
    ``exempt``. Parameters that need no gradient are in neither.
    """
    decayed: list[Tensor] = []
    plain: list[Tensor] = []
    for name, parameter in named:
        if parameter.requires_grad:
            is_plain = parameter.ndim <= 1 or name.endswith(".bias") or any(part in name for part in exempt)
            (plain if is_plain else decayed).append(parameter)
    return [{"params": decayed}, {"params": plain, "weight_decay": 0.0, "adapt": False}]

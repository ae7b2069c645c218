"""SGD with layer-wise adaptive rate scaling, in the variant that SwAV trains with."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .layerwise import LayerwiseSGD, Norms


class LARC(LayerwiseSGD):
    """SGD with momentum whose gradients are rescaled tensor by tensor (You et al. 2017, arXiv 1708.03888).

    For every parameter ``w`` with a gradient ``g`` (norms over the whole tensor)::

        a = trust_coefficient * |w| / (|g| + weight_decay * |w| + eps)
        g <- a * (g + weight_decay * w)            if |w| != 0 and |g| != 0, else g stays as it is

    followed by the SGD step of :class:`LayerwiseSGD`. A zero tensor, such as a batch-norm bias at the start, thus
    takes a plain step without weight decay; that is part of the published training.

    Args:
        params: parameters or groups.
        lr: learning rate; applied to the momentum buffer, so it is not part of it.
        momentum: of the buffer, without dampening or Nesterov.
        weight_decay: folded into the rescaled gradient as above.
        trust_coefficient: eta above.
        clip: bound the factor ``a`` by ``lr`` (LARC's clipping mode) instead of scaling; SwAV does not.
        eps: keeps the denominator away from zero.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        clip: bool = False,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay)
        self.trust_coefficient = trust_coefficient
        self.clip = clip
        self.eps = eps

    def rescale_(self, params: list[Tensor], grads: list[Tensor], norms: Norms, group: dict[str, Any]) -> None:
        weight_decay = group["weight_decay"]
        param_norm, grad_norm = norms(params), norms(grads)
        factor = self.trust_coefficient * param_norm / (grad_norm + weight_decay * param_norm + self.eps)
        if self.clip:
            factor = torch.clamp(factor / group["lr"], max=1.0)
        # A zero parameter has no decay to add, so a factor of 1 leaves its gradient alone; a zero gradient must stay 0,
        # which a factor of 0 sees to.
        factor = torch.where(param_norm == 0, 1.0, torch.where(grad_norm == 0, 0.0, factor))
        if weight_decay:
            torch._foreach_add_(grads, params, alpha=weight_decay)
        torch._foreach_mul_(grads, list(factor.unbind()))

"""SGD with layer-wise adaptive rate scaling, in the variant that SwAV trains with."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class LARC(torch.optim.SGD):
    """SGD with momentum whose gradients are rescaled tensor by tensor (You et al. 2017, arXiv 1708.03888).

    For every parameter ``w`` with a gradient ``g`` (norms over the whole tensor)::

        a = trust_coefficient * |w| / (|g| + weight_decay * |w| + eps)
        g <- a * (g + weight_decay * w)            if |w| != 0 and |g| != 0, else g stays as it is

    followed by the SGD step ``m <- momentum * m + g`` (first time ``m = g``), ``w <- w - lr * m``. A zero tensor, such
    as a batch-norm bias at the start, thus takes a plain step without weight decay; that is part of the published
    training. Parameters whose gradient is None are skipped altogether: no decay, no momentum buffer.

    The state dict is plain SGD's. Nothing here waits for the device, and there is no loop of tensor operations over
    the parameters.

    Args:
        params: parameters or groups.
        lr: learning rate; applied to the momentum buffer, so it is not part of it.
        momentum: of the buffer, without dampening or Nesterov.
        weight_decay: folded into the rescaled gradient as above.
        trust_coefficient: eta above.
        clip: bound the factor ``a`` by ``lr`` (LARC's clipping mode) instead of scaling; SwAV does not.
        eps: keeps the denominator away from zero.
    """

    # A loss scaler then hands over `found_inf`, a flag on the device, instead of waiting to read it itself
    _step_supports_amp_scaling = True
    found_inf: Tensor | None = None
    grad_scale: Tensor | None = None

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

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        assert self.grad_scale is None, "unscale the gradients first: their norms count"
        for group in self.param_groups:
            self._step_group(group)
        return loss

    def _step_group(self, group: dict[str, Any]) -> None:
        params: list[Tensor] = [p for p in group["params"] if p.grad is not None]
        if not params:
            return
        grads = self._rescaled_gradients(params, group)
        momentum, minus_lr = group["momentum"], -group["lr"]
        if self.found_inf is not None:  # an overflow leaves weights and momentum as they are, without a sync
            skip = self.found_inf.bool()
            grads = [torch.where(skip, 0.0, grad) for grad in grads]
            momentum = torch.where(skip, 1.0, momentum)
            minus_lr = torch.where(skip, 0.0, minus_lr)
        old = [i for i, p in enumerate(params) if "momentum_buffer" in self.state[p]]
        known = set(old)
        for i, p in enumerate(params):
            if i not in known:
                self.state[p]["momentum_buffer"] = grads[i]
        if old:
            buffers = [self.state[params[i]]["momentum_buffer"] for i in old]
            torch._foreach_mul_(buffers, momentum)
            torch._foreach_add_(buffers, [grads[i] for i in old])
        updates = torch._foreach_mul([self.state[p]["momentum_buffer"] for p in params], minus_lr)
        torch._foreach_add_(params, updates)

    def _rescaled_gradients(self, params: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """New tensors ``a * (g + weight_decay * w)``; the gradients themselves are left alone."""
        weight_decay = group["weight_decay"]
        raw: list[Tensor] = [p.grad for p in params if p.grad is not None]
        param_norm = torch.stack(torch._foreach_norm(params))
        grad_norm = torch.stack(torch._foreach_norm(raw))
        factor = self.trust_coefficient * param_norm / (grad_norm + weight_decay * param_norm + self.eps)
        if self.clip:
            factor = torch.clamp(factor / group["lr"], max=1.0)
        adapts = (param_norm != 0) & (grad_norm != 0)
        decay = torch.where(adapts, factor * weight_decay, torch.zeros_like(factor))
        factor = torch.where(adapts, factor, torch.ones_like(factor))
        grads = torch._foreach_mul(raw, list(factor.unbind()))
        if weight_decay:
            torch._foreach_add_(grads, torch._foreach_mul(params, list(decay.unbind())))
        return list(grads)

"""SGD with momentum whose gradients are rescaled tensor by tensor: what LARC and LARS have in common."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from ..parallel.transfer import sent


class LayerwiseSGD(torch.optim.SGD):
    """``m <- momentum * m + g'`` (first time ``m = g'``), ``w <- w - lr * m``, with ``g'`` from :meth:`rescale_`.

    Nothing here waits for the device, and there is no loop of tensor operations over the parameters. Parameters whose
    gradient is None are skipped altogether. The state dict is plain SGD's. Parameters may be sharded (FSDP2); their
    norms are those of the whole tensors.

    A step changes ``.grad``. Groups may carry ``adapt: False``, which subclasses heed.
    """

    # A loss scaler then hands over `found_inf`, a flag on the device, instead of waiting to read it itself
    _step_supports_amp_scaling = True
    found_inf: Tensor | None = None
    grad_scale: Tensor | None = None
    lr_in_buffer = False

    def __init__(
        self, params: Iterable[Any], lr: float = 0.1, momentum: float = 0.9, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay)

    def rescale_(self, params: list[Tensor], grads: list[Tensor], norms: "Norms", group: dict[str, Any]) -> None:
        """Turns gradients into what goes into the momentum buffers, in place: new tensors would cost gigabytes."""
        raise NotImplementedError  # this is what makes the optimiser

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
        weights = [_local(p) for p in params]
        grads = [_laid_out_as(w, _local(p.grad)) for p, w in zip(params, weights, strict=True) if p.grad is not None]
        self.rescale_(weights, grads, Norms(params), group)
        rate = group["lr"]
        if self.lr_in_buffer:
            torch._foreach_mul_(grads, rate)
            rate = 1.0
        torch._fused_sgd_(
            weights,
            grads,
            [self._buffer(p, w) for p, w in zip(params, weights, strict=True)] if group["momentum"] else [],
            weight_decay=0.0,  # rescaling has seen to it
            momentum=group["momentum"],
            lr=rate,
            dampening=0.0,
            nesterov=False,
            maximize=False,
            is_first_step=False,  # the buffers are there, as zeros
            found_inf=self.found_inf,  # an overflow leaves weights and momentum as they are
        )

    def _buffer(self, param: Tensor, weight: Tensor) -> Tensor:
        state = self.state[param]
        kept = state.get("momentum_buffer")
        local = torch.zeros_like(weight) if kept is None else _laid_out_as(weight, _local(kept))
        if kept is None or local is not _local(kept):  # new, or loaded from a run with another memory format
            state["momentum_buffer"] = _sharded_like(param, local)
        return local


class Norms:
    """Norms of whole tensors, (n,) each, also of tensors of which every rank holds a part."""

    def __init__(self, params: Sequence[Tensor]) -> None:
        self._group: dist.ProcessGroup | None = None
        self._is_sharded = [isinstance(p, DTensor) for p in params]
        for p in params:
            if isinstance(p, DTensor):
                self._group = p.device_mesh.get_group()

    def __call__(self, tensors: list[Tensor]) -> Tensor:
        """``tensors`` are this rank's parts of tensors that are distributed as the parameters are."""
        norms = torch.stack(torch._foreach_norm(tensors))
        if self._group is None:
            return norms
        shared = norms.square()
        dist.all_reduce(shared, group=self._group)
        is_sharded = sent(torch.tensor(self._is_sharded), norms.device)
        return torch.where(is_sharded, shared.sqrt(), norms)


def _laid_out_as(weight: Tensor, tensor: Tensor) -> Tensor:
    """The same values with the strides of the weight: the fused step takes tensors as plain stretches of memory."""
    return tensor if tensor.stride() == weight.stride() else torch.empty_like(weight).copy_(tensor)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _sharded_like(param: Tensor, local: Tensor) -> Tensor:
    if not isinstance(param, DTensor):
        return local
    return DTensor.from_local(
        local, param.device_mesh, param.placements, run_check=False, shape=param.shape, stride=param.stride()
    )

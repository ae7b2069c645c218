"""Activation checkpointing that leaves batch-norm statistics as an ordinary forward pass does."""

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@contextlib.contextmanager
def _untouched_statistics(block: nn.Module) -> Iterator[None]:
    """Lets the batch norms write into copies: the second forward pass must not count the batch again."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
    kept = [{name: getattr(norm, name) for name in _STATISTICS} for norm in norms]
    for norm, statistics in zip(norms, kept, strict=True):
        for name, tensor in statistics.items():
            setattr(norm, name, None if tensor is None else tensor.clone())
    try:
        yield
    finally:
        for norm, statistics in zip(norms, kept, strict=True):
            for name, tensor in statistics.items():
                setattr(norm, name, tensor)


def recomputed(block: nn.Module, x: Tensor) -> Tensor:
    """``block(x)`` that keeps only ``x`` and computes the rest again when the backward pass needs it."""
    output = checkpoint(
        block,
        x,
        use_reentrant=False,
        context_fn=lambda: (contextlib.nullcontext(), _untouched_statistics(block)),
    )
    assert isinstance(output, Tensor)
    return output

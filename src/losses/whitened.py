"""Losses on whitened embeddings: INTL's and CW-RGP's (arXiv 2305.16789, 2210.03586)."""

import math

from torch import Tensor
from torch.nn import functional as F

from ..ops.whitening import spectrum_after


def normalised_mse(a: Tensor, b: Tensor) -> Tensor:
    """2 - 2 cosine, the mean over the rows of (n, d)."""
    return 2.0 - 2.0 * (F.normalize(a, dim=1, eps=1e-12) * F.normalize(b, dim=1, eps=1e-12)).sum(dim=1).mean()


def trace_loss(y: Tensor, axis: int = 0) -> Tensor:
    """INTL's trace loss: how far the variances of a transformed embedding (N, d) are from 1, squared and *summed*.

    On axis 0 the variances are those of the N samples over their features, on axis 1 of the d features.
    """
    return (y.var(dim=1 if axis == 0 else 0) - 1.0).square().sum()


def trade_off(size: int) -> float:
    """INTL's weight of the trace loss, 0.01 (log2(size) - 3): of the batch (axis 0) or the embedding (axis 1)."""
    return 0.01 * (math.log2(size) - 3)


def trace_loss_floor(variables: int, iterations: int) -> float:
    """What the trace loss cannot go below after T iterations: n (1 - h_T(1 / n))^2 for a covariance of n variables,
    which are the N samples on axis 0 and the d features on axis 1."""
    return variables * (1.0 - spectrum_after(1.0 / variables, iterations)) ** 2


def covariance_penalty(x: Tensor, axis: int = 0) -> Tensor:
    """Squares of the covariance's off-diagonal entries, over its size; of (n, d), see :mod:`src.ops.whitening`."""
    variables = x.T if axis == 0 else x
    centred = variables - variables.mean(dim=0)
    covariance = centred.T @ centred / (len(centred) - 1)
    off_diagonal = covariance.square().sum() - covariance.diagonal().square().sum()
    return off_diagonal / len(covariance)

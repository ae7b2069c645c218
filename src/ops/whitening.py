"""Whitening of embeddings: spectral transformations (INTL) and group whitening (CW-RGP, W-MSE).

An embedding matrix is (N, d), N samples of d features. ``axis`` says what is decorrelated: 0, "channel whitening",
treats the d features as observations of N samples, so the covariance is N x N; 1, "batch whitening", the usual one,
treats the samples as observations, so it is d x d. Everything is differentiable and belongs in float32 or better.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

Kind = Literal["zca", "cholesky", "pca"]


def observations(x: Tensor, axis: int) -> Tensor:
    """(N, d) -> centred, with observations as rows: (d, N) for axis 0, where each sample's mean over its features is
    taken off, (N, d) for axis 1, where each feature's mean over the samples is."""
    return (x - x.mean(dim=1, keepdim=True)).T if axis == 0 else x - x.mean(dim=0)


def _as_given(y: Tensor, axis: int) -> Tensor:
    return y.T if axis == 0 else y


class _Trace(torch.autograd.Function):
    """``matrix.trace()``; torch's own backward pass of it has the host wait for a GPU."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> Tensor:
        ctx.size = len(matrix)
        return matrix.trace()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0].expand(ctx.size).diag_embed()


def iter_norm(x: Tensor, iterations: int = 4, axis: int = 0) -> Tensor:
    """IterNorm (Huang et al. 2019; as a spectral transformation, Weng et al. 2024, arXiv 2305.16789, section 4).

    Newton's iterations ``P <- 1.5 P - 0.5 P^3 Sigma / tr(Sigma)`` from the identity; the output is the centred input
    times ``P / sqrt(tr Sigma)``. There is no epsilon, no running statistic and no parameter.

    Args:
        x: (N, d), of all ranks.
        iterations: T; 0 only scales.
        axis: see above; divisors of the covariance are d - 1 and N - 1.

    Returns:
        (N, d).
    """
    a = observations(x, axis)
    covariance = a.T @ a / (len(a) - 1)
    trace = _Trace.apply(covariance)
    normalised = covariance / trace
    p = torch.eye(len(covariance), dtype=x.dtype, device=x.device)
    for _ in range(iterations):
        p = 1.5 * p - 0.5 * (p @ p @ p) @ normalised
    return _as_given(a @ p / trace.sqrt(), axis)


def spectrum_after(x: float, iterations: int) -> float:
    """h_T(x) = x f_T(x)^2: the variance that IterNorm leaves along a direction with the share x of the trace."""
    f = 1.0
    for _ in range(iterations):
        f = 1.5 * f - 0.5 * x * f**3
    return x * f * f


def spectral_transform(x: Tensor, g: Callable[[Tensor], Tensor], axis: int = 0) -> Tensor:
    """Any spectral transformation: ``U g(Lambda) U^T`` of the covariance's eigendecomposition, applied to x.

    Hard whitening is ``lambda l: l ** -0.5``, the power family ``lambda l: l ** -p``. Directions without variance
    (eigenvalues below the rounding of the largest) are left out.

    Args:
        x: (N, d).
        g: eigenvalues (k,) -> factors (k,).
        axis: see above.
    """
    a = observations(x, axis)
    eigenvalues, vectors = torch.linalg.eigh(a.T @ a / (len(a) - 1))
    keep = eigenvalues > eigenvalues[-1] * len(eigenvalues) * torch.finfo(x.dtype).eps
    vectors = vectors[:, keep]
    return _as_given(((a @ vectors) * g(eigenvalues[keep])) @ vectors.T, axis)


def group_whitening(
    x: Tensor,
    kind: Kind = "zca",
    *,
    groups: int = 1,
    axis: int = 0,
    eps: float = 0.0,
    minus: int = 1,
    permutation: Tensor | None = None,
) -> Tensor:
    """Whitening of groups of features (Weng et al. 2022, arXiv 2210.03586).

    The mean is taken off over *all* features (axis 0), and each group's covariance is about that mean.

    Args:
        x: (..., n, d), local; each (n, d) is whitened by itself, all in one call, for which a GPU is waited for once.
        kind: ``zca`` (CW-RGP), ``cholesky`` (W-MSE) or ``pca``.
        groups: G; must divide d.
        axis: see above; on axis 0 a group's covariance is n x n over d / G features.
        eps: shrinkage towards the identity.
        minus: taken off the number of observations in the covariance's divisor.
        permutation: (..., d), of the features before they are cut into groups; undone afterwards.

    Returns:
        (..., n, d). See :func:`whitening_matrix` for covariances that are not positive definite.
    """
    centred = x - x.mean(dim=-1 if axis == 0 else -2, keepdim=True)
    if permutation is not None:
        centred = centred.take_along_dim(permutation.unsqueeze(-2), dim=-1)
    blocks = centred.unflatten(-1, (groups, x.shape[-1] // groups)).transpose(-3, -2)  # (..., G, n, d / G)
    a = blocks.mT if axis == 0 else blocks  # (..., G, observations, variables)
    covariance = a.mT @ a / (a.shape[-2] - minus)
    if eps:
        identity = torch.eye(covariance.shape[-1], dtype=x.dtype, device=x.device)
        covariance = (1 - eps) * covariance + eps * identity
    whitened = a @ whitening_matrix(covariance, kind)
    blocks = whitened.mT if axis == 0 else whitened
    out = blocks.transpose(-3, -2).flatten(-2)
    return out if permutation is None else out.take_along_dim(permutation.argsort(dim=-1).unsqueeze(-2), dim=-1)


def whitening_matrix(covariance: Tensor, kind: Kind) -> Tensor:
    """(..., k, k) -> W with ``W^T covariance W = I``: symmetric (zca), triangular (cholesky), or principal directions
    by falling variance (pca).

    Where the covariance is not positive definite, this raises torch.linalg.LinAlgError on the CPU; on a GPU, which the
    host would have to wait for, W is NaN.
    """
    if kind == "cholesky":
        lower, error = torch.linalg.cholesky_ex(covariance)
        lower = _if_definite(error == 0, lower)
        identity = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
        return torch.linalg.solve_triangular(lower, identity.expand_as(lower), upper=False).mT
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    eigenvalues = _if_definite(eigenvalues[..., 0] > 0, eigenvalues.unsqueeze(-2)).squeeze(-2)
    scaled = vectors * eigenvalues.rsqrt().unsqueeze(-2)
    return scaled @ vectors.mT if kind == "zca" else scaled.flip(-1)


def _if_definite(is_definite: Tensor, values: Tensor) -> Tensor:
    """(...), (..., k, l) -> the values."""
    if values.device.type != "cpu":
        return torch.where(is_definite[..., None, None], values, torch.nan)
    if not bool(is_definite.all()):
        raise torch.linalg.LinAlgError("the covariance is not positive definite")  # type: ignore[attr-defined]
    return values

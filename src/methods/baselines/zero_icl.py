"""Zero-ICL (Zhang et al. 2022): instance-wise whitening without gradient, as CW-RGP's repository trains it."""

import torch
from torch import Tensor

from ...clock import Clock
from ..joint_embedding import JointEmbedding, Parts


class ZeroICL(JointEmbedding):
    """Samples are decorrelated by a matrix that gets no gradient; each view's sample then agrees with the other's."""

    @classmethod
    def build(cls, parts: Parts) -> "ZeroICL":
        return cls(parts.backbone, parts.head, zero_init_residual=parts.zero_init_residual)

    def loss(self, embeddings_Vnd: list[Tensor], clock: Clock) -> Tensor:
        a, b = decorrelated(torch.stack(embeddings_Vnd))
        return ((a * b).sum(dim=1) / a.shape[1] - 1).square().sum()


def decorrelated(z: Tensor) -> Tensor:
    """(..., n, d): ZCA over samples of rows that are standardised over their features; shrunk by 0.1 towards the
    identity."""
    z = (z - z.mean(dim=-1, keepdim=True)) / z.std(dim=-1, keepdim=True)
    with torch.no_grad():
        covariance = z @ z.mT / (z.shape[-1] - 1)
        shrunk = 0.9 * covariance + 0.1 * torch.eye(z.shape[-2], dtype=z.dtype, device=z.device)
        eigenvalues, vectors = torch.linalg.eigh(shrunk)
        whitening = (vectors * (eigenvalues + 1e-5).rsqrt().unsqueeze(-2)) @ vectors.mT
    return whitening @ z

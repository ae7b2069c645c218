"""VICReg (Bardes et al. 2022, arXiv 2105.04906), as CW-RGP's repository trains it."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...clock import Clock
from ...losses.whitened import covariance_penalty
from ..joint_embedding import JointEmbedding


class VICReg(JointEmbedding):
    """Two views' embeddings agree, every feature varies, and features do not vary together.

    Args:
        backbone, head, options: see :class:`JointEmbedding`.
        invariance, variance, covariance: weights of the three terms.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        *,
        invariance: float = 25.0,
        variance: float = 25.0,
        covariance: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(backbone, head, **options)
        self.invariance, self.variance, self.covariance = invariance, variance, covariance

    def loss(self, embeddings_Vnd: list[Tensor], clock: Clock) -> Tensor:
        a, b = embeddings_Vnd
        hinges = [F.relu(1 - torch.sqrt(one.var(dim=0) + 1e-4)).mean() for one in (a, b)]
        penalties = covariance_penalty(a, axis=1) + covariance_penalty(b, axis=1)
        # the two views' terms are summed, not averaged, as published
        variance = self.variance * (hinges[0] + hinges[1])
        return self.invariance * F.mse_loss(a, b) + variance + self.covariance * penalties

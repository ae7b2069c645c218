"""VICReg (Bardes et al. 2022, arXiv 2105.04906), as CW-RGP's repository trains it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...clock import Clock
from ...losses.whitened import covariance_penalty
from ...settings import setting
from ..joint_embedding import JointEmbedding, Parts


@dataclass(frozen=True)
class VICRegSettings:
    """VICReg"""

    vicreg_sim: float = setting(25.0, "weight of the agreement", at_least=0, at_most=1e6)
    vicreg_var: float = setting(25.0, "weight of the variances", at_least=0, at_most=1e6)
    vicreg_cov: float = setting(1.0, "weight of the covariances", at_least=0, at_most=1e6)


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

    @classmethod
    def build(cls, parts: Parts, own: VICRegSettings) -> "VICReg":
        return cls(
            parts.backbone,
            parts.head,
            invariance=own.vicreg_sim,
            variance=own.vicreg_var,
            covariance=own.vicreg_cov,
            zero_init_residual=parts.zero_init_residual,
        )

    def loss(self, embeddings_Vnd: list[Tensor], clock: Clock) -> Tensor:
        a, b = embeddings_Vnd
        hinges = [F.relu(1 - torch.sqrt(one.var(dim=0) + 1e-4)).mean() for one in (a, b)]
        penalties = covariance_penalty(a, axis=1) + covariance_penalty(b, axis=1)
        # the two views' terms are summed, not averaged, as published
        variance = self.variance * (hinges[0] + hinges[1])
        return self.invariance * F.mse_loss(a, b) + variance + self.covariance * penalties

"""BYOL (Grill et al. 2020, arXiv 2006.07733), as CW-RGP's repository trains it."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...clock import Clock
from ...losses.whitened import normalised_mse
from ...models.heads import mlp
from ...optim.ema import momentum_copy, update_momentum_copy
from ...optim.schedules import half_cosine
from ...settings import setting
from ..joint_embedding import JointEmbedding, Parts


@dataclass(frozen=True)
class BYOLSettings:
    """BYOL"""

    byol_tau: float = setting(0.99, "momentum of the copy at first; it rises to 1", at_least=0, at_most=1)


class BYOL(JointEmbedding):
    """Predicts a momentum copy's embedding of one view from another; both directions of all pairs.

    Args:
        backbone, head, options: see :class:`JointEmbedding`; here the head sees one view at a time.
        width, hidden: d, and the predictor's hidden layer.
        momentum: tau_0 of the copy; rises to 1 by a cosine over the epochs.
    """

    collapse_advice = "Try a higher --byol_tau, or a lower learning rate."

    def __init__(
        self, backbone: nn.Module, head: nn.Module, *, width: int, hidden: int, momentum: float = 0.99, **options: Any
    ) -> None:
        super().__init__(backbone, head, **options)
        self.predictor = mlp(width, hidden, width, layers=2)
        self.momentum_backbone, self.momentum_head = momentum_copy(backbone), momentum_copy(head)
        self.momentum = momentum

    @classmethod
    def build(cls, parts: Parts, own: BYOLSettings) -> "BYOL":
        return cls(
            parts.backbone,
            parts.head,
            width=parts.width,
            hidden=parts.hidden,
            momentum=own.byol_tau,
            zero_init_residual=parts.zero_init_residual,
        )

    def embed(self, crops: Sequence[Tensor]) -> list[Tensor]:
        """V embeddings, then the momentum copy's V."""
        with torch.no_grad():
            targets = [self.momentum_head(self.momentum_backbone(crop)).float() for crop in crops]
        return [self.head(self.backbone(crop)).float() for crop in crops] + targets

    def loss(self, embeddings_Vnd: list[Tensor], clock: Clock) -> Tensor:
        views = len(embeddings_Vnd) // 2
        predictions = [self.predictor(one) for one in embeddings_Vnd[:views]]
        targets = embeddings_Vnd[views:]
        losses = [
            normalised_mse(predictions[i], targets[j]) + normalised_mse(predictions[j], targets[i])
            for i, j in itertools.combinations(range(len(predictions)), 2)
        ]
        return torch.stack(losses).mean()

    def after_step(self, clock: Clock) -> None:
        momentum = half_cosine(clock.epoch, clock.epochs, self.momentum, 1.0)
        update_momentum_copy(self.momentum_backbone, self.backbone, momentum)
        update_momentum_copy(self.momentum_head, self.head, momentum)

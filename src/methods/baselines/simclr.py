"""SimCLR's contrastive loss (Chen et al. 2020, arXiv 2002.05709), as CW-RGP's repository trains it."""

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...clock import Clock
from ...settings import setting
from ..joint_embedding import JointEmbedding, Parts


@dataclass(frozen=True)
class SimCLRSettings:
    """SimCLR (contrastive)"""

    tau: float = setting(0.5, "temperature of the similarities", above=0, at_most=1000)


class SimCLR(JointEmbedding):
    """Finds an image's other view among all others of the batch; the mean over the pairs of views.

    Args:
        backbone, head, options: see :class:`JointEmbedding`.
        width: d; a batch norm comes after the head.
        temperature: of the similarities.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, *, width: int, temperature: float = 0.5, **options: Any):
        super().__init__(backbone, nn.Sequential(head, nn.BatchNorm1d(width)), **options)
        self.temperature = temperature

    @classmethod
    def build(cls, parts: Parts, own: SimCLRSettings) -> "SimCLR":
        return cls(
            parts.backbone,
            parts.head,
            width=parts.width,
            temperature=own.tau,
            zero_init_residual=parts.zero_init_residual,
        )

    def loss(self, embeddings_Vnd: list[Tensor], clock: Clock) -> Tensor:
        pairs = itertools.combinations(embeddings_Vnd, 2)
        return torch.stack([contrastive_loss(a, b, self.temperature) for a, b in pairs]).mean()


def contrastive_loss(a_nd: Tensor, b_nd: Tensor, temperature: float) -> Tensor:
    """NT-Xent: cross entropy of each of the 2 n rows against the 2 n - 1 others."""
    rows = F.normalize(torch.cat([a_nd, b_nd]), dim=1)
    similarity = rows @ rows.T / temperature
    similarity = similarity.masked_fill(torch.eye(len(rows), dtype=torch.bool, device=rows.device), -1e9)
    partners = torch.arange(len(rows), device=rows.device).roll(len(a_nd))
    return F.cross_entropy(similarity, partners)

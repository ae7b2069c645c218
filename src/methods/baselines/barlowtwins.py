"""Barlow Twins (Zbontar et al. 2021, arXiv 2103.03230), as CW-RGP's repository trains it."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ...clock import Clock
from ...settings import setting
from ..joint_embedding import JointEmbedding, Parts


@dataclass(frozen=True)
class BarlowTwinsSettings:
    """Barlow Twins"""

    barlow_lambda: float = setting(0.008, "weight of the off-diagonal entries", at_least=0, at_most=1e6)
    barlow_by_width: bool = setting(
        False, "divide the correlation by the embedding size, as CW-RGP's program does, not by the batch", switch=True
    )


class BarlowTwins(JointEmbedding):
    """The cross-correlation of two views' embeddings is drawn to the identity.

    Args:
        backbone, head, options: see :class:`JointEmbedding`.
        width: d.
        off_diagonal: lambda.
        by_width: divide the cross-correlation by d, as CW-RGP's repository does, and not by n.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        *,
        width: int,
        off_diagonal: float = 0.008,
        by_width: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(backbone, head, **options)
        self.norm = nn.BatchNorm1d(width)
        self.off_diagonal, self.by_width = off_diagonal, by_width

    @classmethod
    def build(cls, parts: Parts, own: BarlowTwinsSettings) -> "BarlowTwins":
        return cls(
            parts.backbone,
            parts.head,
            width=parts.width,
            off_diagonal=own.barlow_lambda,
            by_width=own.barlow_by_width,
            zero_init_residual=parts.zero_init_residual,
        )

    def loss(self, embeddings_Vnd: list[Tensor], clock: Clock) -> Tensor:
        a, b = (self.norm(one) for one in embeddings_Vnd)
        correlation = a.T @ b / (a.shape[1] if self.by_width else len(a))
        diagonal = correlation.diagonal()
        off_diagonal = correlation.square().sum() - diagonal.square().sum()
        return (diagonal - 1).square().sum() + self.off_diagonal * off_diagonal

"""Barlow Twins (Zbontar et al. 2021, arXiv 2103.03230), as CW-RGP's repository trains it."""

from typing import Any

from torch import Tensor, nn

from ...clock import Clock
from ..joint_embedding import JointEmbedding


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

    def loss(self, embeddings_Vnd: list[Tensor], clock: Clock) -> Tensor:
        a, b = (self.norm(one) for one in embeddings_Vnd)
        correlation = a.T @ b / (a.shape[1] if self.by_width else len(a))
        diagonal = correlation.diagonal()
        off_diagonal = correlation.square().sum() - diagonal.square().sum()
        return (diagonal - 1).square().sum() + self.off_diagonal * off_diagonal

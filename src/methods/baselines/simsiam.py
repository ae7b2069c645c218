"""SimSiam (Chen & He 2021, arXiv 2011.10566), as CW-RGP's repository trains it."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from ...clock import Clock
from ..joint_embedding import JointEmbedding, Parts


class SimSiam(JointEmbedding):
    """Predicts one view's embedding, which gets no gradient, from the other's.

    Args:
        backbone, options: see :class:`JointEmbedding`; the head is SimSiam's own.
        features, hidden, width: of the backbone, the head's hidden layers, and d.
    """

    def __init__(self, backbone: nn.Module, *, features: int, hidden: int, width: int, **options: Any) -> None:
        head = nn.Sequential(
            nn.Linear(features, hidden, bias=False),
            nn.BatchNorm1d(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, hidden, bias=False),
            nn.BatchNorm1d(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, width, bias=False),
            nn.BatchNorm1d(width, affine=False),
        )
        super().__init__(backbone, head, **options)
        self.predictor = nn.Sequential(
            nn.Linear(width, 512, bias=False), nn.BatchNorm1d(512), nn.ReLU(inplace=True), nn.Linear(512, width)
        )

    @classmethod
    def build(cls, parts: Parts) -> "SimSiam":
        return cls(
            parts.backbone,
            features=parts.features,
            hidden=parts.hidden,
            width=parts.width,
            zero_init_residual=parts.zero_init_residual,
        )

    def loss(self, embeddings_Vnd: list[Tensor], clock: Clock) -> Tensor:
        a, b = embeddings_Vnd
        similarity = [
            F.cosine_similarity(self.predictor(one), other.detach(), dim=1).mean() for one, other in ((a, b), (b, a))
        ]
        return -(similarity[0] + similarity[1]) / 2

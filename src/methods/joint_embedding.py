"""What INTL, CW-RGP and their baselines share: embeddings of several views, and how their health is watched.

Shape suffixes: V = views of an image, n = images of this rank, d = embedding size.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ..clock import Clock
from ..data.loading import Batch
from ..engine.diagnostics import RANK_OF_A_COLLAPSE, Check, feature_std, rankme, singular_values
from ..engine.method import Method
from ..models.backbones import BackboneSpec, ResidualStart, feature_width, initialize
from ..models.backbones.resnet import ResNet
from ..models.heads import ProjectorSettings


def start_backbone(backbone: nn.Module, zero_init_residual: bool) -> None:
    """The papers' start of a ResNet; a 3x3 stem keeps torch's default."""
    if isinstance(backbone, ResNet):
        initialize(backbone, zero_init_residual)
        if backbone.conv1.kernel_size == (3, 3):
            backbone.conv1.reset_parameters()


def spectrum(embeddings_nd: Tensor, axis: int = 1) -> Tensor:
    """Eigenvalues of the embeddings' covariance, falling, as shares of their sum; (min(n, d),).

    ``axis`` as in :mod:`src.ops.whitening`; 1 is the usual covariance of the features over the batch.
    """
    centred = embeddings_nd.float() - embeddings_nd.float().mean(dim=1 - axis, keepdim=True)
    eigenvalues = singular_values(centred).square()
    return eigenvalues / eigenvalues.sum().clamp_min(1e-12)


WHITENING_ADVICE = "Try a lower learning rate, or whitening with more groups."


class Parts(NamedTuple):
    """What a joint-embedding method is built of.

    Attributes:
        backbone, head: with fresh weights.
        features, width: of the backbone's and the head's output, F and d.
        hidden: width of the head's hidden layers.
        batch_size: images of a forward pass of one process.
        zero_init_residual: see :func:`src.models.backbones.initialize`.
    """

    backbone: nn.Module
    head: nn.Module
    features: int
    width: int
    hidden: int
    batch_size: int
    zero_init_residual: bool

    @classmethod
    def of(
        cls, spec: BackboneSpec, head: ProjectorSettings, start: ResidualStart, batch_size: int, *, bias: bool
    ) -> "Parts":
        """Backbone and head with fresh weights; ``bias`` is that of the head's hidden layers."""
        backbone = spec.build()
        features = feature_width(backbone)
        return cls(
            backbone,
            head.build(features, bias),
            features,
            head.width(features),
            head.head_size,
            batch_size,
            start.zero_init_residual,
        )


class JointEmbedding(Method):
    """A backbone and a head whose embeddings of an image's views are brought together by a loss.

    Args:
        backbone: (m, 3, h, w) -> (m, F); view by view, so batch statistics are those of one view.
        head: (m, F) -> (m, d); of all views' rows at once.
        zero_init_residual: see :func:`src.models.backbones.initialize`.
    """

    loss_is_local: ClassVar[bool] = True

    def __init__(self, backbone: nn.Module, head: nn.Module, zero_init_residual: bool = True) -> None:
        super().__init__()
        start_backbone(backbone, zero_init_residual)
        self.backbone, self.head = backbone, head

    def embed(self, crops: Sequence[Tensor]) -> list[Tensor]:
        """V tensors (n, d) float32."""
        features = [self.backbone(crop) for crop in crops]
        return list(self.head(torch.cat(features)).float().chunk(len(crops)))

    def loss(self, embeddings_Vnd: list[Tensor], clock: Clock) -> Tensor:
        """The scalar to be minimised."""
        raise NotImplementedError  # this is what makes the method

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        embeddings = self.embed(batch.crops)
        with torch.autocast(embeddings[0].device.type, enabled=False):
            outputs = {"loss": self.loss(embeddings, clock)}
        if clock.logging:
            outputs |= watch(embeddings[0].detach())
        return outputs

    collapse_advice: ClassVar[str] = "Try a lower learning rate, or a longer warm-up."

    def health_checks(self) -> list[Check]:
        return [collapse_check(self.collapse_advice)]


def watch(embeddings_nd: Tensor) -> dict[str, Tensor]:
    """The embeddings' spread, effective rank, and the condition number of their covariance (of what is not zero)."""
    shares = spectrum(embeddings_nd)
    smallest = torch.where(shares > 1e-7, shares, 1.0).min()
    return {
        "feature_std": feature_std(embeddings_nd),
        "rankme": rankme(embeddings_nd),
        "condition": shares[0] / smallest,
    }


def collapse_check(advice: str) -> Check:
    """Embeddings that are one point, or lie on a line or in a plane."""

    def failed(values: Mapping[str, float]) -> bool:
        return values.get("feature_std", 1.0) < 0.05 or values.get("rankme", 99.0) < RANK_OF_A_COLLAPSE

    def verdict(values: Mapping[str, float]) -> str:
        return (
            f"COLLAPSE: the embeddings have an effective rank of {values['rankme']:.1f}, and their spread is "
            f"{values['feature_std']:.3f} (1: all over the sphere, 0: one point)."
        )

    return Check("collapse", failed, verdict, advice)

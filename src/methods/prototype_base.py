"""What SwAV, DeepCluster-v2 and SeLa-v2 share: backbone, projection head, prototypes, and when those are frozen.

Shape suffixes: V = crops of an image, B = images of this rank, D = embedding size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..clock import Clock
from ..engine.method import Method
from ..errors import UserError
from ..models.backbones import feature_width, forward_by_size, initialize, initialize_mobile, is_mobile
from ..models.heads import MultiPrototypes, Prototypes, projector
from ..settings import setting


@dataclass(frozen=True)
class PrototypeSettings:
    """Prototypes and assignments"""

    crops_for_assign: tuple[int, ...] = setting(
        (0, 1), "numbers of the crops that are assigned to prototypes", at_least=0, at_most=1e6
    )
    temperature: float = setting(0.1, "temperature of the predictions", above=0, at_most=1000)
    feat_dim: int = setting(128, "embedding size", at_least=1, at_most=1e6)
    hidden_mlp: int = setting(
        2048, "width of the projection head's hidden layer; 0 = one linear layer", at_least=0, at_most=1e6
    )
    head_bn: bool = setting(True, "batch norm in the projection head")
    nmb_prototypes: tuple[int, ...] = setting(
        (3000,),
        "number of prototypes, about ten for each class; several numbers give several heads. Default: 3000 (SwAV), "
        "3000 3000 3000 (the others)",
        at_least=2,
        at_most=1e8,
    )
    freeze_prototypes_niters: int = setting(
        313,
        "number of first steps in which prototypes stay as they are; about one epoch helps the start. Default: 313, "
        "and for ever with DeepCluster-v2",
        at_least=0,
        at_most=1e12,
    )

    def options(self) -> dict[str, Any]:
        """Arguments of :class:`PrototypeMethod`."""
        return {
            "feat_dim": self.feat_dim,
            "hidden_mlp": self.hidden_mlp,
            "nmb_prototypes": self.nmb_prototypes,
            "crops_for_assign": self.crops_for_assign,
            "temperature": self.temperature,
            "freeze_prototypes_niters": self.freeze_prototypes_niters,
            "head_batch_norm": self.head_bn,
        }

    def check_crops(self, crops: int) -> None:
        """Raises UserError where not all of ``crops_for_assign`` are among so many crops."""
        chosen = self.crops_for_assign
        if max(chosen) >= crops or len(set(chosen)) != len(chosen):
            raise UserError(f"--crops_for_assign {list(chosen)}: expected distinct numbers from 0 to {crops - 1}")


class PrototypeMethod(Method):
    """A network whose unit embeddings are compared with prototypes.

    Parameter names of the parts are the published ones (``conv1...``, ``projection_head.*``, ``prototypes.*``); the
    backbone's carry the prefix ``backbone.``.

    Args:
        backbone: (n, 3, h, w) -> (n, F).
        feat_dim: D.
        hidden_mlp: width of the projection head; 0 = one linear layer.
        nmb_prototypes: of one head; a list gives several heads (named differently, even if it has one entry).
        crops_for_assign: which crops are assigned to prototypes.
        temperature: of the predictions.
        freeze_prototypes_niters: the prototypes get no gradient in the first so many steps.
        head_batch_norm: batch norm in the projection head.
        zero_init_residual: see :func:`src.models.backbones.initialize`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        feat_dim: int = 128,
        hidden_mlp: int = 2048,
        nmb_prototypes: int | Sequence[int] = 3000,
        crops_for_assign: Sequence[int] = (0, 1),
        temperature: float = 0.1,
        freeze_prototypes_niters: int = 313,
        head_batch_norm: bool = True,
        zero_init_residual: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.projection_head = projector(feature_width(backbone), hidden_mlp, feat_dim, head_batch_norm)
        if isinstance(nmb_prototypes, int):
            self.prototypes: Prototypes | MultiPrototypes = Prototypes(feat_dim, nmb_prototypes)
        else:
            self.prototypes = MultiPrototypes(feat_dim, nmb_prototypes)
        initialize(self, zero_init_residual)
        if is_mobile(backbone):  # in the published test-bed the network's own scheme reaches the head and prototypes
            initialize_mobile(self)
        self.crops_for_assign = list(crops_for_assign)
        self.temperature = temperature
        self.freeze_prototypes_niters = freeze_prototypes_niters

    def embed(self, crops: Sequence[Tensor]) -> Tensor:
        """V crops (B, 3, s_v, s_v) -> (V*B, D) float32 unit rows, crop-major. The head sees all sizes at once."""
        projected = self.projection_head(forward_by_size(self.backbone, crops))
        return F.normalize(projected.float(), dim=1, eps=1e-12)

    def of_assigned(self, values_VB: Tensor) -> Tensor:
        """What belongs to the crops that are assigned, (A, B, ...) of (V, B, ...)."""
        # not by the list as an index: a GPU would have to be waited for
        return torch.stack([values_VB[crop] for crop in self.crops_for_assign])

    def after_backward(self, clock: Clock) -> None:
        # None, not zero: the optimiser then skips the prototypes altogether, weight decay and momentum included
        if clock.step < self.freeze_prototypes_niters:
            for parameter in self.prototypes.parameters():
                parameter.grad = None

"""W2SSL: learning what and where from montages (Zhao et al. 2023, IEEE TCSVT, doi 10.1109/TCSVT.2023.3298937).

Shape suffixes: b = images of this rank, n = of all ranks, P = parts of an image, M = P n / 4 montages of a view,
C = channels, D = embedding size.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..clock import Clock
from ..data.loading import Batch
from ..engine.diagnostics import Check, feature_std, rankme
from ..engine.method import Method, Scale
from ..errors import UserError
from ..losses.supervised_contrastive import supervised_contrastive
from ..models.backbones import feature_width, features_and_map, initialize
from ..models.heads import mlp
from ..ops.montage import deal_out, decouple, pool_quarters
from ..optim.ema import momentum_copy, update_momentum_copy
from ..optim.schedules import half_cosine
from ..parallel import collectives
from ..parallel.transfer import sent
from ..parallel.virtual import once
from ..settings import setting
from .joint_embedding import collapse_check

_MONTAGE = 0x3A  # tells these draws from others that are keyed by seed and step


@dataclass(frozen=True)
class W2SSLSettings:
    """Heads and losses"""

    crop_proj_dim: int = setting(
        256, "embedding size (in the published program without effect)", at_least=1, at_most=1e6
    )
    moco_mlp_dim: int = setting(
        4096, "width of the heads' hidden layers (in the published program without effect)", at_least=1, at_most=1e6
    )
    loss_t: float = setting(0.3, "temperature (in the published program without effect)", above=0, at_most=1000)
    loss_loc: float = setting(1.0, "weight of where", at_least=0, at_most=1e6)
    loss_crop: float = setting(0.25, "weight of what; every published run has 1.0", at_least=0, at_most=1e6)
    moco_m: float = setting(0.99, "momentum of the copy that makes the keys", at_least=0, at_most=1)
    moco_m_cos: bool = setting(False, "raise the momentum to 1 by a cosine, as every published run does", switch=True)
    independent_perm: bool = setting(
        False, "patches get other neighbours in the second view; published: the same", switch=True
    )


class W2SSL(Method):
    """What: patches of an image, in whatever montage, are close together. Where: which part of it a patch was.

    Montages are made over the whole global batch; features of all ranks are gathered, with gradients summed over
    ranks, and heads and losses see the global batch on every rank. So the result does not depend on their number.
    Names of the heads are the published ones.

    Args:
        backbone: a convolutional network, see :func:`src.models.backbones.features_and_map`.
        parts: P, 2 or 4.
        dim, hidden: of the embeddings (256) and of the heads' hidden layers (4096).
        temperature: of the contrastive loss.
        where_weight, what_weight: of the two losses.
        momentum, momentum_cosine: of the copy that makes the keys; raised to 1 by a cosine, or constant.
        shared_order: both views have the same permutation, so that a patch has the same neighbours in both.
        seed: of the permutations.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        parts: int = 2,
        dim: int = 256,
        hidden: int = 4096,
        temperature: float = 0.3,
        where_weight: float = 1.0,
        what_weight: float = 1.0,
        momentum: float = 0.99,
        momentum_cosine: bool = True,
        shared_order: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        initialize(backbone)
        width = feature_width(backbone)
        self.backbone = backbone
        self.fc_crop = nn.Sequential(*_two_layers(width, hidden, dim), nn.BatchNorm1d(dim, affine=False))
        self.fc_loc = nn.Linear(width, parts)
        self.predictor = _two_layers(dim, hidden, dim)
        self.momentum_backbone, self.momentum_fc_crop = momentum_copy(backbone), momentum_copy(self.fc_crop)
        self.parts, self.temperature = parts, temperature
        self.where_weight, self.what_weight = where_weight, what_weight
        self.momentum, self.momentum_cosine = momentum, momentum_cosine
        self.shared_order, self.seed = shared_order, seed

    @classmethod
    def build(cls, backbone: nn.Module, own: W2SSLSettings, parts: int, scale: Scale) -> "W2SSL":
        """Raises UserError for a batch whose patches do not fill montages."""
        if scale.batch_size * parts % 4:
            raise UserError(
                f"--batch_size: the {scale.batch_size} images of a process have {scale.batch_size * parts} patches, "
                "which do not fill montages of four"
            )
        return cls(
            backbone,
            parts=parts,
            dim=own.crop_proj_dim,
            hidden=own.moco_mlp_dim,
            temperature=own.loss_t,
            where_weight=own.loss_loc,
            what_weight=own.loss_crop,
            momentum=own.moco_m,
            momentum_cosine=own.moco_m_cos,
            shared_order=not own.independent_perm,
            seed=scale.seed,
        )

    def momentum_at(self, clock: Clock) -> float:
        if not self.momentum_cosine:
            return self.momentum
        return half_cosine(clock.step, clock.total_steps, self.momentum, 1.0)

    def before_step(self, clock: Clock) -> None:
        momentum = self.momentum_at(clock)
        update_momentum_copy(self.momentum_backbone, self.backbone, momentum)
        update_momentum_copy(self.momentum_fc_crop, self.fc_crop, momentum)

    def order(self, view: int, total: int, clock: Clock) -> Tensor:
        """The permutation of the ``total`` patches of a view; it follows from seed and step, so all ranks have it."""
        key = [_MONTAGE, self.seed, clock.step, 0 if self.shared_order else view]
        return torch.from_numpy(np.random.default_rng(key).permutation(total))

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        images = len(batch) * collectives.world_size()
        orders = [self.order(view, self.parts * images, clock) for view in (0, 1)]
        views = (batch.crops[: self.parts], batch.crops[self.parts :])
        montages = [deal_out(patches, order) for patches, order in zip(views, orders, strict=True)]
        pooled = [self._pooled(self.backbone, montage) for montage in montages]
        with torch.no_grad():
            pooled_for_keys = [self._pooled(self.momentum_backbone, montage) for montage in montages]
        return once(lambda: self._compare(pooled, pooled_for_keys, orders, clock))

    def _pooled(self, backbone: nn.Module, montages: Tensor) -> Tensor:
        """This rank's montages -> the quarters of all ranks' feature maps."""
        return collectives.gather_with_gradient(pool_quarters(features_and_map(backbone, montages)[1]))

    def _compare(
        self, pooled: list[Tensor], pooled_for_keys: list[Tensor], orders: list[Tensor], clock: Clock
    ) -> dict[str, Tensor]:
        """The losses of all ranks' patches, from each view's montages, of all ranks."""
        images = len(orders[0]) // self.parts
        features = [decouple(one) for one in pooled]
        queries = [self.predictor(self.fc_crop(rows)) for rows in features]
        with torch.no_grad():
            keys = [self.momentum_fc_crop(decouple(one)) for one in pooled_for_keys]
        device = features[0].device
        what_labels = [sent(order % images, device) for order in orders]
        where_labels = sent(orders[0] // images, device)  # of the first view only
        where_logits = self.fc_loc(features[0])
        with torch.autocast(device.type, enabled=False):
            where = F.cross_entropy(where_logits.float(), where_labels)
            what = self._what(queries[0], keys[1], what_labels[0], what_labels[1])
            what = what + self._what(queries[1], keys[0], what_labels[1], what_labels[0])
        outputs = {
            "loss": self.where_weight * where + self.what_weight * what,
            "what": what.detach(),
            "where": where.detach(),
        }
        if clock.logging:
            outputs["where_top1"] = 100 * (where_logits.argmax(dim=1) == where_labels).float().mean()
            outputs["feature_std"] = feature_std(queries[0].detach())
            outputs["rankme"] = rankme(queries[0].detach())
        return outputs

    def _what(self, queries: Tensor, keys: Tensor, of_queries: Tensor, of_keys: Tensor) -> Tensor:
        rows = F.normalize(torch.cat([queries.float(), keys.float()]), dim=1)
        return supervised_contrastive(rows, torch.cat([of_queries, of_keys]), self.temperature)

    def health_checks(self) -> list[Check]:
        return [collapse_check("Try a lower learning rate, a higher --loss_t, or a larger batch.")]


def _two_layers(width: int, hidden: int, out: int) -> nn.Sequential:
    """Linear, batch norm, ReLU, linear, all without bias."""
    return nn.Sequential(*mlp(width, hidden, out, layers=2, bias=False)[:-1], nn.Linear(hidden, out, bias=False))


def loss_of_equal_features(images: int, parts: int, temperature: float = 0.3, base_temperature: float = 0.07) -> float:
    """The two directions of the contrastive loss when all rows are alike: nothing is told apart."""
    return 2 * temperature / base_temperature * math.log(2 * parts * images - 1)

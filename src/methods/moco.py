"""MoCo-v2: momentum contrast (Chen et al. 2020, arXiv 2003.04297; He et al. 2020, arXiv 1911.05722).

Shape suffixes: n = images of this rank, B = images of all ranks, C = embedding size, K = columns of the queue.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..clock import Clock
from ..data.loading import Batch
from ..engine.diagnostics import Check, feature_std, rankme
from ..errors import UserError
from ..models.heads import projector
from ..optim.ema import momentum_copy, update_momentum_copy
from ..parallel import collectives
from ..settings import setting
from .joint_embedding import collapse_check
from .queue_base import QueueMethod, embed

_SHUFFLE = 0x5B  # tells these draws from others that are keyed by seed and step


@dataclass(frozen=True)
class MoCoSettings:
    """Contrast"""

    moco_k: int = setting(65536, "number of keys in the queue", at_least=1, at_most=1e9)
    moco_m: float = setting(0.999, "momentum of the copy that makes the keys", at_least=0, at_most=1)
    moco_t: float = setting(0.07, "temperature; the papers use 0.2", above=0, at_most=1000)
    bn_parts: int = setting(
        1,
        "batch norms see the batch of a process in so many parts, and keys are shuffled between them: 8 makes of one "
        "GPU what the published runs were on eight",
        at_least=1,
        at_most=1e6,
    )

    def check_parts(self, batch_size: int) -> None:
        """Refuses parts that are not equal, or of less than two images."""
        if batch_size % self.bn_parts or batch_size // self.bn_parts < 2:
            raise UserError(
                f"--bn_parts {self.bn_parts} does not cut the {batch_size} images of a process into batches"
            )

    def queue_options(self, dim: int, zero_init_residual: bool) -> dict[str, Any]:
        """Arguments of :class:`src.methods.queue_base.QueueMethod`."""
        return {
            "dim": dim,
            "queue_columns": self.moco_k,
            "bn_parts": self.bn_parts,
            "zero_init_residual": zero_init_residual,
        }

    def options(self, dim: int, zero_init_residual: bool, seed: int) -> dict[str, Any]:
        """Arguments of :class:`MoCo`."""
        return {
            **self.queue_options(dim, zero_init_residual),
            "momentum": self.moco_m,
            "temperature": self.moco_t,
            "seed": seed,
        }


@dataclass(frozen=True)
class MoCoHeadSettings:
    """Head"""

    mlp: bool = setting(False, "a hidden layer, as in MoCo-v2", switch=True)
    hidden: int = setting(
        -1,
        "width of the hidden layer; -1: that of the features, 0: no hidden layer. Default: 2048 (disco, rkd), else -1",
        at_least=-1,
        at_most=1e6,
    )
    moco_dim: int = setting(128, "embedding size", at_least=1, at_most=1e6)

    def build(self, features: int) -> nn.Module:
        """One linear layer, or with ``--mlp`` a hidden one before it; no batch norm."""
        hidden = 0 if not self.mlp else features if self.hidden == -1 else self.hidden
        return projector(features, hidden, self.moco_dim, batch_norm=False)


class MoCo(QueueMethod):
    """Tells the key of an image's other view from the keys of other images.

    Keys come from a momentum copy, whose images are dealt out anew over the ranks (and parts of a batch) for its
    forward pass, so that batch statistics do not give away which key belongs to which query. The permutation follows
    from the seed and the step, so that no rank has to be told.

    Args:
        backbone, head, options: see :class:`src.methods.queue_base.QueueMethod`.
        momentum: of the copy.
        temperature: T.
        seed: of the permutations.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        *,
        momentum: float = 0.999,
        temperature: float = 0.2,
        seed: int = 0,
        **options: int | bool,
    ) -> None:
        super().__init__(backbone, head, **options)  # type: ignore[arg-type]
        self.momentum_backbone, self.momentum_head = momentum_copy(backbone), momentum_copy(head)
        self.momentum, self.temperature, self.seed = momentum, temperature, seed

    def before_step(self, clock: Clock) -> None:
        update_momentum_copy(self.momentum_backbone, self.backbone, self.momentum)
        update_momentum_copy(self.momentum_head, self.head, self.momentum)

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        first, second = batch.crops
        keys = self.keys(second, clock)
        queries = self.encode(first)
        outputs = self.contrast(queries, keys, clock)
        outputs["loss"] = outputs["contrastive"]
        if clock.logging:
            outputs |= self.watch(queries)
        return outputs

    @torch.no_grad()
    def keys(self, images: Tensor, clock: Clock) -> Tensor:
        """The momentum copy's unit rows (n, C), made in other company (shuffling batch norm); to be enqueued."""
        total = len(images) * collectives.world_size()
        order = torch.from_numpy(np.random.default_rng([_SHUFFLE, self.seed, clock.step]).permutation(total))
        dealt = collectives.permute_rows(images, order)
        keys = embed(self.momentum_backbone, self.momentum_head, dealt, self.bn_parts)
        keys = collectives.permute_rows(keys, order.argsort())
        self.enqueue_after_backward(keys)
        return keys

    def contrast(self, queries_nC: Tensor, keys_nC: Tensor, clock: Clock) -> dict[str, Tensor]:
        """InfoNCE of the queries against their keys and the queue, as ``contrastive``."""
        with torch.autocast(queries_nC.device.type, enabled=False):
            logits = self.against_queue(queries_nC, keys_nC) / self.temperature
            loss = F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))
        outputs = {"contrastive": loss}
        if clock.logging:
            outputs["own_key_first"] = (logits.argmax(dim=1) == 0).float().mean()
        return outputs

    def watch(self, queries_nC: Tensor) -> dict[str, Tensor]:
        return {"feature_std": feature_std(queries_nC.detach()), "rankme": rankme(queries_nC.detach())}

    def health_checks(self) -> list[Check]:
        return [collapse_check("Try a lower learning rate, a larger --moco_k, or a higher --moco_m.")]

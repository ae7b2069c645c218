"""What MoCo, DisCo and SEED share: unit embeddings, and a queue of them from past batches.

Shape suffixes: n = images of this rank, B = images of all ranks, C = embedding size, K = columns of the queue.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..clock import Clock
from ..engine.method import Method
from ..models.backbones import in_parts, initialize
from ..models.backbones.resnet import ResNet
from ..parallel import collectives
from ..parallel.virtual import keeps_state


def embed(backbone: nn.Module, head: nn.Module, images: Tensor, parts: int = 1) -> Tensor:
    """(n, 3, h, w) -> (n, C) float32 unit rows; ``parts`` as in :func:`src.models.backbones.in_parts`."""
    return F.normalize(in_parts(lambda part: head(backbone(part)), images, parts).float(), dim=1)


class QueueMethod(Method):
    """A backbone with a head, and a queue that is the same on every rank.

    Args:
        backbone: (m, 3, h, w) -> (m, F).
        head: (m, F) -> (m, C).
        dim, queue_columns: C and K; the queue starts with random unit columns. K must be at least B.
        bn_parts: see :func:`src.models.backbones.in_parts`.
        zero_init_residual: see :func:`src.models.backbones.initialize`; networks of timm start as timm does.
    """

    loss_is_local: ClassVar[bool] = True
    queue: Tensor
    queue_ptr: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        *,
        dim: int = 128,
        queue_columns: int = 65536,
        bn_parts: int = 1,
        zero_init_residual: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(backbone, ResNet):
            initialize(backbone, zero_init_residual)
        self.backbone, self.head, self.bn_parts = backbone, head, bn_parts
        # names and shapes of the published files
        self.register_buffer("queue", F.normalize(torch.randn(dim, queue_columns), dim=0))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))
        self._waiting: list[Tensor] = []

    def encode(self, images: Tensor) -> Tensor:
        """The trained network's unit rows, (n, C)."""
        return embed(self.backbone, self.head, images, self.bn_parts)

    def against_queue(self, rows_nC: Tensor, partners_nC: Tensor) -> Tensor:
        """Cosines with each row's partner and with the queue as it is now: (n, 1 + K)."""
        own = (rows_nC * partners_nC).sum(dim=1, keepdim=True)
        return torch.cat([own, rows_nC @ self.queue], dim=1)

    @torch.no_grad()
    def enqueue_after_backward(self, rows_nC: Tensor) -> None:
        """All ranks' rows take the place of the oldest columns, in rank order, once the gradients are there: they need
        the queue as it was."""
        rows_BC = collectives.gather_with_gradient(rows_nC.detach())
        if keeps_state():
            self._waiting.append(rows_BC)

    def after_backward(self, clock: Clock) -> None:
        for rows in self._waiting:
            self.enqueue(rows)
        self._waiting.clear()

    @torch.no_grad()
    def enqueue(self, rows_BC: Tensor) -> None:
        """Rows of all ranks take the place of the oldest columns."""
        columns_CB = rows_BC.T
        places = torch.arange(columns_CB.shape[1], device=columns_CB.device) + self.queue_ptr
        self.queue.index_copy_(1, places % self.queue.shape[1], columns_CB)
        self.queue_ptr.copy_((self.queue_ptr + columns_CB.shape[1]) % self.queue.shape[1])

"""INTL: iterative normalisation with trace loss (Weng et al. 2024, arXiv 2305.16789).

Shape suffixes: V = views of an image, n = images of this rank, N = images of all ranks, d = embedding size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..clock import Clock
from ..data.loading import Batch
from ..engine.diagnostics import Check
from ..engine.method import Method
from ..errors import UserError
from ..losses.whitened import normalised_mse, trace_loss, trace_loss_floor, trade_off
from ..ops.whitening import iter_norm
from ..optim.ema import momentum_copy, update_momentum_copy
from ..optim.schedules import warmup_cosine
from ..parallel import collectives
from ..parallel.virtual import once
from ..settings import setting
from .joint_embedding import WHITENING_ADVICE, Parts, collapse_check, start_backbone, watch


@dataclass(frozen=True)
class IntlSettings:
    """Loss"""

    iters: int = setting(4, "T, Newton's iterations of the whitening", at_least=0, at_most=1000)
    axis: int = setting(0, "0: channel whitening, 1: batch whitening", at_least=0, at_most=1)
    trade_off: float | None = setting(
        None, "weight of the trace loss; default: 0.01 (log2(bs) - 3), and with --axis 1 of emb", above=0, at_most=1e6
    )
    m: float = setting(0.996, "INTL_M: momentum of the copy at first; it rises to 1", at_least=0, at_most=1)

    def weight(self, batch: int, width: int) -> float:
        """Of the trace loss; raises UserError for a batch that gives it none."""
        weight = self.trade_off if self.trade_off is not None else trade_off(batch if self.axis == 0 else width)
        if weight <= 0:
            raise UserError(
                f"--bs {batch} gives the trace loss no weight; more than 8 images, or --trade_off, are needed"
            )
        return weight


class Intl(Method):
    """The transformed embedding of every view is drawn to that of the first, and its spectrum made even.

    Embeddings of all ranks are transformed together, so every rank computes the loss of the whole batch. Each view goes
    through backbone and projection alone. With a momentum copy, the first view goes through the copy only, and the
    trace loss is that of the other views.

    Args:
        backbone: (n, 3, h, w) -> (n, F).
        projection: (n, F) -> (n, d).
        weight: beta, of the trace loss; see :func:`src.losses.whitened.trade_off`.
        iterations, axis: of :func:`src.ops.whitening.iter_norm`.
        momentum: of the copy's first update, rising to 1 by a cosine; None trains without a copy.
        zero_init_residual: see :func:`src.models.backbones.initialize`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        projection: nn.Module,
        *,
        weight: float,
        iterations: int = 4,
        axis: int = 0,
        momentum: float | None = None,
        zero_init_residual: bool = True,
    ) -> None:
        super().__init__()
        start_backbone(backbone, zero_init_residual)
        self.backbone, self.projection = backbone, projection
        self.weight, self.iterations, self.axis, self.momentum = weight, iterations, axis, momentum
        self.embeddings_seen = torch.zeros(0)  # this rank's, of the last logged step, for the picture of their spectrum
        if momentum is not None:
            self.momentum_backbone = momentum_copy(backbone)
            self.momentum_projection = momentum_copy(projection)

    @classmethod
    def build(cls, parts: Parts, own: IntlSettings, weight: float, *, with_momentum: bool) -> "Intl":
        return cls(
            parts.backbone,
            parts.head,
            weight=weight,
            iterations=own.iters,
            axis=own.axis,
            momentum=own.m if with_momentum else None,
            zero_init_residual=parts.zero_init_residual,
        )

    def before_step(self, clock: Clock) -> None:
        if self.momentum is None:
            return
        momentum = warmup_cosine(clock.step, total=clock.total_steps, base=self.momentum, final=1.0)
        update_momentum_copy(self.momentum_backbone, self.backbone, momentum)
        update_momentum_copy(self.momentum_projection, self.projection, momentum)

    def _transformed(self, embeddings_nd: Tensor) -> Tensor:
        """(n, d) -> (N, d) float32."""
        with torch.autocast(embeddings_nd.device.type, enabled=False):
            gathered_Nd = collectives.gather_with_gradient(embeddings_nd.float())
            return once(lambda: iter_norm(gathered_Nd, self.iterations, self.axis))

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        first, others = batch.crops[0], batch.crops[1:]
        traces = []
        if self.momentum is None:
            key_Nd = self._transformed(self.projection(self.backbone(first)))
            traces.append(trace_loss(key_Nd, self.axis))
        else:
            with torch.no_grad():
                key_Nd = self._transformed(self.momentum_projection(self.momentum_backbone(first)))
        distances, embeddings_nd = [], first.new_zeros(0)
        for crop in others:
            embeddings_nd = self.projection(self.backbone(crop))
            transformed_Nd = self._transformed(embeddings_nd)
            distances.append(normalised_mse(transformed_Nd, key_Nd))
            traces.append(trace_loss(transformed_Nd, self.axis))
        distance = torch.stack(distances).mean()
        trace = torch.stack(traces[-len(others) :]).mean()
        if self.momentum is None:
            trace = trace + traces[0]
        loss = distance + self.weight * trace
        outputs = {"loss": loss, "mse": distance.detach(), "trace_loss": trace.detach()}
        if clock.logging:
            floor, collapsed = self._bounds(key_Nd.shape[self.axis])
            outputs["loss_floor"] = outputs["loss"].new_tensor(self.weight * floor)
            outputs["trace_from_floor"] = (trace.detach() - floor) / (collapsed - floor)
            outputs |= watch(embeddings_nd.detach())
            self.embeddings_seen = embeddings_nd.detach().float()
        return outputs

    def _bounds(self, variables: int) -> tuple[float, float]:
        """What the trace losses add up to with an even spectrum, and with all variance in one direction."""
        times = 1 if self.momentum is not None else 2
        floor, collapsed = trace_loss_floor(variables, self.iterations), variables * (1 - 1 / variables) ** 2
        return times * floor, times * collapsed

    def health_checks(self) -> list[Check]:
        return [collapse_check(WHITENING_ADVICE)]

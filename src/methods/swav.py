"""SwAV: swapping assignments between views (Caron et al. 2020, arXiv 2006.09882).

Shape suffixes: A = assigned crops, V = crops of an image, B = images of this rank, D = embedding size,
K = prototypes, L = rows of the queue of this rank.
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..clock import Clock
from ..data.loading import Batch
from ..engine.diagnostics import RANK_OF_A_COLLAPSE, Check, feature_std, mean_entropy, rankme
from ..engine.method import Scale
from ..errors import UserError
from ..losses.sinkhorn import sinkhorn
from ..losses.swapped_prediction import swapped_prediction_loss
from ..models.heads import Prototypes, normalize_rows_
from ..parallel import collectives
from ..settings import setting
from .prototype_base import PrototypeMethod, PrototypeSettings


def rows_per_rank(queue_length: int, batch_size: int, world_size: int) -> int:
    """Rows of each rank's queue: the global length, rounded down to whole global batches, shared out."""
    return queue_length // (batch_size * world_size) * batch_size


@dataclass(frozen=True)
class SwAVSettings:
    """SwAV"""

    epsilon: float = setting(
        0.05,
        "entropy of Sinkhorn's assignments: smaller is sharper; try 0.03 if the loss stays at ln K",
        at_least=0.003,  # numerically hard below
        at_most=100,
    )
    sinkhorn_iterations: int = setting(
        3, "Sinkhorn's iterations: more make slightly worse results, fewer may diverge", at_least=1, at_most=10_000
    )
    hard_assignment: bool = setting(
        False, "an image is assigned to its first prototype alone: one of the authors' remedies for a collapse"
    )
    queue_length: int = setting(
        0, "length of the queue over all processes; 3840 with a batch of 256", at_least=0, at_most=1e9
    )
    epoch_queue_starts: int = setting(
        15, "epoch (from 0 on) in which filling the queue begins", at_least=0, at_most=1e9
    )

    def queue_rows(self, scale: Scale) -> int:
        """Rows of each process's queue; raises UserError for a queue that holds no batch."""
        rows = rows_per_rank(self.queue_length, scale.batch_size, scale.world_size)
        if self.queue_length and not rows:
            batch = scale.batch_size * scale.world_size
            raise UserError(f"--queue_length {self.queue_length} does not hold one batch of {batch} images")
        return rows


class SwAV(PrototypeMethod):
    """Predicts the prototype assignment of one crop from the other crops of the same image.

    Args:
        backbone, options: see :class:`PrototypeMethod`; several heads have their losses averaged.
        epsilon, sinkhorn_iterations: of the assignments.
        hard_assignment: to one prototype, the one that Sinkhorn puts first.
        queue_rows: L, rows of the queue of this rank, for each assigned crop; 0 = no queue.
        epoch_queue_starts: the queue is filled from this epoch on, and used once it is full.
    """

    per_rank_buffers: ClassVar[dict[str, int]] = {"queue": 1}
    queue: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        *,
        epsilon: float = 0.05,
        sinkhorn_iterations: int = 3,
        hard_assignment: bool = False,
        queue_rows: int = 0,
        epoch_queue_starts: int = 15,
        **options: Any,
    ) -> None:
        super().__init__(backbone, **options)
        self.epsilon = epsilon
        self.sinkhorn_iterations = sinkhorn_iterations
        self.hard_assignment = hard_assignment
        self.epoch_queue_starts = epoch_queue_starts
        heads = self.prototypes.heads()
        queue = torch.zeros(len(self.crops_for_assign), queue_rows, heads[0].in_features)
        self.register_buffer("queue", queue)
        self._next_queue: Tensor | None = None  # room for the next one; the two change places
        self.queue_filled = 0
        self.register_buffer("prototypes_used", torch.zeros(heads[0].out_features, dtype=torch.bool), persistent=False)

    prototypes_used: Tensor

    @classmethod
    def build(
        cls, backbone: nn.Module, prototypes: PrototypeSettings, own: SwAVSettings, scale: Scale, **more: Any
    ) -> "SwAV":
        """The method that the settings describe; ``more`` goes to the constructor."""
        options = prototypes.options()
        if len(prototypes.nmb_prototypes) == 1:
            options["nmb_prototypes"] = prototypes.nmb_prototypes[0]
        return cls(
            backbone,
            **options,
            epsilon=own.epsilon,
            sinkhorn_iterations=own.sinkhorn_iterations,
            hard_assignment=own.hard_assignment,
            queue_rows=own.queue_rows(scale),
            epoch_queue_starts=own.epoch_queue_starts,
            **more,
        )

    def before_step(self, clock: Clock) -> None:
        for head in self.prototypes.heads():
            normalize_rows_(head.weight)

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        return self.compare(self.embed(batch.crops), len(batch.crops), clock)

    def compare(self, embeddings: Tensor, views: int, clock: Clock) -> dict[str, Tensor]:
        """The loss of the unit rows (V*B, D) of a batch, and what is worth logging; feeds the queue."""
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings_VBD = embeddings.view(views, len(embeddings) // views, -1)
            assigned_ABD = self.of_assigned(embeddings_VBD.detach())
            losses, assignments = [], []
            for head in self.prototypes.heads():
                scores_VBK = head(embeddings_VBD)
                assignments_ABK = self._assign(scores_VBK.detach(), head)
                assignments.append(assignments_ABK)
                losses.append(
                    swapped_prediction_loss(scores_VBK, assignments_ABK, self.crops_for_assign, self.temperature)
                )
            self._push(assigned_ABD, clock)
            loss = torch.stack(losses).mean()
            outputs = {"loss": loss, "loss_over_ln_k": loss.detach() / math.log(len(self.prototypes_used))}
            self._watch(outputs, assignments[0], assigned_ABD, clock)
        return outputs

    @torch.no_grad()
    def _assign(self, scores_VBK: Tensor, head: Prototypes) -> Tensor:
        """Sinkhorn over the batch, and over the queue in front of it once it is full: (A, B, K)."""
        scores = self.of_assigned(scores_VBK)
        num_images = scores.shape[1]
        if self.queue_is_full:
            scores = torch.cat([head(self.queue), scores], dim=1)
        soft = sinkhorn(scores, self.epsilon, self.sinkhorn_iterations)[:, -num_images:]
        if not self.hard_assignment:
            return soft
        return torch.zeros_like(soft).scatter_(-1, soft.argmax(dim=-1, keepdim=True), 1.0)

    # ------------------------------------------------------------------------------------------------ the queue

    @property
    def queue_is_full(self) -> bool:
        rows = self.queue.shape[1]
        return rows > 0 and self.queue_filled >= rows

    def before_epoch(self, clock: Clock) -> None:
        # How full the queue is follows from its content, so a resume needs no counter: embeddings are unit vectors,
        # empty rows are zero. This reads the device once an epoch.
        self.queue_filled = int((self.queue[0] != 0).any(dim=-1).sum())

    @torch.no_grad()
    def _push(self, assigned_ABD: Tensor, clock: Clock) -> None:
        """Newest rows first; the oldest batch falls out at the end."""
        rows = self.queue.shape[1]
        if rows == 0 or clock.epoch < self.epoch_queue_starts:
            return
        num_images = assigned_ABD.shape[1]
        if self._next_queue is None:
            self._next_queue = torch.empty_like(self.queue)
        torch.cat([assigned_ABD, self.queue[:, : rows - num_images]], dim=1, out=self._next_queue)
        self.queue, self._next_queue = self._next_queue, self.queue
        self.queue_filled = min(rows, self.queue_filled + num_images)

    # ------------------------------------------------------------------------------------------------ diagnostics

    @torch.no_grad()
    def _watch(self, outputs: dict[str, Tensor], assignments_ABK: Tensor, assigned_ABD: Tensor, clock: Clock) -> None:
        """Adds the health values of the first head; which prototypes are in use is gathered between log lines."""
        self.prototypes_used.index_fill_(0, assignments_ABK.argmax(dim=-1).flatten(), True)
        if not clock.logging:
            return
        used = collectives.all_reduce_(self.prototypes_used.to(torch.uint8), dist.ReduceOp.MAX)
        embeddings = assigned_ABD.flatten(0, 1)
        outputs["assignment_entropy"] = mean_entropy(assignments_ABK)
        outputs["prototypes_in_use"] = used.float().mean()
        outputs["feature_std"] = feature_std(embeddings)
        outputs["rankme"] = rankme(embeddings)
        if self.queue.shape[1]:
            outputs["queue_in_use"] = outputs["loss"].new_full((), float(self.queue_is_full))
        self.prototypes_used.zero_()

    def health_checks(self) -> list[Check]:
        log_k = math.log(len(self.prototypes_used))

        def stuck(values: Mapping[str, float]) -> bool:
            uniform = values["loss"] > 0.99 * log_k and values["assignment_entropy"] > 0.99 * log_k
            return (uniform and values["feature_std"] < 0.1) or values.get("rankme", 99.0) < RANK_OF_A_COLLAPSE

        def verdict(values: Mapping[str, float]) -> str:
            return (
                f"COLLAPSE: all images have nearly the same embeddings (effective rank {values.get('rankme', 1):.1f}, "
                f"feature std {values['feature_std']:.3f}); the loss is {values['loss']:.3f}, and ln "
                f"{len(self.prototypes_used)} = {log_k:.3f} means that nothing is learnt."
            )

        advice = (
            "Remedies of the authors: a lower --epsilon (0.03); a longer --freeze_prototypes_niters; "
            "--hard_assignment true; no batch norm in the head (--head_bn false); fewer or softer crops; another "
            "learning rate."
        )
        checks = [Check("collapse", stuck, verdict, advice)]
        return [*checks, queue_check()] if self.queue.shape[1] else checks


def queue_check() -> Check:
    """Whether the loss is lower with the queue than it was without (Caron et al.'s README, "common issues").

    A run that is continued with a full queue knows no loss from before, and is not judged.
    """
    before: deque[float] = deque(maxlen=5)

    def usual() -> float:
        return sum(before) / len(before)

    def worse(values: Mapping[str, float]) -> bool:
        if not values["queue_in_use"]:
            before.append(values["loss"])
            return False
        return bool(before) and values["loss"] > usual()

    def verdict(values: Mapping[str, float]) -> str:
        return f"QUEUE: the loss is {values['loss']:.3f} with the queue, and was {usual():.3f} without it."

    return Check(
        "queue", worse, verdict, "The authors advise a smaller --queue_length or a later --epoch_queue_starts."
    )

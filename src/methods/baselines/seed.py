"""SEED: self-supervised distillation (Fang et al. 2021, arXiv 2101.04731), which DisCo is compared with."""

from typing import Any

import torch
from torch import Tensor, nn

from ...clock import Clock
from ...data.loading import Batch
from ...engine.diagnostics import Check, feature_std, rankme
from ...errors import UserError
from ...losses.distillation import seed_loss
from ...models.teacher import Teacher
from ..joint_embedding import collapse_check
from ..queue_base import QueueMethod


class SEED(QueueMethod):
    """The student is as similar to the teacher's embeddings in a queue as the teacher itself is; one view.

    Args:
        backbone, head, options: see :class:`src.methods.queue_base.QueueMethod`; the queue holds the teacher's rows.
        teacher: on the device already.
        temperature, teacher_temperature: of the similarities.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        teacher: Teacher,
        *,
        temperature: float = 0.2,
        teacher_temperature: float = 1e-4,
        **options: Any,
    ) -> None:
        super().__init__(backbone, head, **options)
        self.temperature, self.teacher_temperature = temperature, teacher_temperature
        self._teacher = teacher
        if teacher.width != len(self.queue):
            raise UserError(
                f"the teacher's embeddings have {teacher.width} dimensions and the student's {len(self.queue)}: "
                f"pass --moco_dim {teacher.width}"
            )

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        (images,) = batch.crops
        teacher = self._teacher(images)
        self.enqueue_after_backward(teacher)
        student = self.encode(images)
        with torch.autocast(images.device.type, enabled=False):
            ours, theirs = self.against_queue(student, teacher), self.against_queue(teacher, teacher)
            outputs = {"loss": seed_loss(ours, theirs, self.temperature, self.teacher_temperature)}
        if clock.logging:
            rows = student.detach()
            outputs |= {
                "own_embedding_first": (ours.argmax(dim=1) == 0).float().mean(),
                "cosine_to_teacher": (rows * teacher).sum(dim=1).mean(),
                "feature_std": feature_std(rows),
                "rankme": rankme(rows),
            }
        return outputs

    def health_checks(self) -> list[Check]:
        return [collapse_check("Try a lower learning rate, or a higher --teacher_temperature.")]

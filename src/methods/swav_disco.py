"""SwAV whose embeddings also come close to a frozen teacher's: DisCo's SwAV test-bed (arXiv 2104.09124, table 5)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..clock import Clock
from ..data.loading import Batch
from ..errors import UserError
from ..models.backbones import STEMS
from ..models.heads import output_width
from ..models.teacher import Teacher
from ..settings import setting
from .swav import SwAV


@dataclass(frozen=True)
class SwAVTeacherSettings:
    """Distillation (DisCo's test-bed, --method swav)"""

    teacher: str = setting("", "checkpoint of a frozen teacher, such as SwAV's", flags=["--pretrained"])
    teacher_arch: str | None = setting(None, "architecture of the teacher, needed for networks that are no ResNets")
    teacher_stem: str | None = setting(
        None, "first layers of a teacher with a 3x3 first convolution, where its file does not tell", choices=STEMS
    )
    teacher_normalise: bool = setting(False, "compare with unit vectors of the teacher; published: raw ones")
    distill_weight: float = setting(
        0.5, "weight of the mean squared error; published: 1/2, like each crop's loss", at_least=0, at_most=1e6
    )

    def load(self, device: torch.device) -> Teacher | None:
        """The teacher on its device, in eval mode; None without one."""
        if not self.teacher:
            return None
        options = {"training": False, "normalise": self.teacher_normalise}
        return Teacher(self.teacher, self.teacher_arch, self.teacher_stem, **options).to(device)


class SwAVDisCo(SwAV):
    """SwAV plus half the mean squared error between student and teacher, over all crops and dimensions.

    Args:
        backbone, options: see :class:`src.methods.swav.SwAV`.
        teacher: on the device already.
        weight: of the mean squared error. 0.5, as the published program halves it together with the SwAV loss.
    """

    def __init__(self, backbone: nn.Module, teacher: Teacher, *, weight: float = 0.5, **options: Any) -> None:
        super().__init__(backbone, **options)
        self.weight, self._teacher = weight, teacher
        width = output_width(self.projection_head)
        if teacher.width != width:
            raise UserError(
                f"the teacher's embeddings have {teacher.width} dimensions and the student's {width}: "
                f"pass --feat_dim {teacher.width}"
            )

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        embeddings = self.embed(batch.crops)
        outputs = self.compare(embeddings, len(batch.crops), clock)
        error = F.mse_loss(embeddings, self._teacher.by_size(batch.crops))
        outputs["swav"], outputs["mse"] = outputs["loss"].detach(), error.detach()
        outputs["loss"] = outputs["loss"] + self.weight * error
        return outputs

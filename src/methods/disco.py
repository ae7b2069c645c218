"""DisCo: distilled contrastive learning (Gao et al. 2021, arXiv 2104.09124), and other losses in the place of its own.

Shape suffixes: n = images of this rank, C = embedding size of the student, D = of the teacher.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..clock import Clock
from ..data.loading import Batch
from ..errors import UserError
from ..losses.distillation import (
    attention_transfer,
    hard_dark_rank,
    rkd_angle,
    rkd_distance,
    squared_error_sum,
)
from ..models.backbones import STEMS, features_and_map, in_parts
from ..models.teacher import Teacher
from ..settings import setting
from .moco import MoCo

# Losses on the first view's embeddings
RELATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "rkd_distance": rkd_distance,
    "rkd_angle": rkd_angle,
    "darkrank": hard_dark_rank,
}
MAPS = ("attention", "fitnet")
TERMS = ("mse", *RELATIONS, *MAPS)
REFERENCE_BATCH = 32  # images of a process in the published runs


def mse_factor(norm: str, images: int) -> float:
    """What DisCo's sum over the ``images`` of a process is multiplied by, see ``--distill_norm``."""
    return {"sum": 1.0, "ref32": REFERENCE_BATCH / images, "mean": 1.0 / images}[norm]


@dataclass(frozen=True)
class DistillationSettings:
    """Distillation"""

    teacher: str = setting("", "checkpoint of the frozen teacher: MoCo's, SwAV's or any other with a head")
    teacher_arch: str | None = setting(
        None, "architecture of the teacher; needed for networks that are no ResNets, otherwise inferred from the file"
    )
    teacher_stem: str | None = setting(
        None, "first layers of a teacher with a 3x3 first convolution, where its file does not tell", choices=STEMS
    )
    teacher_mode: str = setting(
        "train",
        "statistics of the teacher's batch norms: train: those of the batch, as published; eval: the running ones",
        choices=["train", "eval"],
    )
    distill: tuple[str, ...] = setting(
        (), "terms added to the contrastive loss; default: the method's", choices=TERMS, empty=True
    )
    use_mse: bool = setting(False, "RKD + DisCo: --method rkd with DisCo's term added", switch=True)
    only_mse: bool = setting(False, "no contrastive loss, only the distillation", switch=True)
    distill_weight: float = setting(1.0, "weight of the added terms", at_least=0, at_most=1e6)
    distill_norm: str = setting(
        "sum",
        "DisCo's squared errors are summed over the images of a process, so their weight grows with them: as published "
        "(sum), times 32/images, which is the published weight on any number of GPUs (ref32), or their mean",
        choices=["sum", "ref32", "mean"],
    )
    init_queue_from_teacher: bool = setting(
        True, "start with the keys in the teacher's file, if it has as many, as the published code does"
    )
    teacher_temperature: float = setting(1e-4, "temperature of SEED's teacher", above=0, at_most=1000)

    def load(self, parts: int, needs_head: bool, device: torch.device) -> Teacher | None:
        """The teacher on its device; None without one. A file without a head is refused where it is needed."""
        if not self.teacher:
            return None
        teacher = Teacher(
            self.teacher, self.teacher_arch, self.teacher_stem, training=self.teacher_mode == "train", parts=parts
        )
        if needs_head:
            _ = teacher.width
        return teacher.to(device)


class DisCo(MoCo):
    """MoCo-v2 whose student also reproduces a frozen teacher's embeddings of both views.

    Both views go through the student, in two passes; only the first takes part in the contrastive loss.

    Args:
        backbone, head, options: see :class:`src.methods.moco.MoCo`.
        teacher: on the device already. It is not part of the method's state.
        terms: which of TERMS are added, each once. ``mse`` is DisCo's, over both views; the others see the first
            view: RKD's two, DarkRank, attention transfer and FitNet's hint on the last feature maps.
        contrastive_weight, distill_weight: of the contrastive loss, and of all terms together.
        norm: of ``mse``, see :func:`mse_factor`.

    Raises UserError where teacher and student do not fit each other.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        teacher: Teacher,
        *,
        terms: Sequence[str] = ("mse",),
        contrastive_weight: float = 1.0,
        distill_weight: float = 1.0,
        norm: str = "sum",
        **options: Any,
    ) -> None:
        super().__init__(backbone, head, **options)
        self.terms, self.norm = tuple(terms), norm
        self.contrastive_weight, self.distill_weight = contrastive_weight, distill_weight
        self._teacher = teacher
        if self.needs_embeddings and teacher.width != len(self.queue) and "mse" in self.terms:
            raise UserError(
                f"the teacher's embeddings have {teacher.width} dimensions and the student's {len(self.queue)}: "
                f"--distill mse compares them one by one (--moco_dim {teacher.width}?)"
            )
        self.regressor: nn.Module | None = None
        if "fitnet" in self.terms:
            device = next(teacher.networks.parameters()).device
            channels = map_channels(backbone, torch.device("cpu")), map_channels(teacher.backbone, device)
            self.regressor = nn.Conv2d(*channels, kernel_size=1, bias=False)
            nn.init.uniform_(self.regressor.weight, -0.005, 0.005)

    @classmethod
    def build(
        cls, backbone: nn.Module, head: nn.Module, teacher: Teacher, own: DistillationSettings, options: dict[str, Any]
    ) -> "DisCo":
        """``options`` are those of :meth:`src.methods.moco.MoCoSettings.options`."""
        method = cls(
            backbone,
            head,
            teacher,
            terms=own.distill,
            contrastive_weight=0.0 if own.only_mse else 1.0,
            distill_weight=own.distill_weight,
            norm=own.distill_norm,
            **options,
        )
        if own.init_queue_from_teacher and teacher.queue is not None and teacher.queue.shape == method.queue.shape:
            method.queue.copy_(teacher.queue)
        return method

    @property
    def needs_embeddings(self) -> bool:
        """Whether the teacher's head is needed."""
        return any(term not in MAPS for term in self.terms)

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        first, second = batch.crops
        keys = self.keys(second, clock)
        students = [self.encode(first), self.encode(second)]
        teachers = [self._teacher(first), self._teacher(second)] if self.needs_embeddings else []
        outputs = self.contrast(students[0], keys, clock)
        with torch.autocast(first.device.type, enabled=False):
            distilled = {term: self._term(term, students, teachers) for term in self.terms if term not in MAPS}
        if set(self.terms) & set(MAPS):
            distilled |= self._map_terms(first)
        total = self.contrastive_weight * outputs["contrastive"]
        total = total + self.distill_weight * torch.stack(list(distilled.values())).sum()
        outputs = {name: value.detach() for name, value in (outputs | distilled).items()} | {"loss": total}
        if clock.logging:
            outputs |= self.watch(students[0])
            if teachers and teachers[0].shape == students[0].shape:
                outputs["cosine_to_teacher"] = F.cosine_similarity(students[0].detach(), teachers[0]).mean()
        return outputs

    def _term(self, term: str, students: list[Tensor], teachers: list[Tensor]) -> Tensor:
        if term == "mse":
            views = [squared_error_sum(s, t) for s, t in zip(students, teachers, strict=True)]
            return torch.stack(views).sum() * mse_factor(self.norm, len(students[0]))
        return RELATIONS[term](students[0], teachers[0])

    def _map_terms(self, images: Tensor) -> dict[str, Tensor]:
        """The terms on feature maps of the first view, which take the student's backbone a pass of their own."""
        student = in_parts(lambda part: features_and_map(self.backbone, part)[1], images, self.bn_parts)
        teacher = self._teacher.maps(images)
        if student.shape[2:] != teacher.shape[2:]:
            raise UserError(
                f"the last feature maps have {tuple(student.shape[2:])} (student) and {tuple(teacher.shape[2:])} "
                f"(teacher) positions: --distill {' '.join(MAPS)} needs equal ones"
            )
        found = {}
        with torch.autocast(images.device.type, enabled=False):
            if "attention" in self.terms:
                found["attention"] = attention_transfer(student.float(), teacher)
            if self.regressor is not None:
                found["fitnet"] = F.mse_loss(self.regressor(student.float()), teacher)
        return found


@torch.no_grad()
def map_channels(backbone: nn.Module, device: torch.device) -> int:
    """Channels of a backbone's last feature map."""
    training = backbone.training
    first = next(module for module in backbone.modules() if isinstance(module, nn.Conv2d))
    image = torch.zeros(1, first.in_channels, 64, 64, device=device)
    channels = features_and_map(backbone.eval(), image)[1].shape[1]
    backbone.train(training)
    return channels

"""DINO: self-distillation without labels (Caron et al. 2021, arXiv 2104.14294).

Shape suffixes: V = views of an image, of which the first two are the global ones, B = images of this rank, K = outputs.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from ..clock import Clock
from ..data.loading import Batch
from ..engine.diagnostics import Check, mean_entropy
from ..engine.method import Method
from ..losses.dino import dino_loss, update_centre
from ..models.backbones import feature_width, forward_by_size, initialize
from ..models.backbones.resnet import ResNet
from ..optim.ema import momentum_copy, update_momentum_copy
from ..optim.schedules import warmup_cosine
from ..settings import setting


@dataclass(frozen=True)
class DinoSettings:
    """DINO"""

    out_dim: int = setting(65536, "number of outputs, K", at_least=2, at_most=1e8)
    hidden_dim: int = setting(2048, "width of the head's two hidden layers", at_least=1, at_most=1e6)
    bottleneck_dim: int = setting(256, "width of the head before its last layer", at_least=1, at_most=1e6)
    norm_last_layer: bool = setting(True, "the last layer's rows keep unit length; false suits small transformers")
    freeze_last_layer: int = setting(1, "epochs in which the last layer stays as it is", at_least=0, at_most=1e9)
    student_temp: float = setting(0.1, "temperature of the student", above=0, at_most=100)
    warmup_teacher_temp: float = setting(0.04, "temperature of the teacher at first", above=0, at_most=100)
    teacher_temp: float = setting(0.04, "temperature of the teacher after its warm-up", above=0, at_most=100)
    warmup_teacher_temp_epochs: int = setting(0, "epochs of the teacher's warm-up", at_least=0, at_most=1e9)
    momentum_teacher: float = setting(0.996, "momentum of the teacher at first; it rises to 1", at_least=0, at_most=1)
    center_momentum: float = setting(0.9, "momentum of the centre", at_least=0, at_most=1)
    clip_grad: float = setting(3.0, "bound on each parameter's gradient norm; 0 = none", at_least=0, at_most=1e9)


class DinoHead(nn.Module):
    """(n, F) -> (n, K): three linear layers with GELU, unit length, then a layer with weight normalisation."""

    def __init__(self, width: int, own: DinoSettings) -> None:
        super().__init__()
        hidden, bottleneck = own.hidden_dim, own.bottleneck_dim
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.last_layer = weight_norm(nn.Linear(bottleneck, own.out_dim, bias=False))
        lengths = self.last_layer.parametrizations.weight.original0
        nn.init.ones_(lengths)
        lengths.requires_grad_(not own.norm_last_layer)

    def forward(self, features: Tensor) -> Tensor:
        rows: Tensor = self.last_layer(F.normalize(self.mlp(features), dim=1))
        return rows


class Dino(Method):
    """The student's output of every view is drawn to the teacher's, a momentum copy's, of the two global views.

    Args:
        backbone: (n, 3, h, w) -> (n, F).
        own: see :class:`DinoSettings`.
    """

    centre: Tensor

    def __init__(self, backbone: nn.Module, own: DinoSettings) -> None:
        super().__init__()
        if isinstance(backbone, ResNet):
            initialize(backbone)
        self.backbone, self.head, self.own = backbone, DinoHead(feature_width(backbone), own), DinoSettings(**vars(own))
        self.teacher_backbone, self.teacher_head = momentum_copy(backbone), momentum_copy(self.head)
        self.register_buffer("centre", torch.zeros(own.out_dim))

    def teacher_temperature(self, clock: Clock) -> float:
        """Linear in the epochs of its warm-up."""
        first, last, epochs = self.own.warmup_teacher_temp, self.own.teacher_temp, self.own.warmup_teacher_temp_epochs
        return last if clock.epoch >= epochs else first + (last - first) * clock.epoch / max(1, epochs - 1)

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        student = self.head(forward_by_size(self.backbone, batch.crops)).float()
        with torch.no_grad():
            teacher = self.teacher_head(forward_by_size(self.teacher_backbone, batch.crops[:2])).float()
        with torch.autocast(student.device.type, enabled=False):
            student_VBK, teacher_2BK = (rows.view(-1, len(batch), self.own.out_dim) for rows in (student, teacher))
            temperature = self.teacher_temperature(clock)
            outputs = {"loss": dino_loss(student_VBK, teacher_2BK, self.centre, self.own.student_temp, temperature)}
            if clock.logging:
                classes = torch.softmax((teacher - self.centre) / temperature, dim=1)
                outputs["teacher_entropy"] = mean_entropy(classes)
                outputs["entropy_of_mean"] = mean_entropy(classes.mean(dim=0))
            update_centre(self.centre, teacher_2BK, self.own.center_momentum)
        return outputs

    def after_backward(self, clock: Clock) -> None:
        if clock.epoch < self.own.freeze_last_layer:
            for parameter in self.head.last_layer.parameters():
                parameter.grad = None
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        if self.own.clip_grad:
            factors = self.own.clip_grad / (torch.stack(torch._foreach_norm(gradients)) + 1e-6)
            torch._foreach_mul_(gradients, list(factors.clamp(max=1.0).unbind()))

    def after_step(self, clock: Clock) -> None:
        momentum = warmup_cosine(clock.step, total=clock.total_steps, base=self.own.momentum_teacher, final=1.0)
        update_momentum_copy(self.teacher_backbone, self.backbone, momentum)
        update_momentum_copy(self.teacher_head, self.head, momentum)

    def health_checks(self) -> list[Check]:
        def informative(values: Mapping[str, float]) -> float:
            return values.get("entropy_of_mean", math.inf) - values.get("teacher_entropy", 0.0)

        def verdict(values: Mapping[str, float]) -> str:
            return (
                f"COLLAPSE: the teacher's output tells {informative(values):.3f} nats about an image (entropy of the "
                f"mean {values['entropy_of_mean']:.2f} of ln K = {math.log(self.own.out_dim):.2f})."
            )

        advice = "Try a lower --teacher_temp or a longer warm-up of it, and a lower learning rate."
        return [Check("collapse", lambda values: informative(values) < 0.05, verdict, advice)]

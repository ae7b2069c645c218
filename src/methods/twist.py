"""TWIST: self-supervised learning by twin class distributions (Wang et al. 2021, arXiv 2110.07402).

Shape suffixes: V = views of an image, of which the first two are the global ones, B = images of this rank,
C = classes, N = images of the data set.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..clock import Clock
from ..data.loading import Batch
from ..engine.diagnostics import Check
from ..engine.method import Method, Scale
from ..errors import UserError
from ..losses.twist import entropies_of_views, self_labelling_loss, twist_loss, twist_teacher_loss
from ..models.backbones import BackboneSpec, feature_width, forward_by_size, initialize
from ..models.backbones.resnet import ResNet
from ..models.backbones.vit import VisionTransformer
from ..models.heads import TwistHead
from ..optim.ema import momentum_copy, update_momentum_copy
from ..optim.schedules import warmup_cosine
from ..parallel import collectives, sync_bn
from ..settings import setting


class MomentumTeacher(nn.Module):
    """A momentum copy of backbone and head; in train mode like the student, on batch statistics of its own."""

    def __init__(self, backbone: nn.Module, head: TwistHead) -> None:
        super().__init__()
        self.backbone, self.projection_heads = momentum_copy(backbone), momentum_copy(head)

    def update(self, backbone: nn.Module, head: nn.Module, momentum: float) -> None:
        update_momentum_copy(self.backbone, backbone, momentum)
        update_momentum_copy(self.projection_heads, head, momentum)


@dataclass(frozen=True)
class TwistModelSettings:
    """Model"""

    drop_path: float = setting(0.0, "stochastic depth of transformers", at_least=0, at_most=1)
    freeze_embedding: bool = setting(False, "a transformer's patch embedding keeps its random weights")
    dim: int = setting(4096, "number of classes; 1000 for unsupervised classification", at_least=2, at_most=1e8)
    hid_dim: int = setting(4096, "width of the head's hidden layers", at_least=1, at_most=1e6)
    act: str = setting("relu", "activation in the head", choices=["relu", "gelu"])
    drop: float = setting(0.0, "dropout in the head", at_least=0, at_most=1)
    proj_norm: str = setting("bn", "norm of the head's hidden layers", choices=["bn", "ln", "none"])
    proj_trunc_init: bool = setting(False, "truncated normal start of the head (transformers: always)")
    lbn_type: str = setting(
        "bn",
        "the head's last norm: bn: statistics of --bunch_size images, syncbn: of all processes, identity: no norm",
        choices=["bn", "syncbn", "identity"],
    )
    bunch_size: int = setting(256, "number of images that share the last norm's statistics", at_least=1, at_most=1e9)
    sync_bn: bool = setting(True, "all other batch norms take their statistics over all processes")

    def ranks_of_a_bunch(self, batch_size: int, world_size: int) -> int:
        """How many consecutive processes share the last norm's statistics; 0 stands for all."""
        if self.lbn_type == "syncbn":
            return 0
        ranks, rest = divmod(self.bunch_size, batch_size)
        if rest or world_size % max(ranks, 1) or ranks > world_size:
            raise UserError(
                f"--bunch_size {self.bunch_size} is not made of the batches of {batch_size} images of a divisor of "
                f"the {world_size} processes; --bunch_size {batch_size} always works"
            )
        return ranks

    def bunch_that_fits(self, batch_size: int, world_size: int) -> int:
        """The most images up to ``bunch_size`` that are batches of a divisor of the processes; one batch at least."""
        divisors = [n for n in range(1, world_size + 1) if world_size % n == 0 and n * batch_size <= self.bunch_size]
        return batch_size * max(divisors, default=1)

    def backbone(self, spec: BackboneSpec) -> nn.Module:
        network = spec.build(self.drop_path)
        if self.freeze_embedding:
            if not isinstance(network, VisionTransformer):
                raise UserError("--freeze_embedding needs vit_t, vit_s or vit_b")
            network.freeze_embedding()
        return network

    def head(self, backbone: nn.Module) -> TwistHead:
        return TwistHead(
            feature_width(backbone),
            self.hid_dim,
            self.dim,
            activation=self.act,
            dropout=self.drop,
            norm=self.proj_norm,
            last_norm=self.lbn_type != "identity",
            truncated_init=not isinstance(backbone, ResNet) or self.proj_trunc_init,
        )


@dataclass(frozen=True)
class TwistSettings:
    """Loss"""

    lam1: float = setting(0.0, "weight of the entropy of a sample is 1 + lam1", at_least=-1e6, at_most=1e6)
    lam2: float = setting(1.0, "weight of the entropy of the mean", at_least=-1e6, at_most=1e6)
    tau: float = setting(1.0, "temperature of the entropies", above=0, at_most=1000)
    EPS: float = setting(1e-5, "added inside every logarithm", above=0, at_most=1)
    crops_interact_style: str = setting(
        "sparse", "sparse: the main loss, then self-labelling; self_label: that alone", choices=["sparse", "self_label"]
    )
    mme_epochs: int = setting(
        800, "number of epochs of the main loss; the rest is self-labelling", at_least=0, at_most=1e9
    )
    quantile: float = setting(0.5, "share of a batch that self-labelling keeps, at first", at_least=0, at_most=1)
    quantile_end: float = setting(0.6, "and at last", at_least=0, at_most=1)
    threshold: float = setting(0.0, "confidence that is needed where the quantile is 0", at_least=0, at_most=1)
    use_momentum_encoder: bool = setting(False, "a momentum teacher makes the targets")
    momentum_start: float = setting(0.996, "momentum of the teacher, at first", at_least=0, at_most=1)
    momentum_end: float = setting(1.0, "momentum of the teacher, at last", at_least=0, at_most=1)

    def main_epochs(self, epochs: int) -> int:
        """Of a run of so many epochs, those of the main loss."""
        return min(self.mme_epochs, epochs)


class Twist(Method):
    """Distributions over C classes that agree between views, are sharp for each image, and flat over all images.

    Args:
        backbone: (n, 3, h, w) -> (n, F).
        head: makes the classes.
        mme_epochs: epochs of the main loss; afterwards, or always if ``self_label_only``, self-labelling.
        temperature, alpha, beta, eps: see :func:`src.losses.twist.twist_loss`.
        quantile, quantile_end: of self-labelling, by a cosine over its epochs; 0 takes ``threshold``.
        threshold: see :func:`src.losses.twist.self_labelling_loss`.
        momentum, momentum_end: of the teacher, by a cosine over the main loss's epochs and held from there on; None
            trains without a teacher.
        num_images: N, to watch which class the first view of each image gets; 0 does not.
    """

    classes_seen: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        head: TwistHead,
        *,
        mme_epochs: int,
        self_label_only: bool = False,
        temperature: float = 1.0,
        alpha: float = 1.0,
        beta: float = 1.0,
        eps: float = 1e-5,
        quantile: float = 0.5,
        quantile_end: float = 0.6,
        threshold: float = 0.0,
        momentum: float | None = None,
        momentum_end: float = 1.0,
        num_images: int = 0,
    ) -> None:
        super().__init__()
        if isinstance(backbone, ResNet):
            initialize(backbone)
        self.backbone = backbone
        self.projection_heads = head
        self.teacher = MomentumTeacher(backbone, head) if momentum is not None else None
        self.mme_epochs, self.self_label_only = mme_epochs, self_label_only
        self.temperature = temperature
        self.weights = {"alpha": alpha, "beta": beta, "eps": eps}
        self.quantile, self.quantile_end, self.threshold = quantile, quantile_end, threshold
        self.momentum, self.momentum_end = momentum, momentum_end
        # for the log only, so not part of a checkpoint
        self.register_buffer("classes_seen", torch.full((num_images,), -1, dtype=torch.int32), persistent=False)
        self.register_buffer("_gradient_sizes", torch.zeros(2), persistent=False)

    _gradient_sizes: Tensor

    @classmethod
    def build(
        cls, spec: BackboneSpec, model: TwistModelSettings, own: TwistSettings, epochs: int, scale: Scale
    ) -> "Twist":
        """The method with fresh weights and synchronised batch norms, for a run of so many epochs."""
        ranks = model.ranks_of_a_bunch(scale.batch_size, scale.world_size)
        backbone = model.backbone(spec)
        method = cls(
            backbone,
            model.head(backbone),
            mme_epochs=own.main_epochs(epochs),
            self_label_only=own.crops_interact_style == "self_label",
            temperature=own.tau,
            alpha=1 + own.lam1,
            beta=own.lam2,
            eps=own.EPS,
            quantile=own.quantile,
            quantile_end=own.quantile_end,
            threshold=own.threshold,
            momentum=own.momentum_start if own.use_momentum_encoder else None,
            momentum_end=own.momentum_end,
            num_images=scale.num_images,
        )
        for network in (method, method.teacher):
            if network is None:
                continue
            head = network.projection_heads
            if model.sync_bn:
                sync_bn.convert(network.backbone, device_type=scale.device.type, virtual_ranks=scale.virtual_ranks)
                sync_bn.convert(head.projection_head, device_type=scale.device.type, virtual_ranks=scale.virtual_ranks)
            if ranks != 1 and isinstance(head.norm, nn.BatchNorm1d):
                head.norm = sync_bn.convert(head.norm, ranks, scale.device.type, scale.virtual_ranks)
        return method

    def labels_itself(self, epoch: int) -> bool:
        """Whether this epoch is one of self-labelling."""
        return self.self_label_only or epoch >= self.mme_epochs

    # ------------------------------------------------------------------------------------------------ the step

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        raw, logits = self.projection_heads(forward_by_size(self.backbone, batch.crops))
        teacher_2BC = self._teach(batch.crops[:2])
        outputs = self._watch(raw, logits) if clock.logging else {}
        with torch.autocast(logits.device.type, enabled=False):
            logits_VBC = logits.float().view(len(batch.crops), len(batch), -1)
            self._remember(batch, logits_VBC[0])
            if self.labels_itself(clock.epoch):
                outputs |= self._self_labelling(logits_VBC, teacher_2BC, clock)
            else:
                outputs |= self._main(logits_VBC, teacher_2BC)
            if clock.logging:
                agree = logits_VBC[0].argmax(dim=-1) == logits_VBC[1].argmax(dim=-1)
                outputs["views_agree"] = agree.float().mean()  # the released log's "acc"
        return outputs

    @torch.no_grad()
    def _teach(self, global_crops: Sequence[Tensor]) -> Tensor | None:
        if self.teacher is None:
            return None
        _, logits = self.teacher.projection_heads(forward_by_size(self.teacher.backbone, global_crops))
        return logits.float().view(2, len(logits) // 2, -1)

    def _main(self, logits_VBC: Tensor, teacher_2BC: Tensor | None) -> dict[str, Tensor]:
        options = {"temperature": self.temperature, **self.weights}
        if teacher_2BC is None:
            terms = twist_loss(logits_VBC, **options)
        else:
            terms = twist_teacher_loss(logits_VBC, teacher_2BC, **options)
        return {"loss": terms.loss, "kl": terms.kl.detach(), "eh": terms.eh.detach(), "he": terms.he.detach()}

    def _self_labelling(self, logits_VBC: Tensor, teacher_2BC: Tensor | None, clock: Clock) -> dict[str, Tensor]:
        source_2BC = logits_VBC[:2] if teacher_2BC is None else teacher_2BC
        found = self_labelling_loss(
            logits_VBC,
            source_2BC,
            quantile=self.quantile_at(clock),
            threshold=self.threshold,
            temperature=self.temperature,
        )
        outputs = {"loss": found.loss}
        if clock.logging:
            eh, he = entropies_of_views(logits_VBC[:2], self.temperature, self.weights["eps"])
            outputs |= {"eh": eh, "he": he, "threshold": found.threshold, "frac": found.confident}
        return outputs

    def quantile_at(self, clock: Clock) -> float:
        """A cosine over the epochs of self-labelling."""
        first = 0 if self.self_label_only else self.mme_epochs * clock.steps_per_epoch
        return warmup_cosine(
            clock.step - first, total=clock.total_steps - first, base=self.quantile, final=self.quantile_end
        )

    def after_step(self, clock: Clock) -> None:
        if self.teacher is not None and self.momentum is not None:
            total = self.mme_epochs * clock.steps_per_epoch
            momentum = warmup_cosine(clock.step, total=total, base=self.momentum, final=self.momentum_end)
            self.teacher.update(self.backbone, self.projection_heads, momentum)

    # ------------------------------------------------------------------------------------------------ diagnostics

    def before_epoch(self, clock: Clock) -> None:
        self.classes_seen.fill_(-1)

    @torch.no_grad()
    def _remember(self, batch: Batch, logits_BC: Tensor) -> None:
        if len(self.classes_seen):
            self.classes_seen[batch.indices] = logits_BC.argmax(dim=-1).int()

    def classes_of_the_epoch(self) -> Tensor:
        """(N,) int32: the likeliest class of each image's first view when it was trained on; -1 for those that were
        not, on any rank."""
        return collectives.all_reduce_(self.classes_seen.clone(), dist.ReduceOp.MAX)

    def _watch(self, raw: Tensor, logits: Tensor) -> dict[str, Tensor]:
        """Spreads of the head's output and of the logits; the sizes of their gradients, which backward fills in."""
        outputs: dict[str, Tensor] = {}
        for i, (name, tensor) in enumerate((("f", raw), ("ft", logits))):
            detached = tensor.detach().float()
            outputs[f"{name}c_std"] = detached.std(dim=0, unbiased=False).mean()
            outputs[f"{name}r_std"] = detached.std(dim=1, unbiased=False).mean()
            outputs[f"{name}_gn"] = self._gradient_sizes[i]
            if tensor.requires_grad:
                tensor.register_hook(partial(self._measure, i))
        return outputs

    def _measure(self, i: int, gradient: Tensor) -> None:
        self._gradient_sizes[i].copy_(gradient.abs().mean())

    def health_checks(self) -> list[Check]:
        log_c = math.log(self.projection_heads.last_linear.out_features)

        def collapsed(values: Mapping[str, Any]) -> bool:
            return "he" in values and values["he"] - values["eh"] < 0.05

        def verdict(values: Mapping[str, float]) -> str:
            return (
                f"COLLAPSE: the classes tell {values['he'] - values['eh']:.3f} nats about an image (entropy of the "
                f"mean {values['he']:.2f} of ln C = {log_c:.2f}, of an image {values['eh']:.2f})."
            )

        return [Check("collapse", collapsed, verdict, "Try a lower learning rate, softer crops or a larger batch.")]

"""Training linear classifiers on a backbone, frozen or with it, as methods on the loop; and their accuracy."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from ..clock import Clock
from ..data.loading import Batch
from ..engine.method import Method
from ..errors import UserError
from ..losses.distillation import kd_cross_entropy
from ..models.backbones import feature_width
from ..models.backbones.resnet import ResNet
from ..models.teacher import Teacher
from ..parallel import collectives
from .features import FeatureDataset


class Classifier(nn.Module):
    """One linear classifier on a backbone's output; keys ``linear.*`` and ``bn.*`` as published.

    Args:
        width: features of the backbone.
        num_classes: of the data.
        pooled: classify the pooled features (n, F); otherwise the map (n, F, h, w), average-pooled with a 6x6 window
            to 2x2 positions, optionally normalised by batch norm, and flattened.
        use_bn: that batch norm; it has no effect on pooled features, as in the published code.
        normal_init: weights from N(0, 0.01) and zero bias; otherwise torch's default.
    """

    def __init__(
        self, width: int, num_classes: int, pooled: bool = True, use_bn: bool = False, normal_init: bool = True
    ) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(width) if use_bn and not pooled else None
        self.pooled = pooled
        self.linear = nn.Linear(width if pooled else 4 * width, num_classes)
        if normal_init:
            nn.init.normal_(self.linear.weight, std=0.01)
            nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        if not self.pooled:
            features = F.avg_pool2d(features, kernel_size=6, stride=1)
            if self.bn is not None:
                features = self.bn(features)
            features = features.flatten(1)
        return self.linear(features)


class LastBlocks(nn.Module):
    """The class tokens of a vision transformer's last blocks, each through the final norm, side by side (DINO's probe).

    Args:
        backbone: one of timm's vision transformers.
        blocks: how many, the oldest first.
        patch_mean: append the mean of the last block's patch tokens.

    Attributes:
        feature_width: (blocks + patch_mean) times the transformer's width.
    """

    def __init__(self, backbone: nn.Module, blocks: int, patch_mean: bool = False) -> None:
        super().__init__()
        if not is_transformer(backbone):
            raise UserError("--n_last_blocks and --avgpool_patchtokens need a vision transformer")
        self.backbone, self.blocks, self.patch_mean = backbone, blocks, patch_mean
        self.feature_width = (blocks + patch_mean) * feature_width(backbone)

    def forward(self, images: Tensor) -> Tensor:
        last: Any = self.backbone.get_intermediate_layers(  # type: ignore[operator]
            images, n=self.blocks, return_prefix_tokens=True, norm=True
        )
        features = [prefix[:, 0] for _, prefix in last]
        if self.patch_mean:
            features.append(last[-1][0].mean(dim=1))
        return torch.cat(features, dim=1)


def is_transformer(backbone: nn.Module) -> bool:
    """Whether it is a vision transformer whose class tokens :class:`LastBlocks` can read."""
    return hasattr(backbone, "get_intermediate_layers") and hasattr(backbone, "cls_token")


def labels_only(logits: Tensor, batch: Batch) -> list[Tensor]:
    """Each classifier's cross entropy."""
    return [F.cross_entropy(one, batch.labels) for one in logits]


class Classification(Method):
    """One or several classifiers trained by cross entropy; subclasses say on what.

    Args:
        learning_rates: one classifier for each; they name the classifiers in logs and results.
    """

    remembers_evaluations = True
    best_top1: Tensor

    def __init__(self, learning_rates: Sequence[float]) -> None:
        super().__init__()
        self.learning_rates = list(learning_rates)
        self.loss_of: Callable[[Tensor, Batch], list[Tensor]] = labels_only
        self.register_buffer("best_top1", torch.zeros(len(self.learning_rates)))

    @property
    def names(self) -> list[str]:
        return [f"lr_{rate:g}" for rate in self.learning_rates]

    def teach(self, teacher: Teacher, alpha: float, temperature: float) -> None:
        """From now on the loss is :func:`src.losses.distillation.kd_cross_entropy` with a teacher's logits."""

        def distilled(logits: Tensor, batch: Batch) -> list[Tensor]:
            theirs = teacher(batch.crops[0])
            with torch.autocast(theirs.device.type, enabled=False):
                return [kd_cross_entropy(one, theirs, batch.labels, alpha, temperature) for one in logits]

        self.loss_of = distilled

    def logits(self, images: Tensor) -> Tensor:
        """(n, 3, s, s) -> (classifiers, n, classes) float32."""
        raise NotImplementedError  # this is what makes the kind

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The optimiser's groups; ``lr_scale`` is each one's learning rate."""
        raise NotImplementedError  # this is what makes the kind

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        logits = self.logits(batch.crops[0])
        losses = torch.stack(self.loss_of(logits, batch))
        outputs = {"loss": losses.sum()}
        if clock.logging:
            hits = (logits.argmax(dim=-1) == batch.labels).float().mean(dim=-1)
            for name, loss, share in zip(self.names, losses.detach(), hits, strict=True):
                outputs[f"loss_{name}"] = loss
                outputs[f"top1_{name}"] = 100 * share
        return outputs


class LinearProbe(Classification):
    """Classifiers with different learning rates on one frozen forward pass.

    The backbone stays in eval mode and gets no gradient. The classifiers do not influence each other: each has its
    own parameters, and the loss is the sum of theirs.

    Args:
        backbone: frozen; or None when the batches hold features already, (B, F) as their only "crop".
        width: of the features.
        num_classes: of the data.
        learning_rates: one classifier for each.
        lr_factor: what the learning rates are multiplied by.
        pooled, use_bn, normal_init: see :class:`Classifier`.
    """

    def __init__(
        self,
        backbone: nn.Module | None,
        width: int,
        num_classes: int,
        learning_rates: Sequence[float],
        *,
        lr_factor: float = 1.0,
        pooled: bool = True,
        use_bn: bool = False,
        normal_init: bool = True,
    ) -> None:
        super().__init__(learning_rates)
        if not pooled and not isinstance(backbone, ResNet):
            raise UserError("--global_pooling false needs the feature map of one of our ResNets")
        # outside the module's registry: its weights are fixed, so checkpoints of the probe do not repeat them
        self._frozen = [backbone.eval().requires_grad_(False)] if backbone is not None else []
        self.pooled, self.lr_factor = pooled, lr_factor
        self.classifiers = nn.ModuleList(
            Classifier(width, num_classes, pooled, use_bn, normal_init) for _ in self.learning_rates
        )

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """What the classifiers see of images (or of features, without a backbone)."""
        if not self._frozen:
            return images
        backbone = self._frozen[0]
        if self.pooled:
            return backbone(images)
        assert isinstance(backbone, ResNet)
        return backbone.feature_map(images)

    def logits(self, images: Tensor) -> Tensor:
        features = self.features(images).float()
        with torch.autocast(features.device.type, enabled=False):
            return torch.stack([classifier(features) for classifier in self.classifiers])

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [
            {"params": list(classifier.parameters()), "lr_scale": rate * self.lr_factor}
            for rate, classifier in zip(self.learning_rates, self.classifiers, strict=True)
        ]


class FineTuning(Classification):
    """A backbone trained together with a new linear classifier, each at its own learning rate.

    Args:
        backbone: (n, 3, s, s) -> (n, F); trained, in train mode.
        width: F.
        num_classes: of the data.
        learning_rate, backbone_rate: the classifier's and the backbone's.
        lr_factor: what they are multiplied by.
        normal_init: see :class:`Classifier`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        width: int,
        num_classes: int,
        learning_rate: float,
        backbone_rate: float,
        *,
        lr_factor: float = 1.0,
        normal_init: bool = True,
    ) -> None:
        super().__init__([learning_rate])
        self.backbone = backbone
        self.classifier = Classifier(width, num_classes, normal_init=normal_init)
        self.backbone_rate, self.lr_factor = backbone_rate, lr_factor

    def logits(self, images: Tensor) -> Tensor:
        return self.classifier(self.backbone(images)).float().unsqueeze(0)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [
            {"params": list(self.classifier.parameters()), "lr_scale": self.learning_rates[0] * self.lr_factor},
            {"params": list(self.backbone.parameters()), "lr_scale": self.backbone_rate * self.lr_factor},
        ]


@torch.no_grad()
def fit_logistic_regression(probe: LinearProbe, dataset: FeatureDataset, max_iter: int = 1000) -> None:
    """Sets a probe of cached features to scikit-learn's logistic regression: ``lbfgs`` of W-MSE's and CW-RGP's test.

    The optimum does not depend on a seed (theirs is 1337) or on the ranks, which all compute the same.
    """
    from sklearn.linear_model import LogisticRegression  # slow to import, and few evaluations need it

    fitted = LogisticRegression(max_iter=max_iter, random_state=1337).fit(dataset.features.numpy(), dataset.labels)
    linear = next(module for module in probe.modules() if isinstance(module, nn.Linear))
    linear.weight.zero_()
    linear.bias.fill_(-torch.inf)  # of classes that no training image has
    weight, bias = (torch.as_tensor(values).to(linear.weight) for values in (fitted.coef_, fitted.intercept_))
    classes = torch.as_tensor(fitted.classes_, device=bias.device)
    if len(classes) == 2:  # one row that tells the second from the first
        weight, bias = (torch.cat([torch.zeros_like(values), values]) for values in (weight, bias))
    linear.weight[classes] = weight
    linear.bias[classes] = bias


class Judged(NamedTuple):
    """Loss, top-1 and top-5 (percent) of every classifier, the number of images, and those that were left out."""

    values: dict[str, float]
    images: int
    unreadable: list[str]


@torch.no_grad()
def evaluate_classifiers(
    method: Classification, loader: "DataLoader[Batch]", prepare: Callable[[Batch], Batch]
) -> Judged:
    """Judges every classifier over all ranks' shares of the loader, counted exactly.

    Also keeps the best top-1 of each classifier in the method, so that a resume knows it.
    """
    count = len(method.learning_rates)
    totals = torch.zeros(3 * count + 1, dtype=torch.float64)
    unreadable: list[str] = []
    for batch in loader:
        unreadable += batch.unreadable
        if not len(batch):
            continue
        batch = prepare(batch)
        logits = method.logits(batch.crops[0])
        top = logits.topk(min(5, logits.shape[-1]), dim=-1).indices == batch.labels[:, None]
        losses = [F.cross_entropy(one, batch.labels, reduction="sum") for one in logits]
        counts = torch.cat([torch.stack(losses), top[..., 0].sum(-1), top.any(-1).sum(-1)]).double().cpu()
        totals += torch.cat([counts, torch.tensor([float(len(batch))])])
    unreadable = sorted(name for part in collectives.gather_everywhere(unreadable) for name in part)
    collectives.all_reduce_(totals)
    if not totals[-1]:
        raise UserError(f"none of the {len(unreadable)} test images could be read, the first: {unreadable[0]}")
    loss, top1, top5 = (totals[:-1] / totals[-1]).view(3, count)
    method.best_top1.copy_(torch.maximum(method.best_top1, (100 * top1).to(method.best_top1)))
    values = {}
    for i, name in enumerate(method.names):
        values[f"loss_{name}"] = float(loss[i])
        values[f"top1_{name}"] = 100 * float(top1[i])
        values[f"top5_{name}"] = 100 * float(top5[i])
    return Judged(values, int(totals[-1]), unreadable)

"""Linear classification of frozen features: several learning rates trained side by side, as a method on the loop."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from src import distributed
from src.backbones.resnet import ResNet
from src.clock import Clock
from src.data.loading import Batch, warn_unreadable
from src.errors import UserError
from src.methods.base import Method


class Classifier(nn.Module):
    """One linear classifier on a frozen backbone's output; keys ``linear.*`` and ``bn.*`` as published.

    Args:
        width: features of the backbone.
        num_classes: of the data.
        pooled: classify the pooled features (n, F); otherwise the map (n, F, h, w), average-pooled with a 6x6 window
            to 2x2 positions, optionally normalised by batch norm, and flattened.
        use_bn: that batch norm; it has no effect on pooled features, as in the published code.
    """

    def __init__(self, width: int, num_classes: int, pooled: bool = True, use_bn: bool = False) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(width) if use_bn and not pooled else None
        self.pooled = pooled
        self.linear = nn.Linear(width if pooled else 4 * width, num_classes)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        if not self.pooled:
            features = F.avg_pool2d(features, kernel_size=6, stride=1)
            if self.bn is not None:
                features = self.bn(features)
            features = features.flatten(1)
        return self.linear(features)


class LinearProbe(Method):
    """Classifiers with different learning rates on one frozen forward pass (SwAV's protocol, arXiv 2006.09882).

    The backbone stays in eval mode and gets no gradient. The classifiers do not influence each other: each has its
    own parameters, and the loss is the sum of theirs.

    Args:
        backbone: frozen; or None when the batches hold features already, (B, F) as their only "crop".
        width: of the features.
        num_classes: of the data.
        learning_rates: one classifier for each.
        pooled, use_bn: see :class:`Classifier`.
    """

    best_top1: Tensor

    def __init__(
        self,
        backbone: nn.Module | None,
        width: int,
        num_classes: int,
        learning_rates: Sequence[float],
        pooled: bool = True,
        use_bn: bool = False,
    ) -> None:
        super().__init__()
        if not pooled and not isinstance(backbone, ResNet):
            raise UserError("--global_pooling false needs the feature map of one of our ResNets")
        # outside the module's registry: its weights are fixed, so checkpoints of the probe do not repeat them
        self._frozen = [backbone.eval().requires_grad_(False)] if backbone is not None else []
        self.pooled = pooled
        self.learning_rates = list(learning_rates)
        self.register_buffer("best_top1", torch.zeros(len(self.learning_rates)))
        self.classifiers = nn.ModuleList(Classifier(width, num_classes, pooled, use_bn) for _ in self.learning_rates)

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
        """(n, 3, s, s) -> (classifiers, n, classes) float32."""
        features = self.features(images).float()
        with torch.autocast(features.device.type, enabled=False):
            return torch.stack([classifier(features) for classifier in self.classifiers])

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        logits = self.logits(batch.crops[0])
        losses = torch.stack([F.cross_entropy(one, batch.labels) for one in logits])
        outputs = {"loss": losses.sum()}
        if clock.logging:
            hits = (logits.argmax(dim=-1) == batch.labels).float().mean(dim=-1)
            for rate, loss, share in zip(self.learning_rates, losses.detach(), hits, strict=True):
                outputs[f"loss_lr_{rate:g}"] = loss
                outputs[f"top1_lr_{rate:g}"] = 100 * share
        return outputs

    def parameter_groups(self) -> list[dict[str, object]]:
        """One group for each classifier, whose ``lr_scale`` is its learning rate."""
        return [
            {"params": list(classifier.parameters()), "lr_scale": rate}
            for rate, classifier in zip(self.learning_rates, self.classifiers, strict=True)
        ]


@torch.no_grad()
def evaluate_probe(
    probe: LinearProbe, loader: "DataLoader[Batch]", prepare: Callable[[Batch], Batch]
) -> dict[str, float]:
    """Loss, top-1 and top-5 (percent) of every classifier, over all ranks' shares of the loader, counted exactly.

    Also keeps the best top-1 of each classifier in the probe, so that a resume knows it.
    """
    num_classifiers = len(probe.learning_rates)
    totals = torch.zeros(3 * num_classifiers + 1, dtype=torch.float64)
    unreadable: list[str] = []
    for batch in loader:
        unreadable += batch.unreadable
        batch = prepare(batch)
        logits = probe.logits(batch.crops[0])
        top = logits.topk(min(5, logits.shape[-1]), dim=-1).indices == batch.labels[:, None]
        losses = [F.cross_entropy(one, batch.labels, reduction="sum") for one in logits]
        counts = torch.cat([torch.stack(losses), top[..., 0].sum(-1), top.any(-1).sum(-1)]).double().cpu()
        totals += torch.cat([counts, torch.tensor([float(len(batch))])])
    warn_unreadable(unreadable)
    distributed.all_reduce_(totals)
    loss, top1, top5 = (totals[:-1] / totals[-1]).view(3, num_classifiers)
    probe.best_top1.copy_(torch.maximum(probe.best_top1, (100 * top1).to(probe.best_top1)))
    values = {}
    for i, rate in enumerate(probe.learning_rates):
        values[f"loss_lr_{rate:g}"] = float(loss[i])
        values[f"top1_lr_{rate:g}"] = 100 * float(top1[i])
        values[f"top5_lr_{rate:g}"] = 100 * float(top5[i])
    return values

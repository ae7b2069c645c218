"""TWIST's losses on twin class distributions (Wang et al. 2021, arXiv 2110.07402).

All logarithms have ``eps`` inside, as published: with many classes it is of the size of a uniform probability, so
log-softmax would give other values. Shape suffixes: V = views of an image, of which the first two are the global ones,
B = images of this rank, C = classes.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from ..parallel import collectives


class _MeanOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return collectives.all_reduce_(tensor.detach().clone(), dist.ReduceOp.SUM) / collectives.world_size()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """The mean over the ranks, whose gradient goes to this rank's part unchanged.

    Averaging the parameters' gradients over the ranks, as DDP does, then gives those of the joined batch. (An
    all-reduce whose backward pass sums again would make them W times too large.)
    """
    return tensor if collectives.world_size() == 1 else _MeanOverRanks.apply(tensor)


class TwistTerms(NamedTuple):
    """The loss and its parts, scalars in nats.

    Attributes:
        loss: what is minimised: kl + alpha * eh - beta * he.
        kl: divergence between views of an image (consistency).
        eh: mean entropy of a sample's distribution (sharpness), at most about ln C.
        he: entropy of the mean distribution (diversity), at most :func:`entropy_bound`.
    """

    loss: Tensor
    kl: Tensor
    eh: Tensor
    he: Tensor


def entropy_bound(classes: int, eps: float) -> float:
    """The entropy of a uniform distribution with ``eps`` inside the logarithm: 8.278 for 4096 classes and 1e-5."""
    return -math.log(1.0 / classes + eps)


def _entropies(probabilities_VBC: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean entropy of each view's rows, on this rank, and entropy of each view's mean over all ranks; (V,) each."""
    rows = -(probabilities_VBC * torch.log(probabilities_VBC + eps)).sum(dim=-1).mean(dim=-1)
    means_VC = mean_over_ranks(probabilities_VBC.mean(dim=1))
    return rows, -(means_VC * torch.log(means_VC + eps)).sum(dim=-1)


def twist_loss(
    logits_VBC: Tensor, *, temperature: float = 1.0, alpha: float = 1.0, beta: float = 1.0, eps: float = 1e-5
) -> TwistTerms:
    """The main loss without a teacher: the mean over all pairs of a global view with a later view.

    A pair's consistency is the symmetric divergence of the distributions *without* temperature; its entropies are
    means over its two views, with temperature. With V views there are 2 V - 3 pairs, so a global view weighs
    (V - 1) / (2 (2 V - 3)) in the entropies and a local one 1 / (2 V - 3).

    Args:
        logits_VBC: with gradient; computed in float32.
        temperature: tau.
        alpha, beta: weights of the two entropies, ``1 + lam1`` and ``lam2``.
        eps: inside every logarithm.
    """
    logits_VBC = logits_VBC.float()
    views = len(logits_VBC)
    plain = torch.softmax(logits_VBC, dim=-1)
    logs = torch.log(plain + eps)
    divergences = [((plain[i] - plain[i + 1 :]) * (logs[i] - logs[i + 1 :])).sum(dim=-1).mean(dim=-1) for i in (0, 1)]
    kl = torch.cat(divergences).mean() / 2
    tempered = plain if temperature == 1.0 else torch.softmax(logits_VBC / temperature, dim=-1)
    rows, means = _entropies(tempered, eps)
    share = torch.full_like(rows, 2.0)
    share[:2].fill_(views - 1.0)
    share = share / (2 * (2 * views - 3))
    eh, he = (share * rows).sum(), (share * means).sum()
    return TwistTerms(kl + alpha * eh - beta * he, kl, eh, he)


def twist_teacher_loss(
    logits_VBC: Tensor,
    teacher_2BC: Tensor,
    *,
    temperature: float = 1.0,
    alpha: float = 1.0,
    beta: float = 1.0,
    eps: float = 1e-5,
) -> TwistTerms:
    """The main loss with a momentum teacher: the divergence from each of its two global views to every *other* view.

    One direction only, with gradient to the student; the entropies are means over all of the student's views.
    Arguments as for :func:`twist_loss`; everything is computed with temperature.
    """
    students = torch.softmax(logits_VBC.float() / temperature, dim=-1)
    teachers = torch.softmax(teacher_2BC.detach().float() / temperature, dim=-1)
    student_logs, teacher_logs = torch.log(students + eps), torch.log(teachers + eps)
    others = [student_logs[1:], torch.cat([student_logs[:1], student_logs[2:]])]
    divergences = [(teachers[t] * (teacher_logs[t] - others[t])).sum(dim=-1).mean(dim=-1) for t in range(2)]
    kl = torch.cat(divergences).mean()
    rows, means = _entropies(students, eps)
    eh, he = rows.mean(), means.mean()
    return TwistTerms(kl + alpha * eh - beta * he, kl, eh, he)


class SelfLabelling(NamedTuple):
    """The self-labelling loss, and the threshold and share of confident images behind it; scalars."""

    loss: Tensor
    threshold: Tensor
    confident: Tensor


def self_labelling_loss(
    logits_VBC: Tensor, source_2BC: Tensor, *, quantile: float, threshold: float = 0.0, temperature: float = 1.0
) -> SelfLabelling:
    """Cross entropy of the other views with the most confident global view's class, on the most confident images.

    Of an image's two global views in ``source_2BC`` the more confident one (the second, when both are alike) gives
    the label; the student's other global view and all its local views are trained on it. Everything is local to
    the rank.

    Args:
        logits_VBC: the student's, with gradient.
        source_2BC: the global views that give the labels, of the student or of its teacher.
        quantile: q; the threshold is the confidence at position min(int(q B), B - 1) in descending order, so that
            int(q B) images exceed it unless some are equal. 0: ``threshold`` itself.
        threshold: an image counts when its confidence, *without* temperature as published, exceeds this.
        temperature: of the confidences that the quantile is taken of.

    Returns:
        the mean over the V - 1 trained views of the mean over the images that count; 0 when none does.
    """
    logits_VBC, source_2BC = logits_VBC.float(), source_2BC.detach().float()
    views, batch, _ = logits_VBC.shape
    confidence_2B = torch.softmax(source_2BC / temperature, dim=-1).amax(dim=-1)
    best_B = confidence_2B.amax(dim=0)
    limit = best_B.new_full((), threshold)
    if quantile:
        limit = best_B.sort(descending=True).values[min(int(quantile * batch), batch - 1)]
    first_is_weak_B = confidence_2B[0] > confidence_2B[1]
    weak_BC = torch.where(first_is_weak_B[:, None], source_2BC[0], source_2BC[1])
    labels_B = weak_BC.argmax(dim=-1)
    counts_B = torch.softmax(weak_BC, dim=-1).amax(dim=-1) > limit
    strong_BC = torch.where(first_is_weak_B[:, None], logits_VBC[1], logits_VBC[0])
    trained = [strong_BC, *logits_VBC[2:]]
    # a masked sum, not a selection: it keeps the graph when no image counts, and never waits for the device
    total = torch.stack([(F.cross_entropy(one, labels_B, reduction="none") * counts_B).sum() for one in trained]).sum()
    loss = total / counts_B.sum().clamp(min=1) / (views - 1)
    return SelfLabelling(loss, limit, (best_B > limit).float().mean())


@torch.no_grad()
def entropies_of_views(logits_VBC: Tensor, temperature: float, eps: float) -> tuple[Tensor, Tensor]:
    """Mean over the views of their mean entropy and of the entropy of their mean, for the log."""
    rows, means = _entropies(torch.softmax(logits_VBC.float() / temperature, dim=-1), eps)
    return rows.mean(), means.mean()

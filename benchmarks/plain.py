"""Training steps as plain loops: the baselines of `step.py`, `pipeline.py` and `micro.py`.

They compute what our methods compute as a straightforward program does, and as the papers' code does: torch's default
memory layout and convolutions, one call for each crop, pair or parameter, copies of queues, and numbers for the log
read after every step.
"""

from collections.abc import Callable, Sequence

from src.methods.intl import Intl
from src.methods.moco import MoCo
from src.methods.swav import SwAV
from src.methods.twist import Twist
from src.models.backbones.convolution import Conv2d

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Step = Callable[[Sequence[Tensor]], float]


def plain_step(method: SwAV | MoCo | Intl | Twist) -> Step:
    """Takes crops on the device of the method, whose modules it trains; returns the loss. In bf16 on a GPU."""
    for module in method.modules():
        if isinstance(module, Conv2d):
            module.__class__ = nn.Conv2d  # type: ignore[assignment]
    parameters = [p for p in method.parameters() if p.requires_grad]
    device = parameters[0].device
    dtype = torch.bfloat16 if device.type == "cuda" else None
    sgd = torch.optim.SGD(parameters, lr=0.01, momentum=0.9, foreach=False)
    buffers = [torch.zeros_like(p) for p in parameters]

    def step(crops: Sequence[Tensor]) -> float:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            if isinstance(method, SwAV):
                loss = swav_loss(method, crops)
            elif isinstance(method, MoCo):
                loss = moco_loss(method, crops)
            elif isinstance(method, Intl):
                loss = intl_loss(method, crops)
            else:
                loss = twist_loss(method, crops)
        sgd.zero_grad()
        loss.backward()
        if isinstance(method, SwAV):
            plain_larc(parameters, sgd, 1e-6)
        elif isinstance(method, Twist):
            plain_lars(parameters, buffers)
        else:
            sgd.step()
        return loss.item()

    return step


# ---------------------------------------------------------------------------------------------------- SwAV


def swav_loss(method: SwAV, crops: Sequence[Tensor]) -> Tensor:
    with torch.no_grad():
        weight = method.prototypes.heads()[0].weight
        weight.copy_(F.normalize(weight, dim=1))
    scores = method.prototypes.heads()[0](method.embed(crops))
    return plain_loss(scores, len(crops), len(crops[0]))


def plain_sinkhorn(scores: Tensor) -> Tensor:
    q = torch.exp(scores / 0.05).t()
    q /= q.sum()
    for _ in range(3):
        q /= q.sum(dim=1, keepdim=True)
        q /= q.shape[0]
        q /= q.sum(dim=0, keepdim=True)
        q /= q.shape[1]
    return (q * q.shape[1]).t()


def plain_loss(scores: Tensor, num_crops: int, batch_size: int) -> Tensor:
    total = scores.new_zeros(())
    for assigned in (0, 1):
        q = plain_sinkhorn(scores[assigned * batch_size : (assigned + 1) * batch_size].detach().float())
        subloss = scores.new_zeros(())
        for crop in range(num_crops):
            if crop != assigned:
                x = scores[crop * batch_size : (crop + 1) * batch_size] / 0.1
                subloss = subloss - (q * F.log_softmax(x.float(), dim=1)).sum(dim=1).mean()
        total = total + subloss / (num_crops - 1)
    return total / 2


# ---------------------------------------------------------------------------------------------------- MoCo-v2, INTL


def moco_loss(method: MoCo, crops: Sequence[Tensor]) -> Tensor:
    queries = F.normalize(method.head(method.backbone(crops[0])), dim=1)
    with torch.no_grad():
        for network, average in (
            (method.backbone, method.momentum_backbone),
            (method.head, method.momentum_head),
        ):
            for own, averaged in zip(network.parameters(), average.parameters(), strict=True):
                averaged.copy_(averaged * 0.999 + own * 0.001)
        order = torch.randperm(len(crops[1])).to(crops[1].device)
        keys = F.normalize(method.momentum_head(method.momentum_backbone(crops[1][order])), dim=1)
        keys = keys[order.argsort()]
    own_scores = (queries * keys).sum(dim=1, keepdim=True)
    logits = torch.cat([own_scores, queries @ method.queue.clone().detach()], dim=1) / 0.2
    with torch.no_grad():
        first = int(method.queue_ptr)
        method.queue[:, first : first + len(keys)] = keys.T
        method.queue_ptr[0] = (first + len(keys)) % method.queue.shape[1]
        (logits.argmax(dim=1) == 0).float().mean().item()  # the accuracy that is logged
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long).to(logits.device))


def intl_loss(method: Intl, crops: Sequence[Tensor]) -> Tensor:
    transformed = []
    for crop in crops:
        embeddings = method.projection(method.backbone(crop)).float()
        centred = embeddings - embeddings.mean(dim=1, keepdim=True)
        covariance = centred @ centred.T / (embeddings.shape[1] - 1)
        trace = torch.trace(covariance)
        normalised, matrix = covariance / trace, torch.eye(len(covariance)).to(covariance)
        for _ in range(4):
            matrix = 1.5 * matrix - 0.5 * torch.matrix_power(matrix, 3) @ normalised
        transformed.append(matrix @ centred / trace.sqrt())
    total = transformed[0].new_zeros(())
    for later in transformed[1:]:
        total = total + 2 - 2 * F.cosine_similarity(later, transformed[0], dim=1).mean()
    total = total / (len(crops) - 1)
    for one in transformed:
        total = total + method.weight * (one.var(dim=1) - 1).square().sum()
    return total


# ---------------------------------------------------------------------------------------------------- TWIST


def twist_loss(method: Twist, crops: Sequence[Tensor]) -> Tensor:
    features = [method.backbone(torch.cat([c for c in crops if c.shape == shape])) for shape in _shapes(crops)]
    logits = method.projection_heads(torch.cat(features))[1].float().chunk(len(crops))
    total, pairs = logits[0].new_zeros(()), 0
    for i in (0, 1):
        for j in range(i + 1, len(crops)):
            loss, *terms = twist_pair(logits[i], logits[j])
            total, pairs = total + loss, pairs + 1
            [term.item() for term in terms]  # all three are logged
    return total / pairs


def _shapes(crops: Sequence[Tensor]) -> list[torch.Size]:
    return list(dict.fromkeys(crop.shape for crop in crops))


def twist_pair(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    a, b = torch.softmax(first, dim=1), torch.softmax(second, dim=1)
    divergence = ((a * torch.log(a + 1e-5)).sum(dim=1) - (a * torch.log(b + 1e-5)).sum(dim=1)).mean()
    divergence = divergence + ((b * torch.log(b + 1e-5)).sum(dim=1) - (b * torch.log(a + 1e-5)).sum(dim=1)).mean()
    divergence = divergence / 2
    sharpness, diversity = first.new_zeros(()), first.new_zeros(())
    for p in (a, b):
        sharpness = sharpness - (p * torch.log(p + 1e-5)).sum(dim=1).mean() / 2
        mean = p.mean(dim=0)
        diversity = diversity - (mean * torch.log(mean + 1e-5)).sum() / 2
    return divergence + sharpness - diversity, divergence, sharpness, diversity


# ---------------------------------------------------------------------------------------------------- optimisers


@torch.no_grad()
def plain_larc(parameters: Sequence[nn.Parameter], sgd: torch.optim.SGD, weight_decay: float) -> None:
    for parameter in parameters:
        assert parameter.grad is not None
        weight_norm, grad_norm = parameter.norm().item(), parameter.grad.norm().item()
        if weight_norm != 0 and grad_norm != 0:
            rate = 0.001 * weight_norm / (grad_norm + weight_decay * weight_norm + 1e-8)
            parameter.grad.add_(parameter, alpha=weight_decay).mul_(rate)
    sgd.step()


@torch.no_grad()
def plain_lars(parameters: Sequence[nn.Parameter], buffers: list[Tensor]) -> None:
    for parameter, buffer in zip(parameters, buffers, strict=True):
        assert parameter.grad is not None
        update = parameter.grad
        if parameter.ndim > 1:
            update = update.add(parameter, alpha=1e-6)
            weight_norm, update_norm = torch.norm(parameter), torch.norm(update)
            one = torch.ones_like(weight_norm)
            rate = torch.where(
                weight_norm > 0, torch.where(update_norm > 0, 0.001 * weight_norm / update_norm, one), one
            )
            update = update.mul(rate)
        buffer.mul_(0.9).add_(update)
        parameter.add_(buffer, alpha=-1e-3)

"""A linear classifier on frozen features, solved and not trained: nothing to tune, and no random number."""

import torch
from torch import Tensor
from torch.nn import functional as F

from .features import Features
from .knn import top_k_accuracy


@torch.enable_grad()
def linear_probe(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    num_classes: int,
    decay: float = 1e-3,
    iterations: int = 200,
) -> Tensor:
    """Multinomial logistic regression by L-BFGS from zero weights, on features standardised by the training images'.

    Minimises the mean cross-entropy plus ``decay / 2`` times the squared weights, biases apart: scikit-learn's
    ``LogisticRegression`` with ``C = 1 / (decay * N)``.

    Args:
        train_features, test_features: (N, F) and (M, F).
        train_labels: (N,).
        num_classes: C.
        decay: weight of the penalty.
        iterations: at most so many.

    Returns:
        (M, C) logits of the test images.
    """
    train, test = train_features.detach().float(), test_features.detach().float()
    mean, std = train.mean(dim=0), train.std(dim=0, unbiased=False)
    std = torch.where(std > 1e-6 * std.max().clamp_min(1e-12), std, torch.ones_like(std))
    train, test = (train - mean) / std, (test - mean) / std
    weight = torch.zeros(num_classes, train.shape[1], device=train.device, requires_grad=True)
    bias = torch.zeros(num_classes, device=train.device, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=iterations, history_size=20, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        solver.zero_grad()
        value = F.cross_entropy(F.linear(train, weight, bias), train_labels) + decay / 2 * weight.square().sum()
        value.backward()
        return value

    solver.step(loss)
    return F.linear(test, weight.detach(), bias.detach())


def probe_accuracy(train: Features, test: Features, num_classes: int) -> dict[str, float]:
    logits = linear_probe(train.features, train.labels, test.features, num_classes)
    return {"probe_top1": top_k_accuracy(logits.softmax(dim=1), test.labels, 1)}

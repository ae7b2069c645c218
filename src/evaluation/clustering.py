"""Unsupervised classification: how well clusters agree with labels that no training has seen.

Shape suffixes: N = images, K = clusters, C = classes.
"""

import torch
from torch import Tensor, nn

from ..data.loading import loader_of
from ..data.source import ImageSource
from ..data.to_device import ToDevice
from ..data.views import View
from .features import Features, extract_features


def clustering_scores(
    clusters_N: Tensor, labels_N: Tensor, *, probabilities: Tensor | None = None, matched: bool = True
) -> dict[str, float]:
    """Agreement of clusters with labels, in percent; all but ``acc`` as scikit-learn defines them.

    * ``nmi``, ``ami``: mutual information, normalised by the arithmetic mean of the entropies, and adjusted for chance.
    * ``ari``, ``fmi``: adjusted Rand index, Fowlkes-Mallows index.
    * ``acc``: share of the images whose cluster is matched with their class, by the one-to-one matching that makes it
      largest (Hungarian). With more clusters than classes, images of clusters that are left over count as wrong.
    * ``purity``: each cluster stands for its most frequent class; only where there are more clusters than classes,
      because it grows with their number.
    * ``top5``, with probabilities (N, K): one of the five likeliest clusters is matched with the class.

    Args:
        clusters_N, labels_N: int64 from 0 on.
        probabilities: of the clusters.
        matched: compute ``acc`` and what builds on it.
    """
    from sklearn import metrics  # slow to import

    clusters, labels = clusters_N.cpu().numpy(), labels_N.cpu().numpy()
    scores = {
        "nmi": metrics.normalized_mutual_info_score(labels, clusters),
        "ami": metrics.adjusted_mutual_info_score(labels, clusters),
        "ari": metrics.adjusted_rand_score(labels, clusters),
        "fmi": metrics.fowlkes_mallows_score(labels, clusters),
    }
    if matched:
        table = contingency(clusters_N, labels_N)
        classes_K = match(table)
        scores["acc"] = (classes_K[clusters_N.cpu()] == labels_N.cpu()).double().mean().item()
        if table.shape[0] > table.shape[1]:
            scores["purity"] = table.amax(dim=1).sum().item() / table.sum().item()
        if probabilities is not None:
            top = probabilities.topk(min(5, probabilities.shape[1]), dim=1).indices.cpu()
            known = torch.full((probabilities.shape[1],), -1)
            known[: len(classes_K)] = classes_K
            scores["top5"] = (known[top] == labels_N.cpu()[:, None]).any(dim=1).double().mean().item()
    return {name: 100 * float(value) for name, value in scores.items()}


def contingency(clusters_N: Tensor, labels_N: Tensor) -> Tensor:
    """(K, C) int64: how many images of each class each cluster has, up to the largest numbers that occur."""
    classes = int(labels_N.max()) + 1
    pairs = clusters_N.cpu().long() * classes + labels_N.cpu().long()
    return torch.bincount(pairs, minlength=(int(clusters_N.max()) + 1) * classes).view(-1, classes)


def match(table_KC: Tensor) -> Tensor:
    """(K,) int64: the class of each cluster in the one-to-one matching with most images; -1 for clusters left over."""
    from scipy.optimize import linear_sum_assignment

    clusters, classes = linear_sum_assignment(table_KC.numpy(), maximize=True)
    matched = torch.full((len(table_KC),), -1)
    matched[torch.as_tensor(clusters)] = torch.as_tensor(classes)
    return matched


class ClassProbabilities(nn.Module):
    """Images (n, 3, s, s) -> probabilities of the classes (n, K): a backbone, and a head that makes logits."""

    def __init__(self, backbone: nn.Module, head: nn.Module, temperature: float = 1.0) -> None:
        super().__init__()
        self.backbone, self.head, self.temperature = backbone, head, temperature

    def forward(self, images: Tensor) -> Tensor:
        logits = self.head(self.backbone(images))
        if isinstance(logits, tuple):  # TWIST's head also gives what its last norm sees
            logits = logits[-1]
        return torch.softmax(logits.float() / self.temperature, dim=1)


def class_prediction(
    backbone: nn.Module,
    head: nn.Module,
    images: ImageSource,
    view: View,
    prepare: ToDevice,
    workers: int,
    temperature: float = 1.0,
    batch_size: int = 256,
    what: str = "",
) -> Features:
    """Probabilities (N, K) in the place of features, of all images, in eval mode, shared out over the ranks."""
    network = ClassProbabilities(backbone, head, temperature)
    network.train(backbone.training)
    loader = loader_of(images, view, batch_size, workers, prepare.device)
    return extract_features(network, loader, prepare, what)

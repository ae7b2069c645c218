"""k-nearest-neighbour classification of frozen features."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.data.datasets import ImageSource
from src.data.loading import ToDevice, loader_of
from src.data.views import View
from src.errors import UserError
from src.evaluation.features import extract_features


@torch.no_grad()
def knn_predict(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    *,
    ks: Sequence[int],
    num_classes: int,
    temperature: float = 0.07,
    chunk: int = 1024,
) -> dict[int, Tensor]:
    """Weighted kNN by cosine similarity (Wu et al. 2018, arXiv 1805.01978, section 3.4).

    Each of the k nearest training samples votes for its class with weight exp(similarity / temperature).

    Args:
        train_features, test_features: (N, F) and (M, F), of any norm.
        train_labels: (N,).
        ks: numbers of neighbours; one larger than N is an error of the user's.
        num_classes: C.
        temperature: of the weights; ``inf`` counts every neighbour alike.
        chunk: test samples compared at a time, which bounds the memory at chunk x N similarities.

    Returns:
        for each k the summed votes (M, C).
    """
    if max(ks) > len(train_features):
        raise UserError(f"kNN with {max(ks)} neighbours needs as many training images; there are {len(train_features)}")
    bank = F.normalize(train_features.float(), dim=1)
    votes: dict[int, list[Tensor]] = {k: [] for k in ks}
    for part in F.normalize(test_features.float(), dim=1).split(chunk):
        similarity, neighbours = (part @ bank.T).topk(max(ks), dim=1)
        weights = torch.exp((similarity - 1.0) / temperature)
        labels = train_labels[neighbours]
        for k in ks:
            scores = weights.new_zeros(len(part), num_classes)
            votes[k].append(scores.scatter_add_(1, labels[:, :k], weights[:, :k]))
    return {k: torch.cat(parts) for k, parts in votes.items()}


def top_k_accuracy(scores: Tensor, labels: Tensor, k: int) -> float:
    """Share of samples, in percent, whose label is among the k best of the scores (M, C)."""
    k = min(k, scores.shape[1])
    hits = (scores.topk(k, dim=1).indices == labels[:, None]).any(dim=1)
    return 100.0 * hits.float().mean().item()


@dataclass
class KNNEvaluation:
    """kNN accuracy of a backbone from one set of images to another: what training shows while it runs.

    Attributes:
        train, test: labelled images.
        view: the deterministic view of both.
        k: neighbours.
    """

    train: ImageSource
    test: ImageSource
    view: View
    prepare: ToDevice
    k: int = 20
    batch_size: int = 256
    workers: int = 2

    def __post_init__(self) -> None:
        if self.train.classes != self.test.classes:
            raise UserError(
                f"training and validation images have different classes ({len(self.train.classes)} and "
                f"{len(self.test.classes)})"
            )
        if self.k > len(self.train):
            raise UserError(f"--knn_k {self.k}: only {len(self.train)} training images")

    def __call__(self, backbone: nn.Module) -> dict[str, float]:
        device = self.prepare.device
        banks = [
            extract_features(
                backbone, loader_of(source, self.view, self.batch_size, self.workers, device), self.prepare, "kNN"
            )
            for source in (self.train, self.test)
        ]
        (train_features, train_labels), (test_features, test_labels) = banks
        scores = knn_predict(
            train_features, train_labels, test_features, ks=[self.k], num_classes=len(self.train.classes)
        )[self.k]
        return {"knn_top1": top_k_accuracy(scores, test_labels, 1)}

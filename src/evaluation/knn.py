"""k-nearest-neighbour classification of frozen features."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.views import CentreView
from ..errors import UserError
from ..parallel import collectives
from ..settings import setting
from .features import Features


@dataclass(frozen=True)
class OnlineKNNSettings:
    """Online evaluation"""

    knn_freq: int = setting(0, "classify images by kNN every so many epochs; 0 = never", at_least=0, at_most=1e9)
    val_path: str | None = setting(
        None, "labelled images to be classified by kNN; default: the folder val or test beside the training images"
    )
    knn_k: int = setting(20, "number of neighbours", at_least=1, at_most=1e6)
    knn_rule: str = setting(
        "weighted", "how neighbours vote, as --rule of eval_knn.py", choices=["weighted", "majority"]
    )
    knn_train_images: int = setting(
        50_000, "training images used as neighbours, evenly spread over the data set", at_least=1, at_most=1e9
    )
    eval_size: int | None = setting(
        None,
        "side of the evaluated centre crop in pixels; default: that of the training's first crop",
        at_least=1,
        at_most=4096,
    )
    eval_resize: int | None = setting(
        None,
        "images are resized to this short side before it; default: 256/224 of --eval_size",
        at_least=1,
        at_most=8192,
    )

    def view(self, training_size: int, bicubic: bool = False) -> CentreView:
        """How evaluated images are shown to a network that is trained on crops of ``training_size`` pixels."""
        size = self.eval_size or training_size
        return CentreView(size, self.eval_resize or round(size * 256 / 224), bicubic)


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

    Each of the k nearest training samples votes for its class with weight exp(similarity / temperature), in units of
    the nearest one's.

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
    _require(max(ks), len(train_features))
    bank = F.normalize(train_features.float(), dim=1)
    votes: dict[int, list[Tensor]] = {k: [] for k in ks}
    for part in F.normalize(test_features.float(), dim=1).split(chunk):
        similarity, neighbours = (part @ bank.T).topk(max(ks), dim=1)
        # relative to the nearest: at low temperatures all weights would otherwise be 0
        weights = torch.exp((similarity - similarity[:, :1]) / temperature)
        labels = train_labels[neighbours]
        for k in votes:
            scores = weights.new_zeros(len(part), num_classes)
            votes[k].append(scores.scatter_add_(1, labels[:, :k], weights[:, :k]))
    return {k: torch.cat(parts) for k, parts in votes.items()}


@torch.no_grad()
def nearest_majority(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    *,
    ks: Sequence[int],
    num_classes: int,
    chunk: int = 1024,
) -> dict[int, Tensor]:
    """kNN of INTL's and CW-RGP's small-data evaluation: Euclidean distance of raw features, one vote a neighbour.

    Of classes with equally many votes the one with the smallest number wins. Arguments and result as for
    :func:`knn_predict`; the votes of a class are lowered by its number / (num_classes + 1), which decides ties so.
    """
    _require(max(ks), len(train_features))
    bank = train_features.float()
    tie_break = torch.arange(num_classes, device=bank.device) / (num_classes + 1)
    votes: dict[int, list[Tensor]] = {k: [] for k in ks}
    for part in test_features.float().split(chunk):
        # not by the product of the two matrices: its rounding swaps neighbours that are nearly as far
        distance = torch.cdist(part, bank, compute_mode="donot_use_mm_for_euclid_dist")
        labels = train_labels[distance.topk(max(ks), dim=1, largest=False).indices]
        for k in votes:
            counts = F.one_hot(labels[:, :k], num_classes).sum(dim=1)
            votes[k].append(counts - tie_break)
    return {k: torch.cat(parts) for k, parts in votes.items()}


def _require(k: int, images: int) -> None:
    if k > images:
        raise UserError(f"kNN with {k} neighbours needs as many training images; there are {images}")


def over_ranks(predict: Callable[[Tensor], dict[int, Tensor]], test_features: Tensor) -> dict[int, Tensor]:
    """``predict(test_features)``, each rank a part of the test samples; the same on every rank, in their order."""
    world, rank = collectives.world_size(), collectives.rank()
    if world == 1:
        return predict(test_features)
    mine = torch.arange(rank, len(test_features), world, device=test_features.device)
    order = collectives.all_gather_rows(mine).argsort()
    return {k: collectives.all_gather_rows(scores)[order] for k, scores in predict(test_features[mine]).items()}


def top_k_accuracy(scores: Tensor, labels: Tensor, k: int) -> float:
    """Share of samples, in percent, whose label is among the k classes with most votes (M, C).

    Only classes with a vote count, which are those with a positive score.
    """
    best = scores.topk(min(k, scores.shape[1]), dim=1)
    hits = ((best.indices == labels[:, None]) & (best.values > 0)).any(dim=1)
    return 100.0 * hits.float().mean().item()


def knn_accuracy(
    train: Features, test: Features, num_classes: int, *, k: int = 20, majority: bool = False
) -> dict[str, float]:
    """Percent of the test images, by :func:`nearest_majority` or :func:`knn_predict`, each rank a part of them."""
    rule = nearest_majority if majority else knn_predict
    predict = partial(rule, train.features, train.labels, ks=[k], num_classes=num_classes)
    return {"knn_top1": top_k_accuracy(over_ranks(predict, test.features)[k], test.labels, 1)}

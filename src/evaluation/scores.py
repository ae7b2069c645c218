"""Scores of features without any label, and how far each can be trusted."""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.loading import loader_of
from ..data.source import ImageSource
from ..data.to_device import ToDevice
from ..data.view_sets.moco import moco
from ..data.views import CentreView, View
from ..engine.diagnostics import rankme
from .features import extract_features

VIEWS = 8  # random ones of each image
CLUSTERS = 10
SPLITS = 5


class Score(NamedTuple):
    """What a score is.

    Attributes:
        name: in logs and tables.
        title: for people.
        better: which way is better, in words.
        sign: 1 where more is better, -1 where less is.
    """

    name: str
    title: str
    better: str
    sign: int


SCORES = (
    Score("rankme", "RankMe", "more", 1),
    Score("alpha_req", "alpha-ReQ", "less", -1),
    Score("lidar", "LiDAR", "more", 1),
    Score("alignment", "alignment", "less", -1),
    Score("uniformity", "uniformity", "less", -1),
    Score("cluster_stability", "cluster stability", "more", 1),
)


@torch.no_grad()
def alpha_req(features_NF: Tensor) -> float:
    """The exponent alpha of the power law that the eigenvalues of the features' covariance follow.

    alpha-ReQ (Agrawal et al. 2022, NeurIPS): minus the slope of log eigenvalue against log rank, by least squares over
    all eigenvalues above 1e-6 of the largest. The range is a choice: the paper fits "the middle" by eye. nan for
    features that are not finite or have fewer than three directions.
    """
    centred = features_NF.double() - features_NF.double().mean(dim=0)
    if not torch.isfinite(centred).all():
        return float("nan")
    values = torch.linalg.svdvals(centred).square()
    values = values[values > 1e-6 * values[0]]
    if len(values) < 3:
        return float("nan")
    ranks = np.log(np.arange(1, len(values) + 1))
    return float(-np.polyfit(ranks, values.log().cpu().numpy(), 1)[0])


@torch.no_grad()
def lidar(features_NVF: Tensor, delta: float = 1e-4) -> float:
    """Effective rank of what tells images apart, against what tells views of one image apart.

    LiDAR (Thilak et al. 2024, arXiv 2312.04000, eq. 3 and 4), where each image is a class and its V views are the
    samples: the exponential of the entropy of the eigenvalues of W^-1/2 B W^-1/2, with B the covariance of the images'
    means and W the mean covariance within an image plus ``delta`` (relative to its mean diagonal, so that the score
    does not depend on the features' scale). Of the backbone's features, not of a head's: hence "LiDAR-like".
    """
    x = features_NVF.double()
    if not torch.isfinite(x).all():
        return float("nan")
    means = x.mean(dim=1)
    within = (x - means[:, None]).flatten(0, 1)
    w = within.T @ within / max(1, len(x) * (x.shape[1] - 1))
    size = w.diagonal().mean()
    if size == 0:
        return float("nan")  # views do not differ at all
    w += delta * size * torch.eye(len(w), device=w.device, dtype=w.dtype)
    centred = means - means.mean(dim=0)
    b = centred.T @ centred / max(1, len(x) - 1)
    root = torch.linalg.cholesky(w)
    left = torch.linalg.solve_triangular(root, b, upper=False)
    values = torch.linalg.eigvalsh(torch.linalg.solve_triangular(root, left.T, upper=False)).clamp_min(0)
    p = values / values.sum().clamp_min(1e-300) + 1e-7
    return float(torch.exp(-(p * p.log()).sum()))


@torch.no_grad()
def alignment(features_NVF: Tensor) -> float:
    """Mean squared distance of unit features of two views of an image, over all pairs of its views (Wang & Isola 2020,
    arXiv 2005.10242, eq. 1 with alpha 2)."""
    unit = F.normalize(features_NVF.double(), dim=2)
    views = unit.shape[1]
    # the mean of |x_i - x_j|^2 over pairs i != j
    return float(2 * (1 - (unit.sum(dim=1).square().sum(dim=1) - views) / (views * (views - 1))).mean())


@torch.no_grad()
def uniformity(features_NF: Tensor) -> float:
    """log of the mean of exp(-2 |x - y|^2) over pairs of unit features of different images (the same paper, eq. 2)."""
    unit = F.normalize(features_NF.double(), dim=1)
    return float(torch.pdist(unit).square().mul(-2).exp().mean().log())


def cluster_stability(features_NF: Tensor, clusters: int = CLUSTERS, splits: int = SPLITS, seed: int = 0) -> float:
    """How alike two k-means clusterings are that were made from two halves of the images: the adjusted Rand index of
    what both say of all images, mean over ``splits`` draws of the halves (after Lange et al. 2004, Neural Computation
    16). 1 for the same clusters every time, about 0 for unrelated ones; nan for features of fewer values than
    clusters, which are the same every time, too."""
    from sklearn.cluster import KMeans  # slow to import
    from sklearn.metrics import adjusted_rand_score

    rows = F.normalize(features_NF.float(), dim=1).cpu().numpy()
    if not np.isfinite(rows).all() or len(rows) < 4 * clusters or len(np.unique(rows.round(4), axis=0)) < 2 * clusters:
        return float("nan")
    generator = np.random.default_rng(seed)
    found = []
    for split in range(splits):
        order = generator.permutation(len(rows))
        halves = np.array_split(order, 2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of equal features in a half
            labels = [KMeans(clusters, n_init=3, random_state=split).fit(rows[half]).predict(rows) for half in halves]
        found.append(adjusted_rand_score(*labels))
    return float(np.mean(found))


def scores_of(features_NVF: Tensor, seed: int = 0) -> dict[str, float]:
    """All of SCORES by name.

    Args:
        features_NVF: of N images, the first of an image's views being the centre and the others random.
        seed: of the halves.
    """
    centre, views = features_NVF[:, 0], features_NVF[:, 1:]
    return {
        "rankme": float(rankme(centre.double())),
        "alpha_req": alpha_req(centre),
        "lidar": lidar(views),
        "alignment": alignment(views),
        "uniformity": uniformity(centre),
        "cluster_stability": cluster_stability(centre, seed=seed),
    }


def features_of_views(
    backbone: torch.nn.Module,
    images: ImageSource,
    centre: CentreView,
    prepare: ToDevice,
    *,
    batch_size: int,
    workers: int,
    what: str = "",
) -> Tensor:
    """(N, 1 + VIEWS, F): of the centre and of random views, MoCo-v2's, whose draws are the same at every call."""
    view = moco(True, centre.size, blur=0.5 if centre.size > 64 else 0.0)[0]  # its colours are left out without RGB
    views: Sequence[View] = [centre, *[view] * VIEWS]
    loader = loader_of(images, views, batch_size, workers, prepare.device)
    found = extract_features(backbone, loader, prepare, what)
    return found.features.unflatten(1, (len(views), -1))

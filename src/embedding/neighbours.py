"""Which images a network finds alike, which it finds unlike all others, and which are all but the same.

Shape suffixes: N = images, F = features, K = neighbours.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..ops.kmeans import chunk_bytes_on

NEIGHBOURS = 12
UNUSUAL_BY = 10  # neighbours whose mean similarity says how usual an image is
SAME_PIXELS, SAME_LEVELS = 0.97, 8.0  # least correlation, and largest mean difference in levels
FLAT = 2.0  # levels: images that vary less have no pattern that could be compared


@torch.no_grad()
def nearest(features_NF: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The most similar other rows of each row, by cosine: similarities and numbers, (N, K), the nearest first.

    K is ``count``, or N - 1 where there are fewer. Computed in blocks, which bounds the memory.
    """
    unit = F.normalize(features_NF.float(), dim=1)
    count = min(count, len(unit) - 1)
    rows = max(1, chunk_bytes_on(unit.device) * 16 // (4 * len(unit)))
    similarities, numbers = [], []
    for first in range(0, len(unit), rows):
        part = unit[first : first + rows]
        found = part @ unit.T
        found[torch.arange(len(part)), torch.arange(first, first + len(part))] = -torch.inf
        values, indices = found.topk(count, dim=1)
        similarities.append(values)
        numbers.append(indices)
    return torch.cat(similarities), torch.cat(numbers)


def most_unusual(similarities_NK: Tensor, count: int) -> Tensor:
    """Rows with the lowest mean similarity to their UNUSUAL_BY nearest, the lowest first (Ramaswamy et al. 2000)."""
    usual = similarities_NK[:, :UNUSUAL_BY].mean(dim=1)
    return usual.argsort(stable=True)[:count]


def near_duplicates(neighbours_NK: np.ndarray, pixels: np.ndarray) -> list[list[int]]:
    """Groups of images that are all but the same, also mirrored; larger groups first.

    The network's neighbours say which pairs are compared, and pixels decide: small grey versions with a correlation of
    SAME_PIXELS or more and levels that differ by no more than SAME_LEVELS on average. So a network that finds all
    images alike does not call them duplicates.

    Args:
        neighbours_NK: numbers of each image's nearest ones.
        pixels: (N, s, s) uint8.

    Returns:
        lists of two numbers or more, ascending.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    count = len(pixels)
    if not neighbours_NK.size:
        return []
    left = np.repeat(np.arange(count), neighbours_NK.shape[1])
    right = neighbours_NK.reshape(-1)
    same = np.zeros(len(left), dtype=bool)
    for first in range(0, len(left), 1 << 16):
        some = slice(first, first + (1 << 16))
        same[some] = _same(pixels[left[some]], pixels[right[some]])
    graph = coo_matrix((np.ones(same.sum()), (left[same], right[same])), shape=(count, count))
    groups, member_of = connected_components(graph, directed=False)
    sizes = np.bincount(member_of, minlength=groups)
    found = [np.flatnonzero(member_of == group).tolist() for group in np.flatnonzero(sizes > 1)]
    return sorted(found, key=lambda group: (-len(group), group[0]))


def _same(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Whether each of n pairs of (n, s, s) shows the same, as it is or mirrored."""
    return _alike(left, right) | _alike(left, right[:, :, ::-1])


def _alike(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    a, b = (pixels.reshape(len(pixels), -1).astype(np.float32) for pixels in (left, right))
    difference = np.abs(a - b).mean(axis=1)
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    spread = np.sqrt((a * a).mean(axis=1)), np.sqrt((b * b).mean(axis=1))
    flat = (spread[0] < FLAT) & (spread[1] < FLAT)
    alike = (a * b).mean(axis=1) >= SAME_PIXELS * np.maximum(spread[0] * spread[1], FLAT * FLAT)
    return np.where(flat, difference < FLAT, alike & (difference <= SAME_LEVELS))


@dataclass(frozen=True)
class Clusters:
    """k-means of unit features.

    Attributes:
        labels: (N,), the largest cluster is 0.
        order: for each cluster its images, the one nearest to the centre first.
    """

    labels: np.ndarray
    order: list[np.ndarray]


def unit_rows(features_NF: np.ndarray) -> np.ndarray:
    """The same directions with length 1."""
    return features_NF / np.maximum(np.linalg.norm(features_NF, axis=1, keepdims=True), 1e-12)


def cluster(features_NF: np.ndarray, count: int, seed: int) -> Clusters:
    """scikit-learn's k-means, the best of three starts; fewer clusters where there are fewer images."""
    from sklearn.cluster import KMeans  # slow to import

    unit = unit_rows(features_NF)
    distinct = len(np.unique(unit.round(5), axis=0))
    fitted = KMeans(min(count, distinct), n_init=3, random_state=seed).fit(unit)
    sizes = np.bincount(fitted.labels_, minlength=fitted.n_clusters)
    by_size = np.argsort(-sizes, kind="stable")
    order = []
    labels = np.empty(len(unit), dtype=np.int64)
    for number, own in enumerate(by_size):
        members = np.flatnonzero(fitted.labels_ == own)
        labels[members] = number
        distance = ((unit[members] - fitted.cluster_centers_[own]) ** 2).sum(axis=1)
        order.append(members[np.argsort(distance, kind="stable")])
    return Clusters(labels, order)

"""Spherical k-means over the features of all ranks, as DeepCluster-v2 clusters them.

Shape suffixes: M = samples of this rank, D = feature size, K = clusters.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from ..parallel import collectives


def chunk_bytes_on(device: torch.device) -> int:
    """How many bytes of scores to hold at a time: enough to keep a GPU busy, few enough for a CPU's cache."""
    return 1 << 22 if device.type == "cpu" else 1 << 28


@torch.no_grad()
def assign(features_MD: Tensor, centroids_KD: Tensor, chunk_bytes: int | None = None) -> Tensor:
    """The centroid with the largest inner product, (M,) int64; at a tie the first. Computed in float32, in chunks."""
    rows = max(1, (chunk_bytes or chunk_bytes_on(features_MD.device)) // (4 * len(centroids_KD)))
    transposed = centroids_KD.float().T.contiguous()
    scores = transposed.new_empty(min(rows, len(features_MD)), len(centroids_KD))  # its pages are touched once only
    labels = torch.empty(len(features_MD), dtype=torch.int64, device=features_MD.device)
    for chunk, part in zip(features_MD.split(rows), labels.split(rows), strict=True):
        torch.argmax(torch.mm(chunk.float(), transposed, out=scores[: len(chunk)]), dim=1, out=part)
    return labels


@torch.no_grad()
def spherical_kmeans(
    features_MD: Tensor,
    centroids_KD: Tensor,
    iterations: int = 10,
    *,
    chunk_bytes: int | None = None,
    progress: Callable[[int], object] = lambda done: None,
) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm with unit centroids (Caron et al. 2020, arXiv 2006.09882, appendix D).

    Each iteration assigns every sample to the centroid with the largest cosine and replaces each centroid by the
    normalised mean of its samples on all ranks. A cluster without samples keeps its centroid. There is no balancing,
    no re-seeding and no test for convergence. The result on W ranks equals that of one process on all rows, up to
    the order of summation.

    Args:
        features_MD: unit rows.
        centroids_KD: where to start, equal on all ranks; left alone.
        iterations: updates of the centroids; there is one more assignment than that.
        chunk_bytes: bound on the memory for scores; by default :func:`chunk_bytes_on`.
        progress: told the number of finished iterations.

    Returns:
        centroids (K, D) float32, equal on all ranks, and the assignments (M,) int64 of this rank's samples.
    """
    with torch.autocast(features_MD.device.type, enabled=False):
        centroids = centroids_KD.float().clone()
        for done in range(iterations):
            labels = assign(features_MD, centroids, chunk_bytes)
            sums = torch.zeros_like(centroids).index_add_(0, labels, features_MD.float())
            counts = torch.bincount(labels, minlength=len(centroids))
            collectives.all_reduce_(sums)
            collectives.all_reduce_(counts, dist.ReduceOp.SUM)
            has_samples = (counts > 0).unsqueeze(1)
            centroids = F.normalize(torch.where(has_samples, sums / counts.clamp(min=1).unsqueeze(1), centroids), dim=1)
            progress(done + 1)
        return centroids, assign(features_MD, centroids, chunk_bytes)

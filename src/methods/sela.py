"""SeLa-v2: predicting balanced clusters, found by optimal transport between epochs (Caron et al. 2020, app. D).

The paper discloses that it is DeepCluster-v2 with Asano et al.'s self-labelling (2020, arXiv 1911.05371) in the place
of k-means, and prototypes that are trained. It discloses neither the entropy parameter nor how the transport is
solved; those choices are ours and are flags: ``--sela_epsilon``, ``--sela_iterations``, ``--sela_tolerance``. Labels
are the largest entry of each row ("discrete codes work well offline"); prototypes are normalised before each step, as
SwAV's.
"""

from typing import Any

import torch
from torch import Tensor, nn

from src import distributed
from src.clock import Clock
from src.heads import Prototypes, normalize_rows_
from src.kmeans import CHUNK_BYTES
from src.methods.offline import OfflineAssignments


class SeLaV2(OfflineAssignments):
    """Clusters by Sinkhorn-Knopp over the whole data set, so that all clusters get equal mass.

    Args:
        backbone, options: see :class:`OfflineAssignments`.
        epsilon: entropy parameter of the transport; the original SeLa's lambda of 25 corresponds to
            ``temperature / 25``.
        iterations, tolerance: of :func:`balanced_labels`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        epsilon: float = 0.05,
        iterations: int = 100,
        tolerance: float = 0.1,
        **options: Any,
    ) -> None:
        super().__init__(backbone, **options)
        self.epsilon, self.iterations, self.tolerance = epsilon, iterations, tolerance

    def before_step(self, clock: Clock) -> None:
        for head in self.prototypes.heads():
            normalize_rows_(head.weight)

    def assign(self, head: Prototypes, features_MD: Tensor) -> Tensor:
        normalize_rows_(head.weight)
        return balanced_labels(features_MD, head.weight, self.epsilon, self.iterations, self.tolerance)


@torch.no_grad()
def balanced_labels(
    features_MD: Tensor,
    prototypes_KD: Tensor,
    epsilon: float,
    iterations: int,
    tolerance: float,
    chunk_bytes: int = CHUNK_BYTES,
) -> Tensor:
    """Labels of all ranks' rows under equal cluster sizes: the largest entries of the optimal transport plan.

    Sinkhorn's scaling of ``exp(scores / epsilon)`` with two vectors: ``r = 1 / (K M c)``, ``c = 1 / (N M^T r)``
    (Asano et al. 2020, eq. 7), until ``sum |c / c_new - 1| <= tolerance`` over all samples, looked at every ten
    iterations. The matrix is never kept: each pass computes it again in chunks. In float64, so that any epsilon is
    safe.

    Args:
        features_MD, prototypes_KD: unit rows.
        epsilon: entropy parameter.
        iterations: at most so many.
        tolerance: of the stopping rule.
        chunk_bytes: bound on the memory for the matrix.

    Returns:
        (M,) int64.
    """
    samples = distributed.all_reduce_(torch.tensor(len(features_MD), device=features_MD.device)).item()
    clusters = len(prototypes_KD)
    prototypes = prototypes_KD.double().T
    chunks = features_MD.split(max(1, chunk_bytes // (8 * clusters)))

    def kernel(chunk: Tensor) -> Tensor:
        return torch.exp((chunk.double() @ prototypes - 1.0) / epsilon)

    per_sample = [torch.ones(len(chunk), dtype=torch.float64, device=chunk.device) for chunk in chunks]
    per_cluster = prototypes.new_ones(clusters)
    for iteration in range(iterations):
        mass = prototypes.new_zeros(clusters)
        for chunk, c in zip(chunks, per_sample, strict=True):
            mass += kernel(chunk).T @ c
        per_cluster = 1.0 / (clusters * distributed.all_reduce_(mass))
        updated = [1.0 / (samples * (kernel(chunk) @ per_cluster)) for chunk in chunks]
        change = prototypes.new_zeros(())
        for old, new in zip(per_sample, updated, strict=True):
            change += (old / new - 1.0).abs().sum()
        per_sample = updated
        if iteration % 10 == 9 and distributed.all_reduce_(change) <= tolerance:
            break
    log_r = per_cluster.log()
    labels = [((chunk.double() @ prototypes) / epsilon + log_r).argmax(dim=1) for chunk in chunks]
    return torch.cat(labels) if labels else torch.empty(0, dtype=torch.int64, device=features_MD.device)

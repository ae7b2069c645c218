"""DeepCluster-v2: predicting the k-means clusters of the epoch before (Caron et al. 2020, arXiv 2006.09882, app. D)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.method import Scale
from ..ops.kmeans import spherical_kmeans
from ..parallel import collectives
from ..parallel.sharding import part_like, whole
from ..settings import setting
from .offline import OfflineAssignments, Progress, offline_options
from .prototype_base import PrototypeSettings


@dataclass(frozen=True)
class DeepClusterSettings:
    """DeepCluster-v2"""

    kmeans_iterations: int = setting(10, "updates of the centroids in each clustering", at_least=1, at_most=1e6)


class DeepClusterV2(OfflineAssignments):
    """Clusters by spherical k-means, and makes the centroids the prototypes, which are never trained.

    The first process draws the initial centroids among its own rows. An empty cluster keeps its centroid.

    Args:
        backbone, options: see :class:`OfflineAssignments`.
        kmeans_iterations: updates of the centroids; 10 as published.
    """

    def __init__(self, backbone: nn.Module, *, kmeans_iterations: int = 10, **options: Any) -> None:
        super().__init__(backbone, **options)
        self.kmeans_iterations = kmeans_iterations

    @classmethod
    def build(
        cls, backbone: nn.Module, prototypes: PrototypeSettings, own: DeepClusterSettings, scale: Scale, **more: Any
    ) -> "DeepClusterV2":
        return cls(backbone, **offline_options(prototypes, scale), kmeans_iterations=own.kmeans_iterations, **more)

    def assign(self, head: int, features_MD: Tensor, progress: Progress) -> Tensor:
        weight = self.prototypes.heads()[head].weight  # of which a rank may hold a part
        start = torch.empty_like(whole(weight))
        if collectives.is_main():
            start.copy_(features_MD[torch.randperm(len(features_MD))[: len(start)].to(features_MD.device)])
        collectives.broadcast_([start])
        centroids, labels = spherical_kmeans(
            features_MD, start, self.kmeans_iterations, progress=lambda done: progress()
        )
        weight.copy_(part_like(weight, centroids))
        return labels

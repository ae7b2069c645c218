"""SeLa-v2: predicting balanced clusters, found by optimal transport between epochs (Caron et al. 2020, app. D).

The paper discloses that it is DeepCluster-v2 with Asano et al.'s self-labelling (2020, arXiv 1911.05371) in the place
of k-means, that prototypes are trained, and that discrete codes work well offline. It discloses neither the entropy
parameter nor how the transport is solved; those choices are ours and are flags: ``--sela_epsilon``,
``--sela_iterations``, ``--sela_tolerance``, and ``--sela_hard false`` for codes that are not discrete. Prototypes are
normalised before each step, as SwAV's.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..clock import Clock
from ..engine.method import Scale
from ..errors import UserError
from ..losses.cluster_prediction import IGNORED
from ..models.heads import normalize_rows_
from ..ops.kmeans import chunk_bytes_on
from ..parallel import collectives
from ..parallel.sharding import whole
from ..parallel.virtual import keeps_state
from ..settings import setting
from .offline import OfflineAssignments, Progress, offline_options
from .prototype_base import PrototypeSettings


@dataclass(frozen=True)
class SeLaSettings:
    """SeLa-v2"""

    sela_epsilon: float = setting(0.05, "entropy of the transport; SeLa's own is 0.004", above=0, at_most=100)
    sela_iterations: int = setting(100, "number of the transport's iterations, at most", at_least=1, at_most=1e6)
    sela_tolerance: float = setting(0.1, "change at which the iterations stop", at_least=0, at_most=1e12)
    sela_hard: bool = setting(True, "true: predict an image's cluster; false: predict its code")


class SeLaV2(OfflineAssignments):
    """Clusters by Sinkhorn-Knopp over the whole data set, so that all clusters get equal mass.

    Args:
        backbone, options: see :class:`OfflineAssignments`.
        epsilon: entropy parameter of the transport; the original SeLa's lambda of 25 corresponds to
            ``temperature / 25``.
        iterations, tolerance: of :func:`transport`.
        hard: predict the largest entry of an image's code; otherwise the code itself. Codes are not stored (for
            ImageNet they would fill 15 GB a head) but computed again from what they were made of: the embeddings of
            all images, the prototypes, and the scaling of each cluster, which are buffers, equal on all ranks.
    """

    coded_embeddings: Tensor
    coded_prototypes: Tensor
    coded_scaling: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        *,
        epsilon: float = 0.05,
        iterations: int = 100,
        tolerance: float = 0.1,
        hard: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(backbone, **options)
        self.epsilon, self.iterations, self.tolerance, self.hard = epsilon, iterations, tolerance, hard
        if not hard:
            heads, (slots, _, dim) = self.prototypes.heads(), self.bank.shape
            if len({head.out_features for head in heads}) > 1:
                raise ValueError("soft codes need heads with equally many prototypes")
            self.register_buffer("coded_embeddings", torch.zeros(slots, self.labels.shape[1], dim))
            self.register_buffer("coded_prototypes", torch.zeros(len(heads), heads[0].out_features, dim))
            self.register_buffer("coded_scaling", torch.zeros(len(heads), heads[0].out_features, dtype=torch.float64))

    @classmethod
    def build(
        cls, backbone: nn.Module, prototypes: PrototypeSettings, own: SeLaSettings, scale: Scale, **more: Any
    ) -> "SeLaV2":
        if not own.sela_hard and len(set(prototypes.nmb_prototypes)) > 1:
            raise UserError("--sela_hard false needs heads with equally many prototypes")
        return cls(
            backbone,
            **offline_options(prototypes, scale),
            epsilon=own.sela_epsilon,
            iterations=own.sela_iterations,
            tolerance=own.sela_tolerance,
            hard=own.sela_hard,
            **more,
        )

    def before_step(self, clock: Clock) -> None:
        for head in self.prototypes.heads():
            normalize_rows_(head.weight)

    def assign(self, head: int, features_MD: Tensor, progress: Progress) -> Tensor:
        weight = self.prototypes.heads()[head].weight
        if keeps_state():
            normalize_rows_(weight)
        prototypes = whole(weight)  # a rank may hold a part
        plan = transport(features_MD, prototypes, self.epsilon, self.iterations, self.tolerance, progress=progress)
        if not self.hard:
            self.coded_prototypes[head].copy_(prototypes)
            self.coded_scaling[head].copy_(plan.log_scaling)
        return plan.labels

    def _assign_all(self) -> None:
        super()._assign_all()
        if self.hard:
            return
        filled = (self.bank[0] != 0).any(dim=1)
        images, order = collectives.all_gather_rows(self.bank_images[filled]).sort(stable=True)
        last = torch.cat([images[1:] != images[:-1], images.new_ones(1, dtype=torch.bool)])  # of an image's rows
        for slot, rows in zip(self.coded_embeddings, self.bank, strict=True):
            slot.zero_()
            slot[images[last]] = collectives.all_gather_rows(rows[filled])[order[last]]

    @torch.no_grad()
    def targets(self, head: int, images_B: Tensor) -> Tensor:
        if self.hard:
            return super().targets(head, images_B)
        embeddings = self.coded_embeddings[head % len(self.bank), images_B]
        codes = transport_codes(embeddings, self.coded_prototypes[head], self.epsilon, self.coded_scaling[head])
        return codes.float() * (self.labels[head, images_B] != IGNORED).unsqueeze(1)


class Transport(NamedTuple):
    """A transport plan. ``labels`` (M,) int64: the largest entry of each row; ``log_scaling`` (K,) float64: log r."""

    labels: Tensor
    log_scaling: Tensor


def transport_codes(features: Tensor, prototypes_KD: Tensor, epsilon: float, log_scaling: Tensor) -> Tensor:
    """(n, K) float64: rows of the transport plan, each scaled to the sum 1."""
    scores = features.double() @ prototypes_KD.double().T
    return torch.softmax(scores / epsilon + log_scaling, dim=1)


@torch.no_grad()
def transport(
    features_MD: Tensor,
    prototypes_KD: Tensor,
    epsilon: float,
    iterations: int,
    tolerance: float,
    *,
    chunk_bytes: int | None = None,
    progress: Progress = lambda: None,
) -> Transport:
    """The optimal transport of all ranks' rows to clusters of equal size, with entropy.

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
        progress: called once an iteration.
    """
    samples = collectives.all_reduce_(torch.tensor(len(features_MD), device=features_MD.device)).item()
    clusters = len(prototypes_KD)
    prototypes = prototypes_KD.double().T
    chunk_bytes = chunk_bytes or chunk_bytes_on(features_MD.device)
    chunks = features_MD.split(max(1, chunk_bytes // (8 * clusters)))

    def kernel(chunk: Tensor) -> Tensor:
        return torch.exp((chunk.double() @ prototypes - 1.0) / epsilon)

    per_sample = [torch.ones(len(chunk), dtype=torch.float64, device=chunk.device) for chunk in chunks]
    per_cluster = prototypes.new_ones(clusters)
    for iteration in range(iterations):
        mass = prototypes.new_zeros(clusters)
        for chunk, c in zip(chunks, per_sample, strict=True):
            mass += kernel(chunk).T @ c
        per_cluster = 1.0 / (clusters * collectives.all_reduce_(mass))
        updated = [1.0 / (samples * (kernel(chunk) @ per_cluster)) for chunk in chunks]
        change = prototypes.new_zeros(())
        for old, new in zip(per_sample, updated, strict=True):
            change += (old / new - 1.0).abs().sum()
        per_sample = updated
        progress()
        if iteration % 10 == 9 and collectives.all_reduce_(change) <= tolerance:
            break
    log_r = per_cluster.log()
    labels = [transport_codes(chunk, prototypes_KD, epsilon, log_r).argmax(dim=1) for chunk in chunks]
    empty = torch.empty(0, dtype=torch.int64, device=features_MD.device)
    return Transport(torch.cat(labels) if labels else empty, log_r)

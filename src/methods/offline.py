"""Prediction of cluster assignments that are made between epochs: what DeepCluster-v2 and SeLa-v2 have in common.

Shape suffixes: A = assigned crops, V = crops of an image, B = images of this rank, D = embedding size, H = heads,
K = prototypes of a head, M = rows of the memory bank of this rank, N = images of the data set.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..clock import Clock
from ..data.loading import Batch
from ..engine.diagnostics import RANK_OF_A_COLLAPSE, Check, feature_std, rankme
from ..engine.method import Scale
from ..engine.monitor import progress_bar
from ..errors import UserError
from ..losses.cluster_prediction import IGNORED, cluster_prediction_loss
from ..models.heads import MultiPrototypes
from ..parallel import collectives
from .prototype_base import PrototypeMethod, PrototypeSettings

Progress = Callable[[], object]


def offline_options(prototypes: PrototypeSettings, scale: Scale) -> dict[str, Any]:
    """Arguments of :class:`OfflineAssignments`; raises UserError for more prototypes than images."""
    if scale.rows_per_epoch < max(prototypes.nmb_prototypes):
        raise UserError(
            f"--nmb_prototypes {max(prototypes.nmb_prototypes)}: a process sees {scale.rows_per_epoch} images an "
            "epoch, and needs at least one for each prototype"
        )
    return {**prototypes.options(), "num_images": scale.num_images, "bank_rows": scale.rows_per_epoch}


class OfflineAssignments(PrototypeMethod):
    """Remembers the embeddings of an epoch, clusters them before the next, and predicts the clusters of all crops.

    The memory bank holds, for each assigned crop, the embeddings of this rank's images in the order of consumption;
    every step overwrites its own part, so their ages differ by up to an epoch (Caron et al. 2020, arXiv 2006.09882,
    appendix D). Head h clusters the embeddings of assigned crop ``h mod A``. Images that are not in the bank (those
    of an epoch's incomplete last batch) have no cluster and count for nothing in the loss.

    Args:
        backbone: (n, 3, h, w) -> (n, F).
        num_images: N.
        bank_rows: M, images that this rank sees in an epoch.
        options: of :class:`PrototypeMethod`; ``nmb_prototypes`` is a list.
    """

    loss_is_local: ClassVar[bool] = True
    called_outside_of_steps: ClassVar[tuple[str, ...]] = ("embed_alone",)
    per_rank_buffers: ClassVar[dict[str, int]] = {"bank": 1, "bank_images": 0}
    bank: Tensor
    bank_images: Tensor
    labels: Tensor

    def __init__(self, backbone: nn.Module, *, num_images: int, bank_rows: int, **options: Any) -> None:
        super().__init__(backbone, **options)
        assert isinstance(self.prototypes, MultiPrototypes)
        heads = self.prototypes.heads()
        self.register_buffer("bank", torch.zeros(len(self.crops_for_assign), bank_rows, heads[0].in_features))
        self.register_buffer("bank_images", torch.zeros(bank_rows, dtype=torch.int64))
        self.register_buffer("labels", torch.full((len(heads), num_images), IGNORED))
        self._next_row = 0

    # ------------------------------------------------------------------------------------------------ the bank

    @torch.no_grad()
    def before_training(self, batches: Iterable[Batch]) -> None:
        """Fills the bank with one pass over the first epoch's batches, in train mode, crop by crop."""
        row = 0
        for batch in progress_bar(batches, "filling the memory bank"):
            embeddings = torch.stack([self.embed_alone(batch.crops[crop]) for crop in self.crops_for_assign])
            row = self._remember(embeddings, batch.indices, row)

    def embed_alone(self, crop: Tensor) -> Tensor:
        """Unit rows (B, D), outside of a step."""
        return self.embed([crop])

    def _remember(self, embeddings_ABD: Tensor, images_B: Tensor, row: int) -> int:
        end = row + len(images_B)
        self.bank[:, row:end] = embeddings_ABD
        self.bank_images[row:end] = images_B
        return end

    def before_epoch(self, clock: Clock) -> None:
        rows_per_step = self.bank.shape[1] // clock.steps_per_epoch
        self._next_row = clock.step_in_epoch * rows_per_step
        if clock.step_in_epoch == 0:  # a resume inside an epoch finds its assignments in the checkpoint
            self._assign_all()

    @torch.no_grad()
    def _assign_all(self) -> None:
        # another number of processes may have left rows empty; embeddings are unit vectors
        filled = (self.bank[0] != 0).any(dim=1)
        images = collectives.all_gather_rows(self.bank_images[filled])
        heads = self.prototypes.heads()
        bar: tqdm[Any]
        with progress_bar() as bar:
            for h in range(len(heads)):
                bar.set_description(f"clustering for head {h + 1} of {len(heads)}")
                assigned = self.assign(h, self.bank[h % len(self.bank)][filled], bar.update)
                # the sampler repeats a few images to fill the last batch of all ranks; the largest number wins, always
                self.labels[h].fill_(IGNORED)
                self.labels[h].scatter_reduce_(0, images, collectives.all_gather_rows(assigned), "amax")

    def assign(self, head: int, features_MD: Tensor, progress: Progress) -> Tensor:
        """The cluster of each row, (M,) int64; may change the head's prototypes, alike on all ranks.

        ``progress`` is called once an iteration.
        """
        raise NotImplementedError  # this is what makes the method

    def targets(self, head: int, images_B: Tensor) -> Tensor:
        """What the crops of these images are to predict, as :func:`cluster_prediction_loss` takes it."""
        return self.labels[head, images_B]

    # ------------------------------------------------------------------------------------------------ the step

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        embeddings = self.embed(batch.crops)
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings_VBD = embeddings.view(len(batch.crops), len(batch), -1)
            losses = [
                cluster_prediction_loss(head(embeddings_VBD), self.targets(h, batch.indices), self.temperature)
                for h, head in enumerate(self.prototypes.heads())
            ]
            loss = torch.stack(losses).mean()
            assigned_ABD = self.of_assigned(embeddings_VBD.detach())
            self._next_row = self._remember(assigned_ABD, batch.indices, self._next_row)
            outputs = {"loss": loss, "loss_over_ln_k": loss.detach() / self._log_k}
            if clock.logging:
                self._watch(outputs, assigned_ABD)
        return outputs

    # ------------------------------------------------------------------------------------------------ diagnostics

    @property
    def _log_k(self) -> float:
        return math.log(self.prototypes.heads()[0].out_features)

    @torch.no_grad()
    def _watch(self, outputs: dict[str, Tensor], assigned_ABD: Tensor) -> None:
        count = self.prototypes.heads()[0].out_features
        sizes = torch.bincount(self.labels[0].clamp(min=-1) + 1, minlength=count + 1)[1:]
        embeddings = assigned_ABD.flatten(0, 1)
        outputs["clusters_in_use"] = (sizes > 0).float().mean()
        outputs["largest_cluster"] = sizes.max() / sizes.sum().clamp(min=1)
        outputs["feature_std"] = feature_std(embeddings)
        outputs["rankme"] = rankme(embeddings)

    def health_checks(self) -> list[Check]:
        def collapsed(values: Mapping[str, float]) -> bool:
            few = values.get("rankme", 99.0) < RANK_OF_A_COLLAPSE
            return few or values["feature_std"] < 0.1 or values["largest_cluster"] > 0.5

        def verdict(values: Mapping[str, float]) -> str:
            return (
                f"COLLAPSE: {100 * values['largest_cluster']:.0f} % of the images are in one cluster; the embeddings' "
                f"effective rank is {values.get('rankme', 1):.1f}, their spread {values['feature_std']:.3f} (1: all "
                "over the sphere, 0: one point)."
            )

        return [Check("collapse", collapsed, verdict, "Try a lower learning rate, or fewer or softer crops.")]

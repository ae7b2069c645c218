"""Features of a frozen backbone over a data set, shared out over the ranks and put together again."""

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..data.loading import Batch, Sample, ToDevice, warn_unreadable
from ..data.sampling import Position
from ..engine.monitor import progress_bar
from ..parallel import collectives


@torch.no_grad()
def extract_features(
    backbone: nn.Module, loader: "DataLoader[Batch]", prepare: ToDevice, what: str = ""
) -> tuple[Tensor, Tensor]:
    """Runs the backbone, in eval mode, once over a loader of single deterministic views.

    Args:
        backbone: (n, 3, s, s) -> (n, F).
        loader: this rank's share, see :func:`src.data.loading.loader_of`.
        prepare: moves batches to the device.
        what: name of the progress bar; "" shows none.

    Returns:
        features (N, F) float32 and labels (N,) int64 of all ranks' images, on the device, in the order of the data
        set, on every rank.
    """
    was_training = backbone.training
    backbone.eval()
    features, labels, indices = [], [], []
    unreadable: list[str] = []
    for batch in progress_bar(loader, what) if what else loader:
        batch = prepare(batch)
        features.append(backbone(batch.crops[0]).float())
        labels.append(batch.labels)
        indices.append(batch.indices)
        unreadable += batch.unreadable
    warn_unreadable(unreadable)
    backbone.train(was_training)
    parts = (torch.cat(part) if part else torch.empty(0) for part in (features, labels, indices))
    all_features, all_labels, all_indices = (collectives.all_gather_rows(part) for part in parts)
    order = all_indices.argsort()
    return all_features[order], all_labels[order]


class FeatureDataset(Dataset[Sample]):
    """Features that were extracted once, in the place of images: (N, F) on the CPU, and labels (N,)."""

    def __init__(self, features: Tensor, labels: Tensor) -> None:
        self.features, self.labels = features.cpu(), labels.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: Position) -> Sample:
        return Sample([self.features[position.image]], self.labels[position.image], position.image, [])

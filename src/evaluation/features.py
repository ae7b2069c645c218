"""Features of a frozen backbone over a data set, shared out over the ranks and put together again."""

import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..data.loading import Batch, Sample
from ..data.sampling import Position
from ..data.to_device import ToDevice
from ..engine.monitor import progress_bar
from ..errors import UserError
from ..parallel import collectives

NAMED = 10  # unreadable images that a warning names; results files name all


class Features(NamedTuple):
    """What a network says about the images that could be read, in the order of the data set.

    Attributes:
        features: (M, F) float32.
        labels: (M,) int64.
        indices: (M,) int64, which image of the data set each row is.
        unreadable: names of the images that were left out, with the reasons.
    """

    features: Tensor
    labels: Tensor
    indices: Tensor
    unreadable: list[str]

    @property
    def used(self) -> str:
        """``9,990 of 10,000``, or the number alone where all were used."""
        return used(len(self.labels), self.unreadable)


def used(count: int, unreadable: Sequence[str]) -> str:
    return f"{count} of {count + len(unreadable)}" if unreadable else str(count)


@torch.no_grad()
def extract_features(backbone: nn.Module, loader: "DataLoader[Batch]", prepare: ToDevice, what: str = "") -> Features:
    """Runs the backbone, in eval mode, once over a loader; features of several views of an image stand in one row.

    Images that cannot be read are left out, with a warning. Raises UserError if there are no others.

    Args:
        backbone: (n, 3, s, s) -> (n, F).
        loader: this rank's share, see :func:`src.data.loading.loader_of`.
        prepare: moves batches to the device.
        what: name of the progress bar; "" shows none.

    Returns:
        those of all ranks' images, on the device, on every rank.
    """
    was_training = backbone.training
    backbone.eval()
    rows: list[tuple[Tensor, Tensor, Tensor]] = []
    unreadable: list[str] = []
    for batch in progress_bar(loader, what) if what else loader:
        unreadable += batch.unreadable
        if len(batch):
            batch = prepare(batch)
            seen = [backbone(crop).float() for crop in batch.crops]
            rows.append((torch.cat(seen, dim=1) if len(seen) > 1 else seen[0], batch.labels, batch.indices))
    backbone.train(was_training)
    unreadable = warn_unreadable(unreadable)
    features = collectives.all_gather_rows(_joined([row[0] for row in rows], prepare.device))
    labels, indices = (
        collectives.all_gather_rows(torch.cat([row[n] for row in rows]) if rows else _none(prepare.device))
        for n in (1, 2)
    )
    if not len(labels):
        raise UserError(f"none of the {len(unreadable)} images could be read, the first: {unreadable[0]}")
    order = indices.argsort()
    return Features(features[order], labels[order], indices[order], unreadable)


def _none(device: torch.device) -> Tensor:
    return torch.empty(0, dtype=torch.int64, device=device)


def _joined(parts: list[Tensor], device: torch.device) -> Tensor:
    """(n, F) of this rank; (0, F) with the others' F on one without images."""
    mine = torch.cat(parts) if parts else None
    widths = collectives.gather_everywhere(None if mine is None else mine.shape[1])
    width = next((one for one in widths if one is not None), 0)
    return torch.empty(0, width, device=device) if mine is None else mine


def warn_unreadable(names: Sequence[str]) -> list[str]:
    """All ranks' unreadable images; the main rank says how many they are, and names a few."""
    together = sorted(name for part in collectives.gather_everywhere(list(names)) for name in part)
    if together and collectives.is_main():
        more = f", and {len(together) - NAMED} more" if len(together) > NAMED else ""
        print(
            f"warning: {len(together)} images cannot be read and are left out: {', '.join(together[:NAMED])}{more}",
            file=sys.stderr,
        )
    return together


class FeatureDataset(Dataset[Sample]):
    """Features that were extracted once, in the place of images: (N, F) on the CPU, and labels (N,)."""

    def __init__(self, extracted: Features) -> None:
        self.features, self.labels = extracted.features.cpu(), extracted.labels.tolist()
        self.unreadable = extracted.unreadable

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: Position) -> Sample:
        return Sample([self.features[position.image]], self.labels[position.image], position.image, [])

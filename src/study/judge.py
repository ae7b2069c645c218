"""What a run of a study reached: with labels, without, and at what cost."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from ..checkpoints.files import read_json, write_atomically, write_json
from ..data.loading import loader_of
from ..data.source import ImageSource
from ..data.to_device import ToDevice
from ..data.views import CentreView
from ..engine.monitor import finite_or_none, read_log
from ..evaluation.clustering import clustering_scores
from ..evaluation.features import Features, extract_features
from ..evaluation.knn import knn_predict
from ..evaluation.probe import linear_probe
from ..evaluation.scores import features_of_views, scores_of
from ..models.pretrained import Pretrained

JUDGED, RIGHT = "judged.json", "right.npz"
NEIGHBOURS = 10


@dataclass(frozen=True)
class Judge:
    """Judges networks by the same images.

    Attributes:
        train, test: labelled images; None where there are none.
        scored: images for the scores that need no labels.
        view, mean, std: how all are shown.
        device, workers, batch_size: with what.
    """

    train: ImageSource | None
    test: ImageSource | None
    scored: ImageSource
    view: CentreView
    mean: Sequence[float]
    std: Sequence[float]
    device: torch.device
    workers: int
    batch_size: int = 256

    def __call__(self, loaded: Pretrained, folder: Path, is_trained: bool = True) -> dict[str, Any]:
        """Writes ``judged.json`` and, with labels, ``right.npz`` into a folder; returns what the first says."""
        backbone = loaded.backbone.to(self.device).to(memory_format=torch.channels_last)
        prepare = ToDevice(self.device, self.mean, self.std)
        found: dict[str, Any] = {}
        if self.train is not None and self.test is not None:
            train, test = (self._features(backbone, prepare, images) for images in (self.train, self.test))
            found, right = _by_labels(*_by_classes_that_occur(train, test))
            knn, linear, indices = (right[name] for name in ("knn", "linear", "indices"))
            write_atomically(
                folder / RIGHT, lambda file: np.savez_compressed(file, knn=knn, linear=linear, indices=indices)
            )
        batch_size = max(1, self.batch_size // 8)
        views = features_of_views(
            backbone, self.scored, self.view, prepare, batch_size=batch_size, workers=self.workers
        )
        found |= {"scores": finite_or_none(scores_of(views)), "cost": cost_of(folder) if is_trained else {}}
        write_json(folder / JUDGED, found)
        return found

    def _features(self, backbone: torch.nn.Module, prepare: ToDevice, images: ImageSource) -> Features:
        loader = loader_of(images, self.view, self.batch_size, self.workers, self.device)
        return extract_features(backbone, loader, prepare)


def _by_classes_that_occur(train: Features, test: Features) -> tuple[Features, Features, int]:
    """The labels counted from 0 on, since labels that are numbers may leave many out, and how many there are."""
    occurring = torch.cat([train.labels, test.labels]).unique()
    train, test = (one._replace(labels=torch.searchsorted(occurring, one.labels)) for one in (train, test))
    return train, test, len(occurring)


def _by_labels(train: Features, test: Features, classes: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Percent right by kNN and by a linear classifier, NMI of k-means with as many clusters as classes; and for each
    test image whether they were right."""
    k = min(NEIGHBOURS, len(train.labels))
    votes = knn_predict(train.features, train.labels, test.features, ks=[k], num_classes=classes)[k]
    logits = linear_probe(train.features, train.labels, test.features, classes)
    right = {
        "knn": (votes.argmax(dim=1) == test.labels).cpu().numpy(),
        "linear": (logits.argmax(dim=1) == test.labels).cpu().numpy(),
        "indices": test.indices.cpu().numpy(),
    }
    found = {name: 100 * float(right[name].mean()) for name in ("knn", "linear")}
    nmi = _nmi(test, classes)
    return {**found, **({} if math.isnan(nmi) else {"nmi": nmi})}, right


def _nmi(test: Features, classes: int) -> float:
    from sklearn.cluster import KMeans  # slow to import

    rows = F.normalize(test.features, dim=1).cpu().numpy()
    if not np.isfinite(rows).all():
        return math.nan
    clusters = KMeans(min(classes, len(rows)), n_init=3, random_state=0).fit_predict(rows)
    return clustering_scores(torch.from_numpy(clusters).long(), test.labels, matched=False)["nmi"]


def cost_of(folder: Path) -> dict[str, float | None]:
    """Minutes of training steps, images a second (median of the log, which starts after a kill do not change), and peak
    memory in GB."""
    records, batch, _ = _log_of(folder)
    rates = [record["images_per_second"] for record in records if record.get("images_per_second")]
    rates = rates[1:] or rates  # the first one holds the start
    memory = [record["peak_memory_gb"] for record in records if record.get("peak_memory_gb")]
    rate = float(np.median(rates)) if rates else None
    steps = records[-1]["step"] + 1 if records else 0
    minutes = steps * batch / rate / 60 if rate else None
    return {"minutes": minutes, "images_per_second": rate, "memory_gb": max(memory, default=None)}


def pace_of(folder: Path) -> float | None:
    """Images a second of a run of a few steps, by all its time. A median would see only the batches that loader
    processes bring many at a time, and not the waiting between.

    The first entry of the log holds the start, and the batches of the first ``ready_steps`` were made beforehand: they
    do not count where there are later ones.
    """
    records, batch, workers = _log_of(folder)
    timed, before = [], 0  # (first step, images, seconds)
    for record in records:
        images = (record["step"] + 1 - before) * batch
        if record.get("images_per_second"):
            timed.append((before, images, images / record["images_per_second"]))
        before = record["step"] + 1
    counted = [entry for entry in timed[1:] if entry[0] >= ready_steps(workers)] or timed[1:] or timed
    return sum(entry[1] for entry in counted) / sum(entry[2] for entry in counted) if counted else None


def ready_steps(workers: int) -> int:
    """How many batches loader processes have under way: torch's two of each."""
    return 2 * workers


def _log_of(folder: Path) -> tuple[list[dict[str, Any]], int, int]:
    """A run's records of training steps, images of a step, and loader processes."""
    settings = read_json(folder / "settings.json")
    batch = settings["derived"]["batch_size"] * settings["world_size"]
    return read_log(folder / "log.jsonl", "train"), batch, settings["arguments"]["workers"]

"""Mutual information of a classifier's outputs with inputs and labels, by binning: DisCo's information-bottleneck
analysis (arXiv 2104.09124, after Shwartz-Ziv & Tishby 2017, arXiv 1703.00810)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..data.loading import loader_of
from ..data.source import ImageSource, evenly_spread
from ..engine.judging import Evaluation
from ..engine.monitor import read_log
from ..parallel import collectives
from ..plots import information_plane
from ..settings import setting
from .classifiers import Classification
from .features import extract_features
from .subject import Subject


def information(outputs: Tensor, labels: Tensor, bins: int = 30, compatible: bool = False) -> tuple[float, float]:
    """I(X; T) and I(T; Y) in bits, where T is the softmax of the outputs cut into equal bins.

    All inputs are taken for distinct, so I(X; T) is the entropy of T, and at most log2(n).

    Args:
        outputs: (n, H), before the softmax.
        labels: (n,) int.
        bins: right-closed parts of (0, 1] for each output. A probability that underflows to 0 falls in no bin; such a
            row equals no other.
        compatible: reproduce the published program, which compares a row with the row whose *number* is the
            cluster's, instead of a member of it. Duplicates are then missed, so that I(X; T) is too large.
    """
    probabilities = torch.softmax(outputs.double(), dim=1).cpu().numpy()
    codes = np.digitize(probabilities, np.linspace(0.0, 1.0, bins + 1), right=True) - 1  # -1: exactly 0
    clusters = _compatible_clusters(codes) if compatible else _clusters(codes)
    joint = np.zeros((clusters.max() + 1, int(labels.max()) + 1))
    np.add.at(joint, (clusters, labels.cpu().numpy()), 1.0 / len(codes))
    p_t, p_y = joint.sum(axis=1), joint.sum(axis=0)
    of_inputs = -(p_t * np.log2(p_t)).sum()
    present = joint > 0
    of_labels = (joint[present] * np.log2(joint[present] / np.outer(p_t, p_y)[present])).sum()
    return float(of_inputs), float(of_labels)


def _clusters(codes: np.ndarray) -> np.ndarray:
    """(n,): equal rows have equal numbers, 0, 1, ...; rows with a -1 have one of their own."""
    _, numbers = np.unique(codes, axis=0, return_inverse=True)
    numbers = numbers.reshape(-1)
    alone = (codes < 0).any(axis=1)
    numbers[alone] = numbers.max() + 1 + np.arange(alone.sum())
    return np.unique(numbers, return_inverse=True)[1].reshape(-1)


def _compatible_clusters(codes: np.ndarray) -> np.ndarray:
    """As published: row i joins the first cluster c whose row *c* it equals, else founds one."""
    numbers = np.zeros(len(codes), dtype=np.int64)
    count = 1
    for i in range(1, len(codes)):
        same = (codes[:count] == codes[i]).all(axis=1) & (codes[:count] >= 0).all(axis=1)
        if same.any():
            numbers[i] = int(same.argmax())
        else:
            numbers[i] = count
            count += 1
    return numbers


@dataclass(frozen=True)
class InformationSettings:
    """Mutual information of the first classifier (DisCo's analysis)"""

    information_every: int = setting(0, "measure it every so many steps; 0 = never", at_least=0, at_most=1e12)
    information_images: int = setting(1000, "number of training images it is measured on", at_least=1, at_most=1e9)
    information_bins: int = setting(30, "number of bins of each probability", at_least=1, at_most=1e6)
    information_compat: bool = setting(
        False, "with the published program's mistake, which splits clusters", switch=True
    )


def watch_information(
    own: InformationSettings,
    method: Classification,
    subject: Subject,
    train: ImageSource,
    folder: Path,
    *,
    batch_size: int,
    workers: int,
    cached: bool,
    eval_freq: int,
) -> list[Evaluation]:
    """Mutual information on a fixed part of the training images; nothing if it is never measured.

    Args:
        train: the training images.
        batch_size, workers: of the pass over those images.
        cached: whether the classifiers take features instead of images.
        eval_freq: every how many epochs the picture is drawn.
        folder: of the log, and of a picture of the course so far.
    """
    if not own.information_every:
        return []
    images = evenly_spread(train, own.information_images)
    bins, compatible = own.information_bins, own.information_compat
    device = subject.prepare.device
    loader = loader_of(images, subject.view, batch_size, workers, device)
    seen = extract_features(subject.backbone, loader, subject.prepare) if cached else None

    @torch.no_grad()
    def measure() -> dict[str, float]:
        if seen is not None:
            outputs, labels = method.logits(seen.features)[0], seen.labels
        else:
            found = extract_features(_FirstClassifier(method), loader, subject.prepare)
            outputs, labels = found.features, found.labels
        xt, ty = information(outputs, labels, bins, compatible)
        return {"information_xt": xt, "information_ty": ty}

    def draw() -> dict[str, float | Path]:
        if collectives.is_main():
            records = [r for r in read_log(folder / "log.jsonl", "evaluation") if "information_xt" in r]
            information_plane(records, folder / "information.png")
            return {"information": folder / "information.png"}
        return {}

    return [Evaluation(own.information_every, measure, "step"), Evaluation(eval_freq, draw)]


class _FirstClassifier(nn.Module):
    """(n, 3, s, s) -> (n, classes), by the first classifier."""

    def __init__(self, method: Classification) -> None:
        super().__init__()
        self.method = method

    def forward(self, images: Tensor) -> Tensor:
        return self.method.logits(images)[0]

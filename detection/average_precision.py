"""Average precision of boxes as COCO measures it, without its package."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
MOST_OF_AN_IMAGE = 100  # detections


class Truth(NamedTuple):
    """The objects of an image: boxes (n, 4) left, top, right, bottom; classes (n,).

    ``ignored`` (n,) marks crowds and difficult objects, whose detections neither count nor harm.
    """

    boxes: np.ndarray
    labels: np.ndarray
    ignored: np.ndarray


class Found(NamedTuple):
    """The detections of an image: boxes (m, 4), classes (m,), scores (m,)."""

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray


def overlaps(found: np.ndarray, truth: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    """(m, 4) and (n, 4) -> (m, n) intersections over unions; over the detection's own area where truth is ignored."""
    corner = np.maximum(found[:, None, :2], truth[None, :, :2])
    size = np.clip(np.minimum(found[:, None, 2:], truth[None, :, 2:]) - corner, 0, None)
    shared = size[..., 0] * size[..., 1]
    of_found = ((found[:, 2] - found[:, 0]) * (found[:, 3] - found[:, 1]))[:, None]
    of_truth = ((truth[:, 2] - truth[:, 0]) * (truth[:, 3] - truth[:, 1]))[None, :]
    return shared / np.maximum(np.where(ignored[None, :], of_found, of_found + of_truth - shared), 1e-9)


def average_precision(found: Sequence[Found], truth: Sequence[Truth]) -> dict[str, float]:
    """AP (mean over IoU 0.50 to 0.95), AP50 and AP75 in percent, means over the classes that have objects."""
    classes = sorted({int(label) for one in truth for label in one.labels[~one.ignored]})
    table = np.array([[_of_class(found, truth, label, t) for t in THRESHOLDS] for label in classes])
    if not classes:
        return {"AP": 0.0, "AP50": 0.0, "AP75": 0.0}
    return {"AP": 100 * table.mean(), "AP50": 100 * table[:, 0].mean(), "AP75": 100 * table[:, 5].mean()}


def _of_class(found: Sequence[Found], truth: Sequence[Truth], label: int, threshold: float) -> float:
    scores, hits = [], []
    objects = 0
    for one, real in zip(found, truth, strict=True):
        mine, theirs = one.labels == label, real.labels == label
        order = np.argsort(-one.scores[mine], kind="stable")[:MOST_OF_AN_IMAGE]
        # real objects before ignored ones, which are matched only where nothing else is
        by_kind = np.argsort(real.ignored[theirs], kind="stable")
        ignored = real.ignored[theirs][by_kind]
        objects += int((~ignored).sum())
        if not len(order):
            continue
        iou = overlaps(one.boxes[mine][order], real.boxes[theirs][by_kind], ignored)
        taken = np.zeros(len(ignored), dtype=bool)
        for row, score in zip(iou, one.scores[mine][order], strict=True):
            best, match = min(threshold, 1 - 1e-10), -1
            for j, value in enumerate(row):
                if taken[j] and not ignored[j]:
                    continue
                if match >= 0 and not ignored[match] and ignored[j]:
                    break
                if value >= best:
                    best, match = value, j
            if match >= 0:
                taken[match] = True
                if ignored[match]:
                    continue
            scores.append(score)
            hits.append(match >= 0)
    if not objects:
        return 0.0
    order = np.argsort(-np.array(scores), kind="stable")
    right = np.cumsum(np.array(hits, dtype=float)[order])
    recall, precision = right / objects, right / (np.arange(len(order)) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]  # the best at this recall or a higher one
    places = np.searchsorted(recall, RECALLS, side="left")
    return float(np.mean([precision[place] if place < len(precision) else 0.0 for place in places]))

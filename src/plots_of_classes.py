"""Pictures of classes: clusters with their images, what images were taken for, who is mistaken for whom."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
from torch import Tensor

from .plots import as_text, save_figure, shown


def cluster_mosaic(rows: Sequence[tuple[str, Sequence[Tensor]]], path: str | Path) -> None:
    """One row of images, (3, s, s) uint8, for each cluster, with its title on the left."""
    columns = max(len(images) for _, images in rows)
    figure, axes = plt.subplots(len(rows), columns, figsize=(1.1 * columns + 1.6, 1.1 * len(rows)), squeeze=False)
    for axis_row, (title, images) in zip(axes, rows, strict=True):
        for axis in axis_row:
            axis.axis("off")
        for axis, image in zip(axis_row, images, strict=False):
            axis.imshow(shown(image))
        axis_row[0].text(
            -0.1, 0.5, as_text(title), ha="right", va="center", fontsize=8, transform=axis_row[0].transAxes
        )
    figure.subplots_adjust(wspace=0.04, hspace=0.04)
    save_figure(figure, path)


class Predicted(NamedTuple):
    """An image (3, s, s) uint8 of a true class, and its most probable classes with their probabilities."""

    image: Tensor
    truth: str
    classes: list[tuple[str, float]]


def top_predictions(rows: Sequence[Sequence[Predicted]], path: str | Path) -> None:
    """Images in rows, one for each class; below each what it was taken for, with bars. Right ones are green."""
    columns = max(map(len, rows))
    most = max(len(one.classes) for row in rows for one in row)
    figure, axes = plt.subplots(
        2 * len(rows),
        columns,
        figsize=(1.9 * columns, (1.6 + 0.22 * most) * len(rows)),
        squeeze=False,
        gridspec_kw={"height_ratios": [1.6, 0.22 * most] * len(rows)},
    )
    for axis in axes.flat:
        axis.axis("off")
    for number, row in enumerate(rows):
        for column, one in enumerate(row):
            picture, bars = axes[2 * number][column], axes[2 * number + 1][column]
            picture.imshow(shown(one.image))
            picture.set_title(as_text(one.truth), fontsize=8)
            for place, (name, probability) in enumerate(one.classes):
                right = name == one.truth
                bars.barh(place, probability, color="tab:green" if right else "tab:red", alpha=0.5)
                bars.text(0.02, place, f"{as_text(name)} {100 * probability:.0f} %", va="center", fontsize=7)
            bars.set_xlim(0, 1)
            bars.set_ylim(most + 0.3, -0.5)  # room for the title below
    figure.subplots_adjust(hspace=0.12, wspace=0.1)
    save_figure(figure, path)


def confusion_matrix(counts: Tensor, classes: Sequence[str], path: str | Path) -> None:
    """Shares of each true class (row) put into each class and, in the last column, into none.

    Args:
        counts: (C, C + 1) images.
        classes: C names; written beside the rows where there are at most 60.
        path: of the PNG.
    """
    shares = counts.double() / counts.sum(dim=1, keepdim=True).clamp(min=1)
    side = min(12.0, 3.0 + 0.2 * len(classes))
    figure, axis = plt.subplots(figsize=(side + 1, side))
    image = axis.imshow(shares.numpy(), vmin=0, vmax=1, cmap="Blues", interpolation="nearest")
    figure.colorbar(image, ax=axis, fraction=0.045, label="share of the true class")
    if len(classes) <= 60:
        classes = [as_text(name) for name in classes]
        axis.set_xticks(range(len(classes) + 1), [*classes, "none"], rotation=90, fontsize=7)
        axis.set_yticks(range(len(classes)), classes, fontsize=7)
    axis.set(xlabel="class of the cluster", ylabel="true class")
    save_figure(figure, path)

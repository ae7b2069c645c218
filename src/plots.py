"""Pictures of a run, as PNG: what the network sees, how training went, where images end up."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no screen is needed

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from .checkpoints.files import write_atomically
from .errors import UserError


def save_figure(figure: Figure, path: str | Path) -> None:
    """Writes and closes a figure; the suffix of ``path`` is its format, and PNG where there is none.

    Raises UserError for other formats, and when the disk refuses.
    """
    path = Path(path) if Path(path).suffix else Path(path).with_suffix(".png")
    kind, kinds = path.suffix[1:].lower(), figure.canvas.get_supported_filetypes()
    if kind not in kinds:
        raise UserError(f"{path}: a picture cannot be .{kind}; expected one of {', '.join(kinds)}")
    write_atomically(path, lambda file: figure.savefig(file, format=kind, dpi=110, bbox_inches="tight"))
    plt.close(figure)


def as_text(name: str) -> str:
    """A name as matplotlib can draw it, whatever it holds: no formulas, no bytes that are no letters."""
    return name.encode("utf-8", "backslashreplace").decode().replace("$", r"\$")


def shown(image: Tensor) -> np.ndarray:
    """(C, h, w) -> (h, w, 3): RGB as it is, and otherwise the channels' mean in grey."""
    if len(image) != 3:
        image = image.float().mean(dim=0, keepdim=True).to(image.dtype).expand(3, -1, -1)
    return image.permute(1, 2, 0).numpy()


def crops_mosaic(crops: Sequence[Tensor], path: str | Path, num_images: int = 8) -> None:
    """One row for each image, one column for each of its crops, at their relative sizes.

    Args:
        crops: V tensors (B, 3, s_v, s_v) uint8.
        path: of the PNG.
        num_images: rows; at most B.
    """
    rows = min(num_images, len(crops[0]))
    sizes = [crop.shape[-1] for crop in crops]
    figure, axes = plt.subplots(
        rows,
        len(crops),
        figsize=(1.1 * len(crops), 1.1 * rows),
        squeeze=False,
    )
    for column, crop in enumerate(crops):
        margin = (max(sizes) - sizes[column]) / 2
        for row in range(rows):
            axis = axes[row][column]
            side = sizes[column]
            axis.imshow(shown(crop[row]), extent=(margin, margin + side, margin + side, margin))
            axis.set_xlim(0, max(sizes))
            axis.set_ylim(max(sizes), 0)
            axis.axis("off")
        axes[0][column].set_title(f"{sizes[column]} px", fontsize=8)
    figure.subplots_adjust(wspace=0.04, hspace=0.04)
    save_figure(figure, path)


def montage_figure(
    images: Sequence[Image.Image],
    windows: Sequence[Callable[[int, int], tuple[int, int, int, int]]],
    patches: Sequence[Tensor],
    order: Tensor,
    montages: Tensor,
    path: str | Path,
) -> None:
    """Images with the windows of their parts, a patch of each part, and the montages; a colour for each image.

    Args:
        images: n of them.
        windows: of each of the P parts, from width and height to left, top, right and bottom in pixels.
        patches: P tensors (n, 3, p, p) uint8.
        order: (P n,), which patch lies in each slot, see :mod:`src.ops.montage`.
        montages: (M, 3, 2p, 2p) uint8.
        path: of the picture.
    """
    number, parts, side = len(images), len(patches), patches[0].shape[-1]
    colours = plt.get_cmap("tab10")(np.arange(number) % 10)
    figure, axes = plt.subplots(number, 1 + parts + 1, figsize=(1.5 * (2 + parts), 1.5 * number), squeeze=False)
    for row, image in enumerate(images):
        axes[row][0].imshow(image)
        for part, window in enumerate(windows):
            left, top, right, bottom = window(image.width, image.height)
            inset = 0.012 * (1 + 2 * part) * image.width
            axes[row][0].add_patch(
                Rectangle(
                    (left + inset, top + inset), right - left - 2 * inset, bottom - top - 2 * inset, fill=False,
                    edgecolor=colours[row], linestyle="-" if part % 2 == 0 else "--", linewidth=1.6,
                )
            )  # fmt: skip
            axes[row][1 + part].imshow(patches[part][row].permute(1, 2, 0).numpy())
            axes[row][1 + part].set_title(f"image {row + 1}, part {part + 1}", fontsize=8, color=colours[row])
    for column in range(number):
        axes[column][-1].axis("off")
    for number_of, montage in enumerate(montages[:number]):
        axis = axes[number_of][-1]
        axis.imshow(montage.permute(1, 2, 0).numpy())
        axis.set_title(f"montage {number_of + 1}", fontsize=8)
        for cell in range(4):
            source = int(order[cell * len(montages) + number_of])
            corner = ((cell % 2) * side, (cell // 2) * side)
            axis.add_patch(
                Rectangle(corner, side - 2, side - 2, fill=False, edgecolor=colours[source % len(images)], linewidth=2)
            )
    for axis in axes.flat:
        axis.axis("off")
    figure.subplots_adjust(wspace=0.06, hspace=0.16)
    save_figure(figure, path)


def training_curves(
    train: Sequence[dict[str, Any]],
    evaluations: Sequence[dict[str, Any]],
    path: str | Path,
    *,
    value: str = "knn_top1",
    reference_loss: float | None = None,
    reference_value: float | None = None,
) -> None:
    """Loss and online accuracy over the steps.

    Args:
        train, evaluations: records as :func:`src.engine.monitor.read_log` returns them.
        path: of the PNG.
        value: which evaluated number is drawn.
        reference_loss: a dashed line, such as ln K.
        reference_value: a dashed line, such as the accuracy of the untrained network.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
    left.plot([r["step"] for r in train], [r["loss"] for r in train], color="tab:blue", linewidth=1.2)
    if reference_loss is not None:
        left.axhline(reference_loss, color="grey", linestyle="--", linewidth=1, label="ln K: nothing learnt")
        left.legend(fontsize=8, frameon=False)
    left.set(xlabel="step", ylabel="loss", title="training loss")
    right.plot(
        [r["step"] for r in evaluations], [r[value] for r in evaluations], marker="o", markersize=3, color="tab:green"
    )
    if reference_value is not None:
        right.axhline(reference_value, color="grey", linestyle="--", linewidth=1, label="random weights")
        right.legend(fontsize=8, frameon=False)
    right.set(xlabel="step", ylabel="top-1 (%)", title="online kNN accuracy")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    save_figure(figure, path)


def comparison(
    runs: Mapping[str, tuple[Sequence[dict[str, Any]], Sequence[dict[str, Any]]]],
    path: str | Path,
    references: Mapping[str, float] | None = None,
) -> None:
    """Losses and online accuracies of several runs over their epochs.

    Args:
        runs: name -> records of training and of evaluations, as :func:`src.engine.monitor.read_log` returns them.
        path: of the PNG.
        references: name -> accuracy to be shown as a dashed line.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    for name, (train, evaluations) in runs.items():
        steps_per_epoch = max(1.0, train[-1]["step"] / (train[-1]["epoch"] + 1)) if train else 1.0
        finite = [r for r in train if r["loss"] is not None]
        (line,) = left.plot([r["step"] / steps_per_epoch for r in finite], [r["loss"] for r in finite], label=name)
        scores = [key for key in (evaluations[-1] if evaluations else {}) if key.endswith("top1")]
        for key, style in zip(scores, ("-", "--", ":"), strict=False):
            points = [r for r in evaluations if r.get(key) is not None]
            label = f"{name}, {key.replace('_', ' ')}" if len(scores) > 1 else name
            right.plot(
                [r["epoch"] for r in points], [r[key] for r in points],
                marker="o", markersize=3, linestyle=style, color=line.get_color(), label=label,
            )  # fmt: skip
    for (name, accuracy), style in zip((references or {}).items(), ("--", "-.", ":") * 9, strict=False):
        right.axhline(accuracy, color="grey", linestyle=style, linewidth=1, label=f"{name}: {accuracy:g} %")
    left.set(xlabel="epoch", ylabel="loss", title="training loss (its scale differs between methods)")
    right.set(xlabel="epoch", ylabel="top-1 (%)", title="online accuracy")
    for axis in (left, right):
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=8, frameon=False)
    save_figure(figure, path)


PLANES = ("tsne", "umap", "pca")


def require_umap() -> None:
    try:
        import umap  # noqa: F401
    except ImportError:
        raise UserError("umap needs the package umap-learn (pip install umap-learn)") from None


def in_plane(features: np.ndarray, projection: str, seed: int) -> np.ndarray:
    """(N, F) -> (N, 2), by one of PLANES. Rows that are all alike, as a collapsed network's, land on one point."""
    if np.ptp(features, axis=0).max() < 1e-7 * max(1.0, float(np.abs(features).max())):
        return np.zeros((len(features), 2), dtype=np.float32)
    if features.shape[1] == 1:
        features = np.hstack([features, np.zeros_like(features)])
    if projection == "umap":
        require_umap()
        from umap import UMAP

        start = "spectral" if len(features) > 15 else "random"  # which few points do not have
        umap = UMAP(n_components=2, n_neighbors=min(15, len(features) - 1), init=start, random_state=seed, n_jobs=1)
        return np.asarray(umap.fit_transform(features))
    if projection == "pca":
        from sklearn.decomposition import PCA  # slow to import

        return PCA(n_components=2, random_state=seed).fit_transform(features)
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(features) - 1) / 3)
    return TSNE(n_components=2, init="pca", perplexity=perplexity, random_state=seed).fit_transform(features)


def embedding_map(
    features: Tensor,
    labels: Tensor,
    classes: Sequence[str],
    path: str | Path,
    title: str,
    seed: int = 0,
    projection: str = "tsne",
    normalize: bool = True,
) -> None:
    """A 2-D map of features, coloured by class.

    Args:
        features: (N, F).
        labels: (N,), indices into ``classes``.
        path: of the picture.
        projection: ``tsne`` (van der Maaten & Hinton 2008), ``umap`` (McInnes et al. 2018) or ``pca``.
        normalize: project unit vectors.
    """
    if normalize:
        features = features / features.norm(dim=1, keepdim=True).clamp_min(1e-12)
    points = in_plane(features.cpu().numpy(), projection, seed)
    colours = plt.get_cmap("gist_rainbow")(np.linspace(0, 1, len(classes)))
    markers = "osD^v"
    figure, axis = plt.subplots(figsize=(8, 6.4))
    targets = labels.cpu().numpy()
    for label, name in enumerate(classes):
        x, y = points[targets == label].T
        marker = markers[label % len(markers)]
        axis.scatter(x, y, s=11, color=colours[label], marker=marker, label=" " + as_text(name), linewidths=0)
    axis.set(title=title, xticks=[], yticks=[])
    axis.legend(
        fontsize=7,
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        ncols=1 + len(classes) // 40,
        frameon=False,
        markerscale=1.6,
    )
    save_figure(figure, path)


def information_plane(records: Sequence[dict[str, Any]], path: str | Path) -> None:
    """I(X;T) against I(T;Y) over the steps of a training, coloured by the step.

    Args:
        records: with ``step``, ``information_xt`` and ``information_ty``, as :func:`src.engine.monitor.read_log` gives
            them.
        path: of the PNG.
    """
    figure, axis = plt.subplots(figsize=(5.6, 4.4))
    x, y = [r["information_xt"] for r in records], [r["information_ty"] for r in records]
    axis.plot(x, y, color="grey", linewidth=0.8, zorder=1)
    points = axis.scatter(x, y, c=[r["step"] for r in records], cmap="viridis", s=16, zorder=2)
    figure.colorbar(points, ax=axis, label="step")
    axis.set(xlabel="I(X; T) in bits", ylabel="I(T; Y) in bits", title="information plane of the classifier")
    axis.grid(alpha=0.3)
    save_figure(figure, path)


def spectrum_curves(curves: Mapping[str, Tensor], path: str | Path) -> None:
    """Eigenvalues as shares of their sum, falling, on a logarithmic scale; the dashed line is an even spectrum."""
    figure, axis = plt.subplots(figsize=(6, 4))
    for name, shares in curves.items():
        values = shares.cpu().numpy()
        axis.plot(np.arange(1, len(values) + 1), np.maximum(values, 1e-9), label=name, linewidth=1.4)
    axis.axhline(1 / len(values), color="grey", linestyle="--", linewidth=0.8, label="even")
    axis.set(xlabel="eigenvalue", ylabel="share of the variance", yscale="log", title="spectrum of the embeddings")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, frameon=False)
    save_figure(figure, path)

"""Judges how well images fall into classes without labels: by a head's own classes, or by k-means on the features.

python eval_cluster.py --data_path /path/to/imagenet --pretrained runs/twist/checkpoint.pth.tar
python eval_cluster.py --data_path /path/to/imagenet --pretrained resnet50.pth --kmeans 1000
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from src import cli
from src.checkpoints.files import write_atomically, write_json
from src.data.loading import loader_of
from src.data.views import Picture
from src.errors import UserError
from src.evaluation.class_heads import load_class_head
from src.evaluation.clustering import class_prediction, clustering_scores, contingency, match
from src.evaluation.features import Features, extract_features
from src.evaluation.reported import reported_line
from src.evaluation.subject import EvaluationSettings, Subject, open_subject, open_weights
from src.parallel import collectives, launch
from src.plots_of_classes import Predicted, cluster_mosaic, confusion_matrix, top_predictions
from src.settings import setting

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class ClassSettings:
    """Classes"""

    kmeans: int | None = setting(
        None, "number of clusters of the features, by k-means, whatever head there is", at_least=1, at_most=1e8
    )
    normalize: bool = setting(True, "scale features to unit length before k-means")
    act: str | None = setting(
        None, "activation of TWIST's head; default: the run's, or relu for published files", choices=["relu", "gelu"]
    )
    tau: float | None = setting(
        None, "temperature of the head's probabilities; default: the run's", above=0, at_most=1000
    )
    batch_size: int = setting(256, "number of images of each process in a batch", at_least=1, at_most=1e7)
    mosaic: int = setting(12, "number of clusters shown in clusters.png", at_least=0, at_most=1e6)
    top: int = setting(
        3, "number of most probable classes that top.png shows of some images of each class, where a head makes the "
        "classes; 0: no picture", at_least=0, at_most=100,
    )  # fmt: skip


@dataclass(frozen=True)
class Settings(EvaluationSettings):
    """What eval_cluster.py has."""

    classes: ClassSettings = ClassSettings()


SCRIPT = cli.Script("Unsupervised classification.", Settings(), positionals=("data_path", "pretrained"))


def main(argv: Sequence[str] | None = None) -> int:
    call = SCRIPT.parse(argv)
    settings = call.settings
    own, judged = settings.classes, settings.judged
    world = launch.start(settings.device.device, settings.device.dist_url)
    weights = open_weights(settings)
    head = None
    if not own.kmeans:
        head = load_class_head(judged.pretrained, judged.key, own.act) if judged.pretrained else None
        if head is None:
            raise UserError("these weights have no head that makes classes: --kmeans N clusters their features")
    subject = open_subject(settings, weights, world.device)

    if head is not None:
        how = f"the head's {head.classes} classes"
        found = class_prediction(
            subject.backbone,
            head.module.to(world.device),
            subject.test,
            subject.view,
            subject.prepare,
            settings.data.workers,
            own.tau or head.temperature,
            own.batch_size,
            "images",
        )
    else:
        how = f"k-means with {own.kmeans} clusters"
        loader = loader_of(subject.test, subject.view, own.batch_size, settings.data.workers, world.device)
        found = extract_features(subject.backbone, loader, subject.prepare, "images")
        assert own.kmeans is not None
        if own.kmeans > len(found.labels):
            raise UserError(f"--kmeans {own.kmeans}: there are only {len(found.labels)} images")
        if world.is_main:
            found = found._replace(features=by_kmeans(found.features, own.kmeans, own.normalize, judged.seed))
    if world.is_main:
        paper = reported_line(
            weights.family, "clusters", weights.spec.name, weights.settings, subject.num_classes, settings.data.dataset
        )
        classes_K = report(judged.dump_path, settings.data.data_path, subject, how, found, own.mosaic, paper)
        if head is not None and own.top:
            picture = Path(judged.dump_path) / "top.png"
            top_predictions(predicted_of(subject, found, classes_K, own.top), picture)
            print(f"the {own.top} most probable classes of some images: {picture}")
    call.tell_unread()
    collectives.barrier()
    return 0


def by_kmeans(features_NF: Tensor, clusters: int, normalize: bool, seed: int) -> Tensor:
    """(N, K): closeness to each of scikit-learn's k-means centres (the best of ten starts), largest for the nearest."""
    from sklearn.cluster import KMeans  # slow to import

    features = (F.normalize(features_NF, dim=1) if normalize else features_NF).cpu()
    found = KMeans(clusters, n_init=10, random_state=seed).fit(features.numpy())
    return -torch.cdist(features, torch.as_tensor(found.cluster_centers_, dtype=features.dtype))


def report(
    folder: str,
    data_path: str,
    subject: Subject,
    how: str,
    found: Features,
    mosaic: int,
    paper: str,
) -> Tensor:
    """Prints the scores and writes ``cluster.json``, ``predictions.csv``, ``clusters.png`` and ``confusion.png``.

    Returns the class of each cluster up to the last one in use, -1 for none.

    Args:
        folder, data_path: where to, and what was judged.
        found: confidences (N, K) in clusters.
        mosaic: number of clusters in the picture.
        paper: what the weights' paper reports.
    """
    out = Path(folder)
    confidence_NK, labels_N, images_N = found.features.cpu(), found.labels.cpu(), found.indices.cpu()
    best, clusters = confidence_NK.max(dim=1)
    # closeness to k-means centres ranks clusters as probabilities do
    scores = clustering_scores(clusters, labels_N, probabilities=confidence_NK)
    used = len(clusters.unique())
    print(f"{subject.description}; {found.used} images of {subject.num_classes} classes")
    print(f"{how}, {used} of them in use")
    print("  ".join(f"{name} {value:.2f} %" for name, value in scores.items()))
    print(paper)
    table = contingency(clusters, labels_N)
    classes_K = match(table)
    content = {
        "what": subject.description,
        "data_path": data_path,
        "how": how,
        "images": len(labels_N),
        "unreadable": found.unreadable,
        "clusters_in_use": used,
        "scores": scores,
        "paper": paper,
        "class_of_cluster": {
            str(k): subject.test.classes[c] for k, c in enumerate(classes_K.tolist()) if c >= 0 and table[k].any()
        },
    }
    write_json(out / "cluster.json", content)
    rows = io.StringIO()
    writer = csv.writer(rows)
    writer.writerow(["image", "cluster", "class", "true class"])
    names = [*subject.test.classes, "-"]  # -1 is the last one
    for n, k, label in zip(images_N.tolist(), clusters.tolist(), labels_N.tolist(), strict=True):
        writer.writerow([subject.test.name(n), k, names[classes_K[k]], names[label]])
    text = rows.getvalue().encode(errors="surrogateescape")  # the bytes of the file names, whatever they are
    write_atomically(out / "predictions.csv", lambda file: file.write(text))
    confusion_matrix(confusion(table, classes_K), subject.test.classes, out / "confusion.png")
    if mosaic:
        cluster_mosaic(mosaic_of(subject, images_N, clusters, best, classes_K, mosaic), out / "clusters.png")
    print(f"cluster.json, predictions.csv, confusion.png{', clusters.png' if mosaic else ''} are in {out}")
    return classes_K


def confusion(table_KC: Tensor, classes_K: Tensor) -> Tensor:
    """(C, C + 1): images of each true class that are put into each class, and in the last column into none."""
    classes = table_KC.shape[1]
    counts = torch.zeros(classes + 1, classes, dtype=torch.int64)
    counts.index_add_(0, torch.where(classes_K < 0, classes, classes_K), table_KC)
    return counts.T


def mosaic_of(
    subject: Subject,
    images_N: Tensor,
    clusters_N: Tensor,
    confidence_N: Tensor,
    classes_K: Tensor,
    rows: int,
    columns: int = 8,
) -> list[tuple[str, list[Tensor]]]:
    """A title and the most confident images of each of the largest clusters."""
    sizes = torch.bincount(clusters_N, minlength=len(classes_K))
    shown = []
    for k in sizes.argsort(descending=True)[:rows].tolist():
        members = (clusters_N == k).nonzero().flatten()
        if not len(members):
            break
        top = images_N[members[confidence_N[members].argsort(descending=True)[:columns]]].tolist()
        name = subject.test.classes[classes_K[k]] if classes_K[k] >= 0 else "no class"
        shown.append((f"{k}: {name} ({len(members)})", [thumbnail(subject, n) for n in top]))
    return shown


def predicted_of(
    subject: Subject, found: Features, classes_K: Tensor, top: int, rows: int = 12, columns: int = 6
) -> list[list[Predicted]]:
    """Evenly spread images of evenly spread classes, each with its most probable clusters, by the names of classes."""
    probability_NK, labels_N, images_N = found.features.cpu(), found.labels.cpu(), found.indices.cpu()
    names_K = [subject.test.classes[c] if c >= 0 else "no class" for c in classes_K.tolist()]
    names_K += ["no class"] * (probability_NK.shape[1] - len(names_K))  # not in use
    present = labels_N.unique()
    chosen = present[torch.linspace(0, len(present) - 1, min(rows, len(present))).round().long()]
    shown = []
    for label in chosen.tolist():
        members = (labels_N == label).nonzero().flatten()
        places = members[torch.linspace(0, len(members) - 1, min(columns, len(members))).round().long()]
        row = []
        for place in places.tolist():
            best = probability_NK[place].topk(min(top, probability_NK.shape[1]))
            best_classes = [(names_K[k], p) for k, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
            row.append(Predicted(thumbnail(subject, int(images_N[place])), subject.test.classes[label], best_classes))
        shown.append(row)
    return shown


def thumbnail(subject: Subject, index: int) -> Tensor:
    """(3, s, s) uint8: the image as the network sees it."""
    with subject.test.open(index) as opened:
        return subject.view.cut(Picture(opened, subject.test.decoding), None)


if __name__ == "__main__":
    cli.run(main)

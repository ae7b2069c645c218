"""Draws where a backbone puts the images of some classes, in two dimensions: t-SNE, UMAP or PCA of its features.

    python plot_embedding.py --data_path /path/to/imagenet --pretrained disco.pth.tar --first_class 5 --out disco.pdf

The picture of DisCo's paper is classes 5 to 14 of ImageNet's validation images, the first 50 of each, by t-SNE.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from src import cli
from src.checkpoints.files import write_atomically
from src.data.loading import loader_of
from src.data.source import Subset
from src.errors import UserError
from src.evaluation.features import extract_features
from src.evaluation.subject import EvaluationSettings, JudgedSettings, open_subject, open_weights
from src.parallel import collectives, launch
from src.plots import PLANES, embedding_map
from src.settings import setting

import numpy as np


@dataclass(frozen=True)
class PictureSettings:
    """Picture"""

    projection: str = setting("tsne", "how many dimensions become two; umap needs umap-learn", choices=tuple(PLANES))
    normalize: bool = setting(False, "project unit vectors, not raw features")
    first_class: int = setting(0, "number of the first class drawn", at_least=0, at_most=1e8)
    nmb_classes: int = setting(10, "number of classes drawn, from the first one on", at_least=1, at_most=1e8)
    per_class: int = setting(50, "number of test images of each class, the first ones", at_least=1, at_most=1e8)
    out: str = setting("embedding.png", "name of the picture in --dump_path: .png, .pdf or .svg")
    save_features: bool = setting(False, "also write the drawn images' features.npy and labels.npy", switch=True)
    batch_size: int = setting(256, "number of images of each process in a batch", at_least=1, at_most=1e7)


@dataclass(frozen=True)
class Settings(EvaluationSettings):
    """What plot_embedding.py has."""

    judged: JudgedSettings = JudgedSettings(seed=0)
    picture: PictureSettings = PictureSettings()


SCRIPT = cli.Script("Draws a backbone's features in two dimensions.", Settings())


def main(argv: Sequence[str] | None = None) -> int:
    call = SCRIPT.parse(argv)
    settings = call.settings
    own = settings.picture
    if Path(own.out).suffix not in (".png", ".pdf", ".svg"):
        raise UserError(f"--out {own.out}: expected a name that ends in .png, .pdf or .svg")
    world = launch.start(settings.device.device, settings.device.dist_url)
    subject = open_subject(settings, open_weights(settings), world.device)
    count = own.nmb_classes
    if "nmb_classes" not in call.given:
        count = max(1, min(count, subject.num_classes - own.first_class))
    classes = range(own.first_class, own.first_class + count)
    if classes[-1] >= subject.num_classes:
        raise UserError(f"there are {subject.num_classes} classes: --first_class or --nmb_classes is too large")
    labels_of_all = np.asarray(subject.test.labels)
    chosen = np.concatenate([np.flatnonzero(labels_of_all == label)[: own.per_class] for label in classes])
    if len(chosen) < 4:
        raise UserError(f"there are only {len(chosen)} test images of these classes")
    images = Subset(subject.test, sorted(chosen.tolist()))
    loader = loader_of(images, subject.view, own.batch_size, settings.data.workers, world.device)
    features, labels, *_ = extract_features(subject.backbone, loader, subject.prepare, "images")
    if world.is_main:
        folder = Path(settings.judged.dump_path)
        names = [subject.test.classes[label] for label in classes]
        embedding_map(
            features,
            labels - own.first_class,
            names,
            folder / own.out,
            title=f"{own.projection} of {len(labels)} images",
            seed=settings.judged.seed,
            projection=own.projection,
            normalize=own.normalize,
        )
        if own.save_features:
            write_atomically(folder / "features.npy", lambda file: np.save(file, features.cpu().numpy()))
            write_atomically(folder / "labels.npy", lambda file: np.save(file, labels.cpu().numpy()))
        print(subject.description)
        print(f"drew {len(labels)} test images of {len(names)} classes: {folder / own.out}")
    call.tell_unread()
    collectives.barrier()
    return 0


if __name__ == "__main__":
    cli.run(main)

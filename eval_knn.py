"""Judges a backbone by k-nearest-neighbour classification of its frozen features.

python eval_knn.py --data_path /path/to/imagenet --pretrained runs/swav/checkpoint.pth.tar
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from src import cli
from src.checkpoints.files import write_json
from src.data.loading import loader_of
from src.errors import UserError
from src.evaluation.features import extract_features
from src.evaluation.knn import knn_predict, nearest_majority, over_ranks, top_k_accuracy
from src.evaluation.reported import reported_line
from src.evaluation.subject import EvaluationSettings, open_subject, open_weights
from src.parallel import collectives, launch
from src.settings import replaced, setting

from torch import nn


@dataclass(frozen=True)
class KNNSettings:
    """kNN"""

    rule: str = setting(
        "weighted",
        "how neighbours vote. weighted: cosine similarity, nearer neighbours count more; majority: Euclidean distance "
        "of raw features, one vote each, as in INTL and CW-RGP",
        choices=["weighted", "majority"],
    )
    k: tuple[int, ...] = setting(
        (10, 20, 200), "numbers of neighbours; default: 10 20 200 (weighted), 5 (majority)", at_least=1, at_most=1e9
    )
    temperature: float = setting(0.07, "votes weigh exp(cosine / temperature)", above=0, at_most=1000)
    raw_pixels: bool = setting(False, "compare pixels, not features: the plainest baseline", switch=True)
    batch_size: int = setting(256, "number of images of each process in a batch", at_least=1, at_most=1e7)


@dataclass(frozen=True)
class Settings(EvaluationSettings):
    """What eval_knn.py has."""

    knn: KNNSettings = KNNSettings()


def complete(given: Mapping[str, Any]) -> Settings:
    """What was given, with the defaults of the rule."""
    usual = {"weighted": (10, 20, 200), "majority": (5,)}[given.get("rule", "weighted")]
    return replaced(Settings(knn=KNNSettings(k=usual)), given)


SCRIPT = cli.Script("k-nearest-neighbour classification of frozen features.", Settings(), complete=complete)


def fitted(own: KNNSettings, given: Mapping[str, Any], images: int) -> KNNSettings:
    """Without default numbers of neighbours that there are not; raises UserError for one that was asked for."""
    few = tuple(k for k in own.k if k <= images)
    if len(few) == len(own.k):
        return own
    if "k" in given:
        raise UserError(f"--k {max(own.k)}: there are only {images} training images")
    cli.note(f"--k is {' '.join(map(str, few or (images,)))}, as there are only {images} training images")
    return dataclasses.replace(own, k=few or (images,))


def main(argv: Sequence[str] | None = None) -> int:
    call = SCRIPT.parse(argv)
    settings = call.settings
    own, data = settings.knn, settings.data
    world = launch.start(settings.device.device, settings.device.dist_url)
    weights = open_weights(settings)
    subject = open_subject(settings, weights, world.device)
    backbone, description = subject.backbone, subject.description
    if own.raw_pixels:
        backbone, description = nn.Flatten(), "raw pixels"
    own = fitted(own, call.given, len(subject.train))

    train, test = (
        extract_features(
            backbone,
            loader_of(source, subject.view, own.batch_size, data.workers, world.device),
            subject.prepare,
            name,
        )
        for name, source in (("training images", subject.train), ("test images", subject.test))
    )
    own = fitted(own, call.given, len(train.labels))  # some may be unreadable
    common: dict[str, Any] = {"ks": own.k, "num_classes": subject.num_classes}
    if own.rule == "majority":
        predict = partial(nearest_majority, train.features, train.labels, **common)
    else:
        predict = partial(knn_predict, train.features, train.labels, **common, temperature=own.temperature)
    votes = over_ranks(predict, test.features)
    results = {
        str(k): {"top1": top_k_accuracy(scores, test.labels, 1), "top5": top_k_accuracy(scores, test.labels, 5)}
        for k, scores in votes.items()
    }
    if world.is_main:
        print(f"{description}; {train.used} training and {test.used} test images")
        for k, result in results.items():
            print(f"{k:>5} nearest neighbours: top-1 {result['top1']:.2f} %  top-5 {result['top5']:.2f} %")
        paper = ""
        if own.rule == "majority" and 5 in own.k and not own.raw_pixels:  # that of the papers' tables
            paper = reported_line(
                weights.family, "5-nn", weights.spec.name, weights.settings, subject.num_classes, data.dataset
            )
            print(paper)
        content = {
            "paper": paper,
            "what": description,
            "data_path": data.data_path,
            "rule": own.rule,
            "training_images": len(train.labels),
            "test_images": len(test.labels),
            "unreadable": train.unreadable + test.unreadable,
            "knn": results,
        }
        write_json(Path(settings.judged.dump_path) / "knn.json", content)
    call.tell_unread()
    collectives.barrier()
    return 0


if __name__ == "__main__":
    cli.run(main)

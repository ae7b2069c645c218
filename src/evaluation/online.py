"""What a training is judged by while it runs: kNN, a linear probe, and scores without labels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from ..data.loading import loader_of
from ..data.source import ImageSource, as_classes_of, labelled
from ..data.to_device import ToDevice
from ..data.views import CentreView, View
from ..errors import UserError
from ..parallel import collectives
from ..settings import setting
from .features import Features, extract_features
from .scores import features_of_views, scores_of

# Features of training and test images, and the number of classes -> named numbers
Judge = Callable[[Features, Features, int], Mapping[str, float]]
BATCH = 256


@dataclass(frozen=True)
class OnlineSettings:
    """Online evaluation"""

    probe_freq: int = setting(
        0,
        "fit a linear classifier to the frozen features every so many epochs, on the images and with the views of "
        "--knn_freq; 0 = never. It touches nothing of the training",
        at_least=0,
        at_most=1e9,
    )
    scores_freq: int = setting(
        0,
        "score the features without labels every so many epochs (RankMe, alpha-ReQ, LiDAR, alignment, uniformity, "
        "cluster stability): on --val_path, which needs no labels for it, or the folder val or test beside the "
        "training images, or else some of those; 0 = never",
        at_least=0,
        at_most=1e9,
    )
    scores_images: int = setting(
        1000, "images that are scored, evenly spread over the data set", at_least=50, at_most=1e6
    )


@dataclass
class LabelledEvaluation:
    """Judges a backbone from one set of labelled images to another.

    Attributes:
        train, test: the images.
        view: the deterministic view of both.
        judges: what is asked of their features.
        least: training images that those need.
    """

    train: ImageSource
    test: ImageSource
    view: View
    prepare: ToDevice
    judges: Sequence[Judge]
    batch_size: int = BATCH
    workers: int = 2
    least: int = 1

    def __post_init__(self) -> None:
        self.train = labelled(self.train)
        self.test = as_classes_of(self.train, self.test)
        if self.least > len(self.train):
            raise UserError(f"--knn_k {self.least}: only {len(self.train)} training images")

    def __call__(self, backbone: nn.Module) -> dict[str, float]:
        train, test = (
            extract_features(
                backbone,
                loader_of(source, self.view, self.batch_size, self.workers, self.prepare.device),
                self.prepare,
                "evaluation",
            )
            for source in (self.train, self.test)
        )
        values: dict[str, float] = {}
        for judge in self.judges:
            values |= judge(train, test, len(self.train.classes))
        return values


@dataclass
class UnlabelledEvaluation:
    """:func:`src.evaluation.scores.scores_of` of a backbone, on the main rank."""

    images: ImageSource
    view: CentreView
    prepare: ToDevice
    workers: int = 2

    def __call__(self, backbone: nn.Module) -> dict[str, float]:
        features = features_of_views(
            backbone, self.images, self.view, self.prepare, batch_size=BATCH // 8, workers=self.workers, what="scores"
        )
        return scores_of(features) if collectives.is_main() else {}

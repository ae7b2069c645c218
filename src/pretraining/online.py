"""Which images a training is judged on while it runs, and how often."""

import sys
from functools import partial

from ..data.datasets import How, open_images, open_labelled
from ..data.source import ImageSource, evenly_spread, labelled, require_labels
from ..data.splits import find_val_beside, is_own
from ..engine.judging import Evaluation
from ..engine.method import Method
from ..errors import UserError
from ..evaluation.knn import knn_accuracy
from ..evaluation.online import Judge, LabelledEvaluation, UnlabelledEvaluation
from ..evaluation.probe import probe_accuracy
from ..parallel import collectives
from .run import Pretraining, S


def online(run: Pretraining[S], method: Method) -> list[Evaluation]:
    """kNN and the linear probe from the training images to the validation images, and scores without labels, each
    after so many epochs as its flag says; nothing when that is 0. Judges of one frequency share their features."""
    knn, own = run.settings.knn, run.settings.online
    judges: dict[int, list[Judge]] = {}
    if knn.knn_freq:
        judge = partial(knn_accuracy, k=knn.knn_k, majority=knn.knn_rule == "majority")
        judges.setdefault(knn.knn_freq, []).append(judge)
    if own.probe_freq:
        judges.setdefault(own.probe_freq, []).append(probe_accuracy)
    found = []
    if judges:
        train, val = labelled_images(run)
    for every, together in judges.items():
        least = knn.knn_k if every == knn.knn_freq else 1
        workers = run.settings.data.workers
        labelled = LabelledEvaluation(train, val, run.eval_view, run.prepare, together, workers=workers, least=least)
        found.append(Evaluation(every, partial(labelled, method.backbone)))
    if own.scores_freq:
        images = evenly_spread(images_without_labels(run), own.scores_images)
        scored = UnlabelledEvaluation(images, run.eval_view, run.prepare, run.settings.data.workers)
        found.append(Evaluation(own.scores_freq, partial(scored, method.backbone)))
    return found


def labelled_images(run: Pretraining[S]) -> tuple[ImageSource, ImageSource]:
    """Those to learn from, and those to be judged on."""
    data = run.settings.data
    val = validation_images(run)
    if is_own(data.dataset):
        require_labels(run.source, run.train_path)
        train = run.source
    else:
        train = open_images(data.dataset, run.train_path, "train", How(run.settings.decoding))
    return evenly_spread(labelled(train), run.settings.knn.knn_train_images), val


def validation_images(run: Pretraining[S]) -> ImageSource:
    """The labelled images of ``--val_path``, or of the folder beside the training images."""
    data, val_path = run.settings.data, run.settings.knn.val_path
    how = data.how(run.settings.decoding, run.settings.run.dump_path)
    if is_own(data.dataset):
        return open_labelled(data.dataset, val_path or find_val_beside(data.dataset, run.train_path), how)
    return open_images(data.dataset, run.train_path, "test", how)


def images_without_labels(run: Pretraining[S]) -> ImageSource:
    """Held-out images, whether or not they have labels; the training images where there are none."""
    data, path = run.settings.data, run.settings.knn.val_path
    how = data.how(run.settings.decoding, run.settings.run.dump_path)
    if not is_own(data.dataset):
        return open_images(data.dataset, run.train_path, "test", how)
    try:
        path = path or str(find_val_beside(data.dataset, run.train_path))
    except UserError:
        if collectives.is_main():
            print("warning: --scores_freq scores training images: no val or test is beside them", file=sys.stderr)
        return run.source
    return open_images(data.dataset, path, how=how)

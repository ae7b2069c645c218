"""What eval_linear.py and eval_semisup.py say and write."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..checkpoints.files import write_json
from ..checkpoints.weights import write_weights
from ..cli import Call
from ..clock import Clock
from ..data.source import ImageSource
from ..data.subset import is_share
from ..engine.monitor import Monitor, number
from ..models.backbones.resnet import ResNet
from ..models.pretrained import Pretrained
from ..parallel import collectives
from .classifier_settings import ClassificationSettings
from .classifiers import Classification, Classifier, Judged
from .protocols import Recipe
from .published_classifier import PublishedClassifier
from .reported import reported_line
from .subject import Subject

LISTS = "https://github.com/google-research/simclr/tree/master/imagenet_subsets"


@dataclass(frozen=True)
class Task:
    """One evaluation: what is judged, on which images, by which rules.

    Attributes:
        name: ``linear`` or ``semisup``.
        protocol, reason: name of the protocol, and why it is that one.
        train: the training images whose labels may be used.
        derived: what the settings became, for checkpoints.
        classifier: a published one, which is judged instead of training one.
    """

    call: Call[ClassificationSettings]
    name: str
    protocol: str
    reason: str
    recipe: Recipe
    weights: Pretrained
    subject: Subject
    train: ImageSource
    derived: dict[str, Any]
    classifier: PublishedClassifier | None = None

    @property
    def settings(self) -> ClassificationSettings:
        return self.call.settings


def echo(task: Task, monitor: Monitor, clock: Clock) -> None:
    """What is about to happen, in numbers that a user can check against the recipe."""
    recipe, subject, ranks = task.recipe, task.subject, collectives.world_size()
    monitor.say(task.call.command)
    monitor.say(f"{subject.description}; {len(task.train)} training and {len(subject.test)} test images")
    trained = "the classifier alone is trained" if recipe.weights == "freeze" else "everything is trained"
    monitor.say(f"protocol   {task.protocol} ({recipe.protocol.source}; {task.reason}): {trained}")
    rates = " ".join(number(rate * recipe.lr_factor) for rate in recipe.lr)
    if recipe.weights == "finetune":
        rates += f", of the backbone {number(recipe.lr_backbone * recipe.lr_factor)}"
    shape = recipe.scheduler_type
    if shape == "step":
        shape = f"x {recipe.gamma:g} at {list(recipe.decay_epochs)}"
    if task.classifier is not None:
        monitor.say(f"training   none: judged is the classifier of {task.classifier.path}")
    elif recipe.optimizer == "lbfgs":
        monitor.say("training   logistic regression by scikit-learn (lbfgs, C = 1)")
    else:
        monitor.say(
            f"training   lr {rates} ({shape}), wd {recipe.wd:g}, {recipe.batch_size} x {ranks} images a step, "
            f"{clock.epochs} epochs of {clock.steps_per_epoch} steps"
        )
    for warning in told_of_labels(task):
        monitor.warn(warning)


def told_of_labels(task: Task) -> list[str]:
    """Warnings about labels that are not those of the published numbers."""
    asked, file = task.recipe.labels_perc, task.settings.labels.subset_file
    if asked == 100:
        return []
    if not file:
        return [
            f"no --subset_file: {asked:g} % of the labels are drawn with --seed {task.settings.judged.seed}, equally "
            f"many of each class; published numbers are for SimCLR's lists, 1percent.txt and 10percent.txt ({LISTS})"
        ]
    chosen, images = len(task.train), len(task.subject.train)
    if is_share(chosen, images, asked):
        return []
    return [f"--subset_file {file} names {100 * chosen / images:.2g} % of the images, and --labels_perc is {asked:g}"]


def report(task: Task, method: Classification, judged: Judged, training_images: int, monitor: Monitor) -> None:
    """Prints a line for each classifier and what the paper reports, and writes ``NAME.json``."""
    recipe, weights, subject, values = task.recipe, task.weights, task.subject, judged.values
    if training_images < len(task.train):
        monitor.say(f"trained on {training_images} of {len(task.train)} images: the others cannot be read")
    if judged.images < len(subject.test):
        monitor.say(f"judged on {judged.images} of {len(subject.test)} test images: the others cannot be read")
    results = {}
    for rate, label, best in zip(recipe.lr, method.names, method.best_top1.tolist(), strict=True):
        line = {"top1": values[f"top1_{label}"], "top5": values[f"top5_{label}"], "best_top1": best}
        title = "lbfgs" if recipe.optimizer == "lbfgs" else f"lr {rate:g}"
        if task.classifier is not None:
            title = "published classifier"
        results[title.removeprefix("lr ")] = line
        monitor.say(f"{title}: top-1 {line['top1']:.2f} %  top-5 {line['top5']:.2f} %  best top-1 {best:.2f} %")
    evaluation = task.name if recipe.labels_perc == 100 and task.name == "linear" else f"semisup {recipe.labels_perc:g}"
    dataset = task.settings.data.dataset
    paper = reported_line(weights.family, evaluation, weights.spec.name, weights.settings, subject.num_classes, dataset)
    monitor.say(paper)
    if not collectives.is_main():
        return
    content = {
        "what": subject.description,
        "data_path": task.settings.data.data_path,
        "protocol": task.protocol,
        "weights": recipe.weights,
        "features": recipe.features,
        "labels_percent": recipe.labels_perc,
        "training_images": training_images,
        "test_images": judged.images,
        "unreadable": judged.unreadable,
        "epochs": recipe.epochs,
        "batch_size": recipe.batch_size * collectives.world_size(),
        "lr": results,
        "paper": paper,
    }
    write_json(Path(task.settings.judged.dump_path) / f"{task.name}.json", content)


def save_classifier(path: str | None, method: Classification, backbone: nn.Module, told: Mapping[str, Any]) -> None:
    """``--classifier_file``: the backbone's entries and the best classifier's, with what is ``told`` about them."""
    if not path or not collectives.is_main():
        return
    best = int(method.best_top1.argmax())
    name = "fc" if isinstance(backbone, ResNet) else getattr(backbone, "pretrained_cfg", {}).get("classifier", "fc")
    linear = [module for module in method.modules() if isinstance(module, Classifier)][best].linear
    state = {**backbone.state_dict(), **{f"{name}.{key}": tensor for key, tensor in linear.state_dict().items()}}
    write_weights(path, state, told)

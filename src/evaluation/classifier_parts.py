"""What the training of classifiers is made of: the classifiers, their optimiser and rates, their batches."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.data import DataLoader

from ..clock import Clock
from ..data.loading import Batch, ViewDataset, loader_of, make_loader
from ..data.sampling import ResumableBatches, SequentialBatches
from ..data.views import RandomView
from ..errors import UserError
from ..models.backbones import feature_width
from ..models.backbones.resnet import ResNet
from ..models.teacher import Teacher
from ..optim.larc import LARC
from ..optim.schedules import multistep, warmup_cosine
from ..parallel import collectives
from .classifier_settings import TeacherSettings
from .classifiers import Classification, FineTuning, LinearProbe
from .features import FeatureDataset, extract_features
from .protocols import Recipe
from .report import Task


def learning_rate(recipe: Recipe, first: float) -> Callable[[Clock], float]:
    """The first group's rate, constant within an epoch; the others keep their proportion to it."""

    def at(clock: Clock) -> float:
        if recipe.scheduler_type == "step":
            return multistep(clock.epoch, base=first, milestones=recipe.decay_epochs, gamma=recipe.gamma)
        if recipe.scheduler_type == "exponential":
            return first * float((recipe.final_lr / first) ** (clock.epoch / recipe.epochs))
        return warmup_cosine(clock.epoch, total=recipe.epochs, base=first, final=recipe.final_lr)

    return at


def build_optimizer(task: Task, groups: list[dict[str, Any]], rate: float) -> torch.optim.Optimizer:
    options, recipe = task.settings.classifier, task.recipe
    if recipe.optimizer == "lbfgs":
        return torch.optim.SGD(groups, lr=rate)  # never steps
    if recipe.optimizer == "adam":
        return torch.optim.Adam(groups, lr=rate, weight_decay=recipe.wd)
    if recipe.optimizer == "larc":
        return LARC(groups, lr=rate, momentum=options.momentum, weight_decay=recipe.wd)
    return torch.optim.SGD(
        groups, lr=rate, momentum=options.momentum, weight_decay=recipe.wd, nesterov=options.nesterov
    )


def build_method(task: Task, backbone: nn.Module) -> Classification:
    """The classifiers with fresh weights."""
    options, recipe, subject = task.settings.classifier, task.recipe, task.subject
    common: dict[str, Any] = {"lr_factor": recipe.lr_factor, "normal_init": recipe.protocol.normal_init}
    width = feature_width(backbone)
    if not options.global_pooling and isinstance(backbone, ResNet):
        device, size = next(backbone.parameters()).device, subject.view.size
        with torch.no_grad():
            side = backbone.feature_map(torch.zeros(1, task.weights.spec.channels, size, size, device=device)).shape[-1]
        if side != 7:
            raise UserError(
                f"--global_pooling false needs maps of 7x7 positions (crops of 224 pixels); crops of {size} give "
                f"{side}x{side}"
            )
    if recipe.weights == "finetune":
        return FineTuning(backbone, width, subject.num_classes, recipe.lr[0], recipe.lr_backbone, **common)
    return LinearProbe(
        backbone if recipe.features == "augmented" else None,
        width,
        subject.num_classes,
        recipe.lr,
        pooled=options.global_pooling,
        use_bn=options.use_bn,
        **common,
    )


def give_teacher(
    own: TeacherSettings, method: Classification, num_classes: int, device: torch.device
) -> dict[str, Any]:
    """Makes the loss that of knowledge distillation from ``--teacher``; returns the teacher's identity."""
    teacher = Teacher(own.teacher, own.teacher_arch, own.teacher_stem, training=False, normalise=False).to(device)
    if teacher.width != num_classes:
        raise UserError(f"{own.teacher} tells {teacher.width} classes apart, and the data has {num_classes}")
    method.teach(teacher, own.alpha, own.T)
    return teacher.identity


class Loaders(NamedTuple):
    """Training and test batches, of images or of cached features.

    Attributes:
        batches: which images are in which training batch.
        prepare: brings a batch to the device.
        unreadable: names of images that have no cached features.
    """

    batches: ResumableBatches
    train: "DataLoader[Batch]"
    test: "DataLoader[Batch]"
    prepare: Callable[[Batch], Batch]
    unreadable: list[str]


def loaders(task: Task, backbone: nn.Module) -> Loaders:
    subject, recipe, workers = task.subject, task.recipe, task.settings.data.workers
    rank, world_size = collectives.rank(), collectives.world_size()

    def batches_of(images: int) -> ResumableBatches:
        alone = recipe.weights == "finetune" and not (recipe.protocol.sync_bn and world_size > 1)
        return ResumableBatches(
            images, recipe.batch_size, rank=rank, world_size=world_size, drop_last=False, drop_single=alone
        )

    device = subject.prepare.device
    pin = device.type != "cpu"
    if recipe.features == "augmented":
        crop = RandomView(
            subject.view.size, (0.08, 1.0), jitter_probability=0.0, grayscale=0.0, blur=0.0, bicubic=recipe.bicubic
        )
        images = ViewDataset(task.train, [crop], task.settings.judged.seed)
        batches = batches_of(len(task.train))
        train_loader = make_loader(images, batches, workers=workers, pin_memory=pin)
        test_loader = loader_of(subject.test, subject.view, recipe.batch_size, workers, device)
        return Loaders(batches, train_loader, test_loader, subject.prepare, [])
    train_set, test_set = (
        FeatureDataset(
            extract_features(backbone, loader_of(source, subject.view, 256, workers, device), subject.prepare, name)
        )
        for name, source in (("training images", task.train), ("test images", subject.test))
    )
    batches = batches_of(len(train_set))
    sequential = SequentialBatches(len(test_set), 1024, rank=rank, world_size=world_size)
    return Loaders(
        batches,
        make_loader(train_set, batches, workers=0, pin_memory=pin),
        make_loader(test_set, sequential, workers=0, pin_memory=pin),
        lambda batch: batch.to(device),
        train_set.unreadable + test_set.unreadable,
    )

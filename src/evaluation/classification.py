"""What eval_linear.py and eval_semisup.py share: the training of classifiers by a protocol."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from ..checkpoints.store import CheckpointStore
from ..cli import Call, Script
from ..clock import Clock
from ..data.datasets import ImageSource, Subset
from ..data.loading import Batch, ViewDataset, loader_of, make_loader
from ..data.sampling import ResumableBatches, SequentialBatches
from ..data.subset import class_balanced, listed, read_list
from ..data.views import RandomView
from ..engine.loop import Evaluation, Training
from ..engine.monitor import Monitor
from ..engine.precision import choose_precision
from ..engine.seeding import seed_everything
from ..errors import UserError
from ..models.backbones import feature_width
from ..models.backbones.resnet import ResNet
from ..models.pretrained import fingerprint
from ..models.teacher import Teacher
from ..optim.larc import LARC
from ..optim.schedules import multistep, warmup_cosine
from ..parallel import collectives, launch, sync_bn
from ..settings import flat
from . import protocols
from .classifier_settings import ClassificationSettings, LabelSettings, TeacherSettings
from .classifiers import (
    Classification,
    FineTuning,
    LastBlocks,
    LinearProbe,
    evaluate_classifiers,
    fit_logistic_regression,
    is_transformer,
)
from .features import FeatureDataset, extract_features
from .information import watch_information
from .protocols import Protocol, Recipe
from .report import Task, echo, report, save_classifier
from .subject import open_subject, open_weights

# Settings that make another evaluation of it: a checkpoint with other ones is never continued
IDENTITY = (
    "protocol",
    "weights",
    "backbone_sha256",
    "labels_perc",
    "subset_sha256",
    "features",
    "global_pooling",
    "n_last_blocks",
)


def run(
    script: Script[ClassificationSettings], table: dict[str, Protocol], name: str, argv: Sequence[str] | None
) -> int:
    """Trains and judges; writes ``NAME.json`` and keeps checkpoints and logs in the folder ``NAME`` of --dump_path."""
    call = script.parse(argv)
    if name == "linear" and call.settings.classifier.weights == "finetune":
        raise UserError("--weights finetune: training the backbone too is eval_semisup.py, with the same flags")
    world = launch.start(call.settings.device.device, call.settings.device.dist_url)
    task = open_task(call, table, name, world)
    seed_everything(call.settings.judged.seed)
    built = build(task, world)
    folder = Path(call.settings.judged.dump_path) / name
    monitor = Monitor(folder)
    echo(task, monitor, built.training.clock)
    built.training.monitor = monitor
    try:
        return train_and_report(task, built, monitor, folder)
    finally:
        monitor.close()


# ------------------------------------------------------------------------------------------- what is judged, and how


def open_task(call: Call[ClassificationSettings], table: dict[str, Protocol], name: str, world: launch.World) -> Task:
    """The weights, the protocol, the images."""
    settings = call.settings
    weights = open_weights(settings)
    protocol_name, reason = protocols.choose(
        table,
        settings.protocol.protocol,
        weights.family,
        is_transformer(weights.backbone),
        call.flags,
        settings.data.dataset,
    )
    protocol = table[protocol_name]
    recipe = protocols.resolve(settings.classifier, settings.labels.labels_perc, protocol, world.size)
    check(settings, recipe)
    digest = fingerprint(weights.backbone)
    subject = open_subject(settings, weights, world.device, protocol.std, recipe.bicubic, protocol.whole_image)
    train, subset_digest = share_of(subject.train, settings.labels, recipe.labels_perc, settings.judged.seed)
    derived = {"protocol": protocol_name, "backbone_sha256": digest, "subset_sha256": subset_digest, "method": name}
    return Task(call, name, protocol_name, reason, recipe, weights, subject, train, derived)


def check(settings: ClassificationSettings, recipe: Recipe) -> None:
    """Refuses what contradicts itself, once the protocol has filled in its values."""
    options, teacher = settings.classifier, settings.teaching.teacher
    finetune, cached, lbfgs = recipe.weights == "finetune", recipe.features == "cached", recipe.optimizer == "lbfgs"
    if len(set(recipe.lr)) != len(recipe.lr):
        raise UserError(f"--lr {list(recipe.lr)}: expected different learning rates")
    if finetune and not recipe.lr_backbone:
        raise UserError("--weights finetune: this protocol has no rate for the backbone, give it with --lr_backbone")
    if finetune and len(recipe.lr) > 1:
        raise UserError("--weights finetune trains one classifier: give one learning rate")
    if finetune and (cached or not options.global_pooling or recipe.n_last_blocks > 1):
        raise UserError("--features cached, --global_pooling false and --n_last_blocks need --weights freeze")
    if teacher and (cached or finetune):
        raise UserError("--teacher needs --features augmented and --weights freeze")
    if settings.information.information_every and lbfgs:
        raise UserError("--information_every watches a training, and lbfgs has no steps")
    one_layer = options.global_pooling and recipe.n_last_blocks == 1 and not options.avgpool_patchtokens
    if settings.judging.classifier_file and not one_layer:
        raise UserError("--classifier_file needs one linear layer on the pooled features")
    if cached and not options.global_pooling:
        raise UserError("--features cached needs --global_pooling true")
    if recipe.scheduler_type == "exponential" and recipe.final_lr <= 0:
        raise UserError("--scheduler_type exponential needs a positive --final_lr")
    if lbfgs and (not cached or settings.judging.evaluate or len(recipe.lr) > 1):
        raise UserError("--optimizer lbfgs needs --features cached, and goes without --evaluate and several --lr")
    if settings.judging.evaluate and settings.judging.resume == "never":
        raise UserError("--evaluate judges a checkpoint: it cannot go with --resume never")


def share_of(train: ImageSource, labels: LabelSettings, percent: float, seed: int) -> tuple[ImageSource, str]:
    """The training images whose labels may be used, and a digest of which they are ("" for all)."""
    if labels.subset_file:
        names = read_list(labels.subset_file)[1 if labels.parity_drop_first else 0 :]
        indices = listed(train, names, labels.subset_file)
    elif percent < 100:
        indices = class_balanced(train.labels, percent, seed)
    else:
        return train, ""
    return Subset(train, indices), hashlib.sha256(json.dumps(indices).encode()).hexdigest()


# ------------------------------------------------------------------------------------------- batches, classifiers


@dataclass
class Built:
    """The classifiers and what trains and judges them."""

    method: Classification
    training: Training
    judge: Callable[[], dict[str, float]]


def build(task: Task, world: launch.World) -> Built:
    """Everything up to the training."""
    settings, recipe, subject = task.settings, task.recipe, task.subject
    batches = ResumableBatches(
        len(task.train), recipe.batch_size, rank=world.rank, world_size=world.size, drop_last=False
    )
    backbone = subject.backbone
    if recipe.n_last_blocks > 1 or settings.classifier.avgpool_patchtokens:
        backbone = LastBlocks(backbone, recipe.n_last_blocks, settings.classifier.avgpool_patchtokens)
    train_loader, test_loader, prepare = loaders(task, backbone, batches)
    method = build_method(task, backbone)
    if settings.teaching.teacher:
        task.derived["teacher_sha256"] = give_teacher(settings.teaching, method, subject.num_classes, world.device)
    if recipe.protocol.sync_bn or recipe.weights == "freeze":  # frozen, only the classifier's own batch norm is trained
        sync_bn.convert(method, device_type=world.device.type)
    method.to(world.device)
    torch.manual_seed(settings.judged.seed + world.rank)
    groups = method.parameter_groups()
    first_lr = groups[0]["lr_scale"]
    for group in groups:
        group["lr_scale"] /= first_lr
    clock = Clock(len(batches), recipe.epochs)
    judged: dict[int, dict[str, float]] = {}  # by step, so that the end is not judged twice

    def judge() -> dict[str, float]:
        if clock.step not in judged:
            judged[clock.step] = evaluate_classifiers(method, test_loader, prepare)
        return judged[clock.step]

    folder = Path(settings.judged.dump_path) / task.name
    judging = settings.judging
    information = watch_information(
        settings.information,
        method,
        subject,
        task.train,
        folder,
        batch_size=recipe.batch_size,
        workers=settings.data.workers,
        cached=recipe.features == "cached",
        eval_freq=judging.eval_freq,
    )
    training = Training(
        method=method,
        optimizer=build_optimizer(task, groups, first_lr),
        loader=train_loader,
        batches=batches,
        prepare=prepare,
        schedules={"lr": learning_rate(recipe, first_lr)},
        clock=clock,
        device=world.device,
        precision=choose_precision(settings.precision.precision, world.device),
        monitor=Monitor(None),
        checkpoints=store_of(task, folder),
        evaluations=[Evaluation(judging.eval_freq, judge), *information],
        log_every=judging.log_every,
        save_every=judging.save_every,
        max_steps=judging.max_steps,
    )
    return Built(method, training, judge)


def store_of(task: Task, folder: Path) -> CheckpointStore:
    """The checkpoints of this evaluation, which no other one continues."""
    identity = (*IDENTITY, "teacher_sha256", "alpha", "T") if task.settings.teaching.teacher else IDENTITY
    settings = {**flat(task.settings), **task.recipe.plain(), **task.derived}
    return CheckpointStore(folder, settings, frequency=task.recipe.epochs, identity=identity)


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
            side = backbone.feature_map(torch.zeros(1, 3, size, size, device=device)).shape[-1]
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


def give_teacher(own: TeacherSettings, method: Classification, num_classes: int, device: torch.device) -> str:
    """Makes the loss that of knowledge distillation from ``--teacher``; returns the teacher's digest."""
    teacher = Teacher(own.teacher, own.teacher_arch, training=False, normalise=False).to(device)
    if teacher.width != num_classes:
        raise UserError(f"{own.teacher} tells {teacher.width} classes apart, and the data has {num_classes}")
    method.teach(teacher, own.alpha, own.T)
    return teacher.sha256


def loaders(
    task: Task, backbone: nn.Module, batches: ResumableBatches
) -> tuple["DataLoader[Batch]", "DataLoader[Batch]", Callable[[Batch], Batch]]:
    """Training and test batches, of images or of cached features, and what brings them to the device."""
    subject, recipe, workers = task.subject, task.recipe, task.settings.data.workers
    device = subject.prepare.device
    pin = device.type == "cuda"
    if recipe.features == "augmented":
        crop = RandomView(
            subject.view.size, (0.08, 1.0), jitter_probability=0.0, grayscale=0.0, blur=0.0, bicubic=recipe.bicubic
        )
        images = ViewDataset(task.train, [crop], task.settings.judged.seed)
        train_loader = make_loader(images, batches, workers=workers, pin_memory=pin)
        test_loader = loader_of(subject.test, subject.view, recipe.batch_size, workers, device)
        return train_loader, test_loader, subject.prepare
    train_set, test_set = (
        FeatureDataset(
            *extract_features(backbone, loader_of(source, subject.view, 256, workers, device), subject.prepare, name)
        )
        for name, source in (("training images", task.train), ("test images", subject.test))
    )
    sequential = SequentialBatches(len(test_set), 1024, rank=collectives.rank(), world_size=collectives.world_size())
    return (
        make_loader(train_set, batches, workers=0, pin_memory=pin),
        make_loader(test_set, sequential, workers=0, pin_memory=pin),
        lambda batch: batch.to(device),
    )


# ------------------------------------------------------------------------------------------- the run


def train_and_report(task: Task, built: Built, monitor: Monitor, folder: Path) -> int:
    """Trains unless only an evaluation was asked for, and writes the results; returns the exit code."""
    judging, training, method = task.settings.judging, built.training, built.method
    if task.recipe.optimizer == "lbfgs":
        assert isinstance(method, LinearProbe)
        assert isinstance(training.loader.dataset, FeatureDataset)
        fit_logistic_regression(method, training.loader.dataset)
    else:
        training.restore(judging.resume)
        if judging.evaluate and training.clock.step == 0:
            raise UserError(f"--evaluate: there is no checkpoint in {folder}")
        stopped_by = None if judging.evaluate else training.run()
        if stopped_by is not None:
            return 128 + stopped_by
        method.eval()
    report(task, method, built.judge(), monitor)
    save_classifier(judging.classifier_file, method, task.subject.backbone)
    return 0

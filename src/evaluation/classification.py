"""What eval_linear.py and eval_semisup.py share: the training of classifiers by a protocol."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..checkpoints.files import refuse_overwriting
from ..checkpoints.store import CheckpointStore
from ..cli import Call, Script
from ..clock import Clock
from ..data.fingerprint import agreed_fingerprint
from ..data.source import ImageSource, Subset
from ..data.subset import class_balanced, listed, read_list
from ..engine.alone import alone_in
from ..engine.judging import Evaluation
from ..engine.loop import Training
from ..engine.monitor import Monitor
from ..engine.precision import choose_precision
from ..engine.seeding import seed_everything
from ..errors import UserError
from ..models.pretrained import fingerprint, load_backbone
from ..parallel import collectives, launch, sync_bn
from ..settings import flat, replaced
from . import protocols
from .classifier_parts import build_method, build_optimizer, give_teacher, learning_rate, loaders
from .classifier_settings import ClassificationSettings, LabelSettings
from .classifiers import (
    Classification,
    Judged,
    LastBlocks,
    LinearProbe,
    evaluate_classifiers,
    fit_logistic_regression,
    is_transformer,
)
from .features import FeatureDataset, warn_unreadable
from .information import watch_information
from .protocols import Protocol, Recipe
from .published_classifier import PublishedClassifier, read_classifier, require_same_backbone
from .report import Task, echo, report, save_classifier
from .subject import open_subject, open_weights


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
    folder = Path(call.settings.judged.dump_path) / name
    with alone_in(folder), Monitor(folder) as monitor:
        built = build(task, world, monitor)
        with call.reads.paused():
            echo(task, monitor, built.training.clock)
        return train_and_report(task, built, monitor, folder)


# ------------------------------------------------------------------------------------------- what is judged, and how


def open_task(call: Call[ClassificationSettings], table: dict[str, Protocol], name: str, world: launch.World) -> Task:
    """The weights, the protocol, the images."""
    network = call.settings.judged.pretrained
    call, classifier = without_training(call)
    settings = call.settings
    weights = open_weights(settings)
    if network and classifier is not None and classifier.has_backbone:
        require_same_backbone(weights, load_backbone(classifier.path, settings.backbone.hints), classifier.path)
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
    if classifier is not None:
        recipe = replace(recipe, lr=recipe.lr[:1], weights="freeze", features="augmented")
    check(settings, recipe)
    digest = fingerprint(weights.backbone.state_dict())
    told = settings.classifier.bicubic is not None or recipe.bicubic
    bicubic = recipe.bicubic if told else None
    subject = open_subject(settings, weights, world.device, protocol.std, bicubic, protocol.whole_image)
    train, subset_digest = share_of(subject.train, settings.labels, recipe.labels_perc, settings.judged.seed)
    where = settings.data.data_path
    derived = {
        "protocol": protocol_name,
        "backbone_sha256": digest,
        "subset_sha256": subset_digest,
        "method": name,
        "arch": weights.spec.arch,
        "width": weights.spec.width,
        "stem": weights.spec.stem,
        "channels": weights.spec.channels,
        "family": weights.family,
        "crop_size": subject.view.size,
        "resize": subject.view.resize,
        "eval_size": subject.view.size,
        "eval_resize": subject.view.resize,
        "exif_orientation": train.decoding.exif_orientation,
        "value_range": train.decoding.value_range,
        "mean": list(subject.prepare.mean),
        "std": list(subject.prepare.std),
        "train_images": agreed_fingerprint(train, where),
        "test_images": agreed_fingerprint(subject.test, where),
    }
    return Task(call, name, protocol_name, reason, recipe, weights, subject, train, derived, classifier)


def without_training(
    call: Call[ClassificationSettings],
) -> tuple[Call[ClassificationSettings], PublishedClassifier | None]:
    """The published classifier that is to be judged; and the call with the network that is in its file."""
    where = call.settings.published
    if not where:
        return call, None
    classifier = read_classifier(where)
    if call.settings.judged.pretrained:
        return call, classifier
    if not classifier.has_backbone:
        raise UserError(f"{classifier.path} holds a classifier alone: give its network with --pretrained")
    own = {"pretrained": where}  # a name tells more than its file
    return replace(call, settings=replaced(call.settings, own)), classifier


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
    file = settings.judging.classifier_file
    if file and Path(file).exists() and Path(settings.judged.pretrained).is_file():
        refuse_overwriting(Path(file), settings.judged.pretrained, overwrite=True)
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
    judge: Callable[[], Judged]


def build(task: Task, world: launch.World, monitor: Monitor) -> Built:
    """Everything up to the training."""
    settings, recipe, subject = task.settings, task.recipe, task.subject
    backbone = subject.backbone
    if recipe.n_last_blocks > 1 or settings.classifier.avgpool_patchtokens:
        backbone = LastBlocks(backbone, recipe.n_last_blocks, settings.classifier.avgpool_patchtokens)
    data = loaders(task, backbone)
    method = build_method(task, backbone)
    if settings.teaching.teacher:
        task.derived.update(give_teacher(settings.teaching, method, subject.num_classes, world.device))
    if recipe.protocol.sync_bn or recipe.weights == "freeze":  # frozen, only the classifier's own batch norm is trained
        sync_bn.convert(method, device_type=world.device.type)
    method.to(world.device)
    torch.manual_seed(settings.judged.seed + world.rank)
    groups = method.parameter_groups()
    first_lr = groups[0]["lr_scale"]
    for group in groups:
        group["lr_scale"] /= first_lr
    clock = Clock(len(data.batches), recipe.epochs)
    judged: dict[int, Judged] = {}  # by step, so that the end is not judged twice

    def judge() -> Judged:
        if clock.step not in judged:
            found = evaluate_classifiers(method, data.test, data.prepare)
            if found.unreadable and not judged:
                warn_unreadable(found.unreadable if collectives.is_main() else [])
            judged[clock.step] = found._replace(unreadable=data.unreadable + found.unreadable)
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
        loader=data.train,
        batches=data.batches,
        prepare=data.prepare,
        schedules={"lr": learning_rate(recipe, first_lr)},
        clock=clock,
        device=world.device,
        precision=choose_precision(settings.precision.precision, world.device),
        monitor=monitor,
        checkpoints=store_of(task, folder),
        evaluations=[Evaluation(judging.eval_freq, lambda: judge().values), *information],
        log_every=judging.log_every,
        save_every=judging.save_every,
        max_steps=judging.max_steps,
    )
    return Built(method, training, judge)


def store_of(task: Task, folder: Path) -> CheckpointStore:
    """The checkpoints of this evaluation, which no other one continues."""
    recipe = task.recipe
    step_batch = recipe.batch_size * collectives.world_size()
    settings = {**flat(task.settings), **recipe.plain(), **task.derived, "step_batch": step_batch}
    accepted = task.settings.judging.accept_changes
    return CheckpointStore(folder, settings, frequency=recipe.epochs, accepted=accepted)


# ------------------------------------------------------------------------------------------- the run


def train_and_report(task: Task, built: Built, monitor: Monitor, folder: Path) -> int:
    """Trains unless only an evaluation was asked for, and writes the results; returns the exit code."""
    judging, training, method = task.settings.judging, built.training, built.method
    evaluate, classifier_file, resume = judging.evaluate, judging.classifier_file, judging.resume
    task.call.tell_unread()
    if task.classifier is not None:
        task.classifier.put_into(method)
        method.eval()
    elif task.recipe.optimizer == "lbfgs":
        assert isinstance(method, LinearProbe)
        assert isinstance(training.loader.dataset, FeatureDataset)
        fit_logistic_regression(method, training.loader.dataset)
    else:
        training.restore(resume)
        if evaluate and training.clock.step == 0:
            raise UserError(f"--evaluate: there is no checkpoint in {folder}")
        if training.is_finished and not evaluate:
            monitor.say(f"finished before: {training.clock.epoch} epochs are done; judged once more")
        stopped_by = None if evaluate else training.run()
        if stopped_by is not None:
            return 128 + stopped_by
        method.eval()
    report(task, method, built.judge(), training.batches.num_images, monitor)
    save_classifier(classifier_file, method, task.subject.backbone, task.derived)
    return 0

"""What eval_linear.py and eval_semisup.py share: flags, the training of classifiers by a protocol, the report."""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from .. import cli
from ..checkpoints.files import write_atomically
from ..checkpoints.store import CheckpointStore
from ..clock import Clock
from ..data.datasets import ImageSource, Subset
from ..data.loading import (
    Batch,
    ResumableBatches,
    SequentialBatches,
    ViewDataset,
    loader_of,
    make_loader,
)
from ..data.subset import class_balanced, listed, read_list
from ..data.views import RandomView
from ..engine.loop import Evaluation, Training
from ..engine.monitor import Monitor, number
from ..engine.precision import choose_precision
from ..errors import UserError
from ..models.backbones import feature_width
from ..models.backbones.resnet import ResNet
from ..models.pretrained import Pretrained, fingerprint
from ..models.teacher import Teacher
from ..optim.larc import LARC
from ..optim.schedules import multistep, warmup_cosine
from ..parallel import collectives, launch, sync_bn
from . import protocols
from .classifiers import (
    Classification,
    Classifier,
    FineTuning,
    LastBlocks,
    LinearProbe,
    evaluate_classifiers,
    fit_logistic_regression,
    is_transformer,
)
from .features import FeatureDataset, extract_features
from .information import watch_information
from .reported import reported_line
from .subject import Subject, open_subject, open_weights

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


def build_parser(
    description: str, table: dict[str, protocols.Protocol], lr_flags: Sequence[str], backbone_flags: Sequence[str]
) -> cli.Parser:
    """The flags, under the names of all programs whose commands they serve.

    Args:
        table: the protocols.
        lr_flags, backbone_flags: names of the classifier's and of the backbone's learning rate.
    """
    parser = cli.Parser(description, positionals=("data_path", "pretrained"), epilog=protocols.describe(table))
    parser.add_argument(
        "--protocol",
        default="auto",
        choices=["auto", *table],
        help="whose rules and defaults, see below; auto: those of the weights' paper, else of the program whose flags "
        "are used",
    )
    cli.add_evaluation_arguments(parser)
    group = parser.add_argument_group("labels")
    group.add_argument(
        "--labels_perc", "--train_percent", "--train_perc", type=percentage, help="percent; default: the protocol's"
    )
    group.add_argument(
        "--subset_file",
        help="list of the training images, a file name on each line, such as SimCLR's 1percent.txt; without one the "
        "share is drawn with --seed, equally many images of each class",
    )
    group.add_argument(
        "--parity_drop_first", action="store_true", help="leave out the list's first name, as DisCo's copy script did"
    )
    group = parser.add_argument_group("classifier (defaults: the protocol's)")
    group.add_argument("--weights", choices=["freeze", "finetune"], help="train the classifier only, or everything")
    group.add_argument(
        "--features",
        choices=["augmented", "cached"],
        help="augmented: a forward pass on random crops every epoch (the published protocols); cached: one pass on "
        "centre crops, then the classifiers train on its features, minutes instead of hours (frozen backbones)",
    )
    group.add_argument("--epochs", type=cli.positive, help="in all")
    group.add_argument(
        "--batch_size", "--bs", "--batch_size_per_gpu", "-b", type=int, help="in all or for each process: see below"
    )
    group.add_argument(*lr_flags, dest="lr", type=float, nargs="+", help="of the classifier; several = classifiers")
    group.add_argument(*backbone_flags, dest="lr_backbone", type=float, help="of the backbone, with --weights finetune")
    group.add_argument("--wd", "--weight_decay", type=float, help="weight decay")
    group.add_argument("--momentum", type=float, default=0.9, help="of SGD")
    group.add_argument("--nesterov", type=cli.boolean, default=False, help="Nesterov momentum")
    group.add_argument(
        "--optimizer",
        choices=["sgd", "larc", "adam", "lbfgs"],
        help="lbfgs: scikit-learn's logistic regression on cached features, without epochs and rates",
    )
    group.add_argument("--lars", action="store_const", const="larc", dest="optimizer", help="= --optimizer larc")
    group.add_argument("--scheduler_type", choices=["cosine", "step", "exponential"], help="of the learning rates")
    group.add_argument("--final_lr", type=float, help="where they end, for the first one; not of step")
    group.add_argument("--decay_epochs", type=int, nargs="*", help="of the step schedule")
    group.add_argument("--gamma", type=float, help="of the step schedule")
    group.add_argument(
        "--schedule", nargs="*", action=_Schedule, default=argparse.SUPPRESS,
        help="word of the published code: cos, step, or the epochs of the step schedule",
    )  # fmt: skip
    group.add_argument("--cos", action="store_const", const="cosine", dest="scheduler_type", help="= --schedule cos")
    group.add_argument("--bicubic", type=cli.boolean, help="how crops are resized")
    group.add_argument("--global_pooling", type=cli.boolean, default=True, help="false: 2x2 positions (ResNets only)")
    group.add_argument("--use_bn", type=cli.boolean, default=False, help="batch norm, only without global pooling")
    group.add_argument("--n_last_blocks", type=cli.positive, help="of a transformer: whose class tokens are used")
    group.add_argument(
        "--avgpool_patchtokens", type=cli.boolean, default=False, help="and the mean of the patch tokens"
    )
    group = parser.add_argument_group("knowledge distillation from a classifier (DisCo's main_lincls_ft.py)")
    group.add_argument("--teacher", default="", help="a network with its classifier, such as one of --classifier_file")
    group.add_argument("--teacher_arch", help="needed for networks that are no ResNets")
    group.add_argument("--alpha", type=float, default=0.5, help="weight of the teacher; 1 - alpha is the labels'")
    group.add_argument("--T", type=float, default=2.0, help="temperature of both softmaxes")
    group = parser.add_argument_group("mutual information of the first classifier (DisCo's analysis)")
    group.add_argument(
        "--information_every", type=cli.non_negative, default=0, help="measure it every so many steps; 0 = never"
    )
    group.add_argument(
        "--information_images", type=cli.positive, default=1000, help="training images it is measured on"
    )
    group.add_argument("--information_bins", type=cli.positive, default=30, help="of each probability")
    group.add_argument(
        "--information_compat", action="store_true", help="with the published program's mistake, which splits clusters"
    )
    group = parser.add_argument_group("run")
    group.add_argument(
        "--classifier_file", help="also write the network with its best classifier, under torchvision's or timm's names"
    )
    group.add_argument("--resume", default="auto", help="auto, never, or a checkpoint of this evaluation")
    group.add_argument("-e", "--evaluate", action="store_true", help="judge the newest checkpoint, without training")
    group.add_argument(
        "--eval_freq", "--val_epoch", "--val_freq", type=cli.positive, default=1, help="evaluate every so many epochs"
    )
    group.add_argument("--log_every", "--print_freq", "-p", type=cli.positive, default=50, help="steps a log line")
    group.add_argument("--save_every", type=cli.non_negative, default=0, help="also save every so many steps; 0 = off")
    group.add_argument("--max_steps", type=cli.positive, help="stop after so many steps in all")
    cli.add_device_arguments(parser)
    cli.add_precision_arguments(parser)
    return parser


def percentage(text: str) -> float:
    """Above 0, up to 100."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 < value <= 100:
        raise argparse.ArgumentTypeError(f"{text} is not a percentage above 0 and up to 100")
    return value


class _Schedule(argparse.Action):
    """``--schedule`` means a kind in INTL's program and epochs in MoCo's."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        kinds = {"cos": "cosine", "cosine": "cosine", "step": "step"}
        if len(values) == 1 and values[0] in kinds:
            namespace.scheduler_type = kinds[values[0]]
            return
        if not all(value.isdigit() for value in values):
            parser.error(f"--schedule {' '.join(values)}: expected cos, step, or epochs")
        namespace.scheduler_type = "step"
        namespace.decay_epochs = [int(value) for value in values]


def check(args: argparse.Namespace) -> None:
    """Refuses what contradicts itself, once the protocol has filled in its values."""
    if min(args.lr) <= 0 or min(args.wd, args.final_lr, args.lr_backbone) < 0:
        raise UserError("learning rates must be positive, --wd and --final_lr not negative")
    if len(set(args.lr)) != len(args.lr):
        raise UserError(f"--lr {args.lr}: expected different learning rates")
    if args.batch_size < 1:
        raise UserError(f"--batch_size {args.batch_size}: expected at least one image per process")
    if args.weights == "finetune" and not args.lr_backbone:
        raise UserError("--weights finetune: this protocol has no rate for the backbone, give it with --lr_backbone")
    if args.weights == "finetune" and len(args.lr) > 1:
        raise UserError("--weights finetune trains one classifier: give one learning rate")
    if args.weights == "finetune" and (args.features == "cached" or not args.global_pooling or args.n_last_blocks > 1):
        raise UserError("--features cached, --global_pooling false and --n_last_blocks need --weights freeze")
    if args.teacher and (args.features == "cached" or args.weights == "finetune"):
        raise UserError("--teacher needs --features augmented and --weights freeze")
    if args.T <= 0 or not 0 <= args.alpha <= 1:
        raise UserError("--T must be positive, and --alpha between 0 and 1")
    if args.information_every and args.optimizer == "lbfgs":
        raise UserError("--information_every watches a training, and lbfgs has no steps")
    if args.classifier_file and (not args.global_pooling or args.n_last_blocks > 1 or args.avgpool_patchtokens):
        raise UserError("--classifier_file needs one linear layer on the pooled features")
    if args.features == "cached" and not args.global_pooling:
        raise UserError("--features cached needs --global_pooling true")
    if args.scheduler_type == "exponential" and args.final_lr <= 0:
        raise UserError("--scheduler_type exponential needs a positive --final_lr")
    if args.optimizer == "lbfgs" and (args.features != "cached" or args.evaluate or len(args.lr) > 1):
        raise UserError("--optimizer lbfgs needs --features cached, and goes without --evaluate and several --lr")
    if args.evaluate and args.resume == "never":
        raise UserError("--evaluate judges a checkpoint: it cannot go with --resume never")


def run(parser: cli.Parser, table: dict[str, protocols.Protocol], name: str, argv: Sequence[str] | None) -> int:
    """Trains and judges; writes ``NAME.json`` and keeps checkpoints and logs in the folder ``NAME`` of --dump_path."""
    args = parser.parse_args(argv)
    args.method = name
    if name == "linear" and args.weights == "finetune":
        raise UserError("--weights finetune: training the backbone too is eval_semisup.py, with the same flags")
    world = launch.start(args.device, args.dist_url)
    precision = choose_precision(args.precision or "fp32", world.device)

    # ------------------------------------------------------------------------------------------- what is judged, how
    weights = open_weights(args)
    args.protocol, reason = protocols.choose(
        table, args.protocol, weights.family, is_transformer(weights.backbone), flags_on(argv), args.dataset
    )
    protocol = table[args.protocol]
    protocols.resolve(args, protocol, world.size)
    check(args)
    args.backbone_sha256 = fingerprint(weights.backbone)
    subject = open_subject(args, weights, world.device, protocol.std, args.bicubic, protocol.whole_image)
    train = share_of(subject.train, args)
    cli.seed_everything(args.seed)

    # ------------------------------------------------------------------------------------------- batches, classifiers
    batches = ResumableBatches(len(train), args.batch_size, rank=world.rank, world_size=world.size, drop_last=False)
    backbone = subject.backbone
    if args.n_last_blocks > 1 or args.avgpool_patchtokens:
        backbone = LastBlocks(backbone, args.n_last_blocks, args.avgpool_patchtokens)
    train_loader, test_loader, prepare = loaders(args, subject, backbone, train, batches)
    method = build_method(args, backbone, subject.num_classes, subject.view.size, protocol)
    if args.teacher:
        give_teacher(args, method, subject.num_classes, world.device)
    if protocol.sync_bn or args.weights == "freeze":  # frozen, only the classifier's own batch norm is trained
        sync_bn.convert(method, device_type=world.device.type)
    method.to(world.device)
    torch.manual_seed(args.seed + world.rank)
    groups = method.parameter_groups()
    first_lr = groups[0]["lr_scale"]
    for group in groups:
        group["lr_scale"] /= first_lr
    optimizer = build_optimizer(args, groups, first_lr)

    def learning_rate(clock: Clock) -> float:
        """The first group's, constant within an epoch; the others keep their proportion to it."""
        if args.scheduler_type == "step":
            return multistep(clock.epoch, base=first_lr, milestones=args.decay_epochs, gamma=args.gamma)
        if args.scheduler_type == "exponential":
            return first_lr * (args.final_lr / first_lr) ** (clock.epoch / args.epochs)
        return warmup_cosine(clock.epoch, total=args.epochs, base=first_lr, final=args.final_lr)

    # ------------------------------------------------------------------------------------------- run, report
    folder = Path(args.dump_path) / name
    identity = (*IDENTITY, "teacher_sha256", "alpha", "T") if args.teacher else IDENTITY
    checkpoints = CheckpointStore(folder, vars(args), frequency=args.epochs, identity=identity)
    monitor = Monitor(folder)
    clock = Clock(len(batches), args.epochs)
    echo(args, monitor, subject, len(train), protocol, reason, clock)
    judged: dict[int, dict[str, float]] = {}  # by step, so that the end is not judged twice

    def judge() -> dict[str, float]:
        if clock.step not in judged:
            judged[clock.step] = evaluate_classifiers(method, test_loader, prepare)
        return judged[clock.step]

    training = Training(
        method=method,
        optimizer=optimizer,
        loader=train_loader,
        batches=batches,
        prepare=prepare,
        schedules={"lr": learning_rate},
        clock=clock,
        device=world.device,
        precision=precision,
        monitor=monitor,
        checkpoints=checkpoints,
        evaluations=[Evaluation(args.eval_freq, judge), *watch_information(args, method, subject, train, folder)],
        log_every=args.log_every,
        save_every=args.save_every,
        max_steps=args.max_steps,
    )
    try:
        if args.optimizer == "lbfgs":
            assert isinstance(method, LinearProbe)
            assert isinstance(train_loader.dataset, FeatureDataset)
            fit_logistic_regression(method, train_loader.dataset)
            report(args, name, weights, subject, len(train), method, judge(), monitor)
            save_classifier(args, method, subject.backbone)
            return 0
        training.restore(args.resume)
        if args.evaluate and clock.step == 0:
            raise UserError(f"--evaluate: there is no checkpoint in {folder}")
        stopped_by = None if args.evaluate else training.run()
        if stopped_by is not None:
            return 128 + stopped_by
        method.eval()
        report(args, name, weights, subject, len(train), method, judge(), monitor)
        save_classifier(args, method, subject.backbone)
    finally:
        monitor.close()
    return 0


def flags_on(argv: Sequence[str] | None) -> set[str]:
    """Names of the long flags on the command line, with ``_``."""
    words = sys.argv[1:] if argv is None else argv
    return {word[2:].partition("=")[0].replace("-", "_") for word in words if word.startswith("--")}


def share_of(train: ImageSource, args: argparse.Namespace) -> ImageSource:
    """The training images whose labels may be used."""
    if args.subset_file:
        names = read_list(args.subset_file)[1 if args.parity_drop_first else 0 :]
        indices = listed(train, names, args.subset_file)
    elif args.labels_perc < 100:
        indices = class_balanced(train.labels, args.labels_perc, args.seed)
    else:
        args.subset_sha256 = ""
        return train
    args.subset_sha256 = hashlib.sha256(json.dumps(indices).encode()).hexdigest()
    return Subset(train, indices)


def build_optimizer(
    args: argparse.Namespace, groups: list[dict[str, Any]], learning_rate: float
) -> torch.optim.Optimizer:
    if args.optimizer == "adam":
        return torch.optim.Adam(groups, lr=learning_rate, weight_decay=args.wd)
    if args.optimizer == "larc":
        return LARC(groups, lr=learning_rate, momentum=args.momentum, weight_decay=args.wd)
    return torch.optim.SGD(
        groups, lr=learning_rate, momentum=args.momentum, weight_decay=args.wd, nesterov=args.nesterov
    )


def build_method(
    args: argparse.Namespace, backbone: nn.Module, num_classes: int, crop_size: int, protocol: protocols.Protocol
) -> Classification:
    """The classifiers with fresh weights."""
    common: dict[str, Any] = {"lr_factor": args.lr_factor, "normal_init": protocol.normal_init}
    width = feature_width(backbone)
    if not args.global_pooling and isinstance(backbone, ResNet):
        device = next(backbone.parameters()).device
        with torch.no_grad():
            side = backbone.feature_map(torch.zeros(1, 3, crop_size, crop_size, device=device)).shape[-1]
        if side != 7:
            raise UserError(
                f"--global_pooling false needs maps of 7x7 positions (crops of 224 pixels); crops of {crop_size} give "
                f"{side}x{side}"
            )
    if args.weights == "finetune":
        return FineTuning(backbone, width, num_classes, args.lr[0], args.lr_backbone, **common)
    return LinearProbe(
        backbone if args.features == "augmented" else None,
        width,
        num_classes,
        args.lr,
        pooled=args.global_pooling,
        use_bn=args.use_bn,
        **common,
    )


def give_teacher(args: argparse.Namespace, method: Classification, num_classes: int, device: torch.device) -> None:
    """Makes the loss that of knowledge distillation from ``--teacher``."""
    teacher = Teacher(args.teacher, args.teacher_arch, training=False, normalise=False).to(device)
    if teacher.width != num_classes:
        raise UserError(f"{args.teacher} tells {teacher.width} classes apart, and the data has {num_classes}")
    args.teacher_sha256 = teacher.sha256
    method.teach(teacher, args.alpha, args.T)


def save_classifier(args: argparse.Namespace, method: Classification, backbone: nn.Module) -> None:
    """``--classifier_file``: the backbone's entries and the best classifier's."""
    if not args.classifier_file or not collectives.is_main():
        return
    best = int(method.best_top1.argmax())
    name = "fc" if isinstance(backbone, ResNet) else getattr(backbone, "pretrained_cfg", {}).get("classifier", "fc")
    linear = [module for module in method.modules() if isinstance(module, Classifier)][best].linear
    state = {key: tensor.cpu() for key, tensor in backbone.state_dict().items()}
    state |= {f"{name}.{key}": tensor.cpu() for key, tensor in linear.state_dict().items()}
    write_atomically(Path(args.classifier_file), lambda file: torch.save(state, file))


def loaders(
    args: argparse.Namespace, subject: Subject, backbone: nn.Module, train: ImageSource, batches: ResumableBatches
) -> tuple["DataLoader[Batch]", "DataLoader[Batch]", Callable[[Batch], Batch]]:
    """Training and test batches, of images or of cached features, and what brings them to the device."""
    device = subject.prepare.device
    pin = device.type == "cuda"
    if args.features == "augmented":
        crop = RandomView(
            subject.view.size, (0.08, 1.0), jitter_probability=0.0, grayscale=0.0, blur=0.0, bicubic=args.bicubic
        )
        train_loader = make_loader(ViewDataset(train, [crop], args.seed), batches, workers=args.workers, pin_memory=pin)
        test_loader = loader_of(subject.test, subject.view, args.batch_size, args.workers, device)
        return train_loader, test_loader, subject.prepare
    train_set, test_set = (
        FeatureDataset(
            *extract_features(
                backbone, loader_of(source, subject.view, 256, args.workers, device), subject.prepare, name
            )
        )
        for name, source in (("training images", train), ("test images", subject.test))
    )
    sequential = SequentialBatches(len(test_set), 1024, rank=collectives.rank(), world_size=collectives.world_size())
    return (
        make_loader(train_set, batches, workers=0, pin_memory=pin),
        make_loader(test_set, sequential, workers=0, pin_memory=pin),
        lambda batch: batch.to(device),
    )


def echo(
    args: argparse.Namespace,
    monitor: Monitor,
    subject: Subject,
    train_images: int,
    protocol: protocols.Protocol,
    reason: str,
    clock: Clock,
) -> None:
    """What is about to happen, in numbers that a user can check against the recipe."""
    ranks = collectives.world_size()
    monitor.say(cli.command_line())
    monitor.say(f"{subject.description}; {train_images} training and {len(subject.test)} test images")
    trained = "the classifier alone is trained" if args.weights == "freeze" else "everything is trained"
    monitor.say(f"protocol   {args.protocol} ({protocol.source}; {reason}): {trained}")
    rates = " ".join(number(rate * args.lr_factor) for rate in args.lr)
    if args.weights == "finetune":
        rates += f", of the backbone {number(args.lr_backbone * args.lr_factor)}"
    shape = f"x {args.gamma:g} at {args.decay_epochs}" if args.scheduler_type == "step" else args.scheduler_type
    if args.optimizer == "lbfgs":
        monitor.say("training   logistic regression by scikit-learn (lbfgs, C = 1)")
    else:
        monitor.say(
            f"training   lr {rates} ({shape}), wd {args.wd:g}, {args.batch_size} x {ranks} images a step, "
            f"{clock.epochs} epochs of {clock.steps_per_epoch} steps"
        )
    if args.labels_perc < 100 and not args.subset_file:
        monitor.warn(
            f"no --subset_file: {args.labels_perc:g} % of the labels are drawn with --seed {args.seed}, equally many "
            "of each class; published numbers are for the SimCLR lists"
        )


def report(
    args: argparse.Namespace,
    name: str,
    weights: Pretrained,
    subject: Subject,
    train_images: int,
    method: Classification,
    values: dict[str, float],
    monitor: Monitor,
) -> None:
    """Prints a line for each classifier and what the paper reports, and writes ``NAME.json``."""
    results = {}
    for rate, label, best in zip(args.lr, method.names, method.best_top1.tolist(), strict=True):
        line = {"top1": values[f"top1_{label}"], "top5": values[f"top5_{label}"], "best_top1": best}
        title = "lbfgs" if args.optimizer == "lbfgs" else f"lr {rate:g}"
        results[title.removeprefix("lr ")] = line
        monitor.say(f"{title}: top-1 {line['top1']:.2f} %  top-5 {line['top5']:.2f} %  best top-1 {best:.2f} %")
    evaluation = name if args.labels_perc == 100 and name == "linear" else f"semisup {args.labels_perc:g}"
    arch = weights.spec.arch if weights.spec.width == 1 else f"{weights.spec.arch}w{weights.spec.width:g}"
    paper = reported_line(weights.family, evaluation, arch, weights.settings, subject.num_classes)
    monitor.say(paper)
    if not collectives.is_main():
        return
    content = {
        "what": subject.description,
        "data_path": args.data_path,
        "protocol": args.protocol,
        "weights": args.weights,
        "features": args.features,
        "labels_percent": args.labels_perc,
        "training_images": train_images,
        "test_images": len(subject.test),
        "epochs": args.epochs,
        "batch_size": args.batch_size * collectives.world_size(),
        "lr": results,
        "paper": paper,
    }
    text = json.dumps(content, indent=2).encode()
    write_atomically(Path(args.dump_path) / f"{name}.json", lambda file: file.write(text))

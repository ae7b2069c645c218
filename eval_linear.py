"""Judges a backbone by linear classification of its frozen features (the protocol of arXiv 2006.09882).

    torchrun --nproc_per_node=8 eval_linear.py --data_path /path/to/imagenet --pretrained runs/swav/checkpoint.pth.tar

Several values of --lr train one classifier each on the same forward passes.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from src import cli, distributed, sync_bn
from src.checkpoint import CheckpointStore
from src.clock import Clock
from src.data.loading import (
    Batch,
    ResumableBatches,
    SequentialBatches,
    ViewDataset,
    loader_of,
    make_loader,
)
from src.data.views import RandomView
from src.errors import UserError
from src.evaluation.features import FeatureDataset, extract_features
from src.evaluation.linear import LinearProbe, evaluate_probe
from src.evaluation.subject import Subject, open_subject
from src.files import write_atomically
from src.monitor import Monitor
from src.optim.schedules import multistep, warmup_cosine
from src.training import Training, choose_precision


def build_parser() -> cli.Parser:
    parser = cli.Parser("Linear classification of frozen features.")
    cli.add_evaluation_arguments(parser)
    group = parser.add_argument_group("linear classifier")
    group.add_argument(
        "--features",
        default="augmented",
        choices=["augmented", "cached"],
        help="augmented: a frozen forward pass on random crops every epoch (the published protocol); cached: one pass "
        "on centre crops, then the classifiers train on its features, minutes instead of hours",
    )
    group.add_argument("--epochs", type=cli.positive, default=100, help="in all")
    group.add_argument("--batch_size", type=int, default=32, help="images for each process (published: 8 x 32)")
    group.add_argument(
        "--lr", type=float, nargs="+", default=[0.3], help="for 256 images, never scaled for you; several = classifiers"
    )
    group.add_argument("--wd", type=float, default=1e-6, help="weight decay")
    group.add_argument("--nesterov", type=cli.boolean, default=False, help="Nesterov momentum")
    group.add_argument("--scheduler_type", default="cosine", choices=["cosine", "step"], help="of the learning rate")
    group.add_argument("--final_lr", type=float, default=0.0, help="end of the cosine, for the first --lr")
    group.add_argument("--decay_epochs", type=int, nargs="+", default=[60, 80], help="of the step schedule")
    group.add_argument("--gamma", type=float, default=0.1, help="of the step schedule")
    group.add_argument("--global_pooling", type=cli.boolean, default=True, help="false: 2x2 positions (ResNets only)")
    group.add_argument("--use_bn", type=cli.boolean, default=False, help="batch norm, only without global pooling")
    group.add_argument("--resume", default="auto", help="auto, never, or a checkpoint of this evaluation")
    group.add_argument("--eval_freq", type=cli.positive, default=1, help="evaluate every so many epochs")
    group.add_argument("--log_every", type=cli.positive, default=50, help="steps between log lines")
    group.add_argument("--max_steps", type=cli.positive, default=None, help="stop after so many steps in all")
    cli.add_device_arguments(parser)
    return parser


def check(args: argparse.Namespace) -> None:
    if min(args.lr) <= 0 or args.wd < 0 or args.final_lr < 0:
        raise UserError("--lr must be positive, --wd and --final_lr not negative")
    if len(set(args.lr)) != len(args.lr):
        raise UserError(f"--lr {args.lr}: expected different learning rates")
    if args.features == "cached" and not args.global_pooling:
        raise UserError("--features cached needs --global_pooling true")


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    check(args)
    args.method = "linear"
    world = distributed.start(args.device, args.dist_url)
    precision = choose_precision(args.precision or "fp32", world.device)
    subject = open_subject(args, world.device)
    cli.seed_everything(args.seed)

    batches = ResumableBatches(
        len(subject.train), args.batch_size, rank=world.rank, world_size=world.size, drop_last=False
    )
    train_loader, test_loader, prepare = loaders(args, subject, batches)
    probe = LinearProbe(
        subject.backbone if args.features == "augmented" else None,
        subject.width,
        subject.num_classes,
        args.lr,
        args.global_pooling,
        args.use_bn,
    )
    sync_bn.convert(probe, device_type=world.device.type)
    probe.to(world.device)
    optimizer = torch.optim.SGD(
        probe.parameter_groups(), lr=1.0, momentum=0.9, weight_decay=args.wd, nesterov=args.nesterov
    )

    def share_of_lr(clock: Clock) -> float:
        """Each group's learning rate as a share of its first one, constant within an epoch."""
        if args.scheduler_type == "step":
            return multistep(clock.epoch, base=1.0, milestones=args.decay_epochs, gamma=args.gamma)
        return warmup_cosine(clock.epoch, total=args.epochs, base=1.0, final=args.final_lr / args.lr[0])

    checkpoints = CheckpointStore(Path(args.dump_path) / "linear", vars(args), frequency=args.epochs)
    monitor = Monitor(checkpoints.folder)
    monitor.say(cli.command_line())
    monitor.say(f"{subject.description}; {len(subject.train)} training and {len(subject.test)} test images")
    clock = Clock(len(batches), args.epochs)
    judged: dict[int, dict[str, float]] = {}  # by step, so that the end is not judged twice

    def judge() -> dict[str, float]:
        if clock.step not in judged:
            judged[clock.step] = evaluate_probe(probe, test_loader, prepare)
        return judged[clock.step]

    training = Training(
        method=probe,
        optimizer=optimizer,
        loader=train_loader,
        batches=batches,
        prepare=prepare,
        schedules={"lr": share_of_lr},
        clock=clock,
        device=world.device,
        precision=precision,
        monitor=monitor,
        checkpoints=checkpoints,
        evaluate=judge,
        evaluate_every=args.eval_freq,
        log_every=args.log_every,
        max_steps=args.max_steps,
    )
    try:
        training.restore(args.resume)
        stopped_by = training.run()
        if stopped_by is not None:
            return 128 + stopped_by
        probe.eval()
        report(args, subject, probe, judge(), monitor)
    finally:
        monitor.close()
    return 0


def loaders(
    args: argparse.Namespace, subject: Subject, batches: ResumableBatches
) -> tuple["DataLoader[Batch]", "DataLoader[Batch]", Any]:
    """Training and test batches, of images or of cached features, and what brings them to the device."""
    device = subject.prepare.device
    pin = device.type == "cuda"
    if args.features == "augmented":
        crop = RandomView(subject.view.size, (0.08, 1.0), jitter_probability=0.0, grayscale=0.0, blur=0.0)
        train = make_loader(
            ViewDataset(subject.train, [crop], args.seed), batches, workers=args.workers, pin_memory=pin
        )
        return train, loader_of(subject.test, subject.view, args.batch_size, args.workers, device), subject.prepare
    train_set, test_set = (
        FeatureDataset(
            *extract_features(
                subject.backbone, loader_of(source, subject.view, 256, args.workers, device), subject.prepare, name
            )
        )
        for name, source in (("training images", subject.train), ("test images", subject.test))
    )
    sequential = SequentialBatches(len(test_set), 1024, rank=distributed.rank(), world_size=distributed.world_size())
    return (
        make_loader(train_set, batches, workers=0, pin_memory=pin),
        make_loader(test_set, sequential, workers=0, pin_memory=pin),
        lambda batch: batch.to(device),
    )


def report(
    args: argparse.Namespace, subject: Subject, probe: LinearProbe, values: dict[str, float], monitor: Monitor
) -> None:
    """Prints a line for each classifier and writes ``linear.json``."""
    results = {}
    for rate, best in zip(args.lr, probe.best_top1.tolist(), strict=True):
        results[f"{rate:g}"] = {
            "top1": values[f"top1_lr_{rate:g}"],
            "top5": values[f"top5_lr_{rate:g}"],
            "best_top1": best,
        }
        line = results[f"{rate:g}"]
        monitor.say(f"lr {rate:g}: top-1 {line['top1']:.2f} %  top-5 {line['top5']:.2f} %  best top-1 {best:.2f} %")
    if distributed.is_main():
        content = {"what": subject.description, "data_path": args.data_path, "features": args.features, "lr": results}
        text = json.dumps(content, indent=2).encode()
        write_atomically(Path(args.dump_path) / "linear.json", lambda file: file.write(text))


if __name__ == "__main__":
    cli.run(main)

"""What the main_*.py scripts share: images and batches from the flags, a placed method, online evaluation, the run."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from . import cli
from .checkpoints.store import CheckpointStore
from .clock import Clock
from .data.datasets import (
    OWN_SETS,
    ImageSource,
    evenly_spread,
    find_val_beside,
    first_images,
    open_images,
    open_labelled,
    require_labels,
)
from .data.loading import Batch, ResumableBatches, ToDevice, ViewDataset, Views, make_loader
from .data.views import CentreView
from .engine.loop import Evaluation, Schedule, Training
from .engine.method import Method
from .engine.monitor import Monitor
from .engine.precision import Precision, choose_precision
from .errors import UserError
from .evaluation.knn import KNNEvaluation
from .models.backbones import checkpoint_activations, residual_blocks
from .parallel import launch
from .parallel.sharding import shard


@dataclass(frozen=True)
class Pretraining:
    """The processes and the data of a pre-training.

    Attributes:
        args: the flags.
        train_path: where the training images are.
        source: all of them.
        images: those that are used.
    """

    args: argparse.Namespace
    world: launch.World
    precision: Precision
    train_path: str | Path
    source: ImageSource
    images: ImageSource
    batches: ResumableBatches
    clock: Clock
    loader: "DataLoader[Batch]"
    prepare: ToDevice


def start(
    args: argparse.Namespace, views: Views, train_path: str | Path, batch_in_all: int | None = None
) -> Pretraining:
    """Joins the other processes and opens the images; reads the groups of :mod:`src.cli`, and the flags
    ``--size_dataset``, ``--batch_size``, ``--accumulate`` and ``--epochs``.

    ``batch_in_all``, where it is given, is shared out over the processes and becomes ``args.batch_size``.
    """
    world = launch.start(args.device, args.dist_url)
    if batch_in_all is not None:
        if batch_in_all % world.size:
            raise UserError(f"a batch of {batch_in_all} cannot be shared out over {world.size} processes")
        args.batch_size = batch_in_all // world.size
    precision = choose_precision(args.precision, world.device)
    source = open_images(args.dataset, train_path, "pretrain", args.download)
    images = first_images(source, args.size_dataset)
    batches = ResumableBatches(len(images), args.batch_size, rank=world.rank, world_size=world.size)
    steps_per_epoch = len(batches) // args.accumulate
    if steps_per_epoch == 0:
        raise UserError(f"--accumulate {args.accumulate}: an epoch has only {len(batches)} batches")
    on_device = cli.colours_on_device(args.augment_on, world.device)
    loader = make_loader(
        ViewDataset(images, views, args.seed, colours_on_device=on_device),
        batches,
        workers=args.workers,
        pin_memory=world.device.type == "cuda",
    )
    cli.seed_everything(args.seed, args.deterministic)  # the weights are made next
    return Pretraining(
        args,
        world,
        precision,
        train_path,
        source,
        images,
        batches,
        Clock(steps_per_epoch, args.epochs),
        loader,
        ToDevice(world.device, args.mean, args.std),
    )


def place(run: Pretraining, method: Method) -> None:
    """Brings a method to its device, with the flags of :func:`src.cli.add_speed_arguments`."""
    args, world = run.args, run.world
    method.to(world.device)
    if not args.shard:  # FSDP2 cuts up plain layouts only
        method.to(memory_format=torch.channels_last)
    if args.checkpoint_activations:
        checkpoint_activations(method.backbone)
    if args.compile:
        method.backbone.compile(dynamic=False)
    if args.shard:
        shard(method, method.backbone, residual_blocks(method.backbone), world.device)
    torch.manual_seed(args.seed + world.rank)  # from here on (dropout, drop path) ranks differ


def validation_images(run: Pretraining) -> ImageSource:
    """The labelled images of ``--val_path``, or of the folder beside the training images."""
    args = run.args
    if args.dataset in OWN_SETS:
        return open_labelled(args.dataset, args.val_path or find_val_beside(args.dataset, run.train_path))
    return open_images(args.dataset, run.train_path, "test")


def validation_view(args: argparse.Namespace) -> CentreView:
    return CentreView(args.eval_size, args.eval_resize)


def online_knn(run: Pretraining, method: Method) -> list[Evaluation]:
    """kNN from the training images to the validation images every ``--knn_freq`` epochs; nothing when that is 0."""
    args = run.args
    if not args.knn_freq:
        return []
    val = validation_images(run)
    if args.dataset in OWN_SETS:
        require_labels(run.source, run.train_path)
        train = run.source
    else:
        train = open_images(args.dataset, run.train_path, "train")
    knn = KNNEvaluation(
        evenly_spread(train, args.knn_train_images),
        val,
        validation_view(args),
        run.prepare,
        k=args.knn_k,
        workers=args.workers,
        majority=args.knn_rule == "majority",
    )
    return [Evaluation(args.knn_freq, lambda: knn(method.backbone))]


def train(
    run: Pretraining,
    method: Method,
    optimizer: torch.optim.Optimizer,
    schedules: Mapping[str, Schedule],
    evaluations: Sequence[Evaluation],
    echo: Callable[[Monitor], None],
    backbone_file: str | None = None,
    identity: Sequence[str] = (),
) -> int:
    """The run itself; returns the exit code.

    Args:
        evaluations: what is judged after epochs.
        echo: says what is about to happen.
        backbone_file, identity: see :class:`src.checkpoints.store.CheckpointStore`.
    """
    args = run.args
    checkpoints = CheckpointStore(
        args.dump_path, vars(args), args.checkpoint_freq, args.keep_last, identity, backbone_file
    )
    monitor = Monitor(args.dump_path, args.tensorboard)
    monitor.say(cli.command_line())
    echo(monitor)
    training = Training(
        method=method,
        optimizer=optimizer,
        loader=run.loader,
        batches=run.batches,
        prepare=run.prepare,
        schedules=schedules,
        clock=run.clock,
        device=run.world.device,
        precision=run.precision,
        monitor=monitor,
        checkpoints=checkpoints,
        accumulate=args.accumulate,
        clip_norm=args.clip_norm,
        evaluations=evaluations,
        log_every=args.log_every,
        save_every=args.save_every,
        max_steps=args.max_steps,
    )
    try:
        training.restore(args.resume)
        if run.world.is_main:
            cli.save_settings(args.dump_path, args)
        stopped_by = training.run()
    finally:
        monitor.close()
    return 0 if stopped_by is None else 128 + stopped_by


def echo_data(run: Pretraining, monitor: Monitor, crops: str) -> None:
    """The lines about images and batches that all methods have."""
    args, clock = run.args, run.clock
    batch = args.batch_size * run.world.size * args.accumulate
    monitor.say(f"data       {len(run.images)} images of {run.train_path} ({args.dataset}), crops {crops}")
    monitor.say(
        f"batch      {args.batch_size} x {run.world.size} processes x {args.accumulate} = {batch} images; "
        f"{clock.steps_per_epoch} steps an epoch, {clock.total_steps} in all"
    )
    if args.precision == "auto" and run.precision.name == "fp32":
        monitor.say("precision  fp32: on the CPU it is faster than 16 bits (--precision bf16 insists)")

"""A pre-training: images and batches, a placed method, the run itself."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader

from .. import cli
from ..checkpoints.files import write_settings
from ..checkpoints.store import CheckpointStore
from ..cli import Call
from ..clock import Clock
from ..data.datasets import How, check_channels, open_images, open_labelled
from ..data.fingerprint import agreed_fingerprint
from ..data.loading import Batch, ViewDataset, Views, make_loader
from ..data.sampling import ResumableBatches
from ..data.small_sets import bicubic_evaluation
from ..data.source import ImageSource, evenly_spread, require_labels
from ..data.splits import find_val_beside, is_own
from ..data.to_device import ToDevice
from ..data.views import CentreView
from ..engine.alone import alone_in
from ..engine.judging import Evaluation
from ..engine.loop import Schedule, Training
from ..engine.method import Method, Scale
from ..engine.monitor import Monitor
from ..engine.precision import Precision, choose_precision
from ..engine.seeding import seed_everything
from ..evaluation.knn import KNNEvaluation
from ..models.backbones import checkpoint_activations, residual_blocks
from ..parallel import launch
from ..parallel.sharding import shard
from ..settings import flat
from .images import cache_of, open_training, order_of, used_of
from .settings import PretrainingSettings

S = TypeVar("S", bound=PretrainingSettings)


@dataclass(frozen=True)
class Pretraining(Generic[S]):
    """The processes and the data of a pre-training, and everything else that its settings became.

    Attributes:
        call: the command line.
        virtual_ranks: ranks that each process plays.
        batch_size: images of a rank.
        train_path: where the training images are.
        source: all of them.
        images: those that are used.
        scale: the sizes that a method depends on.
        eval_view: how evaluated images are cut.
    """

    call: Call[S]
    world: launch.World
    precision: Precision
    virtual_ranks: int
    batch_size: int
    train_path: str | Path
    source: ImageSource
    images: ImageSource
    batches: ResumableBatches
    clock: Clock
    loader: "DataLoader[Batch]"
    prepare: ToDevice
    scale: Scale
    eval_view: CentreView

    @property
    def settings(self) -> S:
        return self.call.settings

    @property
    def step_batch(self) -> int:
        """Images of a step, over all ranks."""
        return self.batch_size * self.ranks

    @property
    def ranks(self) -> int:
        """Of all processes."""
        return self.world.size * self.virtual_ranks

    def derived(self) -> dict[str, Any]:
        """What the settings became on these processes."""
        return {
            "method": self.settings.method,
            "batch_size": self.batch_size,
            "clip_norm": self.settings.plan.clip_norm,
            "shuffle": self.settings.data.order(len(self.images)),
            "eval_size": self.eval_view.size,
            "eval_resize": self.eval_view.resize,
        }


def start(call: Call[S], views: Views, train_path: str | Path) -> Pretraining[S]:
    """Joins the other processes and opens the images.

    Args:
        views: what is cut out of an image.
        train_path: where the training images are.
    """
    settings = call.settings
    plan, data, device = settings.plan, settings.data, settings.device
    world = launch.start(device.device, device.dist_url)
    virtual_ranks, said_of_ranks = settings.virtual_ranks(world.size)
    ranks = world.size * virtual_ranks
    batch_size = plan.batch_of_a_rank(ranks)
    precision = choose_precision(settings.precision.precision, world.device)
    check_channels(data.mean, data.std, settings.backbone.channels)
    source = open_training(data, train_path, data.how(settings.decoding, settings.run.dump_path))
    images = used_of(data, source, train_path)
    order = order_of(data, images, settings.run.seed)
    first = world.rank * virtual_ranks
    batches = ResumableBatches(
        len(images), batch_size, rank=first, world_size=ranks, order=order, virtual_ranks=virtual_ranks
    )
    on_device = data.colours_on(world.device)
    cache = cache_of(data, images)
    loader = make_loader(
        ViewDataset(images, views, settings.run.seed, colours_on_device=on_device, order=order, cache=cache),
        batches,
        workers=data.workers,
        pin_memory=world.device.type != "cpu",
    )
    seed_everything(settings.run.seed, settings.run.deterministic)  # the weights are made next
    rows = len(batches) * batch_size
    scale = Scale(batch_size, ranks, len(images), rows, settings.run.seed, world.device, virtual_ranks)
    clock = Clock(len(batches), plan.epochs)
    settings, said = settings.fitted(call.given, scale, clock)
    if world.is_main:
        cli.note(*said_of_ranks, *said)
    return Pretraining(
        replace(call, settings=settings),
        world,
        precision,
        virtual_ranks,
        batch_size,
        train_path,
        source,
        images,
        batches,
        clock,
        loader,
        ToDevice(world.device, data.mean, data.std),
        scale,
        settings.knn.view(settings.training_size, bicubic_evaluation(data.dataset)),
    )


def place(run: Pretraining[S], method: Method) -> None:
    """Brings a method to its device, with what :class:`SpeedSettings` ask for."""
    speed, world = run.settings.speed, run.world
    method.to(world.device)
    if not speed.shard:  # FSDP2 cuts up plain layouts only
        method.to(memory_format=torch.channels_last)
    if speed.checkpoint_activations:
        checkpoint_activations(method.backbone)
    if speed.compile:
        method.backbone.compile(dynamic=False)
    if speed.shard:
        alike = [module for module in method.modules() if type(module) is type(method.backbone)]
        shard(method, {one: residual_blocks(one) for one in alike}, world.device, method.called_outside_of_steps)
    torch.manual_seed(run.settings.run.seed + world.rank)  # from here on (dropout, drop path) ranks differ


def validation_images(run: Pretraining[S]) -> ImageSource:
    """The labelled images of ``--val_path``, or of the folder beside the training images."""
    data, val_path = run.settings.data, run.settings.knn.val_path
    how = data.how(run.settings.decoding, run.settings.run.dump_path)
    if is_own(data.dataset):
        return open_labelled(data.dataset, val_path or find_val_beside(data.dataset, run.train_path), how)
    return open_images(data.dataset, run.train_path, "test", how)


def online_knn(run: Pretraining[S], method: Method) -> list[Evaluation]:
    """kNN from the training images to the validation images every ``--knn_freq`` epochs; nothing when that is 0."""
    data, knn = run.settings.data, run.settings.knn
    if not knn.knn_freq:
        return []
    val = validation_images(run)
    if is_own(data.dataset):
        require_labels(run.source, run.train_path)
        train = run.source
    else:
        train = open_images(data.dataset, run.train_path, "train", How(run.settings.decoding))
    evaluation = KNNEvaluation(
        evenly_spread(train, knn.knn_train_images),
        val,
        run.eval_view,
        run.prepare,
        k=knn.knn_k,
        workers=data.workers,
        majority=knn.knn_rule == "majority",
    )
    return [Evaluation(knn.knn_freq, lambda: evaluation(method.backbone))]


def store_of(settings: PretrainingSettings, became: Mapping[str, Any], backbone_file: str | None) -> CheckpointStore:
    """The checkpoints of a run with these settings."""
    options = settings.run
    return CheckpointStore(
        options.dump_path,
        {**flat(settings), **became},
        options.checkpoint_freq,
        options.keep_last,
        options.accept_changes,
        backbone_file,
    )


def read_schedules(schedules: Mapping[str, Schedule], clock: Clock) -> None:
    """Asks the schedules for values of all phases, as the run will: what they read of the settings has an effect."""
    steps = range(0, clock.total_steps, max(1, clock.total_steps // 20))
    for schedule in schedules.values():
        for step in [*steps, clock.total_steps - 1]:
            schedule(replace(clock, step=step))


def train(
    run: Pretraining[S],
    method: Method,
    optimizer: torch.optim.Optimizer,
    schedules: Mapping[str, Schedule],
    echo: Callable[[Monitor], None],
    *,
    evaluations: Sequence[Evaluation] = (),
    backbone_file: str | None = None,
    derived: Mapping[str, Any] | None = None,
) -> int:
    """The run itself; returns the exit code.

    Args:
        echo: says what is about to happen.
        evaluations: what is judged after epochs besides the online kNN.
        derived: what else the settings became; kept in checkpoints and in ``settings.json``.
        backbone_file: see :class:`src.checkpoints.store.CheckpointStore`.
    """
    images = agreed_fingerprint(run.images, run.train_path)
    settings, became = run.settings, {**run.derived(), **(derived or {}), "train_images": images}
    evaluations = [*online_knn(run, method), *evaluations]
    options, folder = settings.run, settings.run.dump_path
    with alone_in(folder), Monitor(folder, options.tensorboard) as monitor:
        monitor.say(run.call.command)
        if options.env_name:
            monitor.say(f"run        {options.env_name}")
        with run.call.reads.paused():
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
            checkpoints=store_of(settings, became, backbone_file),
            virtual_ranks=run.virtual_ranks,
            seed=options.seed,
            clip_norm=settings.plan.clip_norm,
            evaluations=evaluations,
            log_every=options.log_every,
            save_every=options.save_every,
            max_steps=options.max_steps,
        )
        which = options.resume
        read_schedules(schedules, run.clock)
        run.call.tell_unread()
        training.restore(which)
        if training.is_finished:
            monitor.say(f"finished: {run.clock.epoch} epochs, {run.clock.step} steps are done; there is nothing to do")
        elif run.world.is_main:
            became = {**became, "precision": run.precision.name, "device": str(run.world.device)}
            write_settings(folder, run.call.command, run.call.given, flat(settings), became, run.world.size)
        stopped_by = training.run()
    return 0 if stopped_by is None else 128 + stopped_by

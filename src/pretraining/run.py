"""What a pre-training has: processes, images and batches, a placed method."""

import atexit
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader

from .. import cli
from ..cli import Call
from ..clock import Clock
from ..data.datasets import check_channels
from ..data.loading import Batch, ViewDataset, Views, make_loader
from ..data.sampling import ResumableBatches
from ..data.small_sets import bicubic_evaluation
from ..data.source import ImageSource
from ..data.to_device import ToDevice
from ..data.views import CentreView
from ..engine.method import Method, Scale
from ..engine.precision import Precision, choose_precision
from ..engine.seeding import seed_everything
from ..models.backbones import checkpoint_activations, residual_blocks
from ..parallel import launch
from ..parallel.sharding import shard
from ..settings import replaced
from .images import cache_of, open_training, order_of, used_of
from .initial import Initial
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
        initial: the weights that the networks start from, if they are not random.
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
    initial: Initial | None = None

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
            "init_sha256": self.initial.sha256 if self.initial else "",
        }


def start(call: Call[S], views: Views, train_path: str | Path) -> Pretraining[S]:
    """Joins the other processes and opens the images.

    Args:
        views: what is cut out of an image.
        train_path: where the training images are.
    """
    call = replace(call, settings=without_a_folder(call.settings)) if call.settings.run.dry_run else call
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
    initial = settings.initial.load(settings.backbone)
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
        initial,
    )


def without_a_folder(settings: S) -> S:
    """The settings of a dry run, which keeps its files where they are gone with the process."""
    folder = tempfile.TemporaryDirectory(prefix="dry-run-")
    atexit.register(folder.cleanup)
    return replaced(settings, {"dump_path": folder.name})


def place(run: Pretraining[S], method: Method) -> None:
    """Brings a method to its device, with the weights that it starts from, and what :class:`SpeedSettings` ask for."""
    speed, world = run.settings.speed, run.world
    if run.initial:
        run.initial.fill(method)
    method.to(world.device)
    if not speed.shard:  # FSDP2 cuts up plain layouts only
        method.to(memory_format=torch.channels_last)
    if speed.checkpoint_activations:
        checkpoint_activations(method.backbone)
    if speed.compile:
        method.backbone.compile(dynamic=False)
    if speed.shard:
        shard(
            method,
            {one: residual_blocks(one) for one in method.backbones},
            world.device,
            method.called_outside_of_steps,
            by_turns=run.virtual_ranks > 1,
        )
    torch.manual_seed(run.settings.run.seed + world.rank)  # from here on (dropout, drop path) ranks differ

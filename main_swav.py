"""Pre-trains a network with SwAV, DeepCluster-v2 or SeLa-v2 (Caron et al. 2020, arXiv 2006.09882).

    torchrun --nproc_per_node=8 main_swav.py --data_path /path/to/imagenet/train --epochs 400 --base_lr 0.6 ...
    torchrun --nproc_per_node=8 main_swav.py --method deepcluster-v2 --data_path ...

The defaults of the flags are the published ones. The methods are src/methods/{swav,deepcluster,sela}.py.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from src import cli, pretraining
from src.clock import Clock
from src.data.datasets import SWAV_STD, TrainingDataSettings
from src.data.view_sets import MultiCropSettings
from src.engine.monitor import Monitor, number
from src.engine.precision import PrecisionSettings
from src.errors import UserError
from src.methods.deepcluster import DeepClusterSettings, DeepClusterV2
from src.methods.prototype_base import PrototypeMethod, PrototypeSettings
from src.methods.sela import SeLaSettings, SeLaV2
from src.methods.swav import SwAV, SwAVSettings
from src.methods.swav_disco import SwAVDisCo, SwAVTeacherSettings
from src.models.backbones import ResidualStart
from src.models.teacher import Teacher
from src.optim.larc import LARC
from src.optim.schedules import warmup_cosine
from src.parallel import sync_bn
from src.pretraining import Plan, Pretraining, PretrainingSettings
from src.settings import replaced, setting

from torch import nn


@dataclass(frozen=True)
class OptimSettings:
    """Optimisation"""

    epochs: int = setting(100, "number of epochs", at_least=1, at_most=1e9)
    batch_size: int = setting(64, "number of images of each process in a batch", at_least=1, at_most=1e7)
    base_lr: float = setting(
        4.8, "learning rate: 4.8 for 4096 images, 0.6 for 256; never scaled for you", at_least=0, at_most=1e6
    )
    final_lr: float = setting(0.0, "learning rate at the end of the cosine", at_least=0, at_most=1e6)
    warmup_epochs: int = setting(10, "number of epochs of linear warm-up", at_least=0, at_most=1e9)
    start_warmup: float = setting(0.0, "learning rate at the start of the warm-up", at_least=0, at_most=1e6)
    wd: float = setting(1e-6, "weight decay, on every parameter", at_least=0, at_most=1e3)
    accumulate: int = setting(1, "old name of --virtual_ranks", at_least=1, at_most=1e6)
    clip_norm: float = setting(0.0, "bound on the gradient norm; 0 = none", at_least=0, at_most=1e9)
    sync_bn: str = setting(
        "pytorch", "batch norm statistics: pytorch: of all processes; apex: of groups; any other word: of each process"
    )
    syncbn_process_group_size: int = setting(8, "number of processes in such a group; 0 = all", at_least=0, at_most=1e6)


@dataclass(frozen=True)
class Settings(PretrainingSettings):
    """Method"""

    method: str = setting("swav", "method to train", choices=["swav", "deepcluster-v2", "sela-v2"])
    data: TrainingDataSettings = TrainingDataSettings(std=SWAV_STD)
    views: MultiCropSettings = MultiCropSettings()
    start: ResidualStart = ResidualStart()
    prototypes: PrototypeSettings = PrototypeSettings()
    swav: SwAVSettings = SwAVSettings()
    deepcluster: DeepClusterSettings = DeepClusterSettings()
    sela: SeLaSettings = SeLaSettings()
    teaching: SwAVTeacherSettings = SwAVTeacherSettings()
    optim: OptimSettings = OptimSettings()

    @property
    def plan(self) -> Plan:
        optim = self.optim
        return Plan(optim.epochs, optim.batch_size, False, optim.accumulate, optim.clip_norm)

    @property
    def training_size(self) -> int:
        return self.views.size_crops[0]


OFFLINE = PrototypeSettings(nmb_prototypes=(3000, 3000, 3000))
PROTOTYPES = {
    "swav": PrototypeSettings(),
    "deepcluster-v2": replace(OFFLINE, freeze_prototypes_niters=10**10),
    "sela-v2": OFFLINE,
}


def complete(given: Mapping[str, Any]) -> Settings:
    """What was given, with the defaults of its method."""
    method = given.get("method", "swav")
    # the published DeepCluster-v2 has no mixed precision
    precision = PrecisionSettings.published(method == "swav", given)
    return replaced(Settings(method=method, prototypes=PROTOTYPES[method], precision=precision), given)


SCRIPT = cli.Script(
    "Pre-trains a network with SwAV, DeepCluster-v2 or SeLa-v2.", Settings(), complete=complete, repeatable=True
)


def check(settings: Settings, crops: int) -> None:
    """Refuses what cannot be trained, before anything is started."""
    method = settings.method
    if crops < 2:
        raise UserError("these methods compare crops of an image: --nmb_crops must give at least two")
    if method != "swav" and settings.swav.queue_length:
        raise UserError(f"--queue_length belongs to SwAV; {method} remembers a whole epoch")
    if settings.teaching.teacher and method != "swav":
        raise UserError("--teacher goes with --method swav")
    settings.prototypes.check_crops(crops)


def build_swav(settings: Settings, backbone: nn.Module, run: Pretraining[Settings], teacher: Teacher | None) -> SwAV:
    if teacher is None:
        return SwAV.build(backbone, settings.prototypes, settings.swav, run.scale, **vars(settings.start))
    taught = {"teacher": teacher, "weight": settings.teaching.distill_weight}
    return SwAVDisCo.build(backbone, settings.prototypes, settings.swav, run.scale, **taught, **vars(settings.start))


METHODS: dict[str, Callable[[Settings, nn.Module, Pretraining[Settings], Teacher | None], PrototypeMethod]] = {
    "swav": build_swav,
    "deepcluster-v2": lambda s, network, run, _: DeepClusterV2.build(
        network, s.prototypes, s.deepcluster, run.scale, **vars(s.start)
    ),
    "sela-v2": lambda s, network, run, _: SeLaV2.build(network, s.prototypes, s.sela, run.scale, **vars(s.start)),
}


def main(argv: Sequence[str] | None = None) -> int:
    call = SCRIPT.parse(argv)
    settings = call.settings
    views = settings.views.views()
    check(settings, len(views))
    if settings.method != "swav" and (settings.data.weights or settings.data.balanced):
        raise UserError(
            f"--method {settings.method} needs to see every image once an epoch: no --weights or --balanced"
        )
    run = pretraining.start(call, views, settings.data.data_path)
    teacher = settings.teaching.load(run.world.device)
    method = METHODS[settings.method](settings, settings.backbone.build(), run, teacher)
    if settings.optim.sync_bn in ("pytorch", "apex"):
        group_size = settings.optim.syncbn_process_group_size if settings.optim.sync_bn == "apex" else 0
        sync_bn.convert(method, group_size, run.world.device.type, run.virtual_ranks)
    pretraining.place(run, method)
    optimizer = LARC(method.parameters(), lr=settings.optim.base_lr, momentum=0.9, weight_decay=settings.optim.wd)

    def learning_rate(clock: Clock) -> float:
        optim = settings.optim
        return warmup_cosine(
            clock.step,
            total=clock.total_steps,
            warmup=optim.warmup_epochs * clock.steps_per_epoch,
            start=optim.start_warmup,
            base=optim.base_lr,
            final=optim.final_lr,
        )

    return pretraining.train(
        run,
        method,
        optimizer,
        {"lr": learning_rate},
        lambda monitor: echo(run, method, teacher, monitor),
        derived={"teacher_sha256": ""} if teacher is None else teacher.identity,
    )


def echo(run: Pretraining[Settings], method: PrototypeMethod, teacher: Teacher | None, monitor: Monitor) -> None:
    """What is about to happen, in numbers that a user can check against the recipe."""
    settings, optim, ranks = run.settings, run.settings.optim, run.ranks
    prototypes, batch = settings.prototypes.nmb_prototypes, run.step_batch
    pretraining.echo_data(run, monitor, pretraining.crops_in_words(settings.views.views()))
    pretraining.echo_model(run, monitor, method, f"{' + '.join(map(str, prototypes))} prototypes")
    base = number(optim.base_lr)
    warmup = f"{number(optim.start_warmup)} -> {base} in {optim.warmup_epochs} epochs, " if optim.warmup_epochs else ""
    monitor.say(f"lr         {warmup}{base} -> {number(optim.final_lr)} by cosine")
    monitor.say(f"loss       {math.log(prototypes[0]):.3f} = ln K means that nothing is learnt")
    if teacher is not None:
        weight = settings.teaching.distill_weight
        monitor.say(f"teacher    {teacher.description}; its mean squared error weighs {weight:g}")
    queue = method.queue.shape[1] * ranks if isinstance(method, SwAV) else 0
    if queue:
        first = settings.swav.epoch_queue_starts + 1
        monitor.say(f"queue      {queue} embeddings over all processes, filled from epoch {first} on")
    if settings.swav.queue_length != queue:
        monitor.warn(
            f"--queue_length {settings.swav.queue_length} is no multiple of the batch; rounded down as published"
        )
    seen = batch + queue if isinstance(method, SwAV) else len(run.images)
    if max(prototypes) > seen:
        monitor.warn(
            f"{max(prototypes)} prototypes share {seen} samples in each assignment, so some stay unused; fewer "
            "prototypes, a larger batch or a queue avoid that"
        )
    frozen = settings.prototypes.freeze_prototypes_niters
    if settings.method != "deepcluster-v2" and frozen >= run.clock.total_steps:
        monitor.warn(
            f"--freeze_prototypes_niters {frozen}: prototypes stay as drawn for all {run.clock.total_steps} "
            "steps of this run"
        )


if __name__ == "__main__":
    cli.run(main)

"""The run itself: what is judged, kept and said around the training loop."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..checkpoints.files import write_settings
from ..checkpoints.store import CheckpointStore
from ..clock import Clock
from ..data.fingerprint import agreed_fingerprint
from ..engine.alone import alone_in
from ..engine.judging import Evaluation
from ..engine.loop import Schedule, Training
from ..engine.method import Method
from ..engine.monitor import Monitor
from ..engine.tracking import MakeTracker
from ..settings import flat
from .initial import scale_rates
from .memory import say_memory
from .online import online
from .run import Pretraining, S
from .settings import PretrainingSettings


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


def trackers_of(settings: PretrainingSettings, became: Mapping[str, Any]) -> list[MakeTracker]:
    """What begins, or continues, the run's records elsewhere."""
    folder = Path(settings.run.dump_path)
    name = settings.run.env_name or folder.absolute().name
    return settings.tracking.trackers(folder, name, {**flat(settings), **became})


def read_schedules(schedules: Mapping[str, Schedule], clock: Clock) -> None:
    """Asks the schedules for values of all phases, as the run will: what they read of the settings has an effect."""
    steps = range(0, clock.total_steps, max(1, clock.total_steps // 20))
    for schedule in schedules.values():
        for step in [*steps, clock.total_steps - 1]:
            schedule(replace(clock, step=step))


def training_of(
    run: Pretraining[S],
    method: Method,
    optimizer: torch.optim.Optimizer,
    schedules: Mapping[str, Schedule],
    monitor: Monitor,
    checkpoints: CheckpointStore,
    evaluations: Sequence[Evaluation],
) -> Training:
    """The loop with what the settings say of it."""
    options = run.settings.run
    return Training(
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
        virtual_ranks=run.virtual_ranks,
        seed=options.seed,
        clip_norm=run.settings.plan.clip_norm,
        evaluations=evaluations,
        freeze_backbone_epochs=run.settings.initial.freeze_backbone_epochs,
        log_every=options.log_every,
        save_every=options.save_every,
        max_steps=options.max_steps,
    )


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
    evaluations = [*online(run, method), *evaluations]
    options, folder = settings.run, settings.run.dump_path
    scale_rates(optimizer, method, settings.initial)
    with alone_in(folder), Monitor(folder) as monitor:
        monitor.say(run.call.command)
        if options.env_name:
            monitor.say(f"run        {options.env_name}")
        with run.call.reads.paused():
            echo(monitor)
            say_memory(run, method, optimizer, monitor)
        checkpoints = store_of(settings, became, backbone_file)
        training = training_of(run, method, optimizer, schedules, monitor, checkpoints, evaluations)
        trackers, which = trackers_of(settings, became), options.resume
        read_schedules(schedules, run.clock)
        run.call.tell_unread()
        if options.dry_run:
            return 0
        training.restore(which)
        if training.is_finished:
            monitor.say(f"finished: {run.clock.epoch} epochs, {run.clock.step} steps are done; there is nothing to do")
        elif run.world.is_main:
            became = {**became, "precision": run.precision.name, "device": str(run.world.device)}
            write_settings(folder, run.call.command, run.call.given, flat(settings), became, run.world.size)
        for tracker in trackers:
            monitor.add(tracker)
        stopped_by = training.run()
    return 0 if stopped_by is None else 128 + stopped_by

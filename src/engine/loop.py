"""The training loop: the only place that knows about steps, precision and signals.

It knows no method and no evaluation; scripts hand it both.
"""

import contextlib
import gc
import itertools
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..checkpoints.state import RunState
from ..checkpoints.store import CheckpointStore
from ..clock import Clock
from ..data.loading import Batch
from ..data.sampling import ResumableBatches
from ..errors import Diverged
from ..parallel import collectives
from ..parallel.agreement import Agreement
from ..parallel.gradients import averaging_gradients
from ..parallel.sharding import is_sharded
from ..surroundings import peak_memory
from .cast import Cast
from .diagnostics import HealthMonitor
from .finite import all_finite_everywhere, tensors_in
from .garbage import collected_between_steps
from .interval import Interval
from .judging import Evaluation, Judging
from .method import Method
from .monitor import Monitor, duration, number
from .precision import Precision
from .saving import Saving
from .signals import Stopped, StopSignal

Schedule = Callable[[Clock], float]


@dataclass
class Training:
    """One run of one method.

    Attributes:
        method, optimizer, loader: what is trained, by what, on what.
        batches: the sampler behind the loader, which is told where to start.
        prepare: moves a batch to the device and makes it what the method expects.
        schedules: for each option of the optimiser's groups (``lr``, ...) its value as a function of the clock. A
            group with ``<option>_scale`` gets that multiple, and one with ``<option>_fixed`` keeps its own.
        clock: where to start; a resume sets it.
        device, precision: of the forward pass.
        monitor: says and records.
        checkpoints: None saves nothing.
        virtual_ranks: ranks that each process plays, see :class:`src.engine.cast.Cast`; a step takes a batch for each.
        seed: of their random state.
        clip_norm: bound on the global gradient norm; 0 = none.
        freeze_backbone_epochs: first epochs in which the optimiser leaves the backbone's weights alone.
        evaluations: what is judged between epochs; their named numbers are put together.
        log_every: steps between log lines.
        save_every: steps between checkpoints inside an epoch; 0 = at the end of each epoch only.
        max_steps: stop (and save) after so many steps in all.
    """

    method: Method
    optimizer: torch.optim.Optimizer
    loader: "DataLoader[Batch]"
    batches: ResumableBatches
    prepare: Callable[[Batch], Batch]
    schedules: Mapping[str, Schedule]
    clock: Clock
    device: torch.device
    precision: Precision
    monitor: Monitor
    checkpoints: CheckpointStore | None = None
    virtual_ranks: int = 1
    seed: int = 0
    clip_norm: float = 0.0
    freeze_backbone_epochs: int = 0
    evaluations: Sequence[Evaluation] = ()
    log_every: int = 50
    save_every: int = 0
    max_steps: int | None = None

    def __post_init__(self) -> None:
        self.model: nn.Module = self.method
        self.cast: Cast | None = None
        if self.virtual_ranks > 1:
            self.cast = Cast(self.method, self.virtual_ranks, self.seed, self.device, self._autocast)
        elif collectives.is_active() and not is_sharded(self.method):
            self.model = averaging_gradients(self.method, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision.scales_loss)
        self.state = RunState(
            self.method,
            self.optimizer,
            self.scaler,
            self.clock,
            batch_size=self.batches.batch_size * self.virtual_ranks * collectives.world_size(),
            cast=self.cast,
        )
        self.judging = Judging(self.method, self.evaluations, self.monitor, self.clock, self.last_step)
        self.health = HealthMonitor(self.method.health_checks())
        self._bad_steps = torch.zeros((), device=self.device)
        self._unreadable: set[str] = set()
        self.saving = Saving(self.checkpoints, self.state, self.monitor.warn)
        self._stream: Iterator[Batch] | None = None
        self._interval = Interval()

    # ------------------------------------------------------------------------------------------------ the run

    @property
    def last_step(self) -> int:
        total = self.clock.total_steps
        return total if self.max_steps is None else min(total, self.max_steps)

    @property
    def is_finished(self) -> bool:
        """Whether the checkpoint that the run continued from was the last one."""
        return self.clock.step >= self.last_step

    def restore(self, which: str) -> None:
        """Continues from a checkpoint, before :meth:`run`; ``which`` as in :meth:`CheckpointStore.resume`."""
        path = self.saving.restore(which)
        if path is not None:
            self.monitor.say(f"continuing from {path}: epoch {self.clock.epoch}, step {self.clock.step_in_epoch} of it")

    def run(self) -> int | None:
        """Trains to the end. Returns the number of the signal that stopped it early, or None.

        Raises Diverged when the loss stops being finite; no checkpoint is written after that happened.
        """
        self.monitor.start_bar(self.clock, self.last_step)
        self._stream = None
        with StopSignal() as stop, collected_between_steps():
            try:
                with self.saving:
                    stopped = self._epochs(stop)
            except (Stopped, RuntimeError) as error:
                # a collective that fails after the signal is one that another rank has left
                if stop.number is None or isinstance(error, Diverged):
                    raise
                self.monitor.say(f"stopped by a signal; step {self.saving.saved_step} is the last one that is saved")
                return stop.number
        if stopped:
            self.monitor.say(f"stopped by a signal after step {self.clock.step}; saved")
            return stop.number if stop.number is not None else int(signal.SIGTERM)
        if self._unreadable:
            self.monitor.warn(f"{len(self._unreadable)} unreadable images were replaced by the ones after them")
        return None

    def _epochs(self, stop: StopSignal) -> bool:
        """All epochs that are left; True when a signal has stopped them.

        An epoch is saved before it is judged, so that a signal, or a kill, in an evaluation loses nothing: the next
        start judges first.
        """
        agreement = Agreement()
        if self.clock.step == 0:
            with stop.interruptible():
                self._first_look()
        elif self.judging.is_unjudged():
            self._evaluate("epoch", self.clock.epoch, stop)
        while self.clock.step < self.last_step:
            stopped = self._epoch(stop, agreement)
            finished = self.clock.step_in_epoch == 0
            with self._interval.paused():
                if finished or stopped or self.clock.step >= self.last_step:
                    self._save(epoch_finished=finished)
                if stopped:
                    return True
                if finished:
                    self._evaluate("epoch", self.clock.epoch, stop)
        agreement.finish()
        return False

    def _first_look(self) -> None:
        self.method.train()
        self.batches.seek(0)
        with self._autocast():
            epoch = itertools.islice(self.loader, self.clock.steps_per_epoch * self.virtual_ranks)
            if self.cast is None:
                self.method.before_training(map(self.prepare, epoch))
            else:
                self.cast.before_training(epoch, self.prepare)

    def _before_epoch(self) -> None:
        if self.cast is None:
            self.method.before_epoch(self.clock)
        else:
            self.cast.each(lambda method: method.before_epoch(self.clock))

    def _epoch(self, stop: StopSignal, agreement: Agreement) -> bool:
        """Trains until the epoch's end, the last step or a signal; True for a signal."""
        clock = self.clock
        gc.collect()  # `run` keeps it out of the steps
        self.method.train()
        with stop.interruptible():
            self._before_epoch()
        steps_left = min(clock.steps_per_epoch - clock.step_in_epoch, self.last_step - clock.step)
        for remaining in range(steps_left - 1, -1, -1):
            waiting = time.perf_counter()
            parts = self._next_parts(stop)
            if not parts:
                agreement.finish()
                return True
            self._interval.waited += time.perf_counter() - waiting
            clock.logging = clock.step % self.log_every == 0 or clock.step == self.last_step - 1
            self.saving.check()
            outputs = self._step(parts)
            self._interval.add(outputs)
            self._interval.images += sum(map(len, parts)) * collectives.world_size()
            for part in parts:
                self._name_unreadable(part.unreadable)
            if clock.logging:
                gc.collect(1)  # the young cycles only
                self._log(self._interval)
                self._interval = Interval()
            self.method.after_step(clock)
            clock.step += 1
            self.monitor.advance()
            with self._interval.paused(), contextlib.suppress(Stopped):  # heeded by the next line
                self._evaluate("step", clock.step, stop)
            if agreement.any(stop.number is not None):
                agreement.finish()
                return True
            if self.save_every and clock.step % self.save_every == 0 and remaining:
                with self._interval.paused():
                    self._save(epoch_finished=False)
        return False

    def _all_batches(self) -> Iterator[Batch]:
        """The batches from here to the run's end, in one iteration, so that workers go on at an epoch's end."""
        clock = self.clock
        left = clock.epochs - clock.epoch
        self.batches.seek(clock.epoch, clock.step_in_epoch, epochs=left, per_epoch=clock.steps_per_epoch)
        return iter(self.loader)

    def _next_parts(self, stop: StopSignal) -> list[Batch]:
        """The batches of a step; none when a signal has come and no data does."""
        try:
            with stop.interruptible(patience=3.0):
                self._stream = self._stream or self._all_batches()
                return list(itertools.islice(self._stream, self.virtual_ranks))
        except Stopped:
            if collectives.world_size() > 1:
                raise  # the others may be in the middle of a step that this rank cannot join
            return []

    def _step(self, parts: Sequence[Batch]) -> dict[str, Tensor]:
        """One optimiser step on a batch for each rank of this process; nothing in it waits for the device."""
        self.method.before_step(self.clock)
        if self.cast is not None:
            outputs = self.cast.forward_backward(parts, self.prepare, self.clock, self.scaler.scale)
        else:
            with self._autocast():
                outputs = self.model(self.prepare(*parts), self.clock)
            self.scaler.scale(outputs["loss"]).backward()
            outputs["loss"] = outputs["loss"].detach()
        self._bad_steps += ~torch.isfinite(outputs["loss"])
        if self.clock.epoch < self.freeze_backbone_epochs:
            for parameter in self.method.backbone.parameters():
                parameter.grad = None  # which optimisers skip, momentum and weight decay included
        self.scaler.unscale_(self.optimizer)
        if self.clip_norm:
            nn.utils.clip_grad_norm_(self.method.parameters(), self.clip_norm)
        self.method.after_backward(self.clock)
        self._set_schedules()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return outputs

    def _autocast(self) -> torch.autocast:
        return self.precision.autocast(self.device)

    def _set_schedules(self) -> None:
        for option, schedule in self.schedules.items():
            value = schedule(self.clock)
            for group in self.optimizer.param_groups:
                if group.get(f"{option}_fixed"):
                    continue
                group[option] = value * group.get(f"{option}_scale", 1.0)

    # ------------------------------------------------------------------------------------------------ reports

    def _log(self, interval: Interval) -> None:
        clock = self.clock
        values = interval.means()
        if self._bad_steps.item():
            raise Diverged(
                f"the loss is not finite (in the {self.log_every} steps up to step {clock.step} of epoch "
                f"{clock.epoch}); the last checkpoint is from before. {self.method.advice}"
            )
        seconds = time.perf_counter() - interval.started
        rate = interval.images / seconds
        left = (self.last_step - clock.step) * self.state.batch_size / rate
        for option, schedule in self.schedules.items():
            values[option] = schedule(clock)
        values["images_per_second"] = rate
        values["waiting_for_data"] = interval.waited / seconds
        values["peak_memory_gb"] = peak_memory(self.device)
        self.monitor.record(clock, "train", values)
        self.monitor.describe(f"epoch {clock.epoch + 1}/{clock.epochs} loss {values['loss']:.3f}")
        self.monitor.say(
            f"epoch {clock.epoch + 1}/{clock.epochs}  step {clock.step_in_epoch + 1}/{clock.steps_per_epoch}  "
            f"loss {values['loss']:.4f}  lr {number(values.get('lr', math.nan))}  {rate:.0f} img/s  "
            f"waiting for data {100 * values['waiting_for_data']:.0f} %  left {duration(left)}"
        )
        timings = {"loss", "images_per_second", "waiting_for_data", "peak_memory_gb", *self.schedules}
        rest = {name: value for name, value in values.items() if name not in timings}
        if rest:
            prefix = "  health: " if self.health.checks else "  "
            self.monitor.say(prefix + "  ".join(f"{n.replace('_', ' ')} {number(v)}" for n, v in rest.items()))
        for verdict in self.health.update(clock.step, values):
            self.monitor.warn(verdict)

    def _name_unreadable(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in self._unreadable:
                self._unreadable.add(name)
                self.monitor.warn(f"unreadable image skipped: {name}; {len(self._unreadable)} so far")

    def _evaluate(self, unit: str, done: int, stop: StopSignal) -> None:
        if self.judging.due(unit, done):
            # not to be interrupted: all ranks must do it
            self.saving.finish()
            self._require_finite()
            with stop.interruptible():
                self.judging.judge(unit, done)

    def _require_finite(self) -> None:
        """Raises Diverged, on all ranks, where a loss so far or anything that a checkpoint holds is not finite."""
        state = [self.method.state_dict(), self.optimizer.state_dict()["state"]]
        loss = torch.where(self._bad_steps > 0, torch.nan, 0.0)
        if not all_finite_everywhere([*tensors_in(state), loss], self.device):
            raise Diverged(
                f"weights, or what else a checkpoint holds, are not finite after step {self.clock.step}; no checkpoint "
                f"is written, the last one is from before. {self.method.advice}"
            )

    def _save(self, epoch_finished: bool) -> None:
        if self.saving.is_due:
            self._require_finite()
            self.saving.begin(epoch_finished)

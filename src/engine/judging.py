"""What judges a method between epochs or steps, and whether that is still to be done after a restart."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..clock import Clock
from ..parallel import collectives
from .method import Method
from .monitor import Monitor


class Evaluation(NamedTuple):
    """What judges the method (in eval mode) after every so many epochs, or steps, and after the last, on all ranks.

    It gives named numbers, and paths of pictures that it has drawn.
    """

    every: int
    judge: Callable[[], "Mapping[str, float | Path]"]
    unit: str = "epoch"


@dataclass
class Judging:
    """The evaluations of a run.

    Attributes:
        last_step: after which everything is judged once more.
    """

    method: Method
    evaluations: Sequence[Evaluation]
    monitor: Monitor
    clock: Clock
    last_step: int

    def due(self, unit: str, done: int) -> list[Evaluation]:
        is_last = self.clock.step >= self.last_step
        return [one for one in self.evaluations if one.unit == unit and (is_last or done % one.every == 0)]

    def is_unjudged(self) -> bool:
        """Whether the run continues from the end of an epoch whose evaluation is still to come."""
        if self.clock.step_in_epoch or not self.due("epoch", self.clock.epoch):
            return False
        return self.method.remembers_evaluations or not self.monitor.has_recorded(self.clock, "evaluation")

    def judge(self, unit: str, done: int) -> None:
        """Evaluates what is due, in eval mode, on all ranks, and records the numbers."""
        self.method.eval()
        shared = [b for n, b in self.method.named_buffers() if n not in self.method.per_rank_buffers]
        collectives.broadcast_(shared)
        found: dict[str, float | Path] = {}
        for evaluation in self.due(unit, done):
            found |= evaluation.judge()
        self.method.train()
        values = {name: value for name, value in found.items() if not isinstance(value, Path)}
        for name, value in found.items():
            if isinstance(value, Path):
                self.monitor.picture(self.clock, name, value)
        if not values:
            return
        self.monitor.record(self.clock, "evaluation", values)
        listing = "  ".join(f"{name.replace('_', ' ')} {_shown(value)}" for name, value in values.items())
        self.monitor.say(f"after {unit} {done}: {listing}")


def _shown(value: float) -> str:
    """Two decimals, or four digits of what is less than 1."""
    return f"{value:.4g}" if 0 < abs(value) < 1 else f"{value:.2f}"

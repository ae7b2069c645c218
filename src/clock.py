"""Where training is. Schedules, queues and phase switches are functions of it."""

from dataclasses import dataclass


@dataclass
class Clock:
    """Counts optimiser steps; epochs follow from them.

    Attributes:
        steps_per_epoch, epochs: the plan.
        step: optimiser steps taken so far, so also the zero-based number of the step under way.
        logging: the step under way ends in a log line. Methods compute costly diagnostics only then.
    """

    steps_per_epoch: int
    epochs: int
    step: int = 0
    logging: bool = False

    @property
    def epoch(self) -> int:
        """Zero-based number of the epoch under way."""
        return self.step // self.steps_per_epoch

    @property
    def step_in_epoch(self) -> int:
        return self.step % self.steps_per_epoch

    @property
    def total_steps(self) -> int:
        return self.steps_per_epoch * self.epochs

"""Signals that end a run in an orderly way."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any


class Stopped(Exception):
    """A signal came in a phase that is not waited for."""


class StopSignal:
    """Notes SIGTERM, SIGUSR1 and the first Ctrl-C instead of dying of them; a second Ctrl-C interrupts at once.

    A step that is under way is finished, and the run is saved; nobody waits for longer phases, see
    :meth:`interruptible`.
    """

    NUMBERS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self) -> None:
        self.number: int | None = None
        self._previous: dict[int, Any] = {}
        self._patience: float | None = None

    def __enter__(self) -> "StopSignal":
        for number_ in (*self.NUMBERS, signal.SIGALRM):
            self._previous[number_] = signal.signal(number_, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number_, handler in self._previous.items():
            signal.signal(number_, handler)

    @contextlib.contextmanager
    def interruptible(self, patience: float = 0.0) -> Iterator[None]:
        """A phase that raises Stopped so many seconds after a signal, if it is not over by then."""
        self._patience = patience
        try:
            if self.number is not None:
                self._run_out_of_patience()
            yield
        finally:
            self._patience = None
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _run_out_of_patience(self) -> None:
        if self._patience is None:
            return
        if not self._patience:
            raise Stopped
        signal.setitimer(signal.ITIMER_REAL, self._patience)
        self._patience = 0.0  # for the alarm

    def _note(self, number_: int, _: FrameType | None) -> None:
        if number_ != signal.SIGALRM:
            if number_ == signal.SIGINT and self.number == signal.SIGINT:
                raise KeyboardInterrupt
            self.number = number_
        self._run_out_of_patience()

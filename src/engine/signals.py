"""Signals that end a run in an orderly way."""

import signal
from types import FrameType
from typing import Any


class StopSignal:
    """Notes SIGTERM, SIGUSR1 and the first Ctrl-C instead of dying of them; a second Ctrl-C interrupts at once."""

    NUMBERS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self) -> None:
        self.number: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        for number_ in self.NUMBERS:
            self._previous[number_] = signal.signal(number_, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number_, handler in self._previous.items():
            signal.signal(number_, handler)

    def _note(self, number_: int, _: FrameType | None) -> None:
        if number_ == signal.SIGINT and self.number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number_

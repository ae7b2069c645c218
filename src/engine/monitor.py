"""What a run says: a progress bar or plain lines, JSON lines, TensorBoard."""

import contextlib
import json
import math
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from ..clock import Clock
from ..errors import UserError
from ..parallel import collectives
from .log_files import Lines
from .tracking import MakeTracker, Tracker

T = TypeVar("T")


def duration(seconds: float) -> str:
    """h:mm:ss."""
    total = max(0, round(seconds))
    return f"{total // 3600}:{total % 3600 // 60:02d}:{total % 60:02d}"


def number(value: float) -> str:
    """Four significant digits; small and large ones in scientific notation."""
    return f"{value:.4g}"


def finite_or_none(values: Mapping[str, float]) -> dict[str, float | None]:
    """As JSON can hold them."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def progress_bar(iterable: Iterable[T] = (), what: str = "") -> "tqdm[T]":
    """A bar on the main rank's terminal; in a log file one line a minute, and none for what takes less."""
    on_terminal = sys.stderr.isatty()
    return tqdm(
        iterable,
        what,
        disable=not collectives.is_main(),
        leave=False,
        mininterval=0.1 if on_terminal else 60,
        delay=0 if on_terminal else 60,
    )


class Monitor:
    """Prints and records on the main rank; silent on the others, except for warnings.

    Writes to the run's folder: ``train.log`` (the printed lines) and ``log.jsonl`` (one object a log line). After a
    resume the files are appended to, and steps that are repeated stand in them twice; :func:`read_log` keeps the later
    ones.

    Args:
        folder: the run's; None writes no files.
        bar: show a progress bar; by default on a terminal only.
    """

    def __init__(self, folder: str | Path | None, bar: bool | None = None) -> None:
        self._file: Lines | None = None
        self._json: Lines | None = None
        self._trackers: list[Tracker] = []
        self._bar: tqdm[Any] | None = None
        self._show_bar = sys.stderr.isatty() if bar is None else bar
        self._started = time.monotonic()
        if folder is None or not collectives.is_main():
            return
        if not Path(folder).is_dir() and Path(folder).exists():
            raise UserError(f"cannot write to {folder}: it is a file")
        self._file = Lines(Path(folder) / "train.log", self._complain)
        self._json = Lines(Path(folder) / "log.jsonl", self._complain)

    def add(self, make: MakeTracker) -> None:
        """Hands all numbers and pictures from here on to another tracker, too, on the main rank.

        It is made by ``make``, of the function that says what goes wrong.
        """
        if collectives.is_main():
            self._trackers.append(make(self._complain))

    # --- words

    def say(self, line: str) -> None:
        """A line on the main rank."""
        if collectives.is_main():
            with contextlib.suppress(OSError):  # the terminal may be gone; the log has the line
                tqdm.write(line, file=sys.stdout)
                sys.stdout.flush()
            self._log("INFO", line)

    def warn(self, line: str) -> None:
        """A warning, on any rank."""
        prefix = f"[rank {collectives.rank()}] " if collectives.rank() else ""
        self._complain(f"{prefix}{line}")
        self._log("WARNING", line)

    def _complain(self, line: str) -> None:
        """To the terminal only: the log itself may be what fails."""
        with contextlib.suppress(OSError):
            tqdm.write(f"warning: {line}", file=sys.stderr)

    def _log(self, level: str, line: str) -> None:
        if self._file is not None:
            passed = duration(time.monotonic() - self._started)
            self._file.write(f"{level} - {time.strftime('%x %X')} - {passed} - {line}")

    # --- numbers

    def record(self, clock: Clock, kind: str, values: Mapping[str, float]) -> None:
        """One JSON line, and one point for each value in TensorBoard and other trackers.

        In JSON values that are not finite become null.
        """
        if not collectives.is_main():
            return
        if self._json is not None:
            line = {"kind": kind, "epoch": clock.epoch, "step": clock.step, **finite_or_none(values)}
            self._json.write(json.dumps(line))
        for tracker in self._trackers:
            tracker.write({f"{kind}/{name}": value for name, value in values.items()}, clock.step)

    def picture(self, clock: Clock, name: str, path: Path) -> None:
        """A picture that was drawn, for trackers that show some."""
        for tracker in self._trackers:
            tracker.picture(name, path, clock.step)

    def has_recorded(self, clock: Clock, kind: str) -> bool:
        """Whether the main rank's log has a record of this kind for this step; on every rank."""
        found = False
        if self._json is not None and self._json.path.exists():
            found = any(record["step"] == clock.step for record in read_log(self._json.path, kind))
        return bool(collectives.broadcast_object(found))

    # --- the bar

    def start_bar(self, clock: Clock, last_step: int) -> None:
        if self._show_bar and collectives.is_main():
            self._bar = tqdm(
                total=last_step,
                initial=clock.step,
                unit="step",
                dynamic_ncols=True,
                file=sys.stderr,
                leave=False,
            )

    def advance(self) -> None:
        if self._bar is not None:
            self._bar.update()

    def describe(self, text: str) -> None:
        if self._bar is not None:
            self._bar.set_description_str(text)

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        for file in (self._file, self._json, *self._trackers):
            if file is not None:
                file.close()
        self._file = self._json = None
        self._trackers = []


def read_log(path: str | Path, kind: str) -> list[dict[str, Any]]:
    """The records of one kind, in the order of their steps; of a step that was repeated, the latest values.

    Lines that are no records, as of a kill or a full disk, are left out.
    """
    by_step: dict[int, dict[str, Any]] = {}
    for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
            found, step = record["kind"], record["step"]
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        if found == kind and isinstance(step, int):
            by_step.setdefault(step, {}).update(record)
    return [by_step[step] for step in sorted(by_step)]

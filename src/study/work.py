"""Doing a study's runs, one after another, beside other processes that do the same."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from ..checkpoints.files import require_writable
from ..checkpoints.lock import RunLock
from ..engine.monitor import duration
from ..errors import UserError, first_line
from .plan import Task, trainings_of

ATTEMPTS = 3  # of a run that is killed
IN_USE = "is in use"  # what a training says of a folder where another one is at work
PAUSE = 2.0  # seconds between two looks for work that others must finish first
LOOK = 600.0  # seconds from one page to the next
_ROOT = Path(__file__).resolve().parent.parent.parent
_PR_SET_PDEATHSIG = 1


@contextlib.contextmanager
def claimed(task: Task, claims: Path) -> Iterator[bool]:
    """Whether this process may do a run: no living one, here or elsewhere, is at it. Raises UserError where nothing can
    be written."""
    require_writable(claims)
    try:
        lock = RunLock(claims / task.name, lambda line: None).acquire()
    except UserError:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def work(
    tasks: Sequence[Task],
    claims: Path,
    judge: Callable[[Task], str],
    say: Callable[[str], None],
    *,
    leaves: bool = False,
    look: Callable[[], object] = lambda: None,
) -> None:
    """Does runs until all are over, here or in other processes.

    A run whose program ends with an error is kept as failed, with what it said last.

    Args:
        claims: folder of the locks.
        judge: judges a run that is trained, and says what it reached.
        say: told what is going on.
        leaves: do not wait for runs that others are at, when none is left to begin.
        look: called after runs, at most every LOOK seconds.
    """
    trained = trainings_of(tasks)
    began, before = time.monotonic(), sum(task.is_over for task in trained)
    looked = began
    while not all(task.is_over for task in tasks):
        is_idle = True
        for task in tasks:
            if not task.is_ready:
                continue
            with claimed(task, claims) as is_mine:
                if not is_mine or task.is_over:
                    continue
                is_idle = False
                _do(task, judge, say)
            if task.command is not None:
                over = sum(one.is_over for one in trained)
                left = (time.monotonic() - began) / max(1, over - before) * (len(trained) - over)
                say(f"{over} of {len(trained)} runs are over; about {duration(left)} left")
            if time.monotonic() - looked > LOOK:
                try:
                    look()
                except (OSError, UserError) as error:  # the runs are what takes long
                    say(f"the page is not written: {first_line(error)}")
                looked = time.monotonic()
        if is_idle:
            if leaves and all(task.is_over or task.is_ready for task in tasks):
                return
            time.sleep(PAUSE)


def _do(task: Task, judge: Callable[[Task], str], say: Callable[[str], None]) -> None:
    missing = [need for need in task.needs if need.has_failed]
    if missing:
        task.fail(1, f"{missing[0].name} failed, which it needs: {missing[0].reason()}")
        return
    if task.command is not None:
        try:
            script, *words = task.command()
        except UserError as error:
            task.fail(2, str(error))
            say(f"{task.name}: failed ({error})")
            return
        say(f"{task.name}: trains")
        for _ in range(ATTEMPTS):
            code, last = _run([sys.executable, str(_ROOT / script), *words], task.folder)
            if 0 <= code < 128:
                break  # otherwise a signal ended it, and it goes on where it was
        if code == 2 and IN_USE in last:
            time.sleep(PAUSE)  # an earlier start's run still saves
            return
        if code:
            task.fail(code, last if code > 0 else f"killed by signal {-code}, {ATTEMPTS} times")
            say(f"{task.name}: failed ({task.reason()})")
            return
    try:
        told = judge(task)
    except Exception as error:  # of a network that has come to nothing, of a full GPU: the study goes on
        task.fail(1, f"cannot be judged: {first_line(error)}")
        told = f"failed ({task.reason()})"
    say(f"{task.name}: {told}")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # for the training that comes


def _run(command: Sequence[str], folder: Path) -> tuple[int, str]:
    """The exit code of a program and the last line that it complained of; it ends with this process, and at the same
    signals, after saving."""
    folder.mkdir(parents=True, exist_ok=True)
    # classes of the user's own are found where the study is started
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])}
    with open(folder / "output.txt", "ab") as output, open(folder / "errors.txt", "w+b") as errors:
        process = subprocess.Popen(command, env=environ, stdout=output, stderr=errors, preexec_fn=_end_with_parent)
        try:
            code = process.wait()
        except BaseException:
            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):  # a second one does not cut the saving short
                signal.signal(number, signal.SIG_IGN)
            process.send_signal(signal.SIGTERM)
            process.wait()
            raise
        errors.seek(0)
        lines = errors.read().decode(errors="backslashreplace").strip().splitlines()
    return code, (lines[-1].removeprefix("error: ") if lines else f"exit code {code}")


def _end_with_parent() -> None:
    """So that a run does not go on unseen when the study is killed."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@contextlib.contextmanager
def orderly_end() -> Iterator[None]:
    """Signals of a cluster end the study as Ctrl-C does: the run under way saves first."""

    def stop(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def start_more(count: int, words: Sequence[str], gpus: int) -> Iterator[None]:
    """Further processes that share the work, each with a GPU of its own where there are several; they end before this
    ends."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
    found = []
    for number in range(1, count):
        environ = {**os.environ, **({"CUDA_VISIBLE_DEVICES": visible[number % gpus]} if gpus > 1 else {})}
        command = [sys.executable, str(_ROOT / "study.py"), *words, "--at_once", "1", "--helper"]
        found.append(subprocess.Popen(command, env=environ, preexec_fn=_end_with_parent))
    try:
        yield
    except BaseException:
        for process in found:
            process.send_signal(signal.SIGTERM)
        raise
    finally:
        for process in found:
            process.wait()

"""One run at a time in a folder: two would overwrite each other's checkpoints and mix their logs.

``.lock`` in the folder says who is at work there: host, process, user, since when, and the other processes of the run.
It is made by an exclusive creation, which is atomic on network file systems too, and touched every few seconds. Whoever
finds one decides whether its owner still lives: on the same machine by the process table, from elsewhere by watching
whether the file is still touched, so that no two clocks are compared.
"""

import contextlib
import getpass
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import UserError

NAME = ".lock"
BEAT = 5.0  # seconds from one touch to the next
SILENCE = 45.0  # seconds without a touch after which an owner on another machine is taken for dead
FAREWELL = 40.0  # seconds that a process whose launcher is gone is given to end


def _start_of(pid: int) -> str | None:
    """When a process of this machine was started, in the kernel's ticks; None if there is none (any more)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def _machine() -> str:
    """What tells process numbers of this machine, since it was started, from others: also in containers."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()


def this_process() -> dict[str, Any]:
    """What a lock says about a process; ``launcher`` is torchrun's, for the ranks that it started."""
    launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
    return {
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": os.getpid(),
        "started": _start_of(os.getpid()),
        "launcher": launcher,
        "launcher_started": None if launcher is None else _start_of(launcher),
    }


def _is_here(process: dict[str, Any]) -> bool:
    return process.get("machine") == _machine()


def _lives(process: dict[str, Any]) -> bool:
    """Whether a process of this machine is there and the one that is meant, not a later one of its number."""
    return _start_of(int(process["pid"])) == process["started"] is not None


def _is_orphan(process: dict[str, Any]) -> bool:
    launcher = process.get("launcher")
    return launcher is not None and _start_of(int(launcher)) != process.get("launcher_started")


class RunLock:
    """The right to write into a run's folder.

    Args:
        folder: the run's; made if need be.
        say: told, in one line, when there is something to wait for.
        processes: :func:`this_process` of all ranks.
    """

    def __init__(
        self, folder: str | Path, say: Callable[[str], None], processes: list[dict[str, Any]] | None = None
    ) -> None:
        self.path = Path(folder) / NAME
        self._say = say
        self._processes = processes or [this_process()]
        self._token = f"{socket.gethostname()} {os.getpid()} {time.time_ns()}"
        self._ended = threading.Event()

    # ------------------------------------------------------------------------------------------------ taking it

    def acquire(self) -> "RunLock":
        """Takes the lock, and removes what dead processes left behind; raises UserError while another run has it."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            while not self._create():
                self._judge_owner()
        except OSError as error:
            raise UserError(f"cannot write to {self.path.parent}: {error.strerror}") from None
        self._clean()
        threading.Thread(target=self._beat, daemon=True, name="lock of the run").start()
        return self

    def _create(self) -> bool:
        try:
            descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        content = {"token": self._token, "user": _user(), "since": time.strftime("%F %T"), "processes": self._processes}
        with os.fdopen(descriptor, "w") as file:
            json.dump(content, file)
        return True

    def _read(self) -> dict[str, Any] | None:
        """What the lock says; None if it is gone, {} for one that says nothing (it may be just being written)."""
        try:
            found = json.loads(self.path.read_text())
            _ = [(process["pid"], process["started"], process["machine"]) for process in found["processes"]]
            return dict(found)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def _judge_owner(self) -> None:
        """Returns when the lock is gone; raises UserError when its owner lives."""
        owner = self._read()
        if owner is None:
            return
        here = [process for process in owner.get("processes", ()) if _is_here(process)]
        living = [process for process in here if _lives(process)]
        if living and all(_is_orphan(process) for process in living):
            self._wait_for_orphans(owner, living)
        elif living:
            raise UserError(self._in_use(owner, living[0]))
        elif not owner or len(here) < len(owner["processes"]):
            self._watch(owner)
        self._remove(owner)

    def _wait_for_orphans(self, owner: dict[str, Any], orphans: list[dict[str, Any]]) -> None:
        numbers = " ".join(str(process["pid"]) for process in orphans)
        self._say(f"waiting for process {numbers} in {self.path.parent}, whose launcher is gone, to end")
        deadline = time.monotonic() + FAREWELL
        while any(map(_lives, orphans)):
            if time.monotonic() > deadline:
                raise UserError(f"{self._in_use(owner, orphans[0])}; its launcher is gone: kill {numbers}")
            time.sleep(0.2)

    def _watch(self, owner: dict[str, Any]) -> None:
        """For owners on other machines, and locks that say nothing: whether anybody still touches it."""
        first = self._touched()
        deadline = time.monotonic() + (SILENCE if owner else 3.0)
        if owner:
            self._say(
                f"{self.path.parent} was used from {owner['processes'][0]['host']}; watching for {SILENCE:.0f} s "
                "whether it still is"
            )
        while time.monotonic() < deadline:
            time.sleep(0.25)
            if self._touched() != first:
                now = self._read()
                if now and now.get("token") == owner.get("token"):
                    raise UserError(self._in_use(owner, owner["processes"][0]))
                return

    def _touched(self) -> int | None:
        try:
            return os.stat(self.path).st_mtime_ns
        except OSError:
            return None

    def _in_use(self, owner: dict[str, Any], process: dict[str, Any]) -> str:
        return (
            f"{self.path.parent} is in use by process {process['pid']} on {process['host']} (user {owner.get('user')}, "
            f"since {owner.get('since')}): stop that run, or choose another --dump_path"
        )

    def _remove(self, owner: dict[str, Any]) -> None:
        """Takes away a dead owner's lock. One process at a time may, so that nobody takes away a living one's."""
        turn = self.path.with_name(f"{NAME}.turn")
        seen = time.monotonic()
        while True:
            try:
                os.close(os.open(turn, os.O_CREAT | os.O_EXCL))
                break
            except FileExistsError:
                if time.monotonic() - seen > 5.0:  # it takes milliseconds: whoever had it has died
                    turn.unlink(missing_ok=True)
                time.sleep(0.05)
        try:
            found = self._read()
            if found is not None and found.get("token") == owner.get("token"):
                self.path.unlink(missing_ok=True)
        finally:
            turn.unlink(missing_ok=True)

    def _clean(self) -> None:
        """Temporary files of writers that died; nobody else writes here."""
        for folder in (self.path.parent, self.path.parent / "checkpoints"):
            for path in folder.glob(".*.tmp"):
                with contextlib.suppress(OSError):
                    path.unlink()

    # ------------------------------------------------------------------------------------------------ having it

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            with contextlib.suppress(OSError):
                os.utime(self.path)

    def release(self) -> None:
        self._ended.set()
        owner = self._read()
        if owner and owner.get("token") == self._token:
            with contextlib.suppress(OSError):
                self.path.unlink()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no name in this container
        return str(os.getuid())

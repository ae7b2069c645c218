"""Trainings that are killed and started again, and whether they end in the same state."""

import os
import random
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from src.checkpoints.store import read_run
from tests.helpers import ROOT, become_the_script, script

import torch


class Forked:
    """A script in a fork of this process, in a session of its own: what the tests need of ``subprocess.Popen``."""

    def __init__(self, arguments):
        self.returncode = None
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            become_the_script([str(argument) for argument in arguments], self._said.fileno(), self._said.fileno())
        while self.poll() is None and os.getsid(self.pid) != self.pid:  # kill_everything kills sessions
            time.sleep(0.001)

    @property
    def stdout(self):
        self._said.seek(0)
        return self._said

    def poll(self):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def send_signal(self, number):
        os.kill(self.pid, number)

    def communicate(self, timeout=240):
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.01)
        return self.stdout.read(), None


def start(arguments, launcher=None):
    """A script that goes on beside the test."""
    if launcher is None and not torch.cuda.is_available():  # which a fork cannot use
        return Forked(arguments)
    return subprocess.Popen(
        script(*arguments, launcher=launcher),
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def logged_steps(folder: Path) -> int:
    log = folder / "log.jsonl"
    return log.read_text().count('"kind": "train"') if log.exists() else 0


def wait_for_steps(process, folder, count):
    while process.poll() is None and logged_steps(folder) < count:
        time.sleep(0.005)


def children_of(pid: int) -> list[int]:
    """Its child processes; torchrun gives each rank a session of its own."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def kill_everything(process: "subprocess.Popen[str]") -> None:
    """kill -9 for a script and its workers, or for a launcher, its ranks and their workers, at one moment."""
    sessions = {os.getsid(pid) for pid in [process.pid, *children_of(process.pid)]}
    for session in sessions:
        os.killpg(session, signal.SIGKILL)
    process.communicate()


def kill_until_done(arguments, folder, kills, launcher=None, seed=0):
    """Starts the run, kills -9 all of it at random moments, and lets the last start finish.

    The last kill comes when something is saved, however slow the machine: there is something to go on from.
    """
    chance = random.Random(seed)
    workers = 0
    for left in reversed(range(kills)):
        process = start([*arguments, "--workers", workers], launcher and launcher())
        wait_for_steps(process, folder, logged_steps(folder) + chance.randint(2, 6))
        while not left and process.poll() is None and not (folder / "checkpoint.pth.tar").exists():
            time.sleep(0.005)
        time.sleep(chance.random() * 0.05)
        assert process.poll() is None, process.stdout.read()
        kill_everything(process)
        workers = 2 - workers  # the number of workers makes no difference
    process = start([*arguments, "--workers", workers], launcher and launcher())
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert "continuing from" in output


def final_state(folder):
    """Every tensor of the newest checkpoint, by name."""
    content = read_run(folder / "checkpoint.pth.tar")
    tensors = {}

    def collect(name, value):
        if isinstance(value, torch.Tensor):
            tensors[name] = value
        elif isinstance(value, dict):
            for key, item in value.items():
                collect(f"{name}.{key}", item)
        elif isinstance(value, list):
            for i, item in enumerate(value):
                collect(f"{name}.{i}", item)

    for part in ("state_dict", "per_rank", "optimizer"):
        collect(part, content[part])
    return content["step"], tensors


def assert_same_end(a: Path, b: Path):
    (step_a, first), (step_b, second) = final_state(a), final_state(b)
    assert step_a == step_b
    assert first.keys() == second.keys()
    assert len(first) > 100
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert different == []

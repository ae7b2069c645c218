"""Two runs never share a folder; what dead ones left behind is recognised, whether they ran here or elsewhere."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

from src.checkpoints import lock as locking
from src.checkpoints.lock import RunLock, this_process
from src.errors import UserError
from tests.helpers import ROOT

import pytest

SLEEPER = (
    "import sys, time; sys.path.insert(0, {root!r}); from src.checkpoints.lock import RunLock; "
    "RunLock({folder!r}, print).acquire(); print('mine', flush=True); time.sleep(60)"
)


def take(folder, **environ):
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPER.format(root=str(ROOT), folder=str(folder))],
        stdout=subprocess.PIPE, text=True, env={**os.environ, **environ},
    )  # fmt: skip
    assert process.stdout.readline() == "mine\n"
    return process


def quick(monkeypatch):
    monkeypatch.setattr(locking, "BEAT", 0.1)
    monkeypatch.setattr(locking, "SILENCE", 1.0)
    monkeypatch.setattr(locking, "FAREWELL", 1.0)


def test_a_second_start_is_refused_and_told_by_whom(tmp_path):
    first = RunLock(tmp_path, print).acquire()
    with pytest.raises(UserError, match=rf"in use by process {os.getpid()} on .* \(user .*, since "):
        RunLock(tmp_path, print).acquire()
    first.release()
    assert not (tmp_path / ".lock").exists()
    RunLock(tmp_path, print).acquire().release()


def test_a_killed_owner_leaves_nothing_behind(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    process = take(tmp_path)
    with pytest.raises(UserError, match=f"in use by process {process.pid}"):
        RunLock(tmp_path, print).acquire()
    for place in (".checkpoint.pth.tar.77.tmp", "checkpoints/.step-000000003.pth.77.tmp"):
        (tmp_path / place).write_text("half")
    process.kill()
    process.wait()
    said = []
    mine = RunLock(tmp_path, said.append).acquire()
    assert said == []  # the process table tells: nothing to wait for
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == [".lock"]
    mine.release()


def test_a_later_process_of_the_same_number_is_not_the_owner(tmp_path):
    content = {"token": "x", "processes": [{**this_process(), "started": "1"}]}
    (tmp_path / ".lock").write_text(json.dumps(content))
    RunLock(tmp_path, print).acquire().release()


@pytest.mark.parametrize("alive", [True, False])
def test_owners_elsewhere_are_watched(tmp_path, monkeypatch, alive):
    """No clock is compared: what counts is whether the lock is still touched."""
    quick(monkeypatch)
    elsewhere = {**this_process(), "machine": "another", "host": "node7", "pid": 12}
    path = tmp_path / ".lock"
    path.write_text(json.dumps({"token": "x", "user": "ada", "since": "then", "processes": [elsewhere]}))
    os.utime(path, (4e9, 4e9))  # a server whose clock is far ahead
    done = threading.Event()

    def touch():
        while not done.wait(0.2):
            os.utime(path)

    if alive:
        threading.Thread(target=touch, daemon=True).start()
    said = []
    try:
        if alive:
            with pytest.raises(UserError, match=r"in use by process 12 on node7 \(user ada, since then\)"):
                RunLock(tmp_path, said.append).acquire()
        else:
            RunLock(tmp_path, said.append).acquire().release()
    finally:
        done.set()
    assert said == [f"{tmp_path} was used from node7; watching for 1 s whether it still is"]


def test_the_owner_touches_its_lock(tmp_path, monkeypatch):
    quick(monkeypatch)
    mine = RunLock(tmp_path, print).acquire()
    os.utime(tmp_path / ".lock", (0, 0))
    deadline = time.monotonic() + 5
    while (tmp_path / ".lock").stat().st_mtime == 0:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    mine.release()


def test_an_orphan_of_a_killed_launcher_is_named(tmp_path, monkeypatch):
    quick(monkeypatch)
    process = take(tmp_path, TORCHELASTIC_RUN_ID="x")
    content = json.loads((tmp_path / ".lock").read_text())
    content["processes"][0]["launcher_started"] = "1"  # as after kill -9 of the launcher
    (tmp_path / ".lock").write_text(json.dumps(content))
    said = []
    with pytest.raises(UserError, match=f"its launcher is gone: kill {process.pid}"):
        RunLock(tmp_path, said.append).acquire()
    assert f"waiting for process {process.pid} in {tmp_path}, whose launcher is gone, to end" in said
    threading.Timer(0.3, process.send_signal, [signal.SIGKILL]).start()
    threading.Thread(target=process.wait, daemon=True).start()
    RunLock(tmp_path, said.append).acquire().release()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"processes": [1]}', '{"processes": "x"}', "\0" * 50])
def test_a_lock_that_says_nothing_is_no_lock(tmp_path, monkeypatch, content):
    quick(monkeypatch)
    (tmp_path / ".lock").write_text(content)
    RunLock(tmp_path, print).acquire().release()


def test_one_of_many_starts_gets_it(tmp_path):
    """Also when all of them find a dead owner's lock at the same time."""
    dead = {**this_process(), "started": "1"}
    (tmp_path / ".lock").write_text(json.dumps({"token": "x", "processes": [dead]}))
    held, refused = [], []
    together = threading.Barrier(8)

    def start():
        together.wait()
        try:
            held.append(RunLock(tmp_path, print).acquire())
        except UserError:
            refused.append(1)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 7)
    held[0].release()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write to"):
        RunLock(tmp_path / "file" / "run", print).acquire()

"""Runs that several processes share: each is done once, after what it needs, and goes on after a kill."""

import contextlib
import os
import time
from pathlib import Path

from src.study import work
from src.study.plan import Task


def fake(name: str, folder: Path, script: str, *needs: Task) -> Task:
    program = folder / f"{name}.py"
    program.write_text(script)
    return Task(name, "runs", name, 1, folder / "runs" / name, lambda: [str(program)], needs)


def judged(task: Task) -> str:
    (task.folder / "judged.json").write_text("{}")
    return "good"


def test_what_is_needed_comes_first_and_failures_are_told(tmp_path):
    log = tmp_path / "log"
    note = f"open({str(log)!r}, 'a').write('{{}} ')"
    first = fake("first", tmp_path, note.format("first"))
    bad = fake("bad", tmp_path, "import sys; sys.exit('error: it is so')")
    second = fake("second", tmp_path, note.format("second"), first)
    third = fake("third", tmp_path, note.format("third"), bad)
    said = []
    work.work([third, second, bad, first], tmp_path / "claims", judged, said.append)
    assert log.read_text() == "first second "
    assert bad.reason() == "it is so"
    assert third.reason() == "bad failed, which it needs: it is so"
    assert "4 of 4 runs are over" in said[-1]


def test_who_leaves_does_not_wait_for_what_others_are_at(tmp_path):
    first = fake("first", tmp_path, "")
    after = fake("after", tmp_path, "", first)
    child = os.fork()
    if child == 0:
        with work.claimed(first, tmp_path / "claims"):
            (tmp_path / "held").touch()
            while not (tmp_path / "enough").exists():
                time.sleep(0.01)
        os._exit(0)
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    work.work([first], tmp_path / "claims", judged, print, leaves=True)  # returns
    assert not first.is_over
    (tmp_path / "enough").touch()
    os.waitpid(child, 0)
    seen = []
    work.work([first, after], tmp_path / "claims", judged, print, leaves=True, look=lambda: seen.append(1))
    assert after.is_judged  # it stays while something has yet to become ready
    assert not seen  # so soon


def test_two_processes_share_the_work(tmp_path):
    log = tmp_path / "log"
    script = f"import time; time.sleep(0.3); open({str(log)!r}, 'a').write('x')"
    tasks = [fake(str(number), tmp_path, script) for number in range(6)]
    child = os.fork()
    if child == 0:
        work.work(tasks, tmp_path / "claims", judged, lambda line: None)
        os._exit(0)
    mine = []
    work.work(tasks, tmp_path / "claims", judged, mine.append)
    assert os.waitpid(child, 0)[1] == 0
    assert log.read_text() == "x" * 6  # each once
    assert 0 < sum("trains" in line for line in mine) < 6


def test_a_run_that_is_killed_goes_on(tmp_path):
    log = tmp_path / "log"
    script = f"""
import os, signal
seen = open({str(log)!r}, "a+"); seen.seek(0); before = seen.read(); seen.write("x"); seen.flush()
if not before: os.kill(os.getpid(), signal.SIGKILL)
"""
    task = fake("killed", tmp_path, script)
    work.work([task], tmp_path / "claims", judged, lambda line: None)
    assert log.read_text() == "xx"
    assert task.is_judged


def test_a_run_is_good_though_nobody_listens_and_the_page_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(work, "LOOK", -1)
    tasks = [fake(name, tmp_path, "") for name in ("a", "b")]
    looked = []

    def look():
        looked.append(sum(task.is_judged for task in tasks))
        raise OSError("No space left on device")

    said = []
    work.work(tasks, tmp_path / "claims", judged, said.append, look=look)
    assert looked == [1, 2]
    assert said.count("the page is not written: No space left on device") == 2

    def gone(line):
        if "good" in line:
            raise BrokenPipeError

    last = fake("c", tmp_path, "")
    with contextlib.suppress(BrokenPipeError):
        work.work([last], tmp_path / "claims", judged, gone)
    assert (last.is_judged, last.has_failed) == (True, False)


def test_relative_paths_are_those_of_the_study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task = fake("here", tmp_path, "import os, pathlib; pathlib.Path('is').write_text(os.getcwd())")
    work.work([task], tmp_path / "claims", judged, lambda line: None)
    assert (tmp_path / "is").read_text() == str(tmp_path)


def test_tasks_of_an_array_try_a_failed_run_once_more_and_not_each(tmp_path, monkeypatch):
    task = fake("bad", tmp_path, "")
    task.folder.mkdir(parents=True)
    task.fail(1, "before")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    task.forget_failure()  # of an earlier job
    assert not task.has_failed
    task.fail(1, "in this one")
    task.forget_failure()
    assert task.has_failed
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "8")
    task.forget_failure()
    assert not task.has_failed

"""A log that cannot be written does not end a run, is said once, and goes on when it can."""

import errno
import os
import shutil
import sys
from functools import partial

from src.clock import Clock
from src.engine import log_files
from src.engine.log_files import Lines, Points
from src.engine.monitor import Monitor, read_log
from src.errors import UserError

import pytest


class FullDisk(log_files.FileIO):
    full = True

    def write(self, content):
        if self.full:
            super().write(content[: len(content) // 2])
            if self.full == "at once":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return len(content) // 2
        return super().write(content)


@pytest.mark.parametrize("how", [True, "at once"])
def test_a_full_disk_is_said_once(tmp_path, monkeypatch, how):
    monkeypatch.setattr(log_files, "FileIO", FullDisk)
    monkeypatch.setattr(FullDisk, "full", False)
    said = []
    lines = Lines(tmp_path / "log.jsonl", said.append)
    record = '{{"kind": "train", "step": {}}}'
    lines.write(record.format(0))
    FullDisk.full = how
    for step in (1, 2):
        lines.write(record.format(step))
    assert said == [
        f"cannot write {tmp_path / 'log.jsonl'}: No space left on device; the run goes on, lines are lost until it can"
    ]
    FullDisk.full = False
    lines.write(record.format(3))
    assert said[1:] == [f"{tmp_path / 'log.jsonl'} can be written again"]
    lines.close()
    assert [r["step"] for r in read_log(tmp_path / "log.jsonl", "train")] in ([0, 3], [0])


def test_a_deleted_folder_is_made_again_and_said(tmp_path, capsys):
    monitor = Monitor(tmp_path / "run")
    monitor.add(partial(Points, tmp_path / "run" / "tensorboard"))
    monitor.record(Clock(4, 2), "train", {"loss": 1.0})
    shutil.rmtree(tmp_path / "run")
    clock = Clock(4, 2, step=1)
    monitor.record(clock, "train", {"loss": 2.0})
    monitor.say("a line")
    monitor.close()
    assert "log.jsonl is gone; it is begun anew" in capsys.readouterr().err
    assert [r["loss"] for r in read_log(tmp_path / "run" / "log.jsonl", "train")] == [2.0]
    assert "a line" in (tmp_path / "run" / "train.log").read_text()
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_event_files_that_fail_are_left_out(tmp_path):
    said = []
    points = Points(tmp_path / "tensorboard", said.append)
    shutil.rmtree(tmp_path / "tensorboard")
    (tmp_path / "tensorboard").write_text("a file")
    points._writer.close()
    (tmp_path / "tensorboard").unlink()
    tmp_path.joinpath("x").touch()
    points.folder = tmp_path / "x" / "y"
    for step in range(3):
        points.write({"a": 1.0}, step)
    assert [line.split(" ")[0] for line in said] == [str(points.folder), "cannot"]
    points.close()


def test_a_terminal_that_is_gone_ends_nothing(tmp_path, monkeypatch):
    class Gone:
        def write(self, text):
            raise BrokenPipeError

        flush = write

    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", Gone())
        patched.setattr(sys, "stderr", Gone())
        monitor = Monitor(tmp_path, bar=False)
        monitor.say("a line")
        monitor.warn("another")
        monitor.close()
    text = (tmp_path / "train.log").read_text()
    assert "a line" in text
    assert "another" in text


def test_a_place_that_cannot_be_written_is_refused_at_once(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match="cannot write to"):
            Monitor(folder)


@pytest.mark.parametrize("line", [
    "", "{", '{"kind": "train"}', '{"step": 1}', "[]", "7", '{"kind": "train", "step": "x"}', "\0\0", '"' + "[" * 10000,
    '{"kind": ["train"], "step": 1}',
])  # fmt: skip
def test_lines_that_are_no_records_are_passed_over(tmp_path, line):
    path = tmp_path / "log.jsonl"
    path.write_bytes(
        b'{"kind": "train", "step": 1, "loss": 2}\n' + line.encode() + b'\n\xff\n{"kind": "train", "step": 2}'
    )
    assert [record["step"] for record in read_log(path, "train")] == [1, 2]

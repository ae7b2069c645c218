"""Weights & Biases, the real package, offline: a run is recorded, and goes on with the same record."""

import re
import sys

from src.engine.monitor import read_log
from src.engine.tracking import WeightsAndBiases
from src.errors import UserError
from tests.helpers import run
from tests.scripts.test_main_swav import command

import pytest


def entries(path):
    """The entries of a file of wandb's: LevelDB's log format, in blocks of 32 kB, behind 7 bytes of their own."""
    content, place, parts = path.read_bytes(), 7, []
    while place + 7 <= len(content):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        parts.append(content[place + 7 : place + 7 + length])
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield b"".join(parts)
            parts = []


def records(folder):
    """What all records below the folder hold: id -> project, name, and the values of each line."""
    from wandb.proto import wandb_internal_pb2

    found = {}
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        name = ""
        for entry in entries(file):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(entry)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                name = record.run.run_id
                known = {"project": record.run.project, "name": record.run.display_name, "lines": []}
                found.setdefault(name, known)
            if kind == "history":
                line = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
                found[name]["lines"].append(line)
    return found


def test_a_run_that_goes_on_keeps_its_record(patches, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    words = command(patches, tmp_path, "--batch_size", 16, "--workers", 0, "--log_every", 2, "--epochs", 2,
                    "--wandb", "pictures", "--env_name", "first try")  # fmt: skip
    for steps in (6, 12):
        result = run(*words, "--max_steps", steps)
        assert result.returncode == 0, result.stderr
    found = records(tmp_path)
    assert len(found) == 1  # one id for both starts
    ((identity, record),) = found.items()
    assert (tmp_path / "wandb.id").read_text() == identity
    assert (record["project"], record["name"]) == ("pictures", "first try")
    logged = read_log(tmp_path / "log.jsonl", "train")
    ours = {(line["step"], f"{line['loss']:.5g}") for line in logged}
    theirs = {
        (int(line["step"]), f"{float(line['train/loss']):.5g}") for line in record["lines"] if "train/loss" in line
    }
    assert theirs == ours
    assert len(ours) >= 6


def test_what_is_missing_gets_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        WeightsAndBiases(tmp_path, "p", "n", {}, print)


def test_nobody_logged_in_gets_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(UserError, match=re.escape("WANDB_MODE=offline")):
        WeightsAndBiases(tmp_path, "p", "n", {}, print)


def test_what_fails_later_is_said_once_and_stops_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    said = []
    tracker = WeightsAndBiases(tmp_path, "p", "n", {"a": 1}, said.append)

    def broken(*_, **__):
        raise RuntimeError("the wire is cut")

    monkeypatch.setattr(tracker._run, "log", broken)
    tracker.write({"loss": 1.0}, 1)
    tracker.write({"loss": 1.0}, 2)
    tracker.close()
    assert said == ["Weights & Biases: the wire is cut; the run goes on without it"]


def test_a_network_that_is_down_stops_nothing(tmp_path, monkeypatch):
    import wandb

    said = []
    monkeypatch.setattr(wandb, "init", lambda **_: (_ for _ in ()).throw(ConnectionError("no route")))
    tracker = WeightsAndBiases(tmp_path, "p", "n", {}, said.append)
    tracker.write({"loss": 1.0}, 1)
    tracker.close()
    assert said == ["Weights & Biases: no route; the run goes on without it"]
    assert not (tmp_path / "wandb.id").exists()

"""Records elsewhere, by the real packages, offline: a run is recorded, and goes on with the same record."""

import json
import math
import re
import sqlite3
import sys

from src.clock import Clock
from src.engine.monitor import Monitor, read_log
from src.engine.tracking import Trackio, TrackSettings, WeightsAndBiases
from src.errors import UserError
from tests.helpers import run
from tests.scripts.test_main_swav import command

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


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


@pytest.fixture
def trackio_folder(tmp_path, monkeypatch):
    """Where the data base is; the package reads its variable when it is imported."""
    folder = tmp_path / "trackio"
    monkeypatch.setenv("TRACKIO_DIR", str(folder))
    for name in [name for name in sys.modules if name.partition(".")[0] == "trackio"]:
        monkeypatch.delitem(sys.modules, name)
    return folder


def trackio_runs(folder, project):
    """Run -> its lines, from the data base itself."""
    ((path),) = folder.glob(f"{project}*.db")
    with sqlite3.connect(path) as base:
        rows = base.execute("select run_name, step, metrics from metrics order by id").fetchall()
    found = {}
    for name, step, text in rows:
        found.setdefault(name, []).append((step, json.loads(text)))
    return found


def test_trackio_goes_on_with_its_record(tmp_path, trackio_folder):
    path = tmp_path / "picture.png"
    Image.new("RGB", (8, 8), (250, 0, 0)).save(path)
    said = []
    for step in (1, 2):
        tracker = Trackio(tmp_path / "run", "pictures", "first try", {"lr": 0.1, "sizes": (1, 2)}, said.append)
        tracker.write({"train/loss": 2.5 + step, "train/bad": math.nan}, step)
        tracker.picture("crops", path, step)
        tracker.close()
    assert not said
    ((name, lines),) = trackio_runs(trackio_folder, "pictures").items()
    assert name.startswith("first try-")
    assert (tmp_path / "run" / "trackio.id").read_text() == name
    assert [(step, line["train/loss"]) for step, line in lines if "train/loss" in line] == [(1, 3.5), (2, 4.5)]
    assert len([line for _, line in lines if "crops" in line]) == 2
    assert len(list(trackio_folder.rglob("*.png"))) == 2
    other = Trackio(tmp_path / "other", "pictures", "first try", {}, said.append)
    other.write({"train/loss": 1.0}, 1)
    other.close()
    assert len(trackio_runs(trackio_folder, "pictures")) == 2  # another folder is another run


def test_every_tracker_takes_numbers_and_pictures(tmp_path, monkeypatch, trackio_folder, capsys):
    """The settings, commit and versions with them; and what a run of one method hands over arrives."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    path = tmp_path / "picture.png"
    Image.new("RGB", (8, 8), (250, 0, 0)).save(path)
    settings = TrackSettings(("tensorboard", "wandb", "trackio"), project="all")
    with Monitor(tmp_path / "run") as monitor:
        for make in settings.trackers(tmp_path / "run", "name", {"lr": 0.1, "commit": "abc"}):
            monitor.add(make)
        clock = Clock(2, 2)
        monitor.record(clock, "train", {"loss": 2.0})
        monitor.picture(clock, "crops", path)
    assert not capsys.readouterr().err
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert events.Scalars("train/loss")[0].value == 2.0
    assert (events.Images("crops")[0].width, events.Images("crops")[0].height) == (8, 8)
    ((record),) = records(tmp_path / "run").values()
    assert record["project"] == "all"
    assert any("crops" in line or "crops/path" in line for line in record["lines"])
    assert any("train/loss" in line for line in record["lines"])
    assert trackio_runs(trackio_folder, "all")


@pytest.mark.parametrize(
    ("settings", "kinds"),
    [
        (TrackSettings(), ["Points"]),
        (TrackSettings(tensorboard=False), []),
        (TrackSettings(("none",)), []),
        (TrackSettings(("none",), wandb="p"), ["WeightsAndBiases"]),
        (TrackSettings(tensorboard=False, wandb="p"), ["WeightsAndBiases"]),
        (TrackSettings(("wandb", "trackio")), ["WeightsAndBiases", "Trackio"]),
        (TrackSettings(("wandb",), wandb="p"), ["WeightsAndBiases"]),
    ],
)
def test_which_trackers_there_are(tmp_path, settings, kinds):
    makers = settings.trackers(tmp_path, "n", {})
    assert [make.func.__name__ for make in makers] == kinds
    projects = [make.args[1] for make in makers if make.func is WeightsAndBiases]
    assert projects == [settings.wandb or settings.project for _ in projects]


def test_none_goes_with_nothing_else(tmp_path):
    with pytest.raises(UserError, match="--track none wandb: none goes with nothing else"):
        TrackSettings(("none", "wandb")).trackers(tmp_path, "n", {})


@pytest.mark.parametrize("kind", [WeightsAndBiases, Trackio])
def test_what_is_missing_gets_one_line(tmp_path, monkeypatch, kind):
    monkeypatch.setitem(sys.modules, kind.package, None)
    with pytest.raises(UserError, match=f"--track {kind.package} needs a package: pip install {kind.package}"):
        kind(tmp_path, "p", "n", {}, print)


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

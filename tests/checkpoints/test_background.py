"""Checkpoints are written while the training goes on: same content, nothing lost, errors told."""

import multiprocessing
import os
import signal
import threading

from src.checkpoints import store
from src.checkpoints.background import Background, Snapshot
from src.checkpoints.store import read_run
from src.engine.judging import Evaluation
from src.errors import Diverged, UserError
from tests.engine.test_loop import Regression, assert_same, make, state_of

import pytest
import torch
from torch import nn

write_atomically = store.write_atomically


def test_copies_hold_what_was_there():
    weight = torch.arange(24.0).view(2, 3, 2, 2).to(memory_format=torch.channels_last)
    content = {"w": weight, "again": weight, "more": [weight[0], (torch.ones(2), 3)], "none": torch.zeros(0, 4), "n": 1}
    snapshot = Snapshot()
    taken = snapshot.take(content)
    snapshot.arrive()
    expected = weight.clone()
    weight.zero_()
    assert torch.equal(taken["w"], expected)
    assert taken["w"].stride() == weight.stride()
    assert taken["again"] is taken["w"]
    assert torch.equal(taken["more"][0], expected[0])
    assert (taken["more"][1][1], taken["n"]) == (3, 1)
    assert taken["none"].shape == (0, 4)


def test_room_is_used_again():
    snapshot = Snapshot()
    first = snapshot.take({"a": torch.ones(3), "b": torch.ones(4)})
    second = snapshot.take({"a": torch.zeros(3), "b": torch.zeros(5)})
    assert second["a"] is first["a"]
    assert second["b"].tolist() == [0.0] * 5
    third = snapshot.take({"a": torch.ones(3)})
    assert third["a"] is first["a"]
    assert list(snapshot._room) == [("a",)]


def test_an_error_waits_to_be_told():
    background, go = Background(), threading.Event()

    def fail():
        go.wait(10)
        raise UserError("no space")

    background.start(fail)
    background.check()  # nothing yet
    go.set()
    with pytest.raises(UserError, match="no space"):
        background.wait()
    background.wait()
    background.start(fail)
    with pytest.raises(UserError, match="no space"):
        background.start(lambda: None)


def test_steps_go_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    """And what is written is the state of its own step."""
    make(tmp_path / "waits", save_every=4, keep_last=99).run()
    training = make(tmp_path / "goes on", save_every=4, keep_last=99)
    three_more, waited = threading.Event(), []

    def late(path, write):
        if path.name == "step-000000004.pth":
            waited.append(three_more.wait(20))
        write_atomically(path, write)

    def after_step(clock):
        real(clock)
        if clock.step == 5:
            three_more.set()

    real, training.method.after_step = training.method.after_step, after_step
    monkeypatch.setattr(store, "write_atomically", late)
    training.run()
    assert waited == [True]
    for path in sorted((tmp_path / "waits" / "checkpoints").glob("*.pth")):
        ours, theirs = (read_run(place) for place in (path, tmp_path / "goes on" / "checkpoints" / path.name))
        assert ours["step"] == theirs["step"]
        assert all(torch.equal(t, theirs["state_dict"][n]) for n, t in ours["state_dict"].items())


def test_a_failed_write_is_told_at_the_next_step(tmp_path, monkeypatch):
    training = make(tmp_path, save_every=2)
    begun, failed = threading.Event(), threading.Event()

    def full(path, write):
        begun.wait(10)
        failed.set()
        raise UserError(f"cannot write {path}: No space left on device")

    def before_step(clock):
        if clock.step == 2:
            begun.set()
            assert failed.wait(10)
            training.saving.store._background._ended.wait(10)

    monkeypatch.setattr(store, "write_atomically", full)
    training.method.before_step = before_step
    with pytest.raises(UserError, match="No space left"):
        training.run()
    assert training.clock.step == 3


def test_a_failed_write_at_the_end_is_told(tmp_path, monkeypatch):
    def full(path, write):
        raise UserError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr(store, "write_atomically", full)
    with pytest.raises(UserError, match="No space left"):
        make(tmp_path).run()


def test_a_signal_waits_for_the_write(tmp_path, monkeypatch):
    training = make(tmp_path, save_every=2)

    def slow(path, write):
        threading.Event().wait(0.2)
        write_atomically(path, write)

    def before_step(clock):
        if clock.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(store, "write_atomically", slow)
    training.method.before_step = before_step
    assert training.run() == signal.SIGTERM
    assert read_run(tmp_path / "checkpoint.pth.tar")["step"] == 4


def test_an_interrupted_wait_has_not_waited():
    background, go, ended = Background(), threading.Event(), []

    def job():
        go.wait(20)
        ended.append(True)

    def interrupt(*_):
        raise InterruptedError

    background.start(job)
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(InterruptedError):
            background.wait()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert background.is_busy
    background.check()
    go.set()
    background.wait()
    assert ended == [True]


@pytest.mark.parametrize("unit", ["epoch", "step"])
def test_a_signal_before_an_evaluation_waits_for_the_write(tmp_path, monkeypatch, capsys, unit):
    """The evaluation is not waited for, the checkpoint of the epoch is."""
    training = make(tmp_path, save_every=2, evaluations=[Evaluation(1, dict, unit)])

    def slow(path, write):
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(0.3)
        write_atomically(path, write)

    monkeypatch.setattr(store, "write_atomically", slow)
    assert training.run() == signal.SIGTERM
    step = training.clock.step
    assert read_run(tmp_path / "checkpoint.pth.tar")["step"] == training.saving.saved_step == step
    assert not list((tmp_path / "checkpoints").glob(".*"))
    assert f"step {step}" in capsys.readouterr().out


def test_a_failed_write_is_told_beside_a_worse_error(tmp_path, monkeypatch, capsys):
    def full(path, write):
        raise OSError("No space left on device")

    training = make(tmp_path, save_every=2, method=Regression(poison_at=3), log_every=1)
    monkeypatch.setattr(store, "write_atomically", full)
    monkeypatch.setattr(training.saving, "check", lambda: None)  # it is as if the write failed a moment later
    with pytest.raises(Diverged):
        training.run()
    assert "No space left on device" in capsys.readouterr().err


def _train_until_killed(folder, place):
    """Trains; hangs in the middle of writing the checkpoint of step 8 and says so."""

    def half(path, write):
        if path.name == "step-000000008.pth":
            path.with_name(f".{path.name}.tmp").write_bytes(b"half of it")
            place.set()
            threading.Event().wait(60)
        write_atomically(path, write)

    store.write_atomically = half
    torch.manual_seed(5)
    make(folder, save_every=4).run()


def test_a_kill_during_the_write_loses_this_checkpoint_only(tmp_path):
    torch.manual_seed(5)
    undisturbed = make()
    undisturbed.run()
    context = multiprocessing.get_context("fork")
    in_the_middle = context.Event()
    child = context.Process(target=_train_until_killed, args=(tmp_path, in_the_middle))
    child.start()
    assert in_the_middle.wait(60)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert read_run(tmp_path / "checkpoint.pth.tar")["step"] == 6  # of the first epoch's end
    second = make(tmp_path)
    assert second.clock.step == 6
    second.run()
    assert_same(state_of(second), state_of(undisturbed))


def test_the_optimisers_state_is_copied_too():
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    taken = Snapshot().take(optimizer.state_dict())
    before = {n: t.clone() for n, t in optimizer.state_dict()["state"][0].items()}
    optimizer.step()
    assert all(torch.equal(taken["state"][0][name], value) for name, value in before.items())
    assert taken["param_groups"] == optimizer.state_dict()["param_groups"]

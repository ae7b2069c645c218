"""A signal is heeded within seconds in every phase of a run, and costs nothing that was saved."""

import os
import signal
import threading
import time

from src.engine.judging import Evaluation
from src.engine.signals import Stopped, StopSignal
from tests.engine.test_loop import Points, Regression, assert_same, make, state_of

import pytest

LONG = 30.0  # seconds that a phase would take


class Slow(Regression):
    """Takes its time in one phase, from a certain step on, until it is told to be quick."""

    def __init__(self, phase, step):
        super().__init__()
        self.phase, self.at = phase, step

    def linger(self, phase, step):
        if phase == self.phase and step >= self.at:
            signal_soon()
            time.sleep(LONG)

    def before_training(self, batches):
        self.linger("first look", 0)

    def before_epoch(self, clock):
        super().before_epoch(clock)
        self.linger("clustering", clock.step)


def signal_soon(number=signal.SIGTERM):
    threading.Timer(0.2, os.kill, [os.getpid(), number]).start()


class SlowPoints(Points):
    linger = True

    def __getitem__(self, position):
        if self.linger and position.epoch == 1:
            signal_soon()
            time.sleep(LONG)
        return super().__getitem__(position)


PHASES = {  # where the run is saved when the signal comes
    "first look": 0, "clustering": 6, "evaluation": 6, "waiting for data": 6, "step evaluation": 9,
}  # fmt: skip


@pytest.mark.parametrize("phase", PHASES)
def test_a_signal_is_heeded_in_every_phase(tmp_path, phase, capfd):
    def judge():
        if judging:
            signal_soon()
            time.sleep(LONG)
        return {"x": 1.0}

    judging = phase.endswith("evaluation")
    unit = ("step", 9) if phase == "step evaluation" else ("epoch", 1)
    evaluations = [Evaluation(unit[1], judge, unit[0])] if judging else []
    whole = make(evaluations=[])
    whole.run()

    def training(method):
        points = SlowPoints() if phase == "waiting for data" else Points()
        return make(tmp_path, method, evaluations=evaluations, points=points, log_every=1)

    run = training(Slow(phase, 0 if phase == "first look" else 6))
    before = time.monotonic()
    assert run.run() == signal.SIGTERM
    assert time.monotonic() - before < 5.0
    out = capfd.readouterr().out
    assert "stopped by a signal" in out
    steps = sorted(int(path.stem.split("-")[1]) for path in (tmp_path / "checkpoints").glob("step-*.pth"))
    assert (steps or [0])[-1] == PHASES[phase]
    judging = False
    SlowPoints.linger = False
    try:
        rest = training(Slow("none", 0))
        assert rest.run() is None
    finally:
        SlowPoints.linger = True
    assert_same(state_of(rest), state_of(whole))
    records = (tmp_path / "log.jsonl").read_text()
    if phase == "evaluation":  # the one that was lost is made up for
        assert [f'"step": {step}, "x": 1.0' in records for step in (6, 12, 18)] == [True] * 3


def test_an_evaluation_that_was_done_is_not_repeated(tmp_path):
    judged = []
    for steps in (6, 12):
        run = make(tmp_path, evaluations=[Evaluation(1, lambda: judged.append(1) or {"x": 1.0})], max_steps=steps)
        run.run()
    assert len(judged) == 2


def test_patience_is_for_what_ends_by_itself():
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        with stop.interruptible(patience=1.0):
            time.sleep(0.2)  # over in time: nothing is raised
        before = time.monotonic()
        with pytest.raises(Stopped), stop.interruptible(patience=0.3):
            time.sleep(LONG)
        with pytest.raises(Stopped), stop.interruptible():
            raise AssertionError("not reached")
        assert time.monotonic() - before < 2
        assert stop.number == signal.SIGUSR1


def test_outside_of_such_phases_a_signal_is_noted_only():
    before = {number: signal.getsignal(number) for number in (*StopSignal.NUMBERS, signal.SIGALRM)}
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        assert stop.number == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)  # the second Ctrl-C
    assert {number: signal.getsignal(number) for number in before} == before

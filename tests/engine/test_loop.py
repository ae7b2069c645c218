import json
import os
import signal

from src.checkpoints.store import CheckpointStore
from src.clock import Clock
from src.data.loading import Sample, make_loader
from src.data.sampling import ResumableBatches
from src.engine.diagnostics import Check
from src.engine.judging import Evaluation
from src.engine.loop import Training
from src.engine.method import Method
from src.engine.monitor import Monitor, duration, read_log
from src.engine.precision import choose_precision
from src.errors import Diverged, UserError

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

CPU = torch.device("cpu")


class Points(Dataset):
    """Vectors in the place of images; the sample says which epoch it was drawn in."""

    def __len__(self):
        return 24

    def __getitem__(self, position):
        generator = torch.Generator().manual_seed(1000 * position.epoch + position.image)
        return Sample([torch.randn(3, generator=generator)], 0, position.image, [])


class Regression(Method):
    """A method with everything a method may have: dropout, a queue, an average of the weights, hooks."""

    per_rank_buffers = {"queue": 0}  # noqa: RUF012

    def __init__(self, poison_at=None, health=()):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5))
        self.register_buffer("queue", torch.zeros(5))
        self.register_buffer("average", torch.zeros(4, 3))
        self.calls = []
        self.seen = []
        self.poison_at, self.health = poison_at, health

    def forward(self, batch, clock):
        x = self.backbone(batch.crops[0])
        loss = (x - self.queue.mean()).square().mean()
        if clock.step == self.poison_at:
            loss = loss * float("nan")
        self.queue.copy_(torch.cat([x.detach().mean().view(1), self.queue[:-1]]))
        self.seen.append((clock.step, clock.logging, batch.indices.tolist()))
        outputs = {"loss": loss}
        if clock.logging:
            outputs["spread"] = x.detach().std()
        return outputs

    def before_epoch(self, clock):
        self.calls.append(("before_epoch", clock.step))

    def after_backward(self, clock):
        self.calls.append(("after_backward", clock.step))
        assert self.backbone[0].weight.grad is not None

    def after_step(self, clock):
        self.calls.append(("after_step", clock.step))
        self.average.lerp_(self.backbone[0].weight.detach(), 0.1)

    def health_checks(self):
        return list(self.health)


def make(folder=None, method=None, epochs=3, batch_size=4, workers=0, keep_last=2, points=None, **options):
    method = method or Regression()
    ranks = options.get("virtual_ranks", 1)
    batches = ResumableBatches(24, batch_size, world_size=ranks, virtual_ranks=ranks)
    clock = Clock(len(batches), epochs)
    groups = [{"params": [method.backbone[0].weight]}, {"params": [method.backbone[0].bias], "lr_scale": 0.5}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    training = Training(
        method=method,
        optimizer=optimizer,
        loader=make_loader(points or Points(), batches, workers=workers),
        batches=batches,
        prepare=lambda batch: batch,
        schedules={"lr": lambda clock: 0.1 / (1 + clock.step)},
        clock=clock,
        device=CPU,
        precision=choose_precision(options.pop("precision", "fp32"), CPU),
        monitor=Monitor(folder),
        checkpoints=None if folder is None else CheckpointStore(folder, {}, keep_last=keep_last),
        **options,
    )
    if folder is not None:
        training.restore("auto")
    return training


def state_of(training):
    momentum = [s["momentum_buffer"] for s in training.optimizer.state.values()]
    return [*training.method.state_dict().values(), *momentum]


def assert_same(a, b):
    assert len(a) == len(b)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture
def undisturbed():
    torch.manual_seed(5)
    training = make()
    torch.manual_seed(5)
    training.run()
    return state_of(training)


@pytest.mark.parametrize("stop_at", [1, 5, 6, 7, 12, 17])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_in_two_parts_equals_one_in_one_go(tmp_path, undisturbed, stop_at, workers):
    first = make(tmp_path, max_steps=stop_at, workers=workers)
    torch.manual_seed(5)
    first.run()
    torch.manual_seed(77)
    second = make(tmp_path, workers=0 if workers else 2)
    second.run()
    assert second.clock.step == 18
    assert_same(state_of(second), undisturbed)


def test_saving_along_the_way_changes_nothing(tmp_path, undisturbed):
    training = make(tmp_path, save_every=1, log_every=1, evaluations=[Evaluation(1, lambda: {"x": 1.0})])
    torch.manual_seed(5)
    training.run()
    assert_same(state_of(training), undisturbed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_finishes_the_step_saves_and_leaves(tmp_path, undisturbed, number):
    class Signalled(Regression):
        def after_step(self, clock):
            super().after_step(clock)
            if clock.step == 7:
                os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    first = make(tmp_path, Signalled())
    torch.manual_seed(5)
    assert first.run() == number
    assert first.clock.step == 8
    assert signal.getsignal(number) is before
    second = make(tmp_path)
    assert second.run() is None
    assert_same(state_of(second), undisturbed)


def test_hooks_are_called_in_order(tmp_path):
    training = make(tmp_path, max_steps=7)
    training.run()
    calls = training.method.calls
    assert calls[:3] == [("before_epoch", 0), ("after_backward", 0), ("after_step", 0)]
    assert [call for call in calls if call[0] == "before_epoch"] == [("before_epoch", 0), ("before_epoch", 6)]
    resumed = make(tmp_path, max_steps=9)
    resumed.run()
    assert resumed.method.calls[:2] == [("before_epoch", 7), ("after_backward", 7)]


def test_schedules_reach_every_group_scaled():
    training = make(max_steps=4)
    training.run()
    assert [group["lr"] for group in training.optimizer.param_groups] == pytest.approx([0.1 / 4, 0.05 / 4])


def test_virtual_ranks_average_the_gradients_of_their_batches():
    class Plain(Regression):
        def forward(self, batch, clock):
            self.seen.append(clock.step)
            return {"loss": self.backbone[0](batch.crops[0]).square().mean()}

    parts = make(method=Plain(), batch_size=4, virtual_ranks=3, max_steps=1)
    whole = make(method=Plain(), batch_size=12, max_steps=1)
    parts.run()
    whole.run()
    assert parts.method.seen == [0, 0, 0]
    for a, b in zip(state_of(parts), state_of(whole), strict=True):
        torch.testing.assert_close(a, b)


def test_clipping_bounds_the_gradient():
    class Steep(Regression):
        def forward(self, batch, clock):
            return {"loss": 1e3 * super().forward(batch, clock)["loss"]}

        def after_backward(self, clock):
            norm = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in self.parameters()]))
            assert norm <= 0.1 * 1.001

    make(method=Steep(), clip_norm=0.1, max_steps=3).run()


@pytest.mark.parametrize("poison_at", [0, 4, 17])
def test_a_loss_that_is_not_finite_stops_the_run_and_saves_nothing_after_it(tmp_path, poison_at):
    training = make(tmp_path, Regression(poison_at=poison_at), log_every=5, save_every=3)
    with pytest.raises(Diverged, match="not finite"):
        training.run()
    steps = [int(path.stem.split("-")[1]) for path in (tmp_path / "checkpoints").glob("step-*.pth")]
    assert all(step <= poison_at for step in steps)
    assert (tmp_path / "checkpoints").exists() == (poison_at > 0)


@pytest.mark.parametrize("broken", ["gradient", "buffer", "optimiser", "queue"])
@pytest.mark.parametrize("keep_last", [1, 2])
def test_a_state_that_is_not_finite_is_never_saved(tmp_path, broken, keep_last):
    """The loss stays finite; the last good checkpoint stays, and a restart from it runs to the end."""

    class Breaks(Regression):
        break_at = 8

        def after_backward(self, clock):
            super().after_backward(clock)
            if clock.step == self.break_at and broken == "gradient":
                self.backbone[0].weight.grad[0, 0] = float("nan")

        def after_step(self, clock):
            super().after_step(clock)
            if clock.step == self.break_at and broken == "buffer":
                self.average[0, 0] = float("inf")
            if clock.step == self.break_at and broken == "queue":
                self.queue[-1] = float("-inf")
            if clock.step == self.break_at and broken == "optimiser":
                training.optimizer.state[self.backbone[0].weight]["momentum_buffer"][0, 0] = float("nan")

    training = make(tmp_path, Breaks(), keep_last=keep_last, save_every=4)
    with pytest.raises(Diverged, match="no checkpoint is written, the last one is from before"):
        training.run()
    steps = sorted(int(path.stem.split("-")[1]) for path in (tmp_path / "checkpoints").glob("step-*.pth"))
    assert steps == [4, 6, 8][-keep_last:]
    method = Breaks()
    method.break_at = None
    again = make(tmp_path, method, keep_last=keep_last)
    again.restore("auto")
    assert again.clock.step == 8
    assert again.run() is None


def test_nothing_is_judged_once_it_is_not_finite(tmp_path):
    judged = []
    training = make(
        tmp_path, Regression(poison_at=7), evaluations=[Evaluation(1, lambda: judged.append(1) or {})], log_every=50
    )
    with pytest.raises(Diverged):
        training.run()
    assert judged == [1]


def test_nothing_is_read_from_the_device_between_log_lines(monkeypatch):
    """On a GPU each of these calls would wait for it."""
    reads = []

    class Watching(Regression):
        def forward(self, batch, clock):
            return {"loss": self.backbone(batch.crops[0]).square().mean()}

        def after_step(self, clock):
            super().after_step(clock)
            reads.append((clock.step, len(counted)))

    counted = []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        original = getattr(torch.Tensor, name)

        def counting(self, *args, _original=original, _name=name, **kwargs):
            counted.append(_name)
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, counting)
    training = make(method=Watching(), log_every=6, epochs=1, batch_size=2)
    training.run()
    counts = dict(reads)
    assert counts[5] == counts[1]  # steps 2 to 5 lie between the log lines of steps 0 and 6
    assert counts[6] > counts[5]
    assert counts[10] == counts[7]


def test_logs_are_written_and_read_back(tmp_path):
    training = make(tmp_path, log_every=2, evaluations=[Evaluation(2, lambda: {"knn_top1": 50.0})])
    training.run()
    training.monitor.close()
    train = read_log(tmp_path / "log.jsonl", "train")
    assert [r["step"] for r in train] == [0, 2, 4, 6, 8, 10, 12, 14, 16, 17]
    assert {"loss", "spread", "lr", "images_per_second", "waiting_for_data"} <= set(train[0])
    assert [r["step"] for r in read_log(tmp_path / "log.jsonl", "evaluation")] == [12, 18]
    text = (tmp_path / "train.log").read_text()
    assert "epoch 1/3  step 1/6  loss" in text
    assert "after epoch 2: knn top1 50.00" in text


def test_a_repeated_step_counts_once_and_a_torn_line_not_at_all(tmp_path):
    lines = [{"kind": "train", "step": s, "loss": loss} for s, loss in ((0, 1.0), (2, 2.0), (2, 3.0))]
    text = "\n".join(map(json.dumps, lines)) + '\n{"kind": "train", "st'
    (tmp_path / "log.jsonl").write_text(text)
    assert [(r["step"], r["loss"]) for r in read_log(tmp_path / "log.jsonl", "train")] == [(0, 1.0), (2, 3.0)]


def test_a_verdict_is_printed_when_a_check_keeps_failing(capsys):
    bad = Check("bad", lambda values: values["loss"] >= 0, lambda values: "SICK: loss is there.", "Rest.")
    training = make(method=Regression(health=[bad]), log_every=1, epochs=30)
    training.health.grace = 10
    training.run()
    assert "SICK: loss is there. Rest." in capsys.readouterr().err
    good = Check("good", lambda values: values["loss"] < 0, lambda values: "SICK", "")
    make(method=Regression(health=[good]), log_every=1).run()
    assert "SICK" not in capsys.readouterr().err


def test_unreadable_images_are_named_once(capsys):
    class Broken(Points):
        def __getitem__(self, position):
            sample = super().__getitem__(position)
            return sample._replace(unreadable=["x.jpg (torn)"]) if position.image == 3 else sample

    training = make()
    training.loader = make_loader(Broken(), training.batches, workers=0)
    training.run()
    err = capsys.readouterr().err
    assert err.count("unreadable image skipped: x.jpg (torn); 1 so far") == 1
    assert "1 unreadable images were replaced" in err


def test_precision_choices():
    assert choose_precision("auto", CPU).dtype is None
    assert choose_precision("bf16", CPU).dtype is torch.bfloat16
    with pytest.raises(UserError, match="needs a GPU"):
        choose_precision("fp16", CPU)
    with pytest.raises(UserError, match="expected auto"):
        choose_precision("fp8", CPU)


def test_bf16_runs_the_forward_pass_in_bf16():
    types = []

    class Typed(Regression):
        def forward(self, batch, clock):
            types.append(self.backbone[0](batch.crops[0]).dtype)
            return super().forward(batch, clock)

    make(method=Typed(), precision="bf16", max_steps=1).run()
    assert types == [torch.bfloat16]


def test_duration():
    assert duration(3723.4) == "1:02:03"

"""The memory that a step is said to need is what it takes, and saying it changes nothing."""

import contextlib
import copy
import importlib
import itertools
from types import SimpleNamespace
from unittest import mock

from src.engine.footprint import Footprint, _Peak, footprint
from src.pretraining import memory
from src.randomness import random_state
from tests.scripts.test_splits import METHODS
from tests.steps import LINES, make_teacher, training_of

import pytest
import torch

CPU = torch.device("cpu")
# What four ranks need: the lines of these scripts say the batch of all of them
BATCH = {
    "main_intl.py": "--bs 64 --emb 128 --warmup_iters 1",
    "main_disco.py": "--batch_size 32 --bn_parts 1",
}
FAST = [("swav", 1), ("swav", 4), ("twist-vit", 1), ("moco", 4), ("cwrgp", 1)]
# What it takes to change colours is not counted, and is the most there where networks are as small as these
NOT_COUNTED = ("swav-device-colours",)


@pytest.fixture(scope="module")
def runs(patches, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    make_teacher(patches, folder)
    return folder


def made(name, ranks, patches, runs):
    script = LINES[name].split()[0]
    words = BATCH.get(script, "--batch_size 8").split() if ranks > 1 else []
    words += ["--virtual_ranks", str(ranks)] if "--accumulate" not in LINES[name] else []
    training = training_of(name, patches, runs, CPU, *words)
    training._first_look()
    training.method.train()
    training._before_epoch()
    loader = iter(training.loader)
    return training, [next(loader) for _ in range(training.virtual_ranks)]


def estimate(training, parts):
    return footprint(
        training.method, training.optimizer, parts[0], training.clock, training.virtual_ranks, training._autocast
    )


def taken(training, parts):
    """The most bytes at a time of the second step, when the optimiser has its state."""
    peak = _Peak(set())

    def autocast(real=training._autocast):
        stack = contextlib.ExitStack()
        stack.enter_context(real())
        stack.enter_context(peak)  # each thread has its own modes
        return stack

    training._autocast = autocast
    if training.cast:
        training.cast._autocast = autocast
    for _ in range(2):
        peak.most = peak.now
        with peak:
            training._step(parts)
        training._before_epoch()  # the first rows of a memory bank again
    return peak.most


@pytest.mark.parametrize(("name", "ranks"), [*FAST, *(
    pytest.param(name, ranks, marks=pytest.mark.slow)
    for name, ranks in itertools.product(LINES, [4])
    if LINES[name].startswith("main_") and (name, ranks) not in FAST and name not in NOT_COUNTED
)])  # fmt: skip
def test_a_step_takes_what_was_said(patches, runs, name, ranks):
    training, parts = made(name, ranks, patches, runs)
    said = estimate(training, parts)
    real = said.networks + taken(training, parts)
    assert 0.97 * real < said.bytes < 1.15 * real, (said, real)


@pytest.mark.parametrize(("name", "ranks"), [
    ("moco", 1), ("deepcluster-v2", 1),
    *(pytest.param(name, ranks, marks=pytest.mark.slow)
      for name, ranks in (("swav-queue", 1), ("intl_m", 4), ("seed", 1), ("w2ssl", 2))),
])  # fmt: skip
def test_saying_it_changes_nothing(patches, runs, name, ranks):
    asked, parts = made(name, ranks, patches, runs)
    undisturbed, same = made(name, ranks, patches, runs)
    before = random_state()
    attributes = [dict(module.__dict__) for module in asked.method.modules()]
    contents = [copy.copy(value) for found in attributes for value in found.values() if isinstance(value, (list, dict))]
    estimate(asked, parts)
    assert all(torch.equal(value, before[key]) for key, value in random_state().items())
    for module, old in zip(asked.method.modules(), attributes, strict=True):
        assert old.keys() == module.__dict__.keys()
        assert all(module.__dict__[key] is value for key, value in old.items())
    for content in [v for found in attributes for v in found.values() if isinstance(v, (list, dict))]:
        assert str(content) == str(contents.pop(0))  # also of what was changed in place
    assert all(parameter.grad is None for parameter in asked.method.parameters())
    state = random_state()
    outputs = []
    for training, batches in ((asked, parts), (undisturbed, same)):
        torch.set_rng_state(state["cpu"])
        outputs.append(training._step(batches))
        training.method.after_step(training.clock)
    assert all(torch.equal(outputs[0][key], outputs[1][key]) for key in outputs[0])
    for a, b in zip(asked.method.state_dict().values(), undisturbed.method.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def dry_run(name, data, folder, *more):
    module, line = METHODS[name]
    words = [*line.format(own=16).split(), "--data_path", data, "--dump_path", folder, "--dry_run", *more]
    return importlib.import_module(module).main([str(word) for word in words])


@pytest.mark.parametrize("name", [
    "swav", *(pytest.param(name, marks=pytest.mark.slow) for name in METHODS if name != "swav")
])  # fmt: skip
def test_a_dry_run_says_what_would_be_and_leaves_nothing(patches, tmp_path, capsys, name):
    assert dry_run(name, patches / "train", tmp_path / "run", "--virtual_ranks", 2) == 0
    said, complaints = capsys.readouterr()
    assert "memory     about" in said
    assert "estimated" not in complaints
    assert "img/s" not in said
    assert not (tmp_path / "run").exists()


def test_a_dry_run_of_all_ranks_together_says_that_more_would_not_help(patches, tmp_path, capsys):
    assert dry_run("twist", patches / "train", tmp_path / "run", "--virtual_ranks", 2) == 0
    said = capsys.readouterr().out
    assert "(2 ranks together)" in said
    assert dry_run("swav", patches / "train", tmp_path / "run", "--virtual_ranks", 2, "--sync_bn", "apex",
                   "--syncbn_process_group_size", 2) == 0  # fmt: skip
    assert "--virtual_ranks 4 with 8 images each would need" in capsys.readouterr().out  # still two at a time
    assert dry_run("swav", patches / "train", tmp_path / "run") == 0
    assert "would need" not in capsys.readouterr().out  # a single rank's passes are made otherwise
    assert "would need as much" in said
    assert "--virtual_ranks 4" not in said


def said_on_a_gpu(measure, total, monkeypatch):
    monitor = mock.MagicMock()
    run = SimpleNamespace(
        settings=SimpleNamespace(run=SimpleNamespace(dry_run=False), speed=SimpleNamespace(shard=False)),
        world=SimpleNamespace(device=torch.device("cuda")), precision=SimpleNamespace(dtype=None),
        clock=SimpleNamespace(steps_per_epoch=1, epochs=1), virtual_ranks=2, batch_size=64,
    )  # fmt: skip
    monkeypatch.setattr(memory, "footprint", measure)
    monkeypatch.setattr(memory, "batch_of_shapes", lambda _: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=total))
    memory.say_memory(run, None, None, monitor)
    return monitor.say.call_args_list, [call.args[0] for call in monitor.warn.call_args_list]


@pytest.mark.parametrize(("gigabytes", "advice"), [
    (50, ""), (30, "--virtual_ranks 4 with 32 images each would fit"),
    (15, "--virtual_ranks 8 with 16 images each would fit"), (4, "--checkpoint_activations"),
])  # fmt: skip
def test_what_would_fit_is_said_where_this_does_not(gigabytes, advice, monkeypatch):
    needed = Footprint(networks=10**9, gradients=0, optimizer=0, ranks=2, images=10**9, together=1, part=37 * 10**9)
    said, warnings = said_on_a_gpu(lambda *_: needed, gigabytes * 1e9, monkeypatch)
    assert len(said) == 1
    assert len(warnings) == bool(advice)
    assert not advice or advice in warnings[0]


def test_an_estimate_that_fails_is_said_and_stops_nothing(monkeypatch):
    def broken(*_):
        raise RuntimeError("no such operation")

    said, warnings = said_on_a_gpu(broken, 10**12, monkeypatch)
    assert not said
    assert warnings == ["the memory of a step could not be estimated (no such operation)"]

"""Processes that play several ranks compute what so many processes would: weights, optimiser, queues, statistics."""

import contextlib
import importlib
import io
import os
from pathlib import Path
from unittest import mock

from src.checkpoints.store import read_run
from src.data.to_device import ToDevice
from src.engine.finite import tensors_in
from src.engine.footprint import teachers_of
from src.engine.loop import Training
from src.losses import sinkhorn
from tests.helpers import on_ranks, run
from tests.runs import assert_same_end
from tests.scripts.test_splits import METHODS
from tests.steps import make_teacher

import pytest
import torch

pytestmark = pytest.mark.usefixtures("short_resnets")
RANKS = 4
STEPS = int(os.environ.get("STEPS_OF_SPLITS", "4"))  # an epoch has three; twenty take a quarter of an hour
# Small rates: rounding must not grow to what a difference would be
RATES = {"main_swav": "--base_lr 0.01", "main_cwrgp": "--lr 1e-4", "main_intl": "--lr 1e-3"}
# What else a method can have: batch norms of groups of ranks, or of each alone; transformers that drop layers; batches
# that are normalised in shares; bunches of ranks
VIT = "--arch vit_t --stem imagenet --width 1 --size_crops 32 32 --drop_path 0.2"
MORE = {
    "swav-queue": ["--sync_bn no", "--sync_bn apex --syncbn_process_group_size 2"],
    "deepcluster": ["--sync_bn no"],
    "sela": ["--sync_bn no --sela_hard false --nmb_prototypes 3 3"],
    "twist": [
        "--sync_bn 0 --bunch_size 16",
        "--sync_bn 0 --mme_epochs 1 --drop 0.2",
        f"--sync_bn 0 {VIT} --optim sgd",
    ],
    "twist-momentum": ["--sync_bn 0 --bunch_size 8"],
    "moco": ["--bn_parts 2"],
}
LINES = [(name, more) for name in METHODS for more in ["", *MORE.get(name, [])]]
TEACHER = "--teacher {teacher}"
LINES += [("moco", f"{TEACHER} --moco_dim 16 --method {more}") for more in (
    "disco", "disco --distill mse attention fitnet darkrank --teacher_mode eval --distill_weight 0.5",
    "rkd --use_mse --distill_norm ref32 --lr 1e-3", "seed",
)]  # fmt: skip
LINES += [("swav", f"{TEACHER} --feat_dim 16")]
FAST = [("swav-queue", "--sync_bn no"), ("twist-momentum", ""), ("moco", ""), ("w2ssl", ""), ("deepcluster", "")]


class Training64(Training):
    """In float64, so that what differs is not rounding that has grown."""

    def __post_init__(self):
        self.method.double()
        for teacher in teachers_of(self.method):  # no part of the method's state
            teacher.double()
        super().__post_init__()


@contextlib.contextmanager
def in_float64():
    normalize = ToDevice.normalize
    with contextlib.ExitStack() as stack:
        for owner, name, stand_in in (
            (torch.Tensor, "float", torch.Tensor.double),
            (sinkhorn, "SMALLEST_FLOAT32_EPSILON", float("inf")),
            (ToDevice, "normalize", lambda self, images: normalize(self, images).double()),
            (importlib.import_module("src.pretraining.running"), "Training", Training64),
        ):
            stack.enter_context(mock.patch.object(owner, name, stand_in))
        yield


def _main(module, words):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), in_float64():
        code = importlib.import_module(module).main(words)
    return code, said.getvalue()


def train(name, data, folder, processes, more="", steps=STEPS, ranks=RANKS):
    module, line = METHODS[name]
    words = [*line.format(own=32 // ranks).split(), *RATES.get(module, "--lr 0.01").split()]
    words += ["--data_path", data, "--dump_path", folder, "--epochs", 8, "--virtual_ranks", ranks // processes]
    words += ["--dist_url", "tcp://127.0.0.1:1", "--max_steps", steps]
    if TEACHER in more:
        make_teacher(Path(data).parent, folder)
    words += more.format(teacher=folder / "moco" / "checkpoint.pth.tar").split()
    code, said = on_ranks(processes, _main, module, [str(word) for word in words])[0]
    assert code == 0, said
    assert "bit-exact" not in said
    return read_run(folder / "checkpoint.pth.tar")


def difference(a, b):
    """The largest one of all numbers that a checkpoint holds."""
    assert (a["step"], a["world_size"], a["batch_size"]) == (b["step"], b["world_size"], b["batch_size"])
    found = {}
    for entry in ("state_dict", "optimizer", "per_rank"):
        ours, theirs = (list(tensors_in(run[entry])) for run in (a, b))
        assert [t.shape for t in ours] == [t.shape for t in theirs]
        pairs = zip(ours, theirs, strict=True)
        found[entry] = max((x.double() - y.double()).abs().max().item() for x, y in pairs if x.numel())
    return max(found.values())


@pytest.mark.parametrize(("name", "more"), FAST)
def test_the_first_steps_of_one_process_and_two_are_alike(patches, tmp_path, name, more):
    one, two = (train(name, patches / "train", tmp_path / str(n), n, more, 3, ranks=2) for n in (1, 2))
    assert difference(one, two) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize(("name", "more"), LINES)
def test_every_split_ends_in_the_same_numbers(patches, tmp_path, name, more):
    runs = {
        processes: train(name, patches / "train", tmp_path / str(processes), processes, more) for processes in (4, 2, 1)
    }
    found = {processes: difference(runs[4], runs[processes]) for processes in (1, 2)}
    print(name, more, found)
    assert max(found.values()) < 1e-10, found


@pytest.mark.parametrize("name", ["swav-queue", pytest.param("deepcluster", marks=pytest.mark.slow)])
def test_a_run_may_move_between_splits(patches, tmp_path, name):
    """In the middle of an epoch, too: as if it had not."""
    data, more = patches / "train", "--sync_bn no"
    undisturbed = train(name, data, tmp_path / "a", 4, more, steps=9)
    for steps, processes in ((4, 4), (6, 1), (9, 2)):
        moved = train(name, data, tmp_path / "b", processes, more, steps)
    assert difference(undisturbed, moved) < 1e-10


@pytest.mark.parametrize(
    ("name", "more"),
    [("swav-queue", "--sync_bn no"), pytest.param("barlowtwins", "", marks=pytest.mark.slow),
     pytest.param("moco", "", marks=pytest.mark.slow), pytest.param("deepcluster", "", marks=pytest.mark.slow)],
)  # fmt: skip
def test_an_interrupted_run_of_one_process_ends_bit_for_bit_alike(patches, tmp_path, name, more):
    module, line = METHODS[name]
    words = [
        *line.format(own=8).split(),
        "--data_path",
        patches / "train",
        "--epochs",
        3,
        "--virtual_ranks",
        4,
        *more.split(),
    ]
    for folder, stop in (("a", 99), ("b", 4), ("b", 99)):
        result = run(f"{module}.py", *words, "--dump_path", tmp_path / folder, "--max_steps", stop)
        assert result.returncode == 0, result.stderr
    assert_same_end(tmp_path / "a", tmp_path / "b")

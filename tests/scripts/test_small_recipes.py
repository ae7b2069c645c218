"""Every method of INTL's and CW-RGP's programs has a recipe for every small set, and each is what its table says."""

import importlib
import os
import subprocess
from types import SimpleNamespace

from src.settings import flat
from tests.built import FakeImages, built
from tests.helpers import ROOT

import pytest
import torch

SETS = ("cifar10", "cifar100", "stl10", "tiny_in", "in100")
JOINT = ("cwrgp2", "cwrgp4", "wmse", "simclr", "byol", "simsiam", "barlowtwins", "vicreg", "zero_icl")
OTHERS = ("twist", "moco", "disco", "w2ssl")
ALL = [(m, s) for m in ("intl", *JOINT) for s in SETS] + [(m, s) for m in OTHERS for s in ("cifar10", "cifar100")]
# CW-RGP's scripts/base.sh: epochs, rate, views, batch, sub-batch, groups, iterations, embedding, hidden layer
BASE = {
    ("cwrgp4", "cifar10"): (1000, 3e-3, 4, 256, 64, 4, 1, 512, 1024),
    ("cwrgp4", "cifar100"): (1000, 3e-3, 4, 256, 64, 4, 1, 512, 1024),
    ("cwrgp4", "stl10"): (2000, 2e-3, 4, 256, 64, 4, 1, 512, 1024),
    ("cwrgp4", "tiny_in"): (1000, 2e-3, 4, 256, 128, 2, 1, 1024, 2048),
    ("cwrgp2", "cifar10"): (1000, 3e-3, 2, 256, 64, 4, 4, 512, 1024),
    ("cwrgp2", "cifar100"): (1000, 3e-3, 2, 512, 64, 4, 1, 512, 1024),
    ("cwrgp2", "stl10"): (2000, 2e-3, 2, 512, 64, 4, 1, 512, 1024),
    ("cwrgp2", "tiny_in"): (1000, 2e-3, 2, 512, 128, 2, 1, 1024, 2048),
}
CROPS = {"cifar10": 32, "cifar100": 32, "stl10": 64, "tiny_in": 64, "in100": 224}
IMAGES = {"cifar10": 50_000, "cifar100": 50_000, "stl10": 105_000, "tiny_in": 100_000, "in100": 126_689}


def command_of(method, data, *extra):
    environ = {**os.environ, "DRY_RUN": "1", "DATASET_PATH": "/data", "EXPERIMENT_PATH": "/out", "TEACHER": "/t"}
    words = ["bash", "scripts/small.sh", method, data, *extra]
    return subprocess.run(words, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=30)


def run_of(method, data, *extra):
    answer = command_of(method, data, *extra)
    assert answer.returncode == 0, answer.stderr
    script, *words = answer.stdout.split()
    return built(importlib.import_module(script.removesuffix(".py")), words, images=FakeImages(IMAGES[data], 10))


def flags_of(run):
    return SimpleNamespace(**{**flat(run.run.settings), **run.checkpoints.settings, "batch": run.run.step_batch})


@pytest.mark.parametrize(("method", "data"), ALL)
def test_every_recipe_builds_a_run_for_small_images(method, data):
    run = run_of(method, data)
    flags = flags_of(run)
    assert flags.arch == "resnet18"
    assert (flags.dataset, flags.data_path, flags.dump_path) == (data, "/data", "/out")
    assert {view.size for view in run.views} == {CROPS[data]}
    assert flags.stem == {224: "imagenet", 64: "small_pool", 32: "small"}[CROPS[data]]
    assert flags.knn_k == 5
    convolution = next(m for m in run.method.backbone.modules() if isinstance(m, torch.nn.Conv2d))
    assert convolution.kernel_size == ((7, 7) if data == "in100" else (3, 3))


@pytest.mark.parametrize(("method", "data"), BASE)
def test_cwrgps_are_the_published_ones(method, data):
    flags = flags_of(run_of(method, data))
    found = (
        flags.epochs, flags.lr, flags.num_samples, flags.batch, flags.w_size, flags.group, flags.w_iter, flags.emb,
        flags.head_size,
    )  # fmt: skip
    assert found == BASE[method, data]
    assert (flags.optimizer, flags.wd) == ("adam", 1e-6)


@pytest.mark.parametrize("data", SETS[:4])
@pytest.mark.parametrize("method", JOINT[2:])
def test_the_baselines_train_as_long_as_it_does(method, data):
    flags, theirs = flags_of(run_of(method, data)), BASE["cwrgp2", data]
    assert flags.epochs == theirs[0]
    assert flags.lr == (0.03 if method == "simsiam" else theirs[1])
    assert flags.batch == 512
    assert flags.optimizer == ("sgd" if method == "simsiam" else "adam")


def test_old_names_start_the_same():
    for method, data in BASE:
        environ = {**os.environ, "DRY_RUN": "1", "DATASET_PATH": "/data", "EXPERIMENT_PATH": "/out"}
        old = subprocess.run(
            ["bash", f"scripts/{method}_{data}.sh"], cwd=ROOT, env=environ, capture_output=True, text=True
        )
        script, *words = old.stdout.split()
        module = importlib.import_module(script.removesuffix(".py"))
        ours = flags_of(run_of(method, data))
        assert flags_of(built(module, words, images=FakeImages(IMAGES[data], 10))) == ours


def test_flags_behind_a_recipe_win_and_unknown_names_are_told():
    assert flags_of(run_of("byol", "cifar10", "--epochs", "7", "--warmup_iters", "3", "--drop")).epochs == 7
    for method, data in (("byol", "cifar11"), ("boyl", "cifar10"), ("moco", "stl10")):
        answer = command_of(method, data)
        assert answer.returncode == 2
        assert "usage: scripts/small.sh METHOD SET" in answer.stderr
    assert "sets: of moco: cifar10 cifar100" in answer.stderr

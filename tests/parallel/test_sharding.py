"""Sharded (FSDP2) and recomputed trainings against plain ones, on two ranks."""

import importlib
import shlex

import main_swav
from src.checkpoints.store import read_run
from src.errors import UserError
from tests.helpers import on_ranks
from tests.runs import assert_same_end, final_state
from tests.scripts.test_main_swav import command
from tests.steps import LINES, make_teacher

import pytest
import torch

pytestmark = pytest.mark.usefixtures("short_resnets")
SHORT = ("--epochs", 2, "--batch_size", 8, "--workers", 0, "--queue_length", 32, "--epoch_queue_starts", 0,
         "--freeze_prototypes_niters", 2, "--wd", 0.01, "--dist_url", "tcp://unused:1",
         "--base_lr", 0.02)  # fmt: skip  # a higher rate amplifies the first rounding difference a thousandfold a step


def _train(arguments):
    torch.manual_seed(0)
    return main_swav.main([str(a) for a in arguments[1:]])


def train(patches, folder, *extra, ranks=2):
    assert on_ranks(ranks, _train, command(patches, folder, *SHORT, *map(str, extra))) == [0] * ranks


def assert_close_ends(a, b, tolerance):
    (step_a, first), (step_b, second) = final_state(a), final_state(b)
    assert step_a == step_b > 3
    assert first.keys() == second.keys()
    for name in first:
        if "rng" not in name:
            torch.testing.assert_close(first[name], second[name], rtol=tolerance, atol=tolerance, msg=name)


@pytest.fixture(scope="module")
def plain_run(patches, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    train(patches, folder, "--max_steps", 5)
    return folder


@pytest.mark.parametrize("extra", [["--shard"], ["--checkpoint_activations"], ["--shard", "--checkpoint_activations"]])
def test_two_ranks_train_as_under_ddp(patches, plain_run, tmp_path, extra):
    """Weights, momentum, batch-norm statistics and queue after five steps, through the freezing's end."""
    train(patches, tmp_path, "--max_steps", 5, *extra)
    assert_close_ends(plain_run, tmp_path, 0 if extra == ["--checkpoint_activations"] else 2e-5)


def _train_line(line, folder, extra):
    script, *words = shlex.split(line)
    torch.manual_seed(0)
    words += ["--dump_path", str(folder), "--workers", "0", "--dist_url", "tcp://unused:1", "--max_steps", "2", *extra]
    return importlib.import_module(script.removesuffix(".py")).main(words)


@pytest.mark.parametrize("name", [
    "deepcluster-v2", "w2ssl", *(
        pytest.param(name, marks=pytest.mark.slow) for name in (
            "sela-v2", "sela-v2-soft", "swav-heads", "swav-teacher", "twist", "twist-teacher", "twist-vit", "intl",
            "intl_m", "cwrgp", "byol", "simsiam", "barlowtwins", "moco", "disco", "disco-maps", "seed", "dino",
            "swav --virtual_ranks 2", "deepcluster-v2 --virtual_ranks 2", "w2ssl --virtual_ranks 2",
            "twist-teacher --virtual_ranks 2", "moco --virtual_ranks 2 --bn_parts 1", "intl_m --virtual_ranks 2",
        )
    ),
])  # fmt: skip
def test_every_method_can_be_sharded(patches, tmp_path, name):
    """Weights, moving averages, optimiser and banks are those of a run that is not sharded."""
    make_teacher(patches, tmp_path)
    name, *more = name.split()
    line = LINES[name].format(data=patches, runs=tmp_path).replace("--batch_size 16", "--batch_size 8")
    line = line.replace("--batch-size 16 --bunch-size 16", "--batch-size 8 --bunch-size 16")
    for folder, extra in ((tmp_path / "plain", more), (tmp_path / "shared out", [*more, "--shard"])):
        assert on_ranks(2, _train_line, line, folder, extra) == [0, 0]
    (step, plain), (_, shared) = final_state(tmp_path / "plain"), final_state(tmp_path / "shared out")
    assert step == 2  # later steps magnify what was rounded otherwise
    assert plain.keys() == shared.keys()
    for key in plain:
        if "rng" not in key and plain[key].numel():
            largest = plain[key].abs().max().item()
            # the gradient of a bias in front of a batch norm is rounding alone, which LARC scales up
            difference = (shared[key] - plain[key]).abs().max().item()
            assert difference <= 1e-3 * largest + 2e-4, key


def test_parameters_really_are_in_parts(patches, tmp_path):
    kept = on_ranks(2, _rows_of_this_rank)
    for whole, part in kept:
        assert part <= whole * 0.55


def _rows_of_this_rank():
    from src.methods.swav import SwAV
    from src.models.backbones import create_backbone, residual_blocks
    from src.parallel.sharding import is_sharded, shard

    method = SwAV(create_backbone("resnet50", width=0.125), nmb_prototypes=30)
    whole = sum(p.numel() for p in method.parameters())
    assert not is_sharded(method)
    shard(method, {method.backbone: residual_blocks(method.backbone)}, torch.device("cpu"))
    assert is_sharded(method)
    return whole, sum(p.to_local().numel() for p in method.parameters())


def test_a_sharded_run_in_parts_equals_one_in_one_go(patches, tmp_path):
    train(patches, tmp_path / "a", "--shard", "--max_steps", 8)
    for stop in (5, 8):  # an epoch has six
        train(patches, tmp_path / "b", "--shard", "--max_steps", stop)
    assert_same_end(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize(("first", "then"), [([], ["--shard"]), (["--shard"], [])])
def test_a_run_may_change_between_sharded_and_not(patches, plain_run, tmp_path, first, then):
    train(patches, tmp_path, "--max_steps", 3, *first)
    train(patches, tmp_path, "--max_steps", 5, *then)
    assert_close_ends(plain_run, tmp_path, 2e-5)


def test_online_knn_reads_a_sharded_backbone(patches, tmp_path):
    train(patches, tmp_path, "--shard", "--knn_freq", 1, "--knn_k", 5, "--epochs", 1)
    assert read_run(tmp_path / "checkpoint.pth.tar")["epoch"] == 1


def test_one_process_has_nothing_to_share_with(patches, tmp_path):
    with pytest.raises(UserError, match="torchrun"):
        _train(command(patches, tmp_path, "--epochs", 1, "--batch_size", 8, "--workers", 0, "--shard"))

import argparse

import pytest

import main_swav
from src import cli
from src.errors import UserError


def test_boolean_strings():
    assert [cli.boolean(text) for text in ("on", "True", "1", "OFF", "false", "0")] == [True] * 3 + [False] * 3
    with pytest.raises(argparse.ArgumentTypeError):
        cli.boolean("yes")


def test_whole_numbers_may_be_written_as_floats():
    assert cli.positive("1e10") == 10**10
    assert cli.non_negative("0") == 0


def test_the_defaults_are_the_published_ones():
    """Spec section 0.1."""
    args = main_swav.build_parser().parse_args(["--data_path", "x"])
    main_swav.resolve(args)
    published = {
        "nmb_crops": [2], "size_crops": [224], "min_scale_crops": [0.14], "max_scale_crops": [1.0],
        "crops_for_assign": [0, 1], "temperature": 0.1, "epsilon": 0.05, "sinkhorn_iterations": 3, "feat_dim": 128,
        "nmb_prototypes": [3000], "queue_length": 0, "epoch_queue_starts": 15, "epochs": 100, "batch_size": 64,
        "base_lr": 4.8, "final_lr": 0.0, "freeze_prototypes_niters": 313, "wd": 1e-6, "warmup_epochs": 10,
        "start_warmup": 0.0, "dist_url": "env://", "arch": "resnet50", "hidden_mlp": 2048, "workers": 10,
        "checkpoint_freq": 25, "use_fp16": True, "sync_bn": "pytorch", "syncbn_process_group_size": 8,
        "dump_path": ".", "seed": 31, "mean": [0.485, 0.456, 0.406], "std": [0.228, 0.224, 0.225],
    }  # fmt: skip
    assert {name: getattr(args, name) for name in published} == published
    clusters = main_swav.build_parser().parse_args(["--data_path", "x", "--method", "deepcluster-v2"])
    main_swav.resolve(clusters)
    assert (clusters.nmb_prototypes, clusters.freeze_prototypes_niters) == ([3000, 3000, 3000], 10**10)


def test_spellings_and_retired_flags(capsys):
    parser = main_swav.build_parser()
    args = parser.parse_args(["--data-path", "a-b_c", "--base-lr=0.6", "--local-rank", "3", "--use_env", "--rank=0"])
    assert (args.data_path, args.base_lr) == ("a-b_c", 0.6)
    assert not hasattr(args, "local_rank")
    err = capsys.readouterr().err
    assert all(f"--{name} has no effect any more" in err for name in ("local_rank", "use_env", "rank"))
    with pytest.raises(UserError, match=r"unknown argument --base_l; did you mean --base_lr\?"):
        parser.parse_args(["--data_path", "x", "--base_l", "1"])
    with pytest.raises(UserError, match="expected one argument"):
        parser.parse_args(["--data_path"])


def test_every_flag_is_explained():
    for action in main_swav.build_parser()._actions:
        assert action.help, action.option_strings

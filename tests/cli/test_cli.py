"""Command lines: spellings, values, retired flags, help, and repeating a run."""

import argparse
import ast
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import compare
import eval_cluster
import eval_knn
import eval_linear
import eval_semisup
import export
import main_cwrgp
import main_dino
import main_disco
import main_intl
import main_swav
import main_twist
import main_w2ssl
import plot_embedding
from detection import convert_to_detectron2, train_torchvision
from src import cli
from src.cli.parser import whole
from src.errors import UserError
from src.settings import flat, leaves
from tests.built import resolved
from tests.helpers import ROOT

import pytest
import torch

PRETRAINING = (main_swav, main_twist, main_intl, main_cwrgp, main_disco, main_w2ssl, main_dino)
ALL = (
    *PRETRAINING, eval_linear, eval_semisup, eval_knn, eval_cluster, plot_embedding, compare, export, train_torchvision,
    convert_to_detectron2,
)  # fmt: skip


def name_of(module):
    return module.__name__


def test_boolean_strings():
    assert [cli.boolean(text) for text in ("on", "True", "1", "OFF", "false", "0")] == [True] * 3 + [False] * 3
    with pytest.raises(argparse.ArgumentTypeError):
        cli.boolean("yes")


def test_whole_numbers_may_be_written_as_floats():
    assert whole("1e10") == 10**10
    assert whole("12345678901234567890") == 12345678901234567890  # not by way of a float
    with pytest.raises(argparse.ArgumentTypeError, match="not a whole number"):
        whole("12.5")


def test_the_defaults_are_the_published_ones():
    """Spec section 0.1."""
    args = resolved(main_swav, "--data_path x")
    published = {
        "nmb_crops": [2], "size_crops": [224], "min_scale_crops": [0.14], "max_scale_crops": [1.0],
        "crops_for_assign": [0, 1], "temperature": 0.1, "epsilon": 0.05, "sinkhorn_iterations": 3, "feat_dim": 128,
        "nmb_prototypes": [3000], "queue_length": 0, "epoch_queue_starts": 15, "epochs": 100, "batch_size": 64,
        "base_lr": 4.8, "final_lr": 0.0, "freeze_prototypes_niters": 313, "wd": 1e-6, "warmup_epochs": 10,
        "start_warmup": 0.0, "dist_url": "env://", "arch": "resnet50", "hidden_mlp": 2048, "workers": 10,
        "checkpoint_freq": 25, "use_fp16": True, "sync_bn": "pytorch", "syncbn_process_group_size": 8,
        "dump_path": "runs/swav-resnet50-x", "seed": 31, "mean": [0.485, 0.456, 0.406], "std": [0.228, 0.224, 0.225],
    }  # fmt: skip
    assert {name: getattr(args, name) for name in published} == published
    clusters = resolved(main_swav, "--data_path x --method deepcluster-v2")
    assert (clusters.nmb_prototypes, clusters.freeze_prototypes_niters) == ([3000, 3000, 3000], 10**10)


def test_spellings_and_retired_flags(capsys):
    parse = main_swav.SCRIPT.parse
    call = parse(["--data-path", "a-b_c", "--base-lr=0.6", "--local-rank", "3", "--use_env", "--rank=0"])
    assert (call.settings.data.data_path, call.settings.optim.base_lr) == ("a-b_c", 0.6)
    assert call.given == {"data_path": "a-b_c", "base_lr": 0.6}
    err = capsys.readouterr().err
    assert all(f"--{name} has no effect any more" in err for name in ("local_rank", "use_env", "rank"))
    with pytest.raises(UserError, match=r"unknown argument --base_l; did you mean --base_lr\?"):
        parse(["--data_path", "x", "--base_l", "1"])
    with pytest.raises(UserError, match="expected at least one argument"):
        parse(["--data_path"])
    with pytest.raises(UserError, match="are required: --data_path"):
        parse([])


@pytest.mark.parametrize("module", ALL, ids=name_of)
def test_every_flag_is_explained_and_every_number_has_a_range(module, capsys):
    parser = module.SCRIPT.parser()
    assert all(action.help for action in parser._actions)
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    assert len(capsys.readouterr().out) > 300
    for leaf in leaves(module.SCRIPT.settings):
        if leaf.item_type in (int, float):
            bounds = leaf.about.range
            assert bounds.at_least is not None or bounds.above is not None, leaf.name
            assert bounds.at_most is not None or bounds.below is not None, leaf.name


ABSURD = ("nan", "inf", "-inf", "-1e300", "1e300")


@pytest.mark.parametrize("module", ALL, ids=name_of)
def test_absurd_numbers_get_one_line(module):
    """Each number of each script in turn, outside its range: one line that names the flag and what is expected."""
    required = [f"--{leaf.name}=x" for leaf in leaves(module.SCRIPT.settings) if leaf.about.required]
    tried = 0
    for leaf in leaves(module.SCRIPT.settings):
        if leaf.item_type not in (int, float):
            continue
        bounds = leaf.about.range
        below = bounds.at_least - 1 if bounds.at_least is not None else bounds.above
        above = bounds.at_most + 1 if bounds.at_most is not None else bounds.below
        for value in (*ABSURD, repr(below), repr(above)):
            if value in ("-inf", "-1e300") and leaf.about.empty:
                continue  # which is no number to argparse, and so another flag
            with pytest.raises(UserError) as caught:
                module.SCRIPT.parse([*required, leaf.flags[0], *[value] * (leaf.length or 1)])
            assert leaf.flags[0] in str(caught.value)
            assert "\n" not in str(caught.value)
            tried += 1
    assert tried or module in (compare, export, convert_to_detectron2)


@pytest.mark.parametrize("module", PRETRAINING, ids=name_of)
def test_a_run_is_repeated_from_its_settings(module, tmp_path):
    line = ["--data_path", "x", "--epochs", "7", "--width", "0.5", "--dump_path", "a"]
    first = module.SCRIPT.parse(line)
    (tmp_path / "settings.json").write_text(json.dumps({"given": dict(first.given)}))
    again = module.SCRIPT.parse(["--config", str(tmp_path / "settings.json"), "--dump_path", "b", "--epochs", "8"])
    expected = {**flat(first.settings), "epochs": 8, "dump_path": "b"}
    if module is main_twist:
        assert math.isfinite(expected.pop("warmup_epochs"))  # its default follows the epochs
    assert {name: flat(again.settings)[name] for name in expected} == expected
    with pytest.raises(UserError, match="say with --dump_path"):
        module.SCRIPT.parse(["--config", str(tmp_path / "settings.json")])


def test_a_config_is_checked_as_flags_are(tmp_path):
    def parse(content):
        (tmp_path / "c.json").write_text(content)
        return main_swav.SCRIPT.parse(["--config", str(tmp_path / "c.json"), "--dump_path", "b"])

    for content, message in (
        ("{", "not the settings.json of a run"),
        ("[]", "not the settings.json of a run"),
        ('{"given": {"data_path": "x", "epochs": "7"}}', "--epochs 7: expected a whole number"),
        ('{"given": {"data_path": "x", "epochs": -7}}', "--epochs -7: expected a whole number"),
        ('{"given": {"data_path": "x", "nmb_crops": 2}}', "--nmb_crops 2: expected whole numbers"),
        ('{"given": {"data_path": "x", "epoch": 7}}', "unknown settings: epoch"),
    ):
        with pytest.raises(UserError, match=message):
            parse(content)
    with pytest.raises(UserError, match="No such file"):
        main_swav.SCRIPT.parse(["--config", str(tmp_path / "none.json"), "--dump_path", "b"])


@pytest.mark.parametrize("module", ALL, ids=name_of)
def test_scripts_set_up_torchs_threads_before_torch_is_loaded(module):
    script = Path(module.__file__)
    imported = [
        (node.module or "") if isinstance(node, ast.ImportFrom) else node.names[0].name
        for node in ast.parse(script.read_text()).body
        if isinstance(node, (ast.Import, ast.ImportFrom))
    ]
    roots = [name.partition(".")[0] for name in imported]
    others = [roots.index(name) for name in ("torch", "torchvision", "timm", "detectron2") if name in roots]
    assert roots.index("src") < min(others, default=len(roots))


def test_the_users_own_setting_of_threads_holds():
    program = "import os, sys, src; print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    for given, expected in (({}, "passive False"), ({"OMP_WAIT_POLICY": "active"}, "active False")):
        environ = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | given
        said = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environ, capture_output=True, text=True)
        assert said.stdout.strip() == expected


def test_a_gpu_without_room_is_one_line_that_says_what_to_do(capsys):
    def main(_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nand more")

    with pytest.raises(SystemExit) as caught:
        cli.run(main)
    err = capsys.readouterr().err
    assert caught.value.code == 1
    assert err.startswith("error: CUDA out of memory. Tried to allocate 2.00 GiB. Try fewer images at a time")
    assert "--virtual_ranks" in err
    assert err.count("\n") == 1

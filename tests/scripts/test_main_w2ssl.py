"""main_w2ssl.py as users run it: the published commands, kills and resumes, what it refuses."""

import json

import main_w2ssl
from src.checkpoints.store import read_run
from src.evaluation.protocols import LINEAR
from src.models.backbones import create_backbone
from src.models.teacher import Teacher
from tests import built
from tests.helpers import ROOT, run
from tests.runs import assert_same_end, kill_until_done
from tests.scripts.test_bad_input import fails

import numpy as np
import pytest
from PIL import Image

SMALL = [
    "--arch", "resnet18", "--width", "0.125", "--stem", "small", "--crop_size", "16", "--crop_proj_dim", "8",
    "--moco_mlp_dim", "16", "--batch_size", "16", "--moco-m-cos", "--loss_crop", "1.0", "--warmup_epochs", "0",
    "--tensorboard", "false", "--device", "cpu", "--log_every", "1",
]  # fmt: skip


def command(patches, folder, *extra):
    return ["main_w2ssl.py", "--data_path", patches, "--dump_path", folder, *SMALL, *map(str, extra)]


def resolved(line):
    return built.resolved(main_w2ssl, line)


LAUNCH = "--dist-url 'tcp://localhost:10109' --multiprocessing-distributed --world-size 1 --rank 0"


@pytest.mark.parametrize(("line", "expected"), [
    *((f"--moco-m-cos --crop-min=.2 {LAUNCH} --print-freq 1000 --batch-size {batch} --epochs 200 --loss_crop 1.0 /in",
       {"batch_size": batch, "epochs": 200, "loss_crop": 1.0, "moco_m_cos": True, "crop_min": 0.2, "log_every": 1000,
        "data_path": "/in", "lr": 0.6, "wd": 1e-6, "warmup_epochs": 10, "optimizer": "lars", "moco_m": 0.99,
        "loss_loc": 1.0, "loss_t": 0.3, "crop_proj_dim": 256, "moco_mlp_dim": 4096, "grid": "1x2", "flip": "patch",
        "blur": [1.0, 0.1], "crop_size": 112, "eval_size": 224, "eval_resize": 256, "precision": "auto"})
      for batch in (512, 2048)),
    ("/in", {"loss_crop": 0.25, "moco_m_cos": False, "batch_size": 512, "epochs": 200, "arch": "resnet50"}),
    ("--grid 2x2 /in", {"batch_size": 256, "warmup_epochs": 0, "blur": [0.5, 0.1]}),
    ("--save-dir out --use_fp16 false -j 8 /in", {"dump_path": "out", "precision": "fp32", "workers": 8}),
])  # fmt: skip
def test_the_published_commands(line, expected):
    args = resolved(line)
    assert {name: getattr(args, name) for name in expected} == expected


def test_dead_flags_say_so(capsys):
    resolved("--loss_clu 1.0 --moco-t 0.2 --moco-dim 256 --stop-grad-conv1 /in")
    err = capsys.readouterr().err
    for name in ("loss_clu", "moco_t", "moco_dim", "stop_grad_conv1"):
        assert f"--{name} has no effect any more" in err


@pytest.mark.parametrize(("line", "protocol", "expected"), [
    ("-a resnet50 --batch-size 256 --epochs 100 --print-freq 100 --pretrained x.pth.tar /in", "auto",
     {"lr": [0.1], "lr_factor": 1.0, "scheduler_type": "cosine", "wd": 0.0, "batch_size": 256, "epochs": 100}),
    # jig_lincls
    ("-a resnet50 --prefix module.encoder_q. --pretrained x.pth.tar /in", "jig",
     {"lr": [30.0], "lr_factor": 1.0, "scheduler_type": "step", "decay_epochs": [60, 80], "gamma": 0.1, "epochs": 100}),
    ("--cos --batch-size 512 --pretrained x.pth.tar /in", "jig", {"scheduler_type": "cosine", "lr_factor": 2.0}),
])  # fmt: skip
def test_the_published_evaluations(line, protocol, expected):
    import eval_linear

    args = built.judged(eval_linear, LINEAR, f"{line} --protocol {protocol}", "w2ssl")
    assert args.protocol == {"auto": "w2ssl"}.get(protocol, protocol)
    assert {name: getattr(args, name) for name in expected} == expected


@pytest.mark.parametrize("extra", [
    [], ["--grid", "2x2"], ["--grid", "2x1", "--flip", "none"], ["--independent_perm", "--optimizer", "adamw"],
], ids=" ".join)  # fmt: skip
def test_every_layout_trains(patches, tmp_path, extra):
    result = run(*command(patches, tmp_path, "--epochs", 1, "--workers", 1, "--max_steps", 3, *extra))
    assert result.returncode == 0, result.stderr
    assert ("where stays at chance" in result.stderr) == ("none" not in extra)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len(log) == 3
    assert all(0 <= line["where_top1"] <= 100 and line["what"] > 0 and line["rankme"] > 1 for line in log)
    assert log[0]["loss"] == pytest.approx(log[0]["what"] + log[0]["where"], rel=1e-5)
    names = create_backbone("resnet18", width=0.125, stem="small").state_dict().keys()
    saved = read_run(tmp_path / "checkpoint.pth.tar")["state_dict"]
    assert {n.removeprefix("backbone.") for n in saved if n.startswith("backbone.")} == set(names)
    judged = run("eval_knn.py", "--data_path", patches, "--pretrained", tmp_path / "checkpoint.pth.tar", "--k", 5,
                 "--workers", 0, "--dump_path", tmp_path)  # fmt: skip
    assert judged.returncode == 0, judged.stderr
    assert Teacher(tmp_path / "checkpoint.pth.tar").width == 8


def test_resume_is_exact(patches, tmp_path):
    plan = ["--epochs", 3, "--save_every", 4]
    assert run(*command(patches, tmp_path / "a", *plan, "--workers", 1)).returncode == 0
    assert run(*command(patches, tmp_path / "b", *plan, "--workers", 0, "--max_steps", 7)).returncode == 0
    result = run(*command(patches, tmp_path / "b", *plan, "--workers", 2))
    assert result.returncode == 0, result.stderr
    assert_same_end(tmp_path / "a", tmp_path / "b")


@pytest.mark.slow
def test_killed_at_random_it_ends_in_the_same_weights(patches, tmp_path):
    plan = ["--epochs", 6, "--save_every", 4]
    assert run(*command(patches, tmp_path / "a", *plan)).returncode == 0
    kill_until_done(command(patches, tmp_path / "b", *plan), tmp_path / "b", kills=2)
    assert_same_end(tmp_path / "a", tmp_path / "b")


@pytest.mark.slow
def test_two_ranks_resume_exactly(patches, tmp_path):
    plan = ["--epochs", 3, "--workers", 1]
    assert run(*command(patches, tmp_path / "a", *plan), ranks=2).returncode == 0
    assert run(*command(patches, tmp_path / "b", *plan, "--max_steps", 8), ranks=2).returncode == 0
    result = run(*command(patches, tmp_path / "b", *plan), ranks=2)
    assert result.returncode == 0, result.stderr
    assert_same_end(tmp_path / "a", tmp_path / "b")


def test_the_picture_of_a_montage(tmp_path):
    result = run("scripts/draw_montage.py", "--data_path", "data/photographs", "--out", tmp_path / "montage.png")
    assert result.returncode == 0, result.stderr
    assert np.asarray(Image.open(tmp_path / "montage.png")).std() > 20
    assert (ROOT / "docs" / "montage.png").exists()


BAD = [
    (["--batch_size", "15"], "do not fill montages of four"),
    (["--batch_size", "1000"], "do not fill one batch"),
    (["--arch", "vit_small"], "transformers"),
    (["--cross_ratio", "0.6"], "expected a number from 0 to 0.5"),
    (["--crop_min", "0"], "above 0, up to 1"),
    (["--loss_t", "0"], "expected a number above 0, up to 1,000"),
    (["--moco_m", "2"], "expected a number from 0 to 1"),
    (["--lr", "-1"], "expected a number from 0 to 1,000,000"),
    (["--blur", "0.5", "2"], "expected numbers from 0 to 1"),
    (["--jitter_strength", "9"], "expected a number from 0 to 2.5"),
    (["--warmup_epochs", "2"], "is more than --epochs"),
    (["--grid", "3x3"], "invalid choice"),
    (["--flip", "image"], "invalid choice"),
    (["--data_path", "{tmp}/nowhere"], "does not exist"),
]


@pytest.mark.parametrize(("extra", "message"), BAD, ids=[" ".join(e) for e, _ in BAD])
def test_bad_input(patches, tmp_path, capsys, extra, message):
    arguments = [*command(patches, tmp_path / "run", "--epochs", 1, "--workers", 0)[1:], *extra]
    fails(main_w2ssl.main, [str(a).format(tmp=tmp_path) for a in arguments], capsys, message)

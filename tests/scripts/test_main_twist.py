"""main_twist.py as users run it: the published commands, both phases, kills and resumes, transformers."""

import json

import main_twist
from src.checkpoints.store import read_run
from src.models.pretrained import load_backbone
from tests import built
from tests.helpers import run
from tests.runs import assert_same_end, kill_until_done
from tests.scripts.test_bad_input import fails

import pytest
import torch

SMALL = [
    "--backbone", "resnet18", "--width", "0.125", "--stem", "small", "--aug", "multicrop", "--size_crops", "16", "12",
    "--local_crops_number", "1", "--dim", "6", "--hid_dim", "16", "--batch-size", "16", "--bunch-size", "16",
    "--warmup-epochs", "1", "--sl_warmup_epochs", "1", "--tensorboard", "false", "--device", "cpu", "--log_every", "1",
]  # fmt: skip


def command(patches, folder, *extra):
    return ["main_twist.py", "--data-path", patches, "--output_dir", folder, *SMALL, *map(str, extra)]


LAUNCH = "--data-path /imagenet --output_dir /out"
VIT = ("--bunch-size 256 --clip_norm 3.0 --epochs 300 --mme_epochs 300 --lam1 -0.6 --lam2 1.0 --local_crops_number 6 "
       "--momentum_start 0.996 --momentum_end 1.0 --optim admw --use_momentum_encoder 1 --weight_decay 0.06 "
       "--weight_decay_end 0.06")  # fmt: skip


@pytest.mark.parametrize(("line", "processes", "lr", "expected"), [
    (f"{LAUNCH} --aug barlow --batch-size 256 --dim 32768 --epochs 800", 8, 4.0,
     {"mme_epochs": 800, "local_crops_number": 0, "optim": "lars", "precision": "auto", "dim": 32768}),
    (LAUNCH, 16, 4.0, {"epochs": 850, "mme_epochs": 800, "local_crops_number": 12, "warmup_epochs": 10}),
    (f"{LAUNCH} --backbone 'resnet50w2' --batch-size 60 --bunch-size 240 --epochs 250 --mme_epochs 200", 32, 3.75,
     {"arch": "resnet50w2"}),
    (f"{LAUNCH} --backbone 'vit_s' --batch-size 128 --lr 0.0005 {VIT}", 16, 4e-3,
     {"arch": "vit_s", "weight_decay": 0.06, "clip_norm": 3.0, "use_momentum_encoder": True, "act": "relu"}),
    (f"{LAUNCH} --backbone 'vit_b' --batch-size 64 --lr 0.00075 {VIT}", 32, 6e-3, {"arch": "vit_b", "lam1": -0.6}),
    (f"{LAUNCH} --amp 0 --determine 1 --no-pin-mem --num_workers 4 --dataset imagenet --use-lmdb --epochs 20", 16, 4.0,
     {"precision": "fp32", "deterministic": True, "workers": 4, "dataset": "lmdb", "warmup_epochs": 3,
      "mme_epochs": 20}),
])  # fmt: skip
def test_published_commands(line, processes, lr, expected):
    args = built.resolved(main_twist, line, processes)
    assert {name: getattr(args, name) for name in expected} == expected
    assert args.lr * args.batch_size * processes / 256 == pytest.approx(lr)
    assert (args.data_path, args.dump_path) == ("/imagenet", "/out")


def test_both_phases_and_what_they_write(patches, tmp_path):
    plan = ["--epochs", 3, "--mme_epochs", 2, "--dim", 4, "--knn_freq", 3, "--knn_k", 5]
    arguments = command(patches, tmp_path, *plan, "--workers", 1)
    result = run(*arguments)
    assert result.returncode == 0, result.stderr
    assert "phases     2 epochs of the main loss, 1 of self-labelling" in result.stdout
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["kind"] == "train"]
    assert len(train) == 18
    main, labelling = train[:12], train[12:]
    assert all(
        {"kl", "eh", "he", "views_agree", "fc_std", "ftr_std", "f_gn", "weight_decay"} <= line.keys() for line in main
    )
    assert all("kl" not in line and {"threshold", "frac", "eh", "he"} <= line.keys() for line in labelling)
    factor = 16 / 256
    assert [main[0]["lr"], main[6]["lr"]] == pytest.approx([0, 0.5 * factor])
    assert [labelling[0]["lr"], labelling[5]["lr"]] == pytest.approx([0, 0.05 * factor * 5 / 6])
    judged = [line for line in lines if line["kind"] == "evaluation"]
    assert [line["epoch"] for line in judged] == [1, 2, 3]
    assert all(
        {"train_nmi", "train_hungarian_acc", "nmi", "hungarian_acc", "top5"} <= line.keys() for line in judged
    )  # as many classes
    assert [("knn_top1" in line) for line in judged] == [False, False, True]
    keys = read_run(tmp_path / "checkpoint.pth.tar")["state_dict"].keys()
    assert {name.split(".")[0] for name in keys} == {"backbone", "projection_heads"}


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=pytest.mark.slow) for kind in ("teacher", "lars", "two views, then multi-crop")],
)
def test_resume_is_exact_on_either_side_of_the_switch(patches, tmp_path, kind):
    extra = {
        "lars": [],
        "teacher": ["--use_momentum_encoder", 1, "--momentum_start", 0.9, "--optim", "admw", "--clip_norm", 3],
        "two views, then multi-crop": ["--aug", "barlow", "--img_size", 16],
    }[kind]
    plan = ["--epochs", 4, "--mme_epochs", 2, "--save_every", 4, *extra]
    undisturbed = run(*command(patches, tmp_path / "a", *plan, "--workers", 1))
    assert undisturbed.returncode == 0, undisturbed.stderr
    for steps in (8, 16):  # inside the main loss, and inside self-labelling
        assert run(*command(patches, tmp_path / "b", *plan, "--workers", 0, "--max_steps", steps)).returncode == 0
    assert run(*command(patches, tmp_path / "b", *plan, "--workers", 2)).returncode == 0
    assert_same_end(tmp_path / "a", tmp_path / "b")


@pytest.mark.slow
def test_killed_at_random_it_ends_in_the_same_weights(patches, tmp_path):
    plan = ["--epochs", 6, "--mme_epochs", 3, "--save_every", 4]
    assert run(*command(patches, tmp_path / "a", *plan)).returncode == 0
    kill_until_done(command(patches, tmp_path / "b", *plan), tmp_path / "b", kills=2)
    assert_same_end(tmp_path / "a", tmp_path / "b")


@pytest.mark.slow
def test_two_ranks_in_bunches_resume_exactly(patches, tmp_path):
    plan = ["--epochs", 4, "--mme_epochs", 2, "--batch-size", 8, "--use_momentum_encoder", 1, "--workers", 1]
    for bunch in (8, 16):
        a, b = (tmp_path / f"{name}{bunch}" for name in "ab")
        arguments = [*plan, "--bunch-size", bunch]
        assert run(*command(patches, a, *arguments), ranks=2).returncode == 0
        assert run(*command(patches, b, *arguments, "--max_steps", 15), ranks=2).returncode == 0
        assert run(*command(patches, b, *arguments), ranks=2).returncode == 0
        assert_same_end(a, b)


@pytest.mark.slow
def test_a_transformer_of_the_published_kind(patches, tmp_path):
    model = ["--backbone", "vit_t", "--width", 1, "--stem", "imagenet", "--size_crops", 64, 32, "--optim", "admw",
             "--lr", 0.001, "--weight_decay", 0.06, "--act", "gelu", "--drop_path", 0.1, "--use_momentum_encoder", 1,
             "--freeze_embedding", 1, "--exclude_bias_weight_decay", 0]  # fmt: skip
    plan = ["--epochs", 2, "--mme_epochs", 1, *model]
    assert run(*command(patches, tmp_path / "a", *plan, "--max_steps", 7, "--workers", 0)).returncode == 0
    assert run(*command(patches, tmp_path / "b", *plan, "--max_steps", 3, "--workers", 0)).returncode == 0
    result = run(*command(patches, tmp_path / "b", *plan, "--max_steps", 7, "--workers", 0))
    assert result.returncode == 0, result.stderr
    assert_same_end(tmp_path / "a", tmp_path / "b")  # drop path draws from each rank's generator
    path = tmp_path / "a" / "checkpoint.pth.tar"
    student, teacher = load_backbone(path), load_backbone(path, key="teacher_backbone")
    assert student.spec.arch == "vit_t"
    followed = teacher.backbone.state_dict()
    different = [n for n, t in student.backbone.state_dict().items() if not torch.equal(t, followed[n])]
    assert different
    assert not any(name.startswith("patch_embed") for name in different)
    saved = read_run(path)["optimizer"]["param_groups"]
    # by the cosine at step 6 of 12, and constant
    assert [group["weight_decay"] for group in saved] == pytest.approx([(0.06 + 1.5e-6) / 2, 0.06])
    assert [len(group["params"]) for group in saved] == [51, 107]  # without the frozen embedding


@pytest.mark.parametrize("aug", ["moco", "rand"])
def test_other_augmentations(patches, tmp_path, aug):
    result = run(*command(patches, tmp_path, "--aug", aug, "--img_size", 16, "--epochs", 1, "--max_steps", 2,
                          "--workers", 1))  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "crops 2x16" in result.stdout


def test_a_flat_folder_trains_without_scores(patches, tmp_path):
    arguments = command(patches / "train" / "leaf", tmp_path, "--epochs", 1, "--batch-size", 8, "--bunch-size", 8)
    result = run(*arguments)
    assert result.returncode == 0, result.stderr
    assert "nmi" not in result.stdout


def test_a_wrong_path_of_validation_images_is_not_swallowed(patches, tmp_path, capsys):
    """Without --val_path there need not be any; one that is given must be there."""
    line = [*command(patches / "train", tmp_path / "run", "--epochs", 1, "--workers", 0, "--dim", 4)[1:]]
    fails(main_twist.main, [*line, "--val_path", tmp_path / "nowhere"], capsys, "nowhere does not exist")


def test_crops_get_harder_with_self_labelling_whenever_it_is_resumed():
    plan = "--data-path /data --bunch-size 128 --mme_epochs 3"
    views = built.built(main_twist, f"{plan} --epochs 6").run.loader.dataset.views_of
    for epoch in range(6):
        first, second, *local = views(epoch)
        assert (first.scale, local[0].scale) == (
            ((0.4, 1.0), (0.05, 0.4)) if epoch < 3 else ((0.14, 1.0), (0.05, 0.14))
        )
        assert (len(local), first.blur, second.blur, second.solarize) == (12, 1.0, 0.1, 0.2)
    views = built.built(main_twist, f"{plan} --aug moco").run.loader.dataset.views_of
    assert [view.jitter for view in views(2)] == [(0.4, 0.4, 0.4, 0.1)] * 2
    assert [(v.size, v.scale, v.jitter) for v in views(3)] == [
        (224, (0.14, 1.0), (0.4, 0.4, 0.2, 0.1))
    ] * 2  # as many as before, by the multi-crop pipeline


BAD = [
    (["--eval_only", "1"], "that is eval_cluster.py"),
    (["--bunch-size", "24"], "--bunch_size 24 is not made of the batches of 16"),
    (["--bunch-size", "32"], "--bunch_size 16 always works"),
    (["--aug", "multicropeval"], "invalid choice"),
    (["--crops_interact_style", "class"], "invalid choice"),
    (["--crops_interact_style", "self_label", "--mme_epochs", "0"], "equal to --epochs"),
    (["--optim", "adam"], "invalid choice"),
    (["--quantile", "1.5"], "expected a number from 0 to 1"),
    (["--momentum_start", "2"], "expected a number from 0 to 1"),
    (["--tau", "0"], "expected a number above 0, up to 1,000"),
    (["--min1", "0.9", "--max1", "0.5"], "0 < min <= max <= 1"),
    (["--dim", "1"], "expected a whole number from 2 to 100,000,000"),
    (["--size_crops", "4", "4"], "expected whole numbers from 8 to 2,048"),
    (["--freeze_embedding", "1"], "needs vit_t"),
    (["--drop_path", "0.1"], "has no stochastic depth"),
    (["--lr", "-1"], "expected a number from 0 to 1,000,000"),
    (["--batch-size", "97", "--bunch-size", "97"], "do not fill one batch"),
    (["--data-path", "{tmp}/nowhere"], "does not exist"),
    (["--min_scale_crops", "0.1"], "unknown argument"),
]


@pytest.mark.parametrize(("extra", "message"), BAD, ids=[" ".join(e) for e, _ in BAD])
def test_bad_input(patches, tmp_path, capsys, extra, message):
    arguments = [*command(patches, tmp_path / "run", "--epochs", 1, "--workers", 0)[1:], *extra]
    fails(main_twist.main, [str(a).format(tmp=tmp_path) for a in arguments], capsys, message)

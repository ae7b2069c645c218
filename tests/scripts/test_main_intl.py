"""main_intl.py as users run it: every method, the defaults of four programs, kills and resumes, what it writes."""

import json

import main_cwrgp
import main_intl
from src.checkpoints.store import read_run
from src.data.datasets import open_images, open_train_and_test
from src.errors import UserError
from src.models.backbones import create_backbone
from src.optim.plain import SGD
from tests import built
from tests.helpers import run, torchrun
from tests.runs import assert_same_end, kill_until_done
from tests.scripts.test_bad_input import fails

import pytest
import torch
from PIL import Image

SMALL = [
    "--arch", "resnet18", "--width", "0.125", "--stem", "small", "--crops_size", "16", "16", "--crop_size", "16",
    "--head_layers", "2", "--head_size", "16", "--emb", "32", "--bs", "16", "--w_size", "8", "--group", "2",
    "--warmup_eps", "1", "--warmup_iters", "4", "--tensorboard", "false", "--device", "cpu", "--log_every", "1",
]  # fmt: skip


def command(patches, folder, method, *extra):
    views = [] if method in INTL else ["--num_samples", "2"]
    return ["main_intl.py", "--data_path", patches, "--dump_path", folder, "--method", method, *SMALL, *views,
            *map(str, extra)]  # fmt: skip


INTL = ("intl", "intl_m")


def views_of(line):
    return built.built(main_intl, line).views


def resolved(line):
    return built.resolved(main_intl, line)


@pytest.mark.parametrize(("line", "expected"), [
    # the front page's command, and the flags of INTL's program
    ("--data_path /imagenet", {"method": "intl", "epochs": 100, "bs": 256, "lr": 0.5, "emb": 8192, "arch": "resnet50"}),
    ("--data_path /imagenet --method intl_m --multi-crop --bs 512 -j 24 -p 100 --world-size 1 --rank 0 --env_name X",
     {"trade_off": pytest.approx(0.06), "crops_size": [224, 192, 160, 128, 96], "m": 0.996, "workers": 24}),
    ("--dataset in100 --arch resnet18 --data_path /in100 --bs 128", {"emb": 8192, "zero_init_residual": False}),
    ("--dataset imagenet", {"dataset": "folder", "emb": 8192}),
    ("--dataset in100 --method cwrgp --data_path /in100",
     {"crop_size": 224, "eval_resize": 256, "stem": "imagenet", "arch": "resnet18", "optimizer": "adam"}),
    # another program's settings on a folder
    ("--program cwrgp_small --method cwrgp --crop_size 32 --stem small", {"emb": 512, "optimizer": "adam", "lr": 1e-3}),
    ("--program intl_cifar", {"emb": 2048, "lr": 0.3, "arch": "resnet18", "precision": "fp32"}),
    ("--axis 1 --emb 2048", {"trade_off": pytest.approx(0.08)}),
    # its CIFAR program: one number of views
    ("--dataset cifar100 --nmb_crops 2 --solarization_prob 0.0 0.2 --method intl_m",
     {"nmb_crops": [1, 1], "crops_size": [32, 32], "m": 0.999, "stem": "small", "lr": 0.3, "precision": "fp32"}),
    # CW-RGP's programs
    ("--method cwrgp --dataset stl10", {"crop_size": 64, "stem": "small_pool", "eval_resize": 70, "optimizer": "adam"}),
    ("--method cw-rgp --bs 512", {"method": "cwrgp", "arch": "resnet50", "num_samples": 4, "optimizer": "sgd"}),
    ("--method byol --dataset tiny_in", {"emb": 512, "lr": 1e-3, "epochs": 200, "mean": [0.480, 0.448, 0.398]}),
])  # fmt: skip
def test_defaults_of_the_four_programs(line, expected):
    args = resolved(line)
    assert {name: getattr(args, name) for name in expected} == expected


def test_views_of_the_programs():
    first, second = views_of("--data_path /imagenet")
    assert (first.blur, first.solarize, second.blur, second.solarize) == (1.0, 0.0, 0.1, 0.2)
    assert (first.bicubic, first.jitter, first.grayscale) == (True, (0.4, 0.4, 0.2, 0.1), 0.2)
    assert not first.colours_first
    views = views_of("--method intl_m --multi-crop")
    assert [view.size for view in views] == [224, 224, 192, 160, 128, 96]
    (small, *_) = views_of("--method cwrgp --dataset cifar10")
    assert (small.scale, small.jitter, small.grayscale, small.blur) == ((0.2, 1.0), (0.4, 0.4, 0.4, 0.1), 0.1, 0.0)
    assert (small.bicubic, small.colours_first) == (True, True)
    (hundred, *_) = views_of("--method cwrgp --dataset in100")
    assert (hundred.size, hundred.blur, hundred.grayscale, hundred.colours_first) == (224, 0.5, 0.1, True)
    (large, *rest) = views_of("--method cwrgp")
    assert (large.size, large.blur, large.grayscale, large.bicubic, len(rest)) == (224, 0.5, 0.2, False, 3)


@pytest.mark.parametrize(("line", "expected"), [
    ("--method intl", [(111, 0.0), (56, 1e-5)]),  # one-dimensional ones first
    ("--method intl_m", [(111, 0.0), (56, 1e-5)]),  # without the copies
    ("--method intl --dataset cifar10 --arch resnet50", [(167, 1e-4)]),
])  # fmt: skip
def test_what_decays(line, expected):
    run = built.built(main_intl, line)
    assert isinstance(run.training["optimizer"], SGD)
    assert [(len(group["params"]), group["weight_decay"]) for group in run.groups] == expected
    assert all(group["momentum"] == 0.9 for group in run.groups)


@pytest.mark.parametrize("method", [*INTL, *main_cwrgp.METHODS])
def test_every_method_trains(patches, tmp_path, method):
    result = run(*command(patches, tmp_path, method, "--epochs", 1, "--workers", 1, "--max_steps", 3))
    assert result.returncode == 0, result.stderr
    train = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len(train) == 3
    assert all(line["loss"] is not None and line["rankme"] > 1 for line in train)
    names = create_backbone("resnet18", width=0.125, stem="small").state_dict().keys()
    assert torch.load(tmp_path / "resnet18.pth").keys() == names  # the backbone alone, torchvision's names


def test_simsiams_predictor_keeps_its_rate(patches, tmp_path):
    plan = ["--optimizer", "sgd", "--lr", 0.1, "--epochs", 2, "--max_steps", 10, "--workers", 0, "--warmup_iters", 2]
    result = run(*command(patches, tmp_path, "simsiam", *plan))
    assert result.returncode == 0, result.stderr
    groups = read_run(tmp_path / "checkpoint.pth.tar")["optimizer"]["param_groups"]
    base = 0.1 * 16 / 256
    assert [group["lr"] for group in groups] == pytest.approx([0.5 * base, base])  # a cosine by epoch, and constant
    assert sum(len(group["params"]) for group in groups) > 60


def test_intl_says_how_far_it_is_from_its_floor_and_draws_the_spectrum(patches, tmp_path):
    result = run(*command(patches, tmp_path, "intl_m", "--epochs", 1, "--knn_freq", 1, "--knn_k", 5, "--workers", 0))
    assert result.returncode == 0, result.stderr
    assert "it cannot go below" in result.stdout
    assert "trace from floor" in result.stdout
    with Image.open(tmp_path / "spectrum.png") as image:
        assert min(image.size) > 200
    judged = run("eval_linear.py", patches, tmp_path / "resnet18.pth", "--lr-classifier", 0.3, "--crop_size", 16,
                 "--dump_path", tmp_path / "judged", "--epochs", 1, "--workers", 0)  # fmt: skip
    assert judged.returncode == 0, judged.stderr


@pytest.mark.parametrize(
    "method", ["intl_m", *(pytest.param(method, marks=pytest.mark.slow) for method in ("cwrgp", "byol"))]
)
def test_resume_is_exact(patches, tmp_path, method):
    """The momentum copies, and CW-RGP's permutations, which come from the generator that the checkpoint holds."""
    plan = ["--epochs", 3, "--save_every", 4, "--cov_w", 0.01, "--cov_stop", 1]
    assert run(*command(patches, tmp_path / "a", method, *plan, "--workers", 1)).returncode == 0
    assert run(*command(patches, tmp_path / "b", method, *plan, "--workers", 0, "--max_steps", 7)).returncode == 0
    result = run(*command(patches, tmp_path / "b", method, *plan, "--workers", 2))
    assert result.returncode == 0, result.stderr
    assert_same_end(tmp_path / "a", tmp_path / "b")


@pytest.mark.slow
def test_killed_at_random_it_ends_in_the_same_weights(patches, tmp_path):
    plan = ["--epochs", 6, "--save_every", 4]
    assert run(*command(patches, tmp_path / "a", "cwrgp", *plan)).returncode == 0
    kill_until_done(command(patches, tmp_path / "b", "cwrgp", *plan), tmp_path / "b", kills=2)
    assert_same_end(tmp_path / "a", tmp_path / "b")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["intl", "cwrgp"])
def test_two_ranks_resume_exactly(patches, tmp_path, method):
    plan = ["--epochs", 3, "--workers", 1]
    assert run(*command(patches, tmp_path / "a", method, *plan), ranks=2).returncode == 0
    assert run(*command(patches, tmp_path / "b", method, *plan, "--max_steps", 8), ranks=2).returncode == 0
    assert run(*command(patches, tmp_path / "b", method, *plan), ranks=2).returncode == 0
    assert_same_end(tmp_path / "a", tmp_path / "b")


# ------------------------------------------------------------------------------------------------ Tiny-ImageNet


def test_tiny_imagenet_in_its_published_layout(tmp_path, patches):
    images = [*(patches / "train" / "leaf").iterdir()][:6]
    for wnid, files in (("n02", images[:2]), ("n01", images[2:4])):
        folder = tmp_path / "train" / wnid / "images"
        folder.mkdir(parents=True)
        for n, file in enumerate(files):
            (folder / f"{wnid}_{n}.png").write_bytes(file.read_bytes())
    (tmp_path / "val" / "images").mkdir(parents=True)
    for n, file in enumerate(images[4:]):
        (tmp_path / "val" / "images" / f"val_{n}.png").write_bytes(file.read_bytes())
    annotations = tmp_path / "val" / "val_annotations.txt"
    annotations.write_text("val_1.png\tn01\t0\t0\t62\t62\nval_0.png\tn02\t1\t1\t63\t63\n")
    train, test = open_train_and_test("tiny_in", tmp_path)
    assert train.classes == test.classes == ["n01", "n02"]
    assert (list(train.labels), list(test.labels)) == ([0, 0, 1, 1], [1, 0])
    assert test.name(0).endswith("val/images/val_0.png")
    assert test.open(1).size == (64, 64)
    assert len(open_images("tiny_in", tmp_path)) == 4
    annotations.write_text("val_0.png\tn09\n")
    with pytest.raises(UserError, match="has the class 'n09', which train does not have"):
        open_images("tiny_in", tmp_path, "test")
    annotations.unlink()
    with pytest.raises(UserError, match="expects the published layout"):
        open_images("tiny_in", tmp_path, "test")


# ------------------------------------------------------------------------------------------------ bad input

BAD = [
    ("intl", ["--bs", "8"], "gives the trace loss no weight"),
    ("intl", ["--bs", "97"], "do not fill one batch"),
    ("intl", ["--nmb_crops", "1"], "one entry each"),
    ("intl", ["--min_scale_crops", "0", "0"], "expected numbers above 0, up to 1"),
    ("intl", ["--m", "2"], "expected a number from 0 to 1"),
    ("intl", ["--iters", "-1"], "expected a whole number from 0 to 1,000"),
    ("intl", ["--axis", "2"], "expected a whole number from 0 to 1"),
    ("swav", [], "invalid choice"),
    ("cwrgp", ["--w_size", "5"], "does not divide the 16 images"),
    ("cwrgp", ["--group", "3"], "does not divide the embedding of 32"),
    ("cwrgp", ["--group", "8"], "a covariance of 8 from 4 observations is singular"),
    ("wmse", ["--axis", "1", "--group", "1"], "a covariance of 32 from 7 observations is singular"),
    ("cwrgp", ["--num_samples", "1"], "at least two are needed"),
    ("simsiam", ["--num_samples", "3"], "simsiam has two views, not 3"),
    ("vicreg", ["--lr", "-1"], "expected a number from 0 to 1,000,000"),
    ("contrastive", ["--tau", "0"], "expected a number above 0, up to 1,000"),
    ("cwrgp", ["--data_path", "{tmp}/nowhere"], "does not exist"),
]


@pytest.mark.parametrize(("method", "extra", "message"), BAD, ids=[" ".join([m, *e]) for m, e, _ in BAD])
def test_bad_input(patches, tmp_path, capsys, method, extra, message):
    arguments = [*command(patches, tmp_path / "run", method, "--epochs", 1, "--workers", 0)[1:], *extra]
    fails(main_intl.main, [str(a).format(tmp=tmp_path) for a in arguments], capsys, message)


def test_a_batch_that_processes_cannot_share(patches, tmp_path):
    result = run(*command(patches, tmp_path, "intl", "--bs", 15, "--epochs", 1), launcher=torchrun(2))
    assert result.returncode != 0
    assert "a batch of 15 cannot be shared out over 2 processes" in result.stderr


def test_rank_deficiency_can_be_shrunk_away():
    line = "--method cwrgp --bs 16 --w_size 16 --emb 32 --group 4"
    resolved(f"{line} --w_eps 0.1")
    with pytest.raises(UserError, match="is singular"):
        resolved(line)

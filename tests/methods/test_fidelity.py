"""Details of the released programs in which a small change goes unnoticed: each fails when its detail is changed."""

import copy
import json
import math

import export
import main_cwrgp
import main_intl
import main_w2ssl
from src.data.draws import BRIGHTNESS
from src.data.views import RandomView
from src.errors import UserError
from src.losses.whitened import normalised_mse, trace_loss, trace_loss_floor
from src.methods.baselines.simsiam import SimSiam
from src.methods.baselines.zero_icl import decorrelated
from src.models.backbones import create_backbone
from src.ops.whitening import iter_norm
from src.optim.ema import update_momentum_copy
from src.optim.lars import LARS
from src.settings import flat
from tests.built import FakeImages, built, resolved
from tests.helpers import ROOT, run
from tests.methods.test_w2ssl import clock, make

import numpy as np
import pytest
import torch
from torch import nn

TINY = "--data_path /x --arch resnet18 --width 0.0625 --stem small --epochs 20"
JOINT = f"{TINY} --crop_size 16 --head_size 8 --emb 16 --bs 8 --warmup_iters 2"


# ------------------------------------------------------------------------------------------------ W2SSL


def test_w2ssls_copy_follows_backbone_and_head():
    model = make()
    for parameter in [*model.backbone.parameters(), *model.fc_crop.parameters()]:
        parameter.data += 1.0
    before = copy.deepcopy(model)
    now = clock()
    model.before_step(now)
    m = model.momentum_at(now)
    for ours, old, source in (
        (model.momentum_backbone, before.momentum_backbone, before.backbone),
        (model.momentum_fc_crop, before.momentum_fc_crop, before.fc_crop),
    ):
        pairs = list(zip(ours.parameters(), old.parameters(), source.parameters(), strict=True))
        assert pairs
        for new, previous, online in pairs:
            torch.testing.assert_close(new, m * previous + (1 - m) * online)
            assert not torch.equal(new, previous)


@pytest.mark.parametrize(("batch_size", "ranks", "accumulate"), [(256, 1, 1), (64, 2, 1), (128, 2, 4)])
def test_w2ssls_rate_is_for_256_images_of_a_step(batch_size, ranks, accumulate):
    line = f"{TINY} --crop_size 16 --crop_proj_dim 4 --moco_mlp_dim 8 --batch_size {batch_size} --lr 0.3"
    what = built(main_w2ssl, f"{line} --warmup_epochs 0 --accumulate {accumulate}", ranks, FakeImages(4096, 4))
    assert what.rate(0) == pytest.approx(0.3 * batch_size * accumulate / 256)


def test_w2ssl_in_the_published_layout(tmp_path, patches):
    published = json.loads((ROOT / "tests" / "layouts" / "w2ssl_resnet50.json").read_text())["keys"]
    plan = "--arch resnet50 --width 0.0625 --crop_size 32 --batch_size 16 --epochs 1 --max_steps 1 --workers 0"
    result = run("main_w2ssl.py", "--data_path", patches, "--dump_path", tmp_path, "--device", "cpu", *plan.split())
    assert result.returncode == 0, result.stderr
    assert export.main([str(tmp_path / "checkpoint.pth.tar"), str(tmp_path / "w.pth"), "--layout", "published"]) == 0
    content = torch.load(tmp_path / "w.pth")
    assert (content["epoch"], content["arch"]) == (0, "resnet50")
    assert list(content["state_dict"]) == [f"module.{key}" for key, _ in published]
    assert [t.ndim for t in content["state_dict"].values()] == [len(shape) for _, shape in published]
    with pytest.raises(UserError, match="exists already"):
        export.main([str(tmp_path / "checkpoint.pth.tar"), str(tmp_path / "w.pth"), "--layout", "published"])
    with pytest.raises(UserError, match="is the file to read"):
        export.main([str(tmp_path / "w.pth"), str(tmp_path / "w.pth"), "--overwrite"])


def test_momentum_0_is_plain_descent():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(4, 3))
    for _ in range(3):
        weight.grad = torch.randn(4, 3)
        optimizer = LARS([weight], lr=0.1, momentum=0.0, weight_decay=1e-2, variant="moco-v3")
        u = weight.grad + 1e-2 * weight.detach()
        expected = weight.detach() - 0.1 * 0.001 * weight.detach().norm() / u.norm() * u
        optimizer.step()
        torch.testing.assert_close(weight.detach(), expected)


# ------------------------------------------------------------------------------------------------ INTL, CW-RGP's


def test_zero_icls_matrix_has_no_gradient():
    """Against the gradient with the whitening matrix held fixed, and unlike the one that goes through it."""
    torch.manual_seed(0)
    z = torch.randn(6, 9, dtype=torch.float64, requires_grad=True)
    other = torch.randn(6, 9, dtype=torch.float64)
    grad = torch.autograd.grad((decorrelated(z) * other).sum(), z)[0]

    def standardised(x):
        return (x - x.mean(dim=1, keepdim=True)) / x.std(dim=1, keepdim=True)

    def matrix(x):
        shrunk = 0.9 * (x @ x.T) / (x.shape[1] - 1) + 0.1 * torch.eye(len(x), dtype=x.dtype)
        values, vectors = torch.linalg.eigh(shrunk)
        return (vectors * (values + 1e-5).rsqrt()) @ vectors.T

    fixed = torch.autograd.grad((matrix(standardised(z)).detach() @ standardised(z) * other).sum(), z)[0]
    through = torch.autograd.grad((matrix(standardised(z)) @ standardised(z) * other).sum(), z)[0]
    torch.testing.assert_close(grad, fixed)
    assert (grad - through).abs().max() > 0.01


def test_rows_of_almost_no_length_keep_their_direction():
    """eps = 1e-12: with torch's usual 1e-5 or 1e-8 they would shrink."""
    a, b = torch.randn(5, 7, dtype=torch.float64), torch.randn(5, 7, dtype=torch.float64)
    assert normalised_mse(a * 1e-10, b * 1e-10).item() == pytest.approx(normalised_mse(a, b).item(), rel=1e-9)
    assert normalised_mse(torch.zeros(1, 3), torch.zeros(1, 3)).item() == 2.0


def test_simsiams_layers():
    """Spec 2.4: no layer of the head has a bias, the predictor's last one has."""
    method = SimSiam(create_backbone("resnet18", width=0.0625), features=32, hidden=8, width=6)
    head = [name for name, _ in method.head.named_parameters()]
    assert head == ["0.weight", "1.weight", "1.bias", "3.weight", "4.weight", "4.bias", "6.weight"]
    shapes = {name: tuple(p.shape) for name, p in method.predictor.named_parameters()}
    assert shapes == {
        "0.weight": (512, 6), "1.weight": (512,), "1.bias": (512,), "3.weight": (6, 512), "3.bias": (6,)
    }  # fmt: skip


def test_simsiams_program_is_sgd_without_warm_up():
    args = resolved(main_cwrgp, f"{TINY} --method simsiam --dataset cifar10")
    assert (args.optimizer, args.warmup_iters) == ("sgd", 0)
    other = resolved(main_cwrgp, f"{TINY} --method byol --dataset cifar10")
    assert other.optimizer == "adam"
    asked = resolved(main_cwrgp, f"{TINY} --method simsiam --optimizer adam --warmup_iters 7")
    assert (asked.optimizer, asked.warmup_iters) == ("adam", 7)
    what = built(main_cwrgp, f"{JOINT.replace(' --warmup_iters 2', '')} --method simsiam", 1, FakeImages(64, 4))
    assert what.rate(0) == pytest.approx(what.run.settings.optim.base_rate)  # no warm-up
    predictor = [group for group in what.training["optimizer"].param_groups if group.get("lr_fixed")]
    assert len(predictor) == 1


@pytest.mark.parametrize("axis", [0, 1])
def test_the_trace_losss_floor_is_that_of_what_is_whitened(axis):
    """An even spectrum: N variables on axis 0, d on axis 1."""
    n, d, iterations = (6, 40, 4) if axis == 0 else (40, 6, 4)
    torch.manual_seed(0)
    even = torch.linalg.qr(torch.randn(40, 6, dtype=torch.float64))[0]
    even = even - even.mean(dim=0)
    even = torch.linalg.qr(even)[0] * math.sqrt(39)  # covariance of the 6 variables: the identity
    x = even if axis == 1 else even.T
    assert x.shape == (n, d)
    found = trace_loss(iter_norm(x, iterations, axis), axis).item()
    assert found == pytest.approx(trace_loss_floor(6, iterations), rel=1e-3)
    assert x.shape[axis] == 6


def test_axis_0_needs_more_features_than_samples():
    line = f"{TINY} --crops_size 16 16 --head_size 8 --bs 16 --warmup_eps 1"
    for emb, axis, accepted in ((17, 0, True), (16, 0, False), (16, 1, True)):
        text = f"{line} --emb {emb} --axis {axis}"
        if accepted:
            built(main_intl, text, 1, FakeImages(64, 4), on_meta=False)
        else:
            with pytest.raises(UserError, match="--axis 0 whitens 16 samples over 16 features, which must be more"):
                built(main_intl, text, 1, FakeImages(64, 4), on_meta=False)


@pytest.mark.parametrize("line", ["main_intl.py --method intl_m --bs 16", "main_cwrgp.py --method byol --bs 32"])
def test_a_head_that_is_none_has_a_copy_too(patches, tmp_path, line):
    size = "--crops_size 16 16" if "intl" in line else "--crop_size 16 --warmup_iters 0"
    plan = f"{line} {size} --no_head --arch resnet18 --width 0.0625 --stem small --epochs 1 --max_steps 2 --workers 0"
    result = run(*plan.split(), "--data_path", patches, "--dump_path", tmp_path, "--device", "cpu")
    assert result.returncode == 0, result.stderr
    update_momentum_copy(nn.Identity(), nn.Identity(), 0.9)


def test_names_of_wide_networks():
    for theirs, ours in (("resnet50x2", "resnet50w2"), ("resnet50x4", "resnet50w4"), ("resnet200x2", "resnet200w2")):
        with torch.device("meta"):
            a, b = create_backbone(theirs), create_backbone(ours)
        assert {n: t.shape for n, t in a.state_dict().items()} == {n: t.shape for n, t in b.state_dict().items()}


@pytest.mark.parametrize(("module", "line", "path"), [
    (main_intl, "--dataset cifar10", "data"), (main_intl, "", "data/ImageNet"), (main_cwrgp, "--dataset stl10", "data"),
    (main_cwrgp, "--dataset tiny_in", "data/tiny-imagenet-200"), (main_intl, "--dataset cifar10 --data_path y", "y"),
])  # fmt: skip
def test_where_named_sets_lie(module, line, path):
    assert module.SCRIPT.parse(line.split()).settings.data.data_path == path


@pytest.mark.parametrize("module", [main_intl, main_cwrgp])
def test_the_flags_of_intls_programs_have_their_meaning_or_their_line(module, capsys):
    line = (
        "--imagenet_path /in/ --wandb ssl --eval_every 3 --eval_every_drop 5 --knn 7 --clf lbfgs --fname x.pt "
        "--eval_head --bs_eval 8 --lr_eval 0.1 --wd_eval 0 --learning-rate_eval 0.1 --weight-decay_eval 0"
    )
    settings = flat(module.SCRIPT.parse(line.split()).settings)
    assert (settings["data_path"], settings["knn_freq"], settings["knn_k"]) == ("/in/", 3, 7)
    said = capsys.readouterr().err
    for flag in ("eval_every_drop", "clf", "fname", "eval_head", "bs_eval", "lr_eval", "wd_eval"):
        assert f"--{flag} has no effect any more: " in said


@pytest.mark.parametrize(("dataset", "bicubic"), [("stl10", True), ("tiny_in", True), ("cifar10", False)])
def test_evaluated_images_of_small_sets_are_resized_as_published(dataset, bicubic):
    what = built(main_cwrgp, f"{JOINT} --method byol --dataset {dataset} --crop_size 64", 1, FakeImages(64, 4))
    assert what.run.eval_view.bicubic == bicubic


# ------------------------------------------------------------------------------------------------ views


@pytest.mark.parametrize("strength", [0.4, 1.0, 1.6])
def test_strong_jitter_cuts_off_the_interval_not_the_values(strength):
    """torchvision's ColorJitter: uniform in [max(0, 1 - s), 1 + s]."""
    view = RandomView(8, (0.5, 1.0), jitter=(strength, 0, 0, 0), jitter_probability=1.0)
    drawn = np.array([view.draw(np.random.default_rng(n), 20, 20).brightness for n in range(4000)])
    low, high = max(0.0, 1.0 - strength), 1.0 + strength
    assert low <= drawn.min() < drawn.max() <= high
    assert np.mean(drawn == 0) == 0
    for quantile in (0.1, 0.5, 0.9):
        assert np.quantile(drawn, quantile) == pytest.approx(low + quantile * (high - low), abs=0.06)
    assert BRIGHTNESS in view.draw(np.random.default_rng(0), 20, 20).order


def test_crops_that_are_no_whole_patches_are_one_line(patches, tmp_path):
    result = run("main_twist.py", "--arch", "vit_t", "--size_crops", 40, 32, "--local_crops_number", 1, "--dim", 4,
                 "--hid_dim", 8, "--batch_size", 8, "--bunch_size", 8, "--data_path", patches, "--dump_path", tmp_path,
                 "--epochs", 1, "--workers", 0, "--device", "cpu", "--mme_epochs", 1)  # fmt: skip
    assert result.returncode == 2
    assert "crops of 40x40 pixels cannot be cut into the network's patches of 16x16" in result.stderr
    assert "Traceback" not in result.stderr

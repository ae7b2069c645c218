"""Every published recipe, built through the real ``main`` up to the training call, against the papers' tables.

The tables are those of ``test_recipes.py``, in the words of the flags. What a flag becomes (a weight of the loss, a
group of the optimiser, a schedule's value, a view) is computed here anew, by the formulas of the specifications.
"""

import math

import main_disco
import main_intl
import main_swav
import main_twist
import main_w2ssl
from src.methods.cwrgp import GroupWhitening
from src.methods.deepcluster import DeepClusterV2
from src.methods.disco import DisCo
from src.methods.intl import Intl
from src.methods.moco import MoCo
from src.methods.sela import SeLaV2
from src.methods.swav import SwAV
from src.methods.swav_disco import SwAVDisCo
from src.methods.w2ssl import W2SSL
from src.optim.larc import LARC
from src.optim.lars import LARS
from src.optim.plain import SGD
from tests.built import IMAGENET, built
from tests.scripts.test_recipes import (
    COMMON,
    FLAGS,
    INTL_RECIPES,
    MOCO_RECIPES,
    MOCO_V2,
    RESOURCES,
    TWIST,
    TWIST_RECIPES,
    W2SSL_RECIPES,
    command_of,
)

import pytest
import torch
from torch import nn


def half_cosine(share, base, final=0.0):
    return final + (base - final) * (1 + math.cos(math.pi * share)) / 2


def linears(module):
    return [(m.in_features, m.out_features) for m in module.modules() if isinstance(m, nn.Linear)]


def norms(module):
    return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules())


@pytest.mark.parametrize("name", FLAGS)
def test_swav_and_its_relatives(name):
    nodes, gpus = RESOURCES[name][:2] if name in RESOURCES else (1, 8 if name.startswith("disco") else 1)
    run = built(main_swav, command_of(name)[1:], processes=nodes * gpus)
    flags = {**COMMON, "method": "swav", "teacher": "", "jitter_strength": 1.0, "blur": 0.5, **FLAGS[name]}
    method, optimizer = run.method, run.training["optimizer"]
    kinds = {"swav": SwAVDisCo if flags["teacher"] else SwAV, "deepcluster-v2": DeepClusterV2, "sela-v2": SeLaV2}
    assert type(method) is kinds[flags["method"]]
    assert method.temperature == flags["temperature"]
    assert method.freeze_prototypes_niters == flags["freeze_prototypes_niters"]
    assert [head.out_features for head in method.prototypes.heads()] == flags["nmb_prototypes"]
    hidden = linears(method.projection_head)
    assert [width for _, width in hidden] == [flags["hidden_mlp"], flags["feat_dim"]]
    assert hidden[0][0] == method.backbone.feature_width
    # the published test-bed keeps batch norm in all but w5's head
    assert norms(method.projection_head) == int(flags["head_bn"])
    if isinstance(method, SwAV):
        assert (method.epsilon, method.sinkhorn_iterations) == (flags["epsilon"], flags["sinkhorn_iterations"])
        batch = flags["batch_size"] * nodes * gpus
        assert method.queue.shape == (2, flags["queue_length"] // batch * flags["batch_size"], flags["feat_dim"])
        assert method.epoch_queue_starts == flags["epoch_queue_starts"]
    else:
        steps = IMAGENET // (nodes * gpus) // flags["batch_size"]
        assert method.bank.shape == (2, steps * flags["batch_size"], 128)
    if isinstance(method, DeepClusterV2):
        assert method.kmeans_iterations == 10
    if isinstance(method, SeLaV2):
        assert (method.epsilon, method.iterations, method.tolerance, method.hard) == (0.05, 100, 0.1, True)
    if isinstance(method, SwAVDisCo):
        assert method.weight == flags["distill_weight"]
        assert method._teacher.asked == ((flags["teacher"], None, None), {"training": False, "normalise": False})
    # the optimiser
    assert type(optimizer) is LARC
    (group,) = run.groups
    assert len(group["params"]) == len(list(method.parameters()))
    assert (group["momentum"], group["weight_decay"]) == (0.9, flags["wd"])
    assert (optimizer.trust_coefficient, optimizer.clip, optimizer.eps) == (0.001, False, 1e-8)
    # the schedule: linear, then a cosine by step
    epochs, warmup, base, final = flags["epochs"], flags["warmup_epochs"], flags["base_lr"], flags["final_lr"]
    assert run.rate(0) == pytest.approx(flags["start_warmup"] if warmup else base)
    assert run.rate(warmup) == pytest.approx(base)
    for epoch in (warmup + 7, (warmup + epochs) / 2, epochs - 1):
        expected = half_cosine((epoch - warmup) / (epochs - warmup), base, final)
        assert run.rate(epoch) == pytest.approx(expected, rel=1e-3)
    if warmup:
        start = flags["start_warmup"]
        assert run.rate(warmup / 2) == pytest.approx(start + (base - start) / 2, rel=1e-2)
    # the views
    strength = flags["jitter_strength"]
    crops = zip(
        flags["nmb_crops"], flags["size_crops"], flags["min_scale_crops"], flags["max_scale_crops"], strict=False
    )
    expected = [(size, (low, high)) for count, size, low, high in crops for _ in range(count)]
    assert [(view.size, view.scale) for view in run.views] == expected
    for view in run.views:
        assert view.jitter == pytest.approx((0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength))
        assert (view.jitter_probability, view.grayscale, view.blur, view.flip) == (0.8, 0.2, flags["blur"], 0.5)
        assert (view.blur_sigma, view.solarize, view.bicubic) == ((0.1, 2.0), 0.0, False)
    # the rest
    groups = {"apex": [8], "pytorch": [0]}.get(flags["sync_bn"], [])
    assert run.sync_bn == groups
    assert run.training["virtual_ranks"] == 1
    assert run.training["clip_norm"] == 0
    assert run.checkpoints.frequency == flags["checkpoint_freq"]
    assert run.run.prepare.std == (0.228, 0.224, 0.225)


@pytest.mark.parametrize("name", TWIST_RECIPES)
def test_twist(name):
    nodes, batch, ranks, own = TWIST_RECIPES[name]
    run = built(main_twist, command_of(name)[1:], processes=8 * nodes)
    flags = {**TWIST, **own}
    method, head = run.method, run.method.projection_heads
    vit = flags["arch"].startswith("vit")
    assert method.temperature == flags["tau"]
    weights = {"alpha": 1 + flags["lam1"], "beta": flags["lam2"], "eps": flags["EPS"]}
    assert method.weights == pytest.approx(weights)
    assert (method.quantile, method.quantile_end, method.threshold) == (flags["quantile"], flags["quantile_end"], 0.0)
    assert (method.mme_epochs, method.self_label_only) == (min(flags["mme_epochs"], flags["epochs"]), False)
    expected = (0.996, 1.0) if flags["use_momentum_encoder"] else (None, 1.0)
    assert (method.momentum, method.momentum_end) == expected
    assert (method.teacher is not None) == flags["use_momentum_encoder"]
    assert len(method.classes_seen) == IMAGENET
    width = method.backbone.feature_width
    assert linears(head) == [(width, flags["hid_dim"]), (flags["hid_dim"],) * 2, (flags["hid_dim"], flags["dim"])]
    activation = {"relu": nn.ReLU, "gelu": nn.GELU}[flags["act"]]
    assert [type(head.projection_head[i]) for i in (2, 6)] == [activation] * 2
    assert isinstance(head.norm, nn.BatchNorm1d)
    assert not head.norm.affine
    # two networks' backbones and heads are synchronised, and the last norm in bunches
    own_norms = [0, 0] + ([ranks] if ranks != 1 else [])
    assert run.sync_bn == own_norms * (2 if flags["use_momentum_encoder"] else 1)
    # the optimiser
    assert type(run.training["optimizer"]) is (torch.optim.AdamW if vit else LARS)
    adapted, plain = run.groups
    assert all(parameter.ndim > 1 for parameter in adapted["params"])
    trained = sum(parameter.requires_grad for parameter in method.parameters())
    assert len(adapted["params"]) + len(plain["params"]) == trained
    assert (plain["weight_decay"], plain["weight_decay_fixed"]) == (0.0, True)
    assert plain["lr_scale"] == pytest.approx(1 / flags["lr_wbr"])
    if not vit:
        assert (adapted["momentum"], run.training["optimizer"].variant) == (0.9, "twist")
    # the schedules: two phases of warm-up and a cosine to a thousandth of the peak
    peak, later, switch = flags["lr"] * batch / 256, flags["lr_sl"] * batch / 256, method.mme_epochs
    assert run.rate(0) == 0
    assert run.rate(flags["warmup_epochs"]) == pytest.approx(peak)
    middle = (flags["warmup_epochs"] + switch) / 2
    assert run.rate(middle) == pytest.approx(half_cosine(0.5, peak, peak / 1000), rel=1e-3)
    assert run.rate(switch - 1e-3) == pytest.approx(peak / 1000, rel=1e-2)
    if flags["epochs"] > switch:
        assert run.rate(switch) == 0
        assert run.rate(switch + flags["sl_warmup_epochs"]) == pytest.approx(later)
    assert run.rate(0, "weight_decay") == pytest.approx(flags["weight_decay"])
    ends = (flags["weight_decay"] + flags["weight_decay_end"]) / 2
    assert run.rate(flags["epochs"] / 2, "weight_decay") == pytest.approx(ends, rel=1e-3)
    assert run.training["clip_norm"] == flags["clip_norm"]
    # the views of both phases
    first, second, *local = run.views
    if flags["aug"] == "barlow":
        assert (first.scale, local) == ((0.08, 1.0), [])
    else:
        assert (first.scale, first.size) == ((flags["min1"], flags["max1"]), flags["size_crops"][0])
        assert {(v.scale, v.size, v.blur) for v in local} == {((flags["min2"], flags["max2"]), 96, 0.5)}
        assert len(local) == flags["local_crops_number"]
    assert (first.blur, second.blur, first.solarize, second.solarize) == (1.0, 0.1, 0.0, 0.2)
    assert {(v.jitter, v.bicubic, v.grayscale) for v in run.views} == {((0.4, 0.4, 0.2, 0.1), True, 0.2)}
    late = run.run.loader.dataset.views_of(switch)
    assert (late[0].scale, len(late)) == ((0.14, 1.0), len(run.views))


@pytest.mark.parametrize("name", INTL_RECIPES)
def test_intl_and_cwrgp(name):
    gpus, flags = INTL_RECIPES[name]
    run = built(main_intl, command_of(name)[1:], processes=gpus)
    epochs, warmup = flags["epochs"], 2
    if flags["method"].startswith("intl"):
        check_intl(run, flags)
        peak = flags["lr"] * flags["bs"] / 256
        steps = run.run.clock.steps_per_epoch
        assert run.rate(0) == pytest.approx(peak / (warmup * steps))
        assert run.rate(warmup) == pytest.approx(peak, rel=1e-4)
        assert run.rate((warmup + epochs) / 2) == pytest.approx(half_cosine(0.5, peak, peak / 1000), rel=1e-3)
        assert run.rate(epochs - 0.5 / steps) == pytest.approx(peak / 1000, rel=1e-2)
        return
    check_cwrgp(run, flags)
    steps = run.run.clock.steps_per_epoch
    if flags["optimizer"] == "adam":
        assert run.rate(0) == pytest.approx(flags["lr"] / 500)
        drops = {epochs / 2: 1.0, epochs - 50: 0.2, epochs - 25: 0.04}
        assert {epoch: run.rate(epoch) / flags["lr"] for epoch in drops} == pytest.approx(drops)
    else:
        peak = flags["lr"] * flags["bs"] / 256
        assert run.rate(0) == pytest.approx(peak / 500)
        assert run.rate(epochs // 2) == pytest.approx(half_cosine(0.5, peak))
        assert run.rate(epochs - 1) == pytest.approx(half_cosine(1 - 1 / epochs, peak))


def check_intl(run, flags):
    method = run.method
    assert type(method) is Intl
    assert method.weight == flags["trade_off"]
    assert (method.iterations, method.axis) == (4, 0)
    assert method.momentum == (flags["m"] if flags["method"] == "intl_m" else None)
    width, hidden, out = method.backbone.feature_width, flags["head_size"], flags["emb"]
    assert linears(method.projection) == [(width, hidden), (hidden, hidden), (hidden, out)]
    biases = [m.bias is not None for m in method.projection.modules() if isinstance(m, nn.Linear)]
    assert biases == [False, False, True]
    assert norms(method.projection) == 2
    assert type(run.training["optimizer"]) is SGD
    imagenet = flags["std"] == [0.229, 0.224, 0.225]
    assert [group["weight_decay"] for group in run.groups] == ([0.0, flags["wd"]] if imagenet else [flags["wd"]])
    assert all(group["momentum"] == 0.9 for group in run.groups)
    if imagenet:
        assert {parameter.ndim for parameter in run.groups[0]["params"]} == {1}
    counts = flags.get("nmb_crops", [1, 1])
    lists = zip(counts, flags["crops_size"], flags["gaussian_prob"], flags["solarization_prob"], strict=True)
    expected = [(size, blur, solarize) for n, size, blur, solarize in lists for _ in range(n)]
    assert [(view.size, view.blur, view.solarize) for view in run.views] == expected
    assert {(view.jitter, view.bicubic, view.grayscale) for view in run.views} == {((0.4, 0.4, 0.2, 0.1), True, 0.2)}
    assert run.sync_bn == [0]
    assert run.run.prepare.std == tuple(flags["std"])
    assert run.checkpoints.backbone_file == f"{flags['arch']}.pth"


def check_cwrgp(run, flags):
    method = run.method
    assert type(method) is GroupWhitening
    whitening = {"groups": flags["group"], "axis": 0, "eps": 0.0, "minus": 1}
    assert (method.transform, method.sub_batch, method.whitening) == ("zca", flags["w_size"], whitening)
    assert (method.repeats, method.random_groups, method.normalise) == (flags.get("w_iter", 1), True, True)
    assert method.covariance_weight == flags.get("cov_w", 0.0)
    assert method.covariance_epochs == flags.get("cov_stop", 50)
    sizes = [flags["head_size"]] * (flags["head_layers"] - 1) + [flags["emb"]]
    assert [out for _, out in linears(method.head)] == sizes
    assert norms(method.head) == flags["head_layers"] - 1
    kind = {"adam": torch.optim.Adam, "sgd": SGD}[flags["optimizer"]]
    assert type(run.training["optimizer"]) is kind
    assert [group["weight_decay"] for group in run.groups] == [flags["wd"]]
    small = flags["optimizer"] == "adam"
    assert len(run.views) == flags["num_samples"]
    assert len(set(run.views)) == 1
    (view, *_) = run.views
    assert view.jitter == (0.4, 0.4, flags["cj2"], 0.1)
    assert (view.grayscale, view.scale, view.flip) == (flags["gs_p"], (0.2, 1.0), 0.5)
    assert (view.bicubic, view.colours_first, view.blur) == (small, small, 0.0 if small else 0.5)
    assert view.size == flags.get("crop_size", 224)


@pytest.mark.parametrize("name", MOCO_RECIPES)
def test_moco_and_disco(name):
    run = built(main_disco, command_of(name)[1:], processes=8)
    flags = {**MOCO_V2, **MOCO_RECIPES[name]}
    method, epochs = run.method, flags["epochs"]
    assert method.temperature == flags["moco_t"]
    assert method.queue.shape == (flags["moco_dim"], flags["moco_k"])
    assert method.bn_parts == 1
    width = method.backbone.feature_width
    hidden = width if flags["hidden"] == -1 else flags["hidden"]
    assert linears(method.head) == [(width, hidden), (hidden, 128)]
    assert norms(method.head) == 0
    if isinstance(method, MoCo):
        assert (method.momentum, method.seed) == (flags["moco_m"], 31)
    if flags.get("method") in ("disco", "rkd"):
        assert type(method) is DisCo
        assert list(method.terms) == flags["distill"]
        assert (method.contrastive_weight, method.distill_weight, method.norm) == (1.0, 1.0, "sum")
    assert type(run.training["optimizer"]) is SGD
    (group,) = run.groups
    assert (group["momentum"], group["weight_decay"]) == (0.9, 1e-4)
    assert len(group["params"]) == sum(parameter.requires_grad for parameter in method.parameters())
    steps = run.run.clock.steps_per_epoch
    for epoch in (0, 1, epochs / 2, epochs - 1):  # constant within an epoch
        expected = half_cosine(epoch / epochs, flags["lr"])
        assert run.rate(epoch) == pytest.approx(expected)
        assert run.rate(epoch + 1 - 1 / steps) == pytest.approx(expected)
    assert {(v.size, v.scale, v.blur, v.jitter) for v in run.views} == {(224, (0.2, 1.0), 0.5, (0.4, 0.4, 0.4, 0.1))}
    assert len(run.views) == (1 if flags.get("method") == "seed" else 2)
    assert run.sync_bn == []


@pytest.mark.parametrize(("name", "gpus"), list(zip(W2SSL_RECIPES, (4, 8, 2), strict=True)))
def test_w2ssl(name, gpus):
    run = built(main_w2ssl, command_of(name)[1:], processes=gpus)
    flags = W2SSL_RECIPES[name]
    method, epochs = run.method, 200
    quarters = flags.get("grid") == "2x2"
    assert type(method) is W2SSL
    assert (method.parts, method.temperature, method.seed) == (4 if quarters else 2, 0.3, 31)
    assert (method.where_weight, method.what_weight) == (1.0, 1.0)
    assert (method.momentum, method.momentum_cosine, method.shared_order) == (0.99, True, True)
    assert [out for _, out in linears(method.fc_crop)] == [4096, 256]
    assert [out for _, out in linears(method.predictor)] == [4096, 256]
    assert type(run.training["optimizer"]) is LARS
    assert run.training["optimizer"].variant == "moco-v3"
    adapted, plain = run.groups
    assert (adapted["weight_decay"], plain["weight_decay"], adapted["momentum"]) == (1e-6, 0.0, 0.9)
    peak = 0.6 * flags["batch_size"] / 256
    warmup = 0 if quarters else 10
    assert run.rate(0) == (pytest.approx(peak) if quarters else 0)
    assert run.rate(warmup) == pytest.approx(peak)
    assert run.rate((warmup + epochs) / 2) == pytest.approx(half_cosine(0.5, peak), rel=1e-3)
    assert len(run.views) == 2 * method.parts
    assert {(view.size, view.scale) for view in run.views} == {(112, (0.2, 1.0))}
    blurs = {view.blur for view in run.views[: method.parts]}, {view.blur for view in run.views[method.parts :]}
    assert blurs == ({0.5 if quarters else 1.0}, {0.1})
    assert {view.flip for view in run.views} == {0.5}
    assert run.sync_bn == [0, 0]

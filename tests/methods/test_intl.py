"""INTL, CW-RGP and their baselines: each loss against its formula in float64, two ranks against one."""

import copy
import itertools
import math

from src.clock import Clock
from src.data.loading import Batch
from src.errors import Diverged
from src.losses.whitened import covariance_penalty, normalised_mse, trace_loss
from src.methods.baselines.barlowtwins import BarlowTwins
from src.methods.baselines.byol import BYOL
from src.methods.baselines.simclr import SimCLR
from src.methods.baselines.simsiam import SimSiam
from src.methods.baselines.vicreg import VICReg
from src.methods.baselines.zero_icl import ZeroICL
from src.methods.cwrgp import GroupWhitening
from src.methods.intl import Intl
from src.models.heads import mlp
from src.ops.whitening import group_whitening, iter_norm
from src.optim.schedules import dropped_rate, epoch_cosine_rate, intl_rate, warm_restarts
from src.parallel import collectives, sync_bn
from tests.helpers import on_ranks
from tests.methods.test_offline import Tiny

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

N, D = 8, 16


def head():
    return mlp(6, 12, D, 2)


def batch(views=3, size=N, seed=0):
    generator = torch.Generator().manual_seed(seed)
    crops = [torch.randn(size, 3, s, s, generator=generator) for s in [8, 8, 6, 6][:views]]
    return Batch(crops, torch.zeros(size).long(), torch.arange(size))


def clock(step=0, logging=False):
    return Clock(3, 4, step=step, logging=logging)


def embeddings(views=2, n=N, d=D, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, d, generator=generator, dtype=torch.float64) for _ in range(views)]


def intl(**options):
    torch.manual_seed(0)
    return Intl(Tiny(), mlp(6, 12, D, 3, bias=False), **{"weight": 0.05, **options}).train()


# ------------------------------------------------------------------------------------------------ INTL


@pytest.mark.parametrize("views", [2, 4])
def test_intl_pairs_every_view_with_the_first(views):
    model, data = intl(), batch(views)
    other = copy.deepcopy(model)
    out = model(data, clock(logging=True))
    y = [iter_norm(other.projection(other.backbone(crop))) for crop in data.crops]  # each view alone
    expected = np.mean([
        normalised_mse(y[i], y[0]).item() + 0.05 * (trace_loss(y[i]) + trace_loss(y[0])).item()
        for i in range(1, views)
    ])  # fmt: skip
    assert out["loss"].item() == pytest.approx(expected, rel=1e-5)
    assert model.backbone.bn.num_batches_tracked == views
    floor = 2 * N * (1 - _h(1 / N)) ** 2
    assert out["loss_floor"].item() == pytest.approx(0.05 * floor, rel=1e-5)
    collapsed = 2 * N * (1 - 1 / N) ** 2
    trace = (out["loss"] - out["mse"]).item() / 0.05
    assert out["trace_from_floor"].item() == pytest.approx((trace - floor) / (collapsed - floor), rel=1e-3)


def _h(x, f=1.0):
    for _ in range(4):
        f = 1.5 * f - 0.5 * x * f**3
    return x * f * f


def test_with_momentum_the_first_view_is_the_copys_alone():
    model, data = intl(momentum=0.9), batch(3)
    with torch.no_grad():
        for parameter in model.momentum_backbone.parameters():
            parameter.add_(0.1)
    other = copy.deepcopy(model)
    now = clock(step=5)
    model.before_step(now)  # first the update, with the momentum of this step
    m = 1 - 0.5 * (1 + math.cos(math.pi * 5 / 12)) * (1 - 0.9)
    with torch.no_grad():
        for theirs, own in zip(other.momentum_backbone.parameters(), other.backbone.parameters(), strict=True):
            theirs.copy_(m * theirs + (1 - m) * own)
    for ours, theirs in zip(model.momentum_backbone.parameters(), other.momentum_backbone.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    out = model(data, now)
    key = iter_norm(other.momentum_projection(other.momentum_backbone(data.crops[0])))
    y = [iter_norm(other.projection(other.backbone(crop))) for crop in data.crops[1:]]
    expected = np.mean([(normalised_mse(q, key) + 0.05 * trace_loss(q)).item() for q in y])  # without the key's
    assert out["loss"].item() == pytest.approx(expected, rel=1e-5)
    out["loss"].backward()
    assert all(p.grad is None for p in model.momentum_backbone.parameters())
    assert model.backbone.bn.num_batches_tracked == 2
    assert model.momentum_backbone.bn.num_batches_tracked == 1


def test_published_names_and_sizes():
    projection = mlp(2048, 8192, 8192, 3, bias=False)
    assert sum(p.numel() for p in projection.parameters()) == 174_543_936 - 23_508_032
    assert set(projection.state_dict()) == {
        "0.weight", "3.weight", "6.weight", "6.bias",
        *(f"{i}.{n}" for i in (1, 4) for n in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
    }  # fmt: skip
    names = {name.split(".")[0] for name in intl(momentum=0.9).state_dict()}
    assert names == {"backbone", "projection", "momentum_backbone", "momentum_projection"}


def _intl_step_of_a_rank(momentum, axis):
    rank, world = collectives.rank(), collectives.world_size()
    model = sync_bn.convert(intl(momentum=momentum, axis=axis))
    whole = batch(3, size=8)
    share = slice(rank * 8 // world, (rank + 1) * 8 // world)
    data = Batch([crop[share] for crop in whole.crops], whole.labels[share], whole.indices[share])
    model.before_step(clock())
    out = model(data, clock())
    out["loss"].backward()
    parameters = [p for p in model.parameters() if p.requires_grad]
    return out["loss"].item(), [(collectives.all_reduce_(p.grad) / world).numpy() for p in parameters]


@pytest.mark.parametrize("momentum", [None, 0.9])
@pytest.mark.parametrize("axis", [0, 1])
def test_two_ranks_have_intls_loss_and_gradients_of_one(momentum, axis):
    ((loss, gradients),) = on_ranks(1, _intl_step_of_a_rank, momentum, axis)
    for rank_loss, rank_gradients in on_ranks(2, _intl_step_of_a_rank, momentum, axis):
        assert rank_loss == pytest.approx(loss, rel=1e-5)
        for ours, theirs in zip(rank_gradients, gradients, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=5e-3, atol=1e-5)


# ------------------------------------------------------------------------------------------------ CW-RGP


def cwrgp(**options):
    torch.manual_seed(0)
    return GroupWhitening(Tiny(), head(), **{"sub_batch": 4, "groups": 2, **options})


def _whitening_step(transform, groups, rank):
    """Loss and gradients on one rank's images, its draws seeded by the rank as in training."""
    model, whole = cwrgp(transform=transform, groups=groups), batch(2, 2 * N)
    rows = slice(rank * N, (rank + 1) * N)
    share = Batch([crop[rows] for crop in whole.crops], whole.labels[rows], whole.indices[rows])
    torch.manual_seed(rank)
    loss = model(share, clock())["loss"]
    loss.backward()
    return loss.item(), [parameter.grad for parameter in model.parameters()]


def _whitening_step_of_a_rank(transform, groups):
    loss, gradients = _whitening_step(transform, groups, collectives.rank())
    return loss, [(collectives.all_reduce_(gradient) / 2).numpy() for gradient in gradients]


@pytest.mark.parametrize(("transform", "groups"), [("zca", 2), ("cholesky", 1), ("pca", 1), ("bn", 1)])
def test_ranks_whiten_their_own_images_and_average(transform, groups):
    """Sub-batches never span ranks (spec and papers), so two ranks are the mean of two steps by hand."""
    by_hand = [_whitening_step(transform, groups, rank) for rank in range(2)]
    results = on_ranks(2, _whitening_step_of_a_rank, transform, groups)
    for (loss, averaged), (expected, _) in zip(results, by_hand, strict=True):
        assert loss == pytest.approx(expected, rel=1e-5)
        for ours, first, second in zip(averaged, by_hand[0][1], by_hand[1][1], strict=True):
            np.testing.assert_allclose(ours, (first + second) / 2, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("transform", ["zca", "cholesky", "pca", "bn", "plain"])
@pytest.mark.parametrize("normalise", [True, False])
def test_group_whitening_by_hand(transform, normalise):
    """The draws in their order: images, then sub-batch by sub-batch, view by view, channels."""
    model, x = cwrgp(transform=transform, repeats=2, normalise=normalise), embeddings(3)
    torch.manual_seed(7)
    ours = model.loss(x, clock())
    torch.manual_seed(7)
    total = 0.0
    for _ in range(2):
        order = torch.randperm(N)
        whitened = [torch.empty_like(one) for one in x]
        for rows in (order[:4], order[4:]):
            for view in range(3):
                part = x[view][rows]
                if transform in ("zca", "cholesky", "pca"):
                    part = group_whitening(part, transform, groups=2, permutation=torch.randperm(D))
                elif transform == "bn":
                    part = (part - part.mean(0)) / part.std(0, unbiased=False)
                whitened[view][rows] = part
        for a, b in itertools.combinations(whitened, 2):
            if normalise:
                total += (
                    2 - 2 * (a / a.norm(dim=1, keepdim=True) * (b / b.norm(dim=1, keepdim=True))).sum(1).mean()
                ).item()
            else:
                total += ((a - b) ** 2).mean().item()
    assert ours.item() == pytest.approx(total / (2 * 3), rel=1e-6)


def test_groups_that_are_not_random_draw_nothing():
    model, x = cwrgp(random_groups=False), embeddings(2)
    torch.manual_seed(7)
    model.loss(x, clock())
    after = torch.rand(1)
    torch.manual_seed(7)
    torch.randperm(N)
    assert torch.equal(after, torch.rand(1))


def test_the_penalty_ends_one_step_into_its_epoch():
    x = embeddings(2)
    penalty = sum(covariance_penalty(one).item() for one in x)
    model = cwrgp(covariance_weight=0.5, covariance_epochs=2)
    plain = cwrgp()
    for step, with_penalty in ((0, True), (5, True), (6, True), (7, False), (9, False)):
        torch.manual_seed(1)
        found = model.loss(x, clock(step)).item()
        torch.manual_seed(1)
        expected = plain.loss(x, clock(step)).item() + 0.5 * penalty * with_penalty
        assert found == pytest.approx(expected, rel=1e-9), step


def test_the_head_sees_all_views_together():
    model, data = cwrgp(), batch(3)
    model(data, clock())
    assert model.backbone.bn.num_batches_tracked == 3
    assert model.head[1].num_batches_tracked == 1


def test_a_singular_covariance_says_so():
    model = cwrgp()
    flat = torch.ones(N, D, dtype=torch.float64)
    with pytest.raises(Diverged, match=r"covariance of 4 samples over 8 channels cannot be whitened .* --w_eps"):
        model.loss([flat, flat], clock())


# ------------------------------------------------------------------------------------------------ baselines


def test_simclr():
    torch.manual_seed(0)
    model, x = SimCLR(Tiny(), head(), width=D, temperature=0.5), embeddings(3)
    total = []
    for a, b in itertools.combinations([(v / v.norm(dim=1, keepdim=True)).numpy() for v in x], 2):
        rows = np.concatenate([a, b])
        for i in range(2 * N):
            others = [j for j in range(2 * N) if j != i]
            logits = {j: rows[i] @ rows[j] / 0.5 for j in others}
            total.append(np.log(sum(np.exp(v) for v in logits.values())) - logits[(i + N) % (2 * N)])
    assert model.loss(x, clock()).item() == pytest.approx(np.mean(total), rel=1e-6)
    assert isinstance(model.head[1], nn.BatchNorm1d)


def test_byol():
    torch.manual_seed(0)
    model, data = BYOL(Tiny(), head(), width=D, hidden=10, momentum=0.9).train(), batch(3)
    with torch.no_grad():
        for parameter in model.momentum_head.parameters():
            parameter.add_(0.1)
    other = copy.deepcopy(model)
    out = model(data, clock())
    z = [other.head(other.backbone(crop)) for crop in data.crops]
    t = [other.momentum_head(other.momentum_backbone(crop)) for crop in data.crops]
    p = [other.predictor(one) for one in z]
    pairs = [(0, 1), (0, 2), (1, 2)]
    expected = np.mean([(normalised_mse(p[i], t[j]) + normalised_mse(p[j], t[i])).item() for i, j in pairs])
    assert out["loss"].item() == pytest.approx(expected, rel=1e-5)
    out["loss"].backward()
    assert all(q.grad is None for q in model.momentum_head.parameters())
    before = [q.clone() for q in model.momentum_head.parameters()]
    model.after_step(clock(step=7))  # epoch 2 of 4
    tau = 1 - (1 - 0.9) * (math.cos(math.pi * 2 / 4) + 1) / 2
    for now, old, online in zip(model.momentum_head.parameters(), before, model.head.parameters(), strict=True):
        torch.testing.assert_close(now, tau * old + (1 - tau) * online)


def test_simsiam():
    torch.manual_seed(0)
    model = SimSiam(Tiny(), features=6, hidden=10, width=D).double()
    x = [one.requires_grad_() for one in embeddings(2)]
    loss = model.loss(x, clock())
    p = [model.predictor(one) for one in x]
    expected = -(F.cosine_similarity(p[0], x[1]).mean() + F.cosine_similarity(p[1], x[0]).mean()) / 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    gradient = torch.autograd.grad(loss, x[0])[0]
    alone = -F.cosine_similarity(model.predictor(x[0]), x[1].detach()).mean() / 2  # its own prediction's only
    torch.testing.assert_close(gradient, torch.autograd.grad(alone, x[0])[0])
    assert [type(m).__name__ for m in model.head] == [
        "Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d",
    ]  # fmt: skip
    assert not model.head[7].affine


@pytest.mark.parametrize("by_width", [False, True])
def test_barlow_twins(by_width):
    model, x = BarlowTwins(Tiny(), head(), width=D, off_diagonal=0.1, by_width=by_width).double(), embeddings(2)
    a, b = (((v - v.mean(0)) / np.sqrt(v.var(0) + 1e-5)) for v in (one.numpy() for one in x))
    c = a.T @ b / (D if by_width else N)
    expected = ((np.diag(c) - 1) ** 2).sum() + 0.1 * ((c - np.diag(np.diag(c))) ** 2).sum()
    assert model.loss(x, clock()).item() == pytest.approx(expected, rel=1e-6)


def test_vicreg():
    model, x = VICReg(Tiny(), head(), invariance=2, variance=3, covariance=5), embeddings(2)
    a, b = (one.numpy() * 0.7 for one in x)
    expected = 2 * ((a - b) ** 2).mean()
    for z in (a, b):
        expected += 3 * np.maximum(0, 1 - np.sqrt(z.var(0, ddof=1) + 1e-4)).mean()
        c = np.cov(z, rowvar=False)
        expected += 5 * ((c - np.diag(np.diag(c))) ** 2).sum() / D
    assert model.loss([torch.tensor(a), torch.tensor(b)], clock()).item() == pytest.approx(expected, rel=1e-6)


def test_zero_icl():
    x = embeddings(2)
    whitened = []
    for z in (one.numpy() for one in x):
        z = (z - z.mean(1, keepdims=True)) / z.std(1, ddof=1, keepdims=True)
        s, u = np.linalg.eigh(0.9 * z @ z.T / (D - 1) + 0.1 * np.eye(N))
        whitened.append(u @ np.diag(1 / np.sqrt(s + 1e-5)) @ u.T @ z)
    expected = (((whitened[0] * whitened[1]).sum(1) / D - 1) ** 2).sum()
    assert ZeroICL(Tiny(), head()).loss(x, clock()).item() == pytest.approx(expected, rel=1e-6)


# ------------------------------------------------------------------------------------------------ schedules


def test_intls_schedule_has_the_worked_values():
    def rate(step):
        return intl_rate(step, total=500_400, warmup=10_008, base=0.5)

    assert rate(0) == pytest.approx(4.99600e-5, rel=1e-5)
    assert rate(10_007) == 0.5
    assert rate(10_008) == pytest.approx(0.499999999995, abs=1e-12)
    assert rate(250_200) == pytest.approx(0.2582533, abs=1e-7)
    assert rate(500_399) == pytest.approx(5e-4, rel=1e-9)


def test_cwrgps_schedules():
    def small(step, epochs):
        return dropped_rate(
            step, steps_per_epoch=12, warmup=500, base=1.0, milestones=[epochs - 50, epochs - 25], gamma=0.2
        )

    assert [small(0, 200), small(499, 200), small(500, 200)] == pytest.approx([1 / 500, 1, 1])
    assert [small(12 * 150 - 1, 200), small(12 * 150, 200), small(12 * 175, 200)] == pytest.approx([1, 0.2, 0.04])
    assert small(12 * 59, 60) == 1.0  # both milestones lie within the warm-up

    def imagenet(step):
        return epoch_cosine_rate(step, steps_per_epoch=300, epochs=10, warmup=500, base=1.0)

    assert [imagenet(0), imagenet(499), imagenet(500), imagenet(599)] == pytest.approx([1 / 500, 1, 1, 1])
    assert imagenet(600) == pytest.approx(0.5 * (1 + math.cos(math.pi * 2 / 10)))
    assert imagenet(899) == imagenet(600)


def test_warm_restarts_are_torchs():
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=2.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=3, T_mult=2, eta_min=0.1)
    for step in range(60):
        reference.step(step / 4)
        expected = optimizer.param_groups[0]["lr"]
        assert warm_restarts(step / 4, first=3, factor=2, base=2.0, floor=0.1) == pytest.approx(expected)

"""TWIST's method: what the head sees, the teacher, the phases, two ranks against one."""

import copy

from src.clock import Clock
from src.data.loading import Batch
from src.losses.twist import self_labelling_loss, twist_loss, twist_teacher_loss
from src.methods.twist import Twist
from src.models.heads import TwistHead
from src.optim.ema import momentum_copy
from src.optim.lars import split_by_adaptation
from src.optim.schedules import phased
from src.parallel import collectives, sync_bn
from tests.helpers import on_ranks
from tests.methods.test_offline import Tiny

import numpy as np
import pytest
import torch
from torch import nn

B, C, VIEWS = 6, 5, 4


def make(**options):
    torch.manual_seed(0)
    head = TwistHead(6, 7, C, last_norm=options.pop("last_norm", True))
    return Twist(Tiny(), head, **{"mme_epochs": 2, "num_images": 20, **options}).train()


def batch(seed=0, size=B, views=VIEWS):
    generator = torch.Generator().manual_seed(seed)
    crops = [torch.randn(size, 3, s, s, generator=generator) for s in [8, 8, 6, 6, 6][:views]]
    return Batch(crops, torch.zeros(size).long(), torch.arange(size))


def clock(step=0, logging=False):
    return Clock(3, 4, step=step, logging=logging)


def by_hand(backbone, head, crops):
    """One backbone call a size, one head call for all rows, view-major."""
    sizes = sorted({crop.shape[-1] for crop in crops}, reverse=True)
    features = torch.cat([backbone(torch.cat([c for c in crops if c.shape[-1] == size])) for size in sizes])
    hidden = head.projection_head(features)
    f = head.last_linear(hidden)
    ft = (f - f.mean(0)) / torch.sqrt(f.var(0, unbiased=False) + 1e-5)  # no weights in the last norm
    return f, ft.view(len(crops), -1, ft.shape[1])


def test_the_head_sees_all_crops_of_all_views_together():
    model, data = make(), batch()
    other = copy.deepcopy(model)
    out = model(data, clock(logging=True))
    f, logits = by_hand(other.backbone, other.projection_heads, data.crops)
    terms = twist_loss(logits)
    for name, value in zip(("loss", "kl", "eh", "he"), terms, strict=True):
        torch.testing.assert_close(out[name], value, rtol=1e-5, atol=1e-6)
    assert model.backbone.bn.num_batches_tracked == 2  # once a resolution
    assert model.projection_heads.norm.num_batches_tracked == 1
    flat = logits.flatten(0, 1)
    expected = {"fc_std": f.std(0, unbiased=False).mean(), "fr_std": f.std(1, unbiased=False).mean(),
                "ftc_std": flat.std(0, unbiased=False).mean(), "ftr_std": flat.std(1, unbiased=False).mean(),
                "views_agree": (logits[0].argmax(1) == logits[1].argmax(1)).float().mean()}  # fmt: skip
    for name, value in expected.items():
        torch.testing.assert_close(out[name], value, rtol=1e-4, atol=1e-5)
    assert model.classes_of_the_epoch().tolist() == [*logits[0].argmax(1).tolist(), *[-1] * 14]


def test_published_keys_and_sizes():
    head = TwistHead(2048, 4096, 4096)
    assert sum(p.numel() for p in head.parameters()) == 41_971_712
    assert len(head.state_dict()) == 19
    assert {"projection_head.0.weight", "projection_head.1.running_mean", "projection_head.4.bias",
            "projection_head.5.weight", "last_linear.bias", "norm.running_var"} <= set(head.state_dict())  # fmt: skip
    assert "norm.weight" not in head.state_dict()
    vit_head = TwistHead(384, 8, 8, norm="ln", activation="gelu", truncated_init=True, last_norm=False)
    assert isinstance(vit_head.projection_head[1], nn.LayerNorm)
    assert vit_head.projection_head[1].eps == 1e-6
    assert isinstance(vit_head.projection_head[2], nn.GELU)
    assert (vit_head.last_linear.bias == 0).all()
    raw, logits = vit_head(torch.randn(3, 384))
    assert torch.equal(raw, logits)


def test_gradient_sizes_are_measured_and_change_no_gradient():
    gradients, sizes = [], None
    for logging in (False, True):
        model = make()
        out = model(batch(), clock(logging=logging))
        out["loss"].backward()
        gradients.append([p.grad for p in model.parameters()])
        sizes = out.get("f_gn"), out.get("ft_gn")
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    other = make()
    f, logits = by_hand(other.backbone, other.projection_heads, batch().crops)
    f.retain_grad()
    logits.retain_grad()
    twist_loss(logits).loss.backward()
    torch.testing.assert_close(sizes[0], f.grad.abs().mean(), rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(sizes[1], logits.grad.abs().mean(), rtol=1e-3, atol=1e-7)


# ------------------------------------------------------------------------------------------------ the teacher


def test_the_teacher_sees_the_global_views_in_train_mode_and_follows():
    model, data = make(momentum=0.9, momentum_end=1.0), batch()
    other = copy.deepcopy(model)
    out = model(data, clock())
    _, student = by_hand(other.backbone, other.projection_heads, data.crops)
    _, teacher = by_hand(other.teacher.backbone, other.teacher.projection_heads, data.crops[:2])
    torch.testing.assert_close(out["loss"], twist_teacher_loss(student, teacher).loss, rtol=1e-5, atol=1e-6)
    assert model.teacher.projection_heads.norm.num_batches_tracked == 1  # its own statistics, of batches
    out["loss"].backward()
    assert all(p.grad is None for p in model.teacher.parameters())

    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.add_(1.0)
    before = copy.deepcopy(model.teacher)
    buffers = [b.clone() for b in model.teacher.buffers()]
    model.after_step(clock(step=3))
    m = 1.0 + (0.9 - 1.0) * (1 + np.cos(np.pi * 3 / 6)) / 2  # over the 2 epochs of 3 steps of the main loss
    for now, old, online in zip(
        model.teacher.backbone.parameters(), before.backbone.parameters(), model.backbone.parameters(), strict=True
    ):
        torch.testing.assert_close(now, m * old + (1 - m) * online)
    assert all(torch.equal(a, b) for a, b in zip(model.teacher.buffers(), buffers, strict=True))
    model.after_step(clock(step=7))  # past the main loss the momentum stays at its end, 1: nothing moves
    moved = list(model.teacher.backbone.parameters())
    before = [p.clone() for p in moved]
    model.after_step(clock(step=11))
    assert all(torch.equal(a, b) for a, b in zip(moved, before, strict=True))


def test_the_teacher_is_not_optimised():
    model = make(momentum=0.9)
    optimised = {id(p) for group in split_by_adaptation(model.named_parameters()) for p in group["params"]}
    assert optimised == {id(p) for part in (model.backbone, model.projection_heads) for p in part.parameters()}
    assert {n.split(".")[0] for n in model.state_dict()} == {"backbone", "projection_heads", "teacher"}
    assert momentum_copy(model.backbone) is not model.backbone


# ------------------------------------------------------------------------------------------------ the phases


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_after_the_main_loss_it_labels_itself(momentum):
    model, data = make(momentum=momentum, quantile=0.4, quantile_end=0.8), batch()
    other = copy.deepcopy(model)
    now = clock(step=8, logging=True)  # epoch 2 of 4, the third of six steps of self-labelling
    assert model.quantile_at(now) == pytest.approx(0.8 + (0.4 - 0.8) * (1 + np.cos(np.pi * 2 / 6)) / 2)
    out = model(data, now)
    _, logits = by_hand(other.backbone, other.projection_heads, data.crops)
    source = logits[:2]
    if momentum:
        _, source = by_hand(other.teacher.backbone, other.teacher.projection_heads, data.crops[:2])
    expected = self_labelling_loss(logits, source, quantile=model.quantile_at(now))
    torch.testing.assert_close(out["loss"], expected.loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(out["threshold"], expected.threshold)
    assert "kl" not in out
    assert {"eh", "he", "frac"} <= out.keys()


def test_self_labelling_alone_counts_its_quantile_from_the_start():
    model = make(self_label_only=True, mme_epochs=4, quantile=0.4, quantile_end=0.8)
    assert "kl" not in model(batch(), clock())
    assert model.quantile_at(clock()) == pytest.approx(0.4)
    assert model.quantile_at(clock(step=6)) == pytest.approx(0.6)


def test_learning_rates_of_both_phases():
    def rate(step):
        return phased(step, total=100, switch=60, warmups=(10, 5), bases=(2.0, 0.5))

    assert [rate(s) for s in (0, 5, 10)] == pytest.approx([0, 1, 2])
    assert rate(35) == pytest.approx(2 * (0.001 + 0.999 * (1 + np.cos(np.pi * 25 / 50)) / 2))
    assert [rate(s) for s in (60, 62, 65)] == pytest.approx([0, 0.2, 0.5])
    assert rate(80) == pytest.approx(0.5 * (0.001 + 0.999 * (1 + np.cos(np.pi * 15 / 35)) / 2))
    short = phased(4, total=10, switch=3, warmups=(6, 2), bases=(2.0, 0.5))
    assert short == pytest.approx(2 * 4 / 6)  # the first warm-up goes before the switch


# ------------------------------------------------------------------------------------------------ over ranks


def _step_of_a_rank(options, step):
    rank, world = collectives.rank(), collectives.world_size()
    model = make(**options)
    for part in (model, model.teacher):
        if part is not None:
            sync_bn.convert(part.backbone)
            sync_bn.convert(part.projection_heads.projection_head)
            part.projection_heads.norm = sync_bn.convert(part.projection_heads.norm, world)
    whole = batch(size=8)
    share = slice(rank * 8 // world, (rank + 1) * 8 // world)
    data = Batch([crop[share] for crop in whole.crops], whole.labels[share], whole.indices[share])
    out = model(data, clock(step=step, logging=True))
    out["loss"].backward()
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = [(collectives.all_reduce_(p.grad) / world).numpy() for p in parameters]
    values = {n: (collectives.all_reduce_(out[n].detach().clone()) / world).item() for n in ("loss", "kl", "eh", "he")}
    return values, gradients, model.classes_of_the_epoch().numpy()


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_two_ranks_equal_the_joined_batch(momentum):
    """Loss, its parts, and every parameter's gradient, when the norms see the same rows."""
    ((values, gradients, classes),) = on_ranks(1, _step_of_a_rank, {"momentum": momentum}, 0)
    for rank_values, rank_gradients, rank_classes in on_ranks(2, _step_of_a_rank, {"momentum": momentum}, 0):
        assert rank_values == pytest.approx(values, rel=1e-5, abs=1e-6)
        for ours, theirs in zip(rank_gradients, gradients, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=2e-6)
        assert rank_classes.tolist() == classes.tolist()


def _bunch_of_a_rank(bunch):
    rank = collectives.rank()
    norm = sync_bn.convert(nn.BatchNorm1d(3, affine=False), bunch) if bunch > 1 else nn.BatchNorm1d(3, affine=False)
    x = torch.arange(24.0).view(8, 3).square()
    return norm(x[rank * 2 : rank * 2 + 2]).numpy()


@pytest.mark.parametrize("bunch", [1, 2, 4])
def test_a_bunch_is_a_group_of_neighbouring_ranks(bunch):
    x = torch.arange(24.0).view(8, 3).square()
    ours = np.concatenate(on_ranks(4, _bunch_of_a_rank, bunch))
    parts = x.view(4 // bunch, 2 * bunch, 3)
    expected = (parts - parts.mean(1, keepdim=True)) / torch.sqrt(parts.var(1, unbiased=False, keepdim=True) + 1e-5)
    np.testing.assert_allclose(ours, expected.view(8, 3), rtol=1e-4, atol=1e-5)


def test_collapse_is_seen():
    (check,) = make().health_checks()
    assert not check.failed({"he": 8.0, "eh": 3.0})
    assert not check.failed({"loss": 1.0})
    assert check.failed({"he": 8.0, "eh": 7.99})  # every image uniform
    assert check.failed({"he": 0.02, "eh": 0.01})  # every image in one class
    assert "0.010 nats" in check.verdict({"he": 0.02, "eh": 0.01})

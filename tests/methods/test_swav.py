import math

from src.clock import Clock
from src.data.loading import Batch
from src.methods.swav import SwAV, rows_per_rank
from src.optim.larc import LARC
from src.parallel import collectives, sync_bn
from tests.helpers import on_ranks
from tests.losses.test_sinkhorn import reference_sinkhorn
from tests.losses.test_swapped_prediction import reference_loss

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel


class TinyBackbone(nn.Module):
    """One convolution and its batch norm: enough for everything around it."""

    feature_width = 6

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, bias=False)
        self.bn = nn.BatchNorm2d(6)

    def forward(self, x):
        return self.bn(self.conv(x)).relu().mean(dim=(2, 3))


def make(**options):
    torch.manual_seed(0)
    settings = {"feat_dim": 5, "hidden_mlp": 8, "nmb_prototypes": 7, "freeze_prototypes_niters": 0, **options}
    return SwAV(TinyBackbone(), **settings)


def make_batch(images=4, sizes=(12, 12, 8, 8), seed=0):
    generator = torch.Generator().manual_seed(seed)
    crops = [torch.randn(images, 3, s, s, generator=generator) for s in sizes]
    return Batch(crops, torch.full((images,), -1), torch.arange(images))


def clock(step=0, logging=False):
    return Clock(steps_per_epoch=10, epochs=4, step=step, logging=logging)


def reference_scores(method, crops):
    """Embeddings and scores by hand: trunk once for each size, head once for all, unit rows, unit prototypes."""
    trunk = torch.cat([method.backbone(torch.cat(crops[:2])), method.backbone(torch.cat(crops[2:]))])
    hidden = trunk @ method.projection_head[0].weight.T + method.projection_head[0].bias
    hidden = (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + 1e-5).sqrt()
    out = hidden.relu() @ method.projection_head[3].weight.T + method.projection_head[3].bias
    z = out / out.norm(dim=1, keepdim=True)
    c = method.prototypes.weight / method.prototypes.weight.norm(dim=1, keepdim=True)
    return z.detach().view(len(crops), -1, z.shape[1]), (z @ c.T).detach().view(len(crops), -1, len(c))


def step_of(method, batch, now):
    """The forward half of a step, as the loop runs it."""
    method.before_step(now)
    return method(batch, now)


@pytest.mark.parametrize("crops_for_assign", [[0, 1], [1, 3]])
def test_the_loss_of_a_step_matches_the_float64_formula(crops_for_assign):
    method, batch = make(crops_for_assign=crops_for_assign), make_batch()
    _, scores = reference_scores(method, batch.crops)
    q = [reference_sinkhorn(scores[c].numpy(), 0.05, 3) for c in crops_for_assign]
    loss = step_of(method, batch, clock())["loss"]
    assert loss.item() == pytest.approx(reference_loss(scores.numpy(), q, crops_for_assign, 0.1), rel=1e-4)


def test_prototypes_are_unit_before_the_forward_and_need_not_be_after_the_step():
    method = make()
    norms = method.prototypes.weight.norm(dim=1)
    assert (norms - 1).abs().max() > 0.05
    step_of(method, make_batch(), clock())["loss"].backward()
    torch.testing.assert_close(method.prototypes.weight.norm(dim=1), torch.ones(7))
    LARC(method.parameters(), lr=10.0).step()
    assert (method.prototypes.weight.norm(dim=1) - 1).abs().max() > 1e-4


def test_several_heads_average_their_losses():
    torch.manual_seed(0)
    method, batch = make(nmb_prototypes=[7, 9]), make_batch()
    total = step_of(method, batch, clock())["loss"].item()
    singles = []
    for head in method.prototypes.heads():
        single = make(nmb_prototypes=head.out_features)
        single.load_state_dict(
            {n: t for n, t in make(nmb_prototypes=[7, 9]).state_dict().items() if not n.startswith("prototypes")},
            strict=False,
        )
        single.prototypes.weight.data.copy_(head.weight)
        singles.append(step_of(single, batch, clock())["loss"].item())
    assert total == pytest.approx(np.mean(singles), rel=1e-5)


def test_frozen_prototypes_lose_their_gradient_until_the_step_that_frees_them():
    method = make(freeze_prototypes_niters=3)
    for step in range(5):
        method.zero_grad()
        step_of(method, make_batch(), clock(step))["loss"].backward()
        method.after_backward(clock(step))
        assert (method.prototypes.weight.grad is None) == (step < 3)
        assert method.backbone.conv.weight.grad is not None


def test_no_gradient_flows_through_the_assignments_or_the_queue():
    method = make(queue_rows=8, epoch_queue_starts=0)
    method.queue.normal_()
    method.queue_filled = 8
    step_of(method, make_batch(), clock())["loss"].backward()
    assert not method.queue.requires_grad


# ---------------------------------------------------------------------------------------------------- the queue


def test_queue_rows_are_rounded_down_to_whole_global_batches():
    assert rows_per_rank(3840, 64, 4) == 960
    assert rows_per_rank(3840, 32, 8) == 480
    assert rows_per_rank(2560, 40, 64) == 40
    assert rows_per_rank(1000, 64, 8) == 64
    assert rows_per_rank(100, 64, 8) == 0


def test_the_queue_is_used_once_full_and_joins_the_assignment():
    """Filled newest first from its epoch on; first used at iteration L / B; its own rows' assignments are dropped."""
    method = make(queue_rows=12, epoch_queue_starts=1)
    pushed = []
    for step in range(8, 18):
        now = clock(step)
        if now.step_in_epoch == 0 or step == 8:
            method.before_epoch(now)
        batch = make_batch(seed=step)
        z, scores = reference_scores(method, batch.crops)
        used = step >= 10 + 12 // 4
        assert method.queue_is_full == used
        q = []
        for slot in range(2):
            rows = scores[slot].numpy()
            if used:
                c = F.normalize(method.prototypes.weight.detach(), dim=1)
                newest_first = torch.cat([z_old[slot] for z_old in reversed(pushed[-3:])])
                rows = np.concatenate([(newest_first @ c.T).numpy(), rows])
            q.append(reference_sinkhorn(rows, 0.05, 3)[-4:])
        loss = step_of(method, batch, now)["loss"].item()
        assert loss == pytest.approx(reference_loss(scores.numpy(), q, [0, 1], 0.1), rel=1e-4)
        if step >= 10:
            pushed.append(z[:2])
    for slot in range(2):
        newest_first = torch.cat([z_old[slot] for z_old in reversed(pushed[-3:])])
        torch.testing.assert_close(method.queue[slot], newest_first, rtol=1e-4, atol=1e-5)


def test_a_queue_of_one_batch_is_replaced_every_step():
    """As in the published w4 recipe."""
    method = make(queue_rows=4, epoch_queue_starts=0)
    method.before_epoch(clock())
    for step in range(3):
        assert method.queue_is_full == (step > 0)
        step_of(method, make_batch(seed=step), clock(step))
    z, _ = reference_scores(method, make_batch(seed=2).crops)
    torch.testing.assert_close(method.queue, z[:2], rtol=1e-4, atol=1e-5)


def test_how_full_the_queue_is_survives_a_restart():
    method = make(queue_rows=12, epoch_queue_starts=0)
    method.before_epoch(clock())
    for step in range(2):
        step_of(method, make_batch(seed=step), clock(step))
    restarted = make(queue_rows=12, epoch_queue_starts=0)
    restarted.load_state_dict(method.state_dict())
    restarted.before_epoch(clock(2))
    assert restarted.queue_filled == method.queue_filled == 8


# ---------------------------------------------------------------------------------------------------- two ranks


def _train_steps(steps, world, rank):
    method = make(queue_rows=8 // world, epoch_queue_starts=0, freeze_prototypes_niters=1)
    sync_bn.convert(method)
    model = DistributedDataParallel(method, broadcast_buffers=False) if world > 1 else method
    optimizer = LARC(method.parameters(), lr=0.5, weight_decay=1e-4)
    losses = []
    method.before_epoch(clock())
    for step in range(steps):
        whole = make_batch(images=8, seed=step)
        mine = slice(rank * 8 // world, (rank + 1) * 8 // world)
        batch = Batch([c[mine] for c in whole.crops], whole.labels[mine], whole.indices[mine])
        loss = model(batch, clock(step))["loss"]
        loss.backward()
        method.after_backward(clock(step))
        if step == 0:
            grads = {n: p.grad.numpy().copy() for n, p in method.named_parameters() if p.grad is not None}
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, grads, {n: p.detach().numpy() for n, p in method.named_parameters()}


def _rank_steps(steps):
    return _train_steps(steps, collectives.world_size(), collectives.rank())


def test_two_ranks_equal_one_process_on_the_whole_batch():
    """Sinkhorn, queue, batch norm, gradients and LARC: five steps, the queue in use from the second one on."""
    parts = on_ranks(2, _rank_steps, 5)
    losses, grads, weights = _train_steps(5, 1, 0)
    np.testing.assert_allclose(np.mean([p[0] for p in parts], axis=0), losses, rtol=1e-4)
    # a bias in front of a batch norm has no effect: its gradient is rounding noise, which LARC scales up
    noise = {"projection_head.0.bias"}
    for rank_losses, rank_grads, rank_weights in parts:
        assert len(rank_losses) == 5
        assert rank_grads.keys() == grads.keys()
        for name, grad in ((n, g) for n, g in grads.items() if n not in noise):
            np.testing.assert_allclose(rank_grads[name], grad, rtol=2e-3, atol=2e-6, err_msg=name)
        for name, weight in ((n, w) for n, w in weights.items() if n not in noise):
            np.testing.assert_allclose(rank_weights[name], weight, rtol=1e-3, atol=1e-4, err_msg=name)


def test_hard_assignment_puts_each_image_to_the_first_of_its_soft_ones():
    soft, hard = make(), make(hard_assignment=True)
    hard.load_state_dict(soft.state_dict())
    scores = torch.randn(3, 4, 7)
    codes, ones = (method._assign(scores, method.prototypes) for method in (soft, hard))
    assert torch.equal(ones.argmax(dim=-1), codes.argmax(dim=-1))
    assert torch.equal(ones, torch.nn.functional.one_hot(codes.argmax(dim=-1), 7).float())
    assert codes.max() < 1


# ---------------------------------------------------------------------------------------------------- health


@pytest.mark.parametrize(("losses", "failures"), [
    ([(3.0, 0), (2.0, 0), (1.9, 1), (1.8, 1)], []),  # it falls
    ([(3.0, 0), (2.0, 0), (2.7, 1), (2.8, 1), (1.5, 1)], [2, 3]),  # 2.5 was usual
    ([(3.0, 1), (4.0, 1)], []),  # nothing is known from before
    ([(9.0, 0), *[(2.0, 0)] * 5, (2.1, 1)], [6]),  # the newest five count
])  # fmt: skip
def test_a_loss_that_the_queue_raises_fails_the_check(losses, failures):
    check = make(queue_rows=8).health_checks()[1]
    found = [check.failed({"loss": loss, "queue_in_use": used}) for loss, used in losses]
    assert [number for number, failed in enumerate(found) if failed] == failures
    assert len(make().health_checks()) == 1  # without a queue


def test_health_values_appear_on_logging_steps_only():
    method = make()
    values = step_of(method, make_batch(), clock())
    assert set(values) == {"loss", "loss_over_ln_k"}
    assert values["loss_over_ln_k"].item() == pytest.approx(values["loss"].item() / math.log(7), rel=1e-6)
    values = step_of(method, make_batch(), clock(logging=True))
    assert set(values) == {"loss", "loss_over_ln_k", "assignment_entropy", "prototypes_in_use", "feature_std", "rankme"}
    assert 0 < values["prototypes_in_use"] <= 1
    assert not method.prototypes_used.any()  # gathered anew until the next log line
    assert not any("prototypes_used" in name for name in method.state_dict())


def test_a_constant_network_costs_ln_k_and_fails_the_check():
    method = make(hidden_mlp=0)
    method.projection_head.weight.data.zero_()
    method.projection_head.bias.data.fill_(1.0)
    method.prototypes.weight.data.copy_(torch.ones(7, 5))
    values = {name: value.item() for name, value in step_of(method, make_batch(), clock(logging=True)).items()}
    assert values["loss"] == pytest.approx(math.log(7), rel=1e-5)
    assert values["assignment_entropy"] == pytest.approx(math.log(7), rel=1e-5)
    assert values["feature_std"] == pytest.approx(0.0, abs=1e-4)
    (check,) = method.health_checks()
    assert check.failed(values)
    assert "ln 7" in check.verdict(values)
    assert "--epsilon" in check.advice
    healthy = {name: value.item() for name, value in make()(make_batch(), clock(logging=True)).items()}
    assert not check.failed(healthy)

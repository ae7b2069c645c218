"""TWIST's losses against loops over pairs and samples in float64."""

import math

from src.losses.twist import entropy_bound, self_labelling_loss, twist_loss, twist_teacher_loss
from src.parallel import collectives
from tests.helpers import on_ranks

import numpy as np
import pytest
import torch

EPS = 1e-5


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kl(p, q):
    return np.mean([sum(pi * (math.log(pi + EPS) - math.log(qi + EPS)) for pi, qi in zip(a, b, strict=True))
                    for a, b in zip(p, q, strict=True)])  # fmt: skip


def eh(p):
    return np.mean([-sum(x * math.log(x + EPS) for x in row) for row in p])


def he(p):
    return -sum(x * math.log(x + EPS) for x in p.mean(0))


def reference(logits, tau, alpha, beta):
    """Sums over the pairs, as the specification lists them."""
    terms = []
    for i in (0, 1):
        for j in range(i + 1, len(logits)):
            a, b = softmax(logits[i]), softmax(logits[j])
            at, bt = softmax(logits[i] / tau), softmax(logits[j] / tau)
            terms.append([(kl(a, b) + kl(b, a)) / 2, (eh(at) + eh(bt)) / 2, (he(at) + he(bt)) / 2])
    k, e, h = np.mean(terms, axis=0)
    return k + alpha * e - beta * h, k, e, h


def reference_with_teacher(logits, teacher, tau, alpha, beta):
    p, t = softmax(logits / tau), softmax(teacher / tau)
    k = np.mean([kl(t[i], p[v]) for i in (0, 1) for v in range(len(p)) if v != i])
    e, h = np.mean([eh(x) for x in p]), np.mean([he(x) for x in p])
    return k + alpha * e - beta * h, k, e, h


def logits(views, batch=6, classes=5, seed=0, scale=3.0):
    return scale * np.random.default_rng(seed).normal(size=(views, batch, classes))


@pytest.mark.parametrize("views", [2, 3, 6])
@pytest.mark.parametrize("tau", [1.0, 0.5])
def test_the_main_loss(views, tau):
    x = logits(views)
    ours = twist_loss(torch.tensor(x), temperature=tau, alpha=0.4, beta=1.3, eps=EPS)
    np.testing.assert_allclose(ours, reference(x, tau, 0.4, 1.3), rtol=2e-6)


@pytest.mark.parametrize("views", [2, 5])
@pytest.mark.parametrize("tau", [1.0, 0.5])
def test_the_main_loss_with_a_teacher(views, tau):
    x, t = logits(views), logits(2, seed=1)
    student, teacher = torch.tensor(x, requires_grad=True), torch.tensor(t, requires_grad=True)
    ours = twist_teacher_loss(student, teacher, temperature=tau, alpha=0.4, beta=1.3, eps=EPS)
    np.testing.assert_allclose([v.item() for v in ours], reference_with_teacher(x, t, tau, 0.4, 1.3), rtol=2e-6)
    ours.loss.backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None  # one direction only


def test_the_gradient_is_that_of_the_reference():
    x = logits(4)
    tensor = torch.tensor(x, requires_grad=True)
    twist_loss(tensor, temperature=0.7, alpha=0.4, beta=1.3, eps=EPS).loss.backward()
    for index in [(0, 1, 2), (1, 0, 0), (3, 5, 4), (2, 2, 1)]:
        up, down = x.copy(), x.copy()
        up[index] += 1e-5
        down[index] -= 1e-5
        slope = (reference(up, 0.7, 0.4, 1.3)[0] - reference(down, 0.7, 0.4, 1.3)[0]) / 2e-5
        assert tensor.grad[index].item() == pytest.approx(slope, rel=2e-3, abs=2e-6)


def test_eps_is_inside_the_logarithms():
    assert entropy_bound(4096, EPS) == pytest.approx(8.278, abs=5e-4)
    assert entropy_bound(32768, EPS) == pytest.approx(10.114, abs=5e-4)
    terms = twist_loss(torch.zeros(3, 4, 32768), eps=EPS)
    assert terms.kl == 0
    assert terms.eh.item() == pytest.approx(10.114, abs=5e-4)
    assert terms.eh.item() == pytest.approx(terms.he.item(), rel=1e-6)


def test_what_changes_nothing():
    x = torch.tensor(logits(4))
    same = torch.stack([x[1], x[0], *x[2:]])  # the two global views
    shifted = x + torch.arange(6.0).view(1, 6, 1)  # a constant for each row
    for other in (same, shifted):
        np.testing.assert_allclose(twist_loss(other), twist_loss(x), rtol=1e-5)


# ------------------------------------------------------------------------------------------------ over ranks


def _loss_of_a_rank(kind, x, t):
    rank, world = collectives.rank(), collectives.world_size()
    share = slice(rank * x.shape[1] // world, (rank + 1) * x.shape[1] // world)
    weight = torch.eye(5, dtype=torch.float64, requires_grad=True)
    student = torch.tensor(x[:, share]) @ weight
    if kind == "teacher":
        terms = twist_teacher_loss(student, torch.tensor(t[:, share]))
    else:
        terms = twist_loss(student)
    terms.loss.backward()
    gradient = collectives.all_reduce_(weight.grad) / world  # as DDP does
    loss = collectives.all_reduce_(terms.loss.detach()) / world  # as the loop logs it
    return loss.item(), gradient.numpy()


@pytest.mark.parametrize("kind", ["main", "teacher"])
def test_two_ranks_have_the_loss_and_gradient_of_the_joined_batch(kind):
    x, t = logits(4, batch=8), logits(2, batch=8, seed=1)
    ((loss, gradient),) = on_ranks(1, _loss_of_a_rank, kind, x, t)
    for rank_loss, rank_gradient in on_ranks(2, _loss_of_a_rank, kind, x, t):
        assert rank_loss == pytest.approx(loss, rel=1e-6)
        np.testing.assert_allclose(rank_gradient, gradient, rtol=1e-4, atol=1e-7)


# ------------------------------------------------------------------------------------------------ self-labelling


def reference_self_labelling(x, source, quantile, threshold, tau):
    views, batch, _ = x.shape
    confidence = softmax(source / tau).max(-1)
    best = confidence.max(0)
    if quantile:
        threshold = sorted(best, reverse=True)[min(int(quantile * batch), batch - 1)]
    per_view = [[] for _ in range(views - 1)]
    for b in range(batch):
        weak = 0 if confidence[0, b] > confidence[1, b] else 1
        if softmax(source[weak, b]).max() > threshold:
            label = source[weak, b].argmax()
            for n, logits_C in enumerate([x[1 - weak, b], *x[2:, b]]):
                per_view[n].append(-np.log(softmax(logits_C)[label]))
    loss = sum(np.mean(v) for v in per_view if v) / (views - 1)
    return loss, threshold, np.mean(best > threshold), len(per_view[0])


@pytest.mark.parametrize("views", [2, 5])
@pytest.mark.parametrize(("quantile", "threshold", "tau"), [
    (0.5, 0.0, 1.0), (0.6, 0.0, 0.8), (0.0, 0.7, 1.0), (0.0, 0.7, 2.0), (1.0, 0.0, 1.0),
])  # fmt: skip
@pytest.mark.parametrize("with_teacher", [False, True])
def test_self_labelling(views, quantile, threshold, tau, with_teacher):
    x = logits(views, batch=10)
    source = logits(2, batch=10, seed=5) if with_teacher else x[:2]
    found = self_labelling_loss(
        torch.tensor(x), torch.tensor(source), quantile=quantile, threshold=threshold, temperature=tau
    )
    expected = reference_self_labelling(x, source, quantile, threshold, tau)
    np.testing.assert_allclose([value.item() for value in found], expected[:3], rtol=2e-6)
    if quantile and tau == 1:
        assert expected[3] == min(int(quantile * 10), 9)


def test_only_the_strong_views_are_trained():
    x = torch.tensor(logits(4, batch=10), requires_grad=True)
    self_labelling_loss(x, x[:2], quantile=0.5).loss.backward()
    confidence = torch.softmax(x[:2].detach(), -1).amax(-1)
    weak = (confidence[0] <= confidence[1]).long()
    limit = confidence.amax(0).sort(descending=True).values[5]
    moved = x.grad.abs().sum(-1) > 0
    for b in range(10):
        counts = bool(confidence[:, b].max() > limit)
        assert not moved[weak[b], b]
        assert bool(moved[1 - weak[b], b]) == counts
        assert bool(moved[2, b]) == counts


def test_no_confident_image_gives_zero_and_keeps_the_graph():
    x = torch.tensor(logits(3), requires_grad=True)
    loss = self_labelling_loss(x, x[:2], quantile=0.0, threshold=1.0).loss
    loss.backward()
    assert loss == 0
    assert (x.grad == 0).all()


def test_equal_confidence_makes_the_second_view_the_label():
    one = torch.tensor([[5.0, 0.0, 0.0]])
    two = torch.tensor([[0.0, 5.0, 0.0]])
    x = torch.stack([one, two]).requires_grad_()
    self_labelling_loss(x, x, quantile=0.0, threshold=0.1).loss.backward()
    assert x.grad[0].abs().sum() > 0
    assert (x.grad[1] == 0).all()

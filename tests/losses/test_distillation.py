"""The distillation losses against loops in float64."""

import math

from src.losses.distillation import (
    attention_transfer,
    hard_dark_rank,
    kd_cross_entropy,
    pairwise_distances,
    rkd_angle,
    rkd_distance,
    seed_loss,
    squared_error_sum,
)

import numpy as np
import pytest
import torch
from torch.nn import functional as F

N = 7


def rows(seed, n=N, d=5, unit=True):
    x = np.random.default_rng(seed).normal(size=(n, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True) if unit else x


def smooth_l1(a, b):
    x = abs(a - b)
    return 0.5 * x * x if x < 1 else x - 0.5


def distances(x):
    return np.array([[0.0 if i == j else math.dist(a, b) for j, b in enumerate(x)] for i, a in enumerate(x)])


def test_disco_sums_over_images_and_dimensions():
    s, t = rows(0), rows(1)
    expected = sum((t[i, c] - s[i, c]) ** 2 for i in range(N) for c in range(5))
    assert squared_error_sum(torch.tensor(s), torch.tensor(t)).item() == pytest.approx(expected, rel=1e-12)
    assert expected == pytest.approx(sum(2 - 2 * a @ b for a, b in zip(s, t, strict=True)), rel=1e-12)


def test_discos_gradient_of_an_embedding_before_it_is_normalised():
    """dD/dz = 2/|z| (s (s.t) - t), without 1/n."""
    z = torch.tensor(rows(0, unit=False), requires_grad=True)
    t = torch.tensor(rows(1))
    squared_error_sum(F.normalize(z, dim=1), t).backward()
    s, length = F.normalize(z.detach(), dim=1), z.detach().norm(dim=1, keepdim=True)
    torch.testing.assert_close(z.grad, 2 / length * (s * (s * t).sum(dim=1, keepdim=True) - t))


def test_distances_and_their_floor():
    x = rows(0, unit=False)
    np.testing.assert_allclose(pairwise_distances(torch.tensor(x)), distances(x), atol=1e-9)
    twins = torch.tensor(np.stack([x[0], x[0], x[1]]), requires_grad=True)
    found = pairwise_distances(twins)
    assert found[0, 1].item() == pytest.approx(1e-6, abs=1e-6)
    assert found.diagonal().tolist() == [0, 0, 0]
    found.sum().backward()
    assert torch.isfinite(twins.grad).all()


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_rkd_distance(scale):
    """Different dimensions; the second one makes differences above 1, where the loss is linear."""
    s, t = rows(0, unit=False) ** (3 if scale > 1 else 1), rows(1, d=9)
    ds, dt = distances(s), distances(t)
    ds, dt = ds / ds[ds > 0].mean(), dt / dt[dt > 0].mean()
    if scale > 1:
        assert np.abs(ds - dt).max() > 1
    expected = np.mean([smooth_l1(a, b) for a, b in zip(ds.ravel(), dt.ravel(), strict=True)])
    assert rkd_distance(torch.tensor(s), torch.tensor(t)).item() == pytest.approx(expected, rel=1e-9)


def test_the_students_mean_distance_carries_gradient():
    """So scaling a student changes nothing, and its gradient has no component along it."""
    s = torch.tensor(rows(0, unit=False), requires_grad=True)
    rkd_distance(s, torch.tensor(rows(1))).backward()
    assert (s.grad * s).sum().item() == pytest.approx(0, abs=1e-9)


def test_rkd_angle():
    s, t = rows(0), rows(1, d=9)

    def cosine(x, i, j, k):
        a, b = x[j] - x[i], x[k] - x[i]
        lengths = np.linalg.norm(a) * np.linalg.norm(b)
        return a @ b / lengths if lengths else 0.0

    triples = [(i, j, k) for i in range(N) for j in range(N) for k in range(N)]
    expected = np.mean([smooth_l1(cosine(s, *triple), cosine(t, *triple)) for triple in triples])
    assert rkd_angle(torch.tensor(s), torch.tensor(t)).item() == pytest.approx(expected, rel=1e-9)


def test_hard_dark_rank():
    s, t = rows(0), rows(1, d=9)
    ds, dt = distances(s), distances(t)
    total = 0.0
    for i in range(N):
        ranking = sorted(range(N), key=lambda j, i=i: dt[i, j])[1:5]
        scores = [-3 * ds[i, j] ** 3 for j in ranking]
        total += sum(scores[r] - math.log(sum(math.exp(x) for x in scores[r:])) for r in range(4))
    assert hard_dark_rank(torch.tensor(s), torch.tensor(t)).item() == pytest.approx(-total / N, rel=1e-9)


def test_attention_transfer():
    generator = np.random.default_rng(0)
    s, t = generator.normal(size=(3, 4, 2, 2)), generator.normal(size=(3, 6, 2, 2))

    def attention(x):
        flat = np.array([[np.mean(x[n, :, h, w] ** 2) for h in range(2) for w in range(2)] for n in range(3)])
        return flat / np.linalg.norm(flat, axis=1, keepdims=True)

    expected = np.mean((attention(s) - attention(t)) ** 2)
    assert attention_transfer(torch.tensor(s), torch.tensor(t)).item() == pytest.approx(expected, rel=1e-9)


def test_kd_cross_entropy():
    s, t, labels = rows(0, unit=False), rows(1, unit=False), [0, 4, 2, 1, 1, 3, 0]

    def softmax(x):
        e = np.exp(x - x.max())
        return e / e.sum()

    kl = np.mean([
        q * (math.log(q) - math.log(p))
        for a, b in zip(s, t, strict=True) for p, q in zip(softmax(a / 2), softmax(b / 2), strict=True)
    ])  # fmt: skip
    ce = -np.mean([math.log(softmax(a)[label]) for a, label in zip(s, labels, strict=True)])
    found = kd_cross_entropy(torch.tensor(s), torch.tensor(t), torch.tensor(labels), alpha=0.3, temperature=2.0)
    assert found.item() == pytest.approx(0.3 * 4 * kl + 0.7 * ce, rel=1e-9)
    # alpha 1, T 1: the batch mean of KL over the number of classes
    one = kd_cross_entropy(torch.tensor(s), torch.tensor(t), torch.tensor(labels), 1.0, 1.0)
    p, q = torch.tensor(s).log_softmax(1), torch.tensor(t).log_softmax(1)
    assert one.item() == pytest.approx(F.kl_div(p, q, log_target=True, reduction="batchmean").item() / 5, rel=1e-9)


def test_seed_loss():
    s, t = rows(0, d=6), rows(1, d=6)

    def softmax(x):
        e = np.exp(x - x.max())
        return e / e.sum()

    expected = np.mean([
        -sum(q * math.log(p) for p, q in zip(softmax(a / 0.2), softmax(b / 0.05), strict=True))
        for a, b in zip(s, t, strict=True)
    ])  # fmt: skip
    assert seed_loss(torch.tensor(s), torch.tensor(t), 0.2, 0.05).item() == pytest.approx(expected, rel=1e-9)

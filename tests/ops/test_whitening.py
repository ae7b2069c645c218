"""Whitening against the worked numbers, the closed forms and eigendecompositions in float64."""

from src.losses.whitened import covariance_penalty, normalised_mse, trace_loss, trace_loss_floor, trade_off
from src.ops.whitening import group_whitening, iter_norm, spectral_transform, spectrum_after

import numpy as np
import pytest
import torch

X = torch.tensor([[1, 2, 0, 5], [0, 3, 1, -2], [4, 1, 1, 0]], dtype=torch.float64)
Z = torch.tensor([[1, 1, 0, 4], [1, 3, 0, -2], [3, 0, 2, 0]], dtype=torch.float64)
PAIR = torch.tensor([[1, 2, 0, 5, 1, 0], [0, 3, 1, -2, 2, 2]], dtype=torch.float64)


def random(n, d, seed=0):
    return torch.tensor(np.random.default_rng(seed).normal(size=(n, d)) * np.linspace(0.3, 3, d))


def test_worked_numbers_of_iter_norm():
    y = iter_norm(X, 4, axis=0)
    expected = [[-0.230072, 0.411925, -1.231098, 1.049245], [-0.332651, 1.397329, -0.153514, -0.911164],
                [1.430324, -0.174480, -0.691679, -0.564165]]  # fmt: skip
    np.testing.assert_allclose(y, expected, atol=1e-6)
    assert trace_loss(y, 0).item() == pytest.approx(0.00543415, abs=1e-8)
    once = iter_norm(X, 1, axis=0)
    np.testing.assert_allclose(once[0], [-0.332778, 0.068159, -0.749753, 1.014372], atol=1e-6)
    assert trace_loss(once, 0).item() == pytest.approx(0.68998330, abs=1e-8)
    y = iter_norm(X, 4, axis=1)
    np.testing.assert_allclose(y[0], [-0.298204, 0.053203, -0.191799, 1.097589], atol=1e-6)
    assert trace_loss(y, 1).item() == pytest.approx(1.65121046, abs=3e-7)
    assert trace_loss(iter_norm(X, 1, axis=1), 1).item() == pytest.approx(2.10425675, abs=3e-7)


def test_worked_numbers_of_the_losses():
    x, z = iter_norm(X), iter_norm(Z)
    assert normalised_mse(z, x).item() == pytest.approx(0.27415256, abs=1e-8)
    assert trace_loss(z).item() == pytest.approx(0.03160812, abs=1e-8)
    intl = normalised_mse(z, x) + 0.05 * (trace_loss(z) + trace_loss(x))
    assert intl.item() == pytest.approx(0.27600468, abs=1e-8)
    assert (normalised_mse(z, x) + 0.05 * trace_loss(z)).item() == pytest.approx(0.27573297, abs=1e-8)


@pytest.mark.parametrize(("kind", "permutation", "expected"), [
    ("zca", None, [[-0.294884, 0.130791, -1.376930, 0.998365, 0.602286, -0.800325],
                   [-0.589768, 1.261582, 0.246139, -0.818496, 1.141893, -0.161699]]),
    ("cholesky", None, [[-0.426401, 0.426401, -1.279204, 1.288804, -0.184115, -0.552345],
                        [-0.502956, 1.194520, 0.565825, -0.075165, 1.277798, -0.601317]]),
    ("zca", [5, 0, 3, 1, 4, 2], [[-0.841224, 0.330562, -1.288855, 0.987476, -0.479146, -0.563235],
                                 [-1.107102, 1.247956, 0.074292, -0.870761, 0.661124, 0.126884]]),
])  # fmt: skip
def test_worked_numbers_of_group_whitening(kind, permutation, expected):
    order = None if permutation is None else torch.tensor(permutation)
    np.testing.assert_allclose(group_whitening(PAIR, kind, groups=2, permutation=order), expected, atol=1e-6)


# ------------------------------------------------------------------------------------------------ IterNorm


@pytest.mark.parametrize("axis", [0, 1])
def test_what_changes_nothing(axis):
    x = random(6, 10) if axis == 0 else random(20, 5)
    y = iter_norm(x, axis=axis)
    np.testing.assert_allclose(iter_norm(7 * x, axis=axis), y, rtol=1e-9)
    shift = torch.arange(float(x.shape[0]))[:, None] if axis == 0 else torch.arange(float(x.shape[1]))
    np.testing.assert_allclose(iter_norm(x + shift, axis=axis), y, rtol=1e-7, atol=1e-9)
    order = torch.randperm(len(x))
    np.testing.assert_allclose(iter_norm(x[order], axis=axis), y[order], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("iterations", [0, 1, 4, 7])
def test_it_is_a_spectral_transformation(axis, iterations):
    """Same eigenvectors, and the eigenvalues that the polynomial gives."""
    x = random(6, 30) if axis == 0 else random(30, 6)
    size = 6
    a = (x - x.mean(1, keepdim=True)).T if axis == 0 else x - x.mean(0)
    eigenvalues, vectors = np.linalg.eigh((a.T @ a / (len(a) - 1)).numpy())
    y = iter_norm(x, iterations, axis)
    b = y.T if axis == 0 else y
    after = (b.T @ b / (len(b) - 1)).numpy()
    expected = [spectrum_after(value / eigenvalues.sum(), iterations) for value in eigenvalues]
    np.testing.assert_allclose(vectors.T @ after @ vectors, np.diag(expected), atol=1e-9)

    def g(values):
        f, share = torch.ones(size, dtype=torch.float64), values / values.sum()
        for _ in range(iterations):
            f = 1.5 * f - 0.5 * share * f**3
        return f / values.sum().sqrt()

    np.testing.assert_allclose(spectral_transform(x, g, axis), y, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("axis", [0, 1])
def test_many_iterations_whiten(axis):
    x = random(6, 30) if axis == 0 else random(30, 6)
    whitened = spectral_transform(x, lambda values: values**-0.5, axis)
    # more iterations amplify rounding: without symmetrising, Newton's are stable for a dozen
    np.testing.assert_allclose(iter_norm(x, 10, axis), whitened, atol=1e-5)
    np.testing.assert_allclose(group_whitening(x, "zca", axis=axis), whitened, rtol=1e-6, atol=1e-8)


def test_rank_deficient_embeddings_stay_finite():
    x = random(6, 4)  # six samples in four dimensions, on axis 0
    assert torch.isfinite(iter_norm(x)).all()
    assert torch.isfinite(spectral_transform(x, lambda values: values**-0.5)).all()
    with pytest.raises(torch.linalg.LinAlgError):
        group_whitening(torch.cat([x, x]), "zca")


@pytest.mark.parametrize(("samples", "iterations", "h", "floor"), [
    (128, 4, 0.1811, 85.85), (256, 4, 0.0952, 209.6), (512, 4, 0.0488, 463.3), (256, 5, 0.2007, 163.5),
    (256, 7, 0.6680, 28.2), (256, 9, 0.9935, 0.011),
])  # fmt: skip
def test_the_floor_of_the_trace_loss(samples, iterations, h, floor):
    assert spectrum_after(1 / samples, iterations) == pytest.approx(h, abs=6e-5)
    assert trace_loss_floor(samples, iterations) == pytest.approx(floor, rel=3e-3 if floor > 1 else 0.05)


def test_descent_on_the_trace_loss_equalises_the_spectrum_and_reaches_the_floor():
    torch.manual_seed(0)
    x = (torch.randn(8, 40, dtype=torch.float64) * torch.linspace(0.5, 2, 8)[:, None]).requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.05)
    for _ in range(600):
        loss = trace_loss(iter_norm(x))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() == pytest.approx(trace_loss_floor(8, 4), rel=1e-3)
    a = (x - x.mean(1, keepdim=True)).detach()
    assert torch.linalg.cond(a @ a.T).item() < 1.1


def test_the_trade_off_follows_the_batch():
    assert [round(trade_off(n), 6) for n in (8, 32, 64, 128, 256, 512, 1024, 4096)] == [
        0, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.09,
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------ group whitening


@pytest.mark.parametrize("kind", ["zca", "cholesky", "pca"])
@pytest.mark.parametrize("axis", [0, 1])
def test_each_group_is_white(kind, axis):
    x = random(4, 24) if axis == 0 else random(24, 8)
    groups = 2 if axis == 0 else 4
    centred = x - x.mean(1, keepdim=True) if axis == 0 else x - x.mean(0)
    y = group_whitening(x, kind, groups=groups, axis=axis)
    for block, before in zip(y.chunk(groups, 1), centred.chunk(groups, 1), strict=True):
        a = block.T if axis == 0 else block
        np.testing.assert_allclose(a.T @ a / (len(a) - 1), np.eye(a.shape[1]), atol=1e-9)
        rank = np.linalg.matrix_rank(np.concatenate([a, (before.T if axis == 0 else before)], axis=1))
        assert rank == a.shape[1]  # a linear map of what it was


def test_shrinkage_and_divisor():
    x = random(4, 24)
    a = (x - x.mean(1, keepdim=True)).T
    covariance = 0.8 * (a.T @ a / 24) + 0.2 * torch.eye(4, dtype=torch.float64)
    lower = torch.linalg.cholesky(covariance)
    expected = (a @ torch.linalg.inv(lower).T).T
    np.testing.assert_allclose(group_whitening(x, "cholesky", eps=0.2, minus=0), expected, rtol=1e-9)


@pytest.mark.parametrize("kind", ["zca", "cholesky", "pca"])
def test_gradients_flow_through_the_decomposition(kind):
    x = random(3, 12).requires_grad_()
    weight = random(3, 12, seed=1)
    assert torch.autograd.gradcheck(lambda v: (group_whitening(v, kind, groups=2) * weight).sum().abs(), x)
    assert torch.autograd.gradcheck(lambda v: (iter_norm(v) * weight).sum(), x)


@pytest.mark.parametrize("axis", [0, 1])
def test_the_covariance_penalty_is_the_mean_square_of_what_is_off_the_diagonal(axis):
    x = random(5, 9)
    covariance = np.cov(x.numpy(), rowvar=axis == 0)
    off = covariance - np.diag(np.diag(covariance))
    assert covariance_penalty(x, axis).item() == pytest.approx((off**2).sum() / len(covariance))


@pytest.mark.parametrize("kind", ["zca", "cholesky", "pca"])
@pytest.mark.parametrize("axis", [0, 1])
def test_many_batches_are_whitened_each_by_itself(kind, axis):
    count, samples, features = 3, (6, 40)[axis], (40, 6)[axis]
    x = torch.randn(2, count, samples, features, dtype=torch.float64)
    orders = torch.stack([torch.randperm(features) for _ in range(2 * count)]).view(2, count, features)
    options = {"kind": kind, "groups": 2, "axis": axis, "eps": 0.1}
    together = group_whitening(x, permutation=orders, **options)
    for i in range(2):
        for j in range(count):
            alone = group_whitening(x[i, j], permutation=orders[i, j], **options)
            np.testing.assert_allclose(together[i, j], alone, rtol=1e-9, atol=1e-11)

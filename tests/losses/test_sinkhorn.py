from src.losses.sinkhorn import sinkhorn
from src.parallel import collectives
from tests.helpers import on_ranks

import numpy as np
import pytest
import torch
from torch.nn import functional as F


def reference_sinkhorn(scores, epsilon, iterations):
    """Spec section 3.4, literally, in float64: (R, K) of all ranks."""
    m = np.exp(np.asarray(scores, dtype=np.float64) / epsilon).T
    num_prototypes, num_samples = m.shape
    m /= m.sum()
    for _ in range(iterations):
        m /= m.sum(axis=1, keepdims=True)
        m /= num_prototypes
        m /= m.sum(axis=0, keepdims=True)
        m /= num_samples
    return (m * num_samples).T


def cosine_scores(rows, prototypes, seed=0, dim=8):
    generator = torch.Generator().manual_seed(seed)
    z = F.normalize(torch.randn(rows, dim, generator=generator), dim=1)
    c = F.normalize(torch.randn(prototypes, dim, generator=generator), dim=1)
    return z @ c.T


@pytest.mark.parametrize("epsilon", [0.1, 0.05, 0.04, 0.03, 0.01])
@pytest.mark.parametrize("iterations", [1, 3, 10])
def test_matches_the_float64_formula(epsilon, iterations):
    scores = cosine_scores(32, 20)
    expected = reference_sinkhorn(scores.numpy(), epsilon, iterations)
    np.testing.assert_allclose(sinkhorn(scores, epsilon, iterations).numpy(), expected, rtol=2e-4, atol=1e-7)


def test_samples_are_exact_distributions_and_prototypes_balanced():
    q = sinkhorn(cosine_scores(64, 16), 0.05, 50)
    torch.testing.assert_close(q.sum(dim=1), torch.ones(64))
    torch.testing.assert_close(q.sum(dim=0), torch.full((16,), 4.0), rtol=1e-3, atol=1e-3)


def test_equal_scores_give_uniform_assignments():
    q = sinkhorn(torch.full((12, 30), 0.7), 0.05, 3)
    torch.testing.assert_close(q, torch.full((12, 30), 1 / 30))


def test_problems_in_a_batch_do_not_mix():
    first, second = cosine_scores(16, 10, seed=1), cosine_scores(16, 10, seed=2)
    both = sinkhorn(torch.stack([first, second]), 0.05, 3)
    torch.testing.assert_close(both[0], sinkhorn(first, 0.05, 3))
    torch.testing.assert_close(both[1], sinkhorn(second, 0.05, 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_scores_stay_finite(dtype):
    scores = torch.tensor([[1.0, -1.0, 0.5], [0.9, 0.99, -1.0]], dtype=dtype)
    for epsilon in (0.05, 0.01, 0.003):
        q = sinkhorn(scores, epsilon, 3)
        assert q.dtype == torch.float32
        assert torch.isfinite(q).all()
        torch.testing.assert_close(q.sum(dim=1), torch.ones(2))


def test_has_no_gradient_and_refuses_no_iterations():
    scores = cosine_scores(4, 3).requires_grad_()
    assert not sinkhorn(scores, 0.05, 3).requires_grad
    with pytest.raises(ValueError, match="at least one iteration"):
        sinkhorn(scores, 0.05, 0)


def _sinkhorn_of_my_rows(scores):
    rank, world = collectives.rank(), collectives.world_size()
    mine = torch.tensor(scores).chunk(world)[rank]
    return sinkhorn(mine, 0.05, 3).numpy()


def test_two_ranks_equal_one_process_on_all_rows():
    scores = cosine_scores(32, 20)
    parts = on_ranks(2, _sinkhorn_of_my_rows, scores.numpy())
    np.testing.assert_allclose(np.concatenate(parts), sinkhorn(scores, 0.05, 3).numpy(), rtol=1e-5, atol=1e-8)

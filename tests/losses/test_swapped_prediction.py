import math

from src.losses.swapped_prediction import swapped_prediction_loss

import numpy as np
import pytest
import torch


def reference_loss(scores, assignments, crops_for_assign, temperature):
    """Spec section 3.2 in float64, with loops."""
    scores = np.asarray(scores, dtype=np.float64) / temperature
    log_p = scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))
    num_crops = len(scores)
    total = 0.0
    for slot, crop in enumerate(crops_for_assign):
        others = [v for v in range(num_crops) if v != crop]
        subloss = 0.0
        for v in others:
            subloss += -np.mean(np.sum(assignments[slot] * log_p[v], axis=1))
        total += subloss / len(others)
    return total / len(crops_for_assign)


@pytest.mark.parametrize("crops_for_assign", [[0, 1], [1], [2, 0, 3]])
def test_matches_the_float64_formula(crops_for_assign):
    rng = np.random.default_rng(0)
    scores = rng.uniform(-1, 1, size=(4, 6, 10))
    assignments = rng.dirichlet(np.ones(10), size=(len(crops_for_assign), 6))
    loss = swapped_prediction_loss(
        torch.tensor(scores, dtype=torch.float32), torch.tensor(assignments).float(), crops_for_assign, 0.1
    )
    assert loss.item() == pytest.approx(reference_loss(scores, assignments, crops_for_assign, 0.1), rel=1e-5)


def test_gradient_is_the_published_one():
    """dL/dP_v = -1/(|A| (V-1) B tau) sum over assigned c != v of (q_c - softmax(P_v / tau))."""
    torch.manual_seed(0)
    scores = torch.randn(4, 6, 10, dtype=torch.float64).requires_grad_()
    assignments = torch.rand(2, 6, 10).softmax(-1)
    swapped_prediction_loss(scores, assignments, [0, 1], 0.1).backward()
    p = (scores / 0.1).softmax(-1)
    expected = torch.zeros_like(scores)
    for slot, crop in enumerate([0, 1]):
        for v in range(4):
            if v != crop:
                expected[v] -= (assignments[slot] - p[v]) / (2 * 3 * 6 * 0.1)
    assert scores.grad is not None
    torch.testing.assert_close(scores.grad, expected.detach(), rtol=1e-5, atol=1e-6)


def test_constant_scores_cost_ln_k():
    scores = torch.full((3, 5, 3000), 0.4)
    assignments = torch.full((2, 5, 3000), 1 / 3000)
    assert swapped_prediction_loss(scores, assignments, [0, 1], 0.1).item() == pytest.approx(math.log(3000), rel=1e-4)

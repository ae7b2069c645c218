import math

from src.optim.larc import LARC

import numpy as np
import pytest
import torch
from timm.optim import Lars


def reference_steps(w, grads, lr, wd, eta=0.001, momentum=0.9, clip=False):
    """The formula of the docstring, in float64 numpy."""
    buffer = None
    for g in grads:
        if g is None:
            continue
        wn, gn = np.linalg.norm(w), np.linalg.norm(g)
        if wn != 0 and gn != 0:
            a = eta * wn / (gn + wd * wn + 1e-8)
            if clip:
                a = min(a / lr, 1.0)
            g = a * (g + wd * w)
        buffer = g.copy() if buffer is None else momentum * buffer + g
        w = w - lr * buffer
    return w


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("wd", [0.0, 1e-2])
def test_five_steps_match_the_float64_formula(wd, clip):
    rng = np.random.default_rng(0)
    shapes = [(4, 3), (7,), (2, 3, 2, 2)]
    weights = [rng.normal(size=s) for s in shapes] + [np.zeros(5)]  # the last one starts at zero, as a BN bias
    grads = [[rng.normal(size=w.shape) for _ in range(5)] for w in weights]
    params = [torch.nn.Parameter(torch.tensor(w)) for w in weights]
    optimizer = LARC(params, lr=0.3, weight_decay=wd, clip=clip)
    for step in range(5):
        for p, g in zip(params, grads, strict=True):
            p.grad = torch.tensor(g[step])
        optimizer.step()
    for p, w, g in zip(params, weights, grads, strict=True):
        expected = reference_steps(w, g, 0.3, wd, clip=clip)
        np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-10, atol=1e-12)


def test_a_zero_tensor_takes_a_plain_step_without_decay():
    p = torch.nn.Parameter(torch.zeros(3))
    p.grad = torch.tensor([1.0, -2.0, 3.0])
    LARC([p], lr=0.5, weight_decay=0.1).step()
    torch.testing.assert_close(p.detach(), torch.tensor([-0.5, 1.0, -1.5]))


def test_a_zero_gradient_is_not_decayed():
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.zeros(3)
    LARC([p], lr=0.5, weight_decay=0.1).step()
    assert torch.equal(p.detach(), torch.ones(3))


def test_a_missing_gradient_is_skipped_without_a_buffer():
    frozen, trained = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    optimizer = LARC([frozen, trained], lr=0.5, weight_decay=0.1)
    trained.grad = torch.ones(3)
    optimizer.step()
    assert torch.equal(frozen.detach(), torch.ones(3))
    assert frozen not in optimizer.state
    # unfrozen later, its first momentum is its first gradient
    frozen.grad = torch.ones(3)
    trained.grad = torch.ones(3)
    optimizer.step()
    expected = reference_steps(np.ones(3), [np.ones(3)], 0.5, 0.1)
    np.testing.assert_allclose(frozen.detach().numpy(), expected, rtol=1e-6)


def test_memory_formats_make_no_difference():
    """Weight, gradient and a loaded momentum buffer may each be laid out in their own way."""
    torch.manual_seed(0)
    weight, grads = torch.randn(4, 3, 2, 2), [torch.randn(4, 3, 2, 2) for _ in range(3)]
    ends = []
    for last in (False, True):
        formats = [torch.channels_last, torch.contiguous_format] if last else [torch.contiguous_format] * 2
        p = torch.nn.Parameter(weight.to(memory_format=formats[0], copy=True))
        optimizer = LARC([p], lr=0.5, weight_decay=0.1)
        for step, grad in enumerate(grads):
            p.grad = grad.to(memory_format=formats[step % 2], copy=True)
            optimizer.step()
            saved = optimizer.state_dict()
            saved["state"][0]["momentum_buffer"] = saved["state"][0]["momentum_buffer"].contiguous()
            optimizer.load_state_dict(saved)
        ends.append(p.detach())
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-6, atol=1e-7)


def test_the_momentum_buffer_does_not_share_the_gradients_memory():
    """Which the next backward pass writes into, when gradients are views into DDP's buckets."""
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.full((3,), 2.0)
    optimizer = LARC([p], lr=0.5, weight_decay=0.1)
    optimizer.step()
    buffer = optimizer.state[p]["momentum_buffer"].clone()
    p.grad.fill_(7.0)
    assert torch.equal(optimizer.state[p]["momentum_buffer"], buffer)


def test_agrees_with_timm_where_the_two_mean_the_same():
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(4, 5)), torch.nn.Parameter(torch.randn(6))]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    a = LARC(ours, lr=0.3, weight_decay=1e-3)
    b = Lars(theirs, lr=0.3, momentum=0.9, weight_decay=1e-3, trust_coeff=0.001, eps=1e-8)
    for _ in range(4):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        a.step()
        b.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


def test_state_dict_is_plain_sgds():
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    optimizer = LARC([p], lr=0.5, weight_decay=1e-6)
    optimizer.step()
    state = optimizer.state_dict()
    assert set(state["state"][0]) == {"momentum_buffer"}
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.ones(3))], lr=0.1, momentum=0.9)
    sgd.load_state_dict(state)
    assert sgd.param_groups[0]["weight_decay"] == 1e-6
    assert sgd.param_groups[0]["dampening"] == 0
    assert sgd.param_groups[0]["nesterov"] is False


def test_an_overflow_changes_neither_weights_nor_momentum():
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = LARC([p], lr=0.5, weight_decay=1e-2)
    p.grad = torch.tensor([1.0, 2.0, 3.0])
    optimizer.step()
    before, momentum = p.detach().clone(), optimizer.state[p]["momentum_buffer"].clone()
    p.grad = torch.tensor([1.0, math.inf, 3.0])
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    assert torch.equal(p.detach(), before)
    assert torch.equal(optimizer.state[p]["momentum_buffer"], momentum)
    optimizer.found_inf = torch.tensor(0.0)
    p.grad = torch.tensor([1.0, 2.0, 3.0])
    optimizer.step()
    grad = np.array([1.0, 2.0, 3.0])
    np.testing.assert_allclose(p.detach(), reference_steps(np.ones(3), [grad, grad], 0.5, 1e-2), rtol=1e-6)

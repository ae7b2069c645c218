"""LARS against its formulas in float64, in both variants."""

from src.optim.lars import LARS, split_by_adaptation

import numpy as np
import pytest
import torch


def reference(variant, w, grads, lrs, wd, adapt, eta=0.001, momentum=0.9):
    buffer = None
    for g, lr in zip(grads, lrs, strict=True):
        u = g + wd * w
        if adapt and variant == "twist":
            bottom = np.linalg.norm(g) + wd * np.linalg.norm(w)
            u = u * (eta * np.linalg.norm(w) / bottom if bottom else 0.0)
        elif adapt:
            both = np.linalg.norm(w) > 0 and np.linalg.norm(u) > 0
            u = u * (eta * np.linalg.norm(w) / np.linalg.norm(u) if both else 1.0)
        if variant == "twist":
            buffer = lr * u if buffer is None else momentum * buffer + lr * u
            w = w - buffer
        else:
            buffer = u if buffer is None else momentum * buffer + u
            w = w - lr * buffer
    return w


@pytest.mark.parametrize("variant", ["twist", "moco-v3"])
@pytest.mark.parametrize("wd", [0.0, 1e-2])
def test_five_steps_match_the_float64_formula(variant, wd):
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=(4, 3)), rng.normal(size=(2, 3, 2, 2)), np.zeros((3, 3)), rng.normal(size=5)]
    adapts = [True, True, True, False]
    grads = [[rng.normal(size=w.shape) for _ in range(5)] for w in weights]
    lrs = [0.0, 0.5, 0.3, 0.2, 0.1]
    params = [torch.nn.Parameter(torch.tensor(w)) for w in weights]
    groups = [{"params": params[:3]}, {"params": params[3:], "adapt": False}]
    optimizer = LARS(groups, weight_decay=wd, variant=variant)
    for step, lr in enumerate(lrs):
        for group in optimizer.param_groups:
            group["lr"] = lr
        for p, g in zip(params, grads, strict=True):
            p.grad = torch.tensor(g[step])
        optimizer.step()
    for p, w, g, adapt in zip(params, weights, grads, adapts, strict=True):
        expected = reference(variant, w, g, lrs, wd, adapt)
        np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-10, atol=1e-12)


def test_a_zero_tensor_stays_with_twists_and_takes_a_plain_step_with_moco_v3s():
    for variant, expected in (("twist", [0.0, 0.0]), ("moco-v3", [-0.5, 1.0])):
        p = torch.nn.Parameter(torch.zeros(2))
        p.grad = torch.tensor([1.0, -2.0])
        LARS([p], lr=0.5, variant=variant).step()
        assert p.tolist() == expected


def test_no_gradient_at_all_is_no_division_by_zero():
    for variant in ("twist", "moco-v3"):
        p = torch.nn.Parameter(torch.ones(2))
        p.grad = torch.zeros(2)
        LARS([p], lr=0.5, variant=variant).step()
        assert p.tolist() == [1.0, 1.0]


def test_the_size_of_the_gradient_does_not_matter():
    """Closed form: the first step has length lr * eta * |w|."""
    for scale in (1e-3, 1.0, 1e3):
        p = torch.nn.Parameter(torch.full((3, 4), 2.0, dtype=torch.float64))
        before = p.detach().clone()
        p.grad = scale * torch.arange(12.0, dtype=torch.float64).view(3, 4)
        LARS([p], lr=0.7).step()
        assert float((p.detach() - before).norm()) == pytest.approx(0.7 * 0.001 * float(before.norm()), rel=1e-9)


def test_an_overflow_leaves_everything_as_it_was():
    p = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([p], lr=0.5, variant="twist")
    p.grad = torch.ones(2, 2)
    optimizer.step()
    weight, buffer = p.detach().clone(), optimizer.state[p]["momentum_buffer"].clone()
    p.grad = torch.full((2, 2), torch.inf)
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    assert torch.equal(p.detach(), weight)
    assert torch.equal(optimizer.state[p]["momentum_buffer"], buffer)


def test_biases_norms_and_named_parameters_neither_decay_nor_adapt():
    module = torch.nn.ModuleDict({"conv": torch.nn.Conv2d(3, 4, 3), "norm": torch.nn.BatchNorm2d(4)})
    module.register_parameter("pos_embed", torch.nn.Parameter(torch.zeros(1, 4, 4)))
    module["conv"].register_parameter("frozen", torch.nn.Parameter(torch.zeros(2, 2), requires_grad=False))
    decayed, plain = split_by_adaptation(module.named_parameters(), exempt=("pos_embed",))
    assert [tuple(p.shape) for p in decayed["params"]] == [(4, 3, 3, 3)]
    assert sorted(tuple(p.shape) for p in plain["params"]) == [(1, 4, 4), (4,), (4,), (4,)]
    assert (plain["weight_decay"], plain["adapt"]) == (0.0, False)

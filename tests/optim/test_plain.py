import copy

from src.optim.plain import SGD, adam, adamw

import pytest
import torch


def trained(make, steps, overflow=(), dtype=torch.float64):
    """Two parameters after steps on drawn gradients; ``overflow`` are the steps whose gradients are not finite."""
    chance = torch.Generator().manual_seed(3)
    params = [torch.nn.Parameter(torch.randn(shape, generator=chance, dtype=dtype)) for shape in [(4, 3), (5,)]]
    optimizer = make([{"params": params[:1]}, {"params": params[1:], "weight_decay": 0.0}])
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for step in range(steps):
        loss = sum((p * torch.randn(p.shape, generator=chance, dtype=dtype)).sum() for p in params)
        scaler.scale(loss * float("inf") if step in overflow else loss).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    return params, optimizer


@pytest.mark.parametrize("overflow", [(), (0,), (2,), (0, 1, 3)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_sgd_is_the_one_of_torch(overflow, weight_decay):
    """Also where the first steps overflow, in which torch's own kernel would take momentum that nobody has set."""
    options = {"lr": 0.3, "momentum": 0.9, "weight_decay": weight_decay}
    ours, _ = trained(lambda groups: SGD(groups, **options), 6, overflow)
    theirs, _ = trained(lambda groups: torch.optim.SGD(groups, **options), 6, overflow)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_sgd_goes_on_from_a_state_of_torch():
    options = {"lr": 0.3, "momentum": 0.9, "weight_decay": 0.1}
    params, theirs = trained(lambda groups: torch.optim.SGD(groups, **options), 3)
    copies = copy.deepcopy(params)
    ours = SGD([{"params": copies[:1]}, {"params": copies[1:]}], **options)
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    for one, other in zip(params, copies, strict=True):
        one.grad, other.grad = torch.ones_like(one), torch.ones_like(one)
    theirs.step()
    ours.step()
    for one, other in zip(params, copies, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("make", "kind"), [(adam, torch.optim.Adam), (adamw, torch.optim.AdamW)])
def test_adam_is_fused_on_a_device_alone(make, kind):
    ours, optimizer = trained(lambda groups: make(groups, lr=0.1, weight_decay=0.1), 4, (1,))
    theirs, _ = trained(lambda groups: kind(groups, lr=0.1, weight_decay=0.1), 4, (1,))
    assert type(optimizer) is kind
    assert not optimizer.param_groups[0]["fused"]
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))

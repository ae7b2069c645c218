"""The moving average against its formula."""

from src.optim.ema import momentum_copy, update_momentum_copy

import torch
from torch import nn


def network():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()


def test_parameters_are_averaged_and_buffers_are_not():
    torch.manual_seed(0)
    online = network()
    online(torch.randn(8, 3).double())  # moves the running statistics
    average = momentum_copy(online)
    assert all(
        torch.equal(a, b) for a, b in zip(average.state_dict().values(), online.state_dict().values(), strict=True)
    )
    assert not any(p.requires_grad for p in average.parameters())
    expected = [p.detach().clone() for p in average.parameters()]
    statistics = [b.clone() for b in average.buffers()]
    for momentum in (0.9, 0.99, 0.0):
        for p in online.parameters():
            p.data.add_(torch.randn_like(p))
        online(torch.randn(8, 3).double())
        update_momentum_copy(average, online, momentum)
        expected = [
            momentum * a + (1 - momentum) * p.detach() for a, p in zip(expected, online.parameters(), strict=True)
        ]
        for a, e in zip(average.parameters(), expected, strict=True):
            torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-14)
        assert all(torch.equal(a, b) for a, b in zip(average.buffers(), statistics, strict=True))

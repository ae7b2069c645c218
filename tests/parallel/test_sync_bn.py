from src.errors import UserError
from src.parallel import collectives, sync_bn
from tests.helpers import on_ranks

import numpy as np
import pytest
import torch
from torch import nn


def _network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 5), nn.BatchNorm1d(5))


def _data():
    return torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def _loss(out):
    return (out.sin() * torch.arange(1.0, 6.0)).sum()


def _rank(group_size):
    network = sync_bn.convert(_network(), group_size)
    assert sum(isinstance(m, sync_bn.CPUSyncBatchNorm) for m in network.modules()) == 2
    world, rank = collectives.world_size(), collectives.rank()
    # unequal shares: statistics must be weighted by them
    sizes = [5, 7] if world == 2 else [3, 3, 3, 3]
    mine = _data().split(sizes)[rank]
    out = network(mine)
    _loss(out).backward()
    grads = [p.grad for p in network.parameters()]
    return (
        out.detach().numpy(),
        [g.numpy() for g in grads],
        {n: b.numpy() for n, b in network.named_buffers()},
        network.eval()(mine).detach().numpy(),
    )


def _whole(data):
    network = _network()
    out = network(data)
    _loss(out).backward()
    buffers = dict(network.named_buffers())
    return out.detach(), [p.grad for p in network.parameters()], buffers, network.eval()(data).detach()


def test_two_ranks_equal_one_process_on_the_whole_batch():
    parts = on_ranks(2, _rank, 0)
    out, grads, buffers, evaluated = _whole(_data())
    np.testing.assert_allclose(np.concatenate([p[0] for p in parts]), out, rtol=1e-4, atol=1e-5)
    for i, grad in enumerate(grads):
        np.testing.assert_allclose(sum(p[1][i] for p in parts), grad, rtol=1e-3, atol=1e-4)
    for name, buffer in buffers.items():
        for part in parts:
            np.testing.assert_allclose(part[2][name], buffer, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.concatenate([p[3] for p in parts]), evaluated, rtol=1e-4, atol=1e-5)


def test_groups_are_of_consecutive_ranks():
    parts = on_ranks(4, _rank, 2)
    for first in (0, 2):
        out = _whole(_data()[3 * first : 3 * first + 6])[0]
        np.testing.assert_allclose(np.concatenate([p[0] for p in parts[first : first + 2]]), out, rtol=1e-4, atol=1e-5)


def _bad_groups():
    with pytest.raises(UserError, match="does not divide"):
        sync_bn.process_group_of(2)
    return True


def test_unequal_groups_are_refused():
    assert on_ranks(3, _bad_groups) == [True] * 3


def test_one_process_keeps_plain_batch_norm():
    network = _network()
    assert sync_bn.convert(network) is network
    assert type(network[1]) is nn.BatchNorm2d

"""Spherical k-means against its steps in float64, and over ranks against one process."""

from src.ops.kmeans import assign, spherical_kmeans
from tests.helpers import on_ranks

import numpy as np
import pytest
import torch


def unit(rows, dim, seed):
    x = np.random.default_rng(seed).normal(size=(rows, dim))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def reference(x, c, iterations):
    for _ in range(iterations):
        labels = (x @ c.T).argmax(1)
        for k in range(len(c)):
            if (labels == k).any():
                c[k] = x[labels == k].mean(0)
        c /= np.linalg.norm(c, axis=1, keepdims=True)
    return c, (x @ c.T).argmax(1)


@pytest.mark.parametrize("chunk_bytes", [1, 4 * 12 * 7, 1 << 28])
@pytest.mark.parametrize("iterations", [0, 1, 10])
def test_it_is_the_algorithm_of_the_paper(iterations, chunk_bytes):
    x, c = unit(300, 8, 0), unit(12, 8, 1)
    expected, labels = reference(x.copy(), c.copy(), iterations)
    ours, assignments = spherical_kmeans(torch.tensor(x), torch.tensor(c), iterations, chunk_bytes=chunk_bytes)
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-6)
    assert assignments.tolist() == labels.tolist()


def test_a_cluster_without_samples_keeps_its_centroid():
    x = torch.tensor(unit(20, 4, 0)).abs()
    x /= x.norm(dim=1, keepdim=True)
    c = torch.cat([x[:2], -x[:1]]).float()  # nothing is nearest to the last one
    centroids, labels = spherical_kmeans(x, c, 5)
    assert 2 not in labels
    torch.testing.assert_close(centroids[2], c[2])


def test_progress_is_told():
    told = []
    x = torch.tensor(unit(20, 4, 0)).float()
    spherical_kmeans(x, x[:3], 4, progress=told.append)
    assert told == [1, 2, 3, 4]


def _on_a_rank(x, c):
    from src.parallel import collectives

    mine = torch.tensor(x[collectives.rank() :: collectives.world_size()])
    centroids, labels = spherical_kmeans(mine, torch.tensor(c))
    return centroids.numpy(), labels.numpy()


def test_two_ranks_equal_one_process():
    x, c = unit(301, 8, 0), unit(12, 8, 1)  # uneven shares
    expected, labels = reference(x.copy(), c.copy(), 10)
    for rank, (centroids, mine) in enumerate(on_ranks(2, _on_a_rank, x, c)):
        np.testing.assert_allclose(centroids, expected, atol=1e-6)
        assert mine.tolist() == labels[rank::2].tolist()


def test_assignment_of_nothing_is_nothing():
    assert assign(torch.empty(0, 4), torch.eye(4)).shape == (0,)

"""Orders of an epoch: permutations, independent of the ranks, and the published one."""

import numpy as np
import pytest
import torch
from torch.utils.data import DistributedSampler

from src.data.mixture import Mixture
from src.data.order import KeyedOrder, ShardOrder, TorchOrder, WeightedOrder
from src.data.sampling import ResumableBatches
from src.data.shards import ShardImages
from src.data.source import first_images


@pytest.mark.parametrize("images", [1, 2, 3, 5, 16, 17, 1000, 4097, 100_003])
def test_keyed_orders_are_permutations(images):
    order = KeyedOrder(images, seed=3)
    found = [order.images(epoch, np.arange(images)) for epoch in (0, 1)]
    for one in found:
        assert sorted(one.tolist()) == list(range(images))
    if images > 16:
        assert (found[0] == found[1]).mean() < 0.1
        assert (KeyedOrder(images, seed=4).images(0, np.arange(images)) == found[0]).mean() < 0.1


def test_a_keyed_order_looks_like_a_drawn_one():
    images = 30_000
    places = np.arange(images)
    firsts = []
    for epoch in range(40):
        found = KeyedOrder(images, 0).images(epoch, places)
        # where the images of each tenth land, by tenths: uniform with sampling noise
        table = np.histogram2d(places, found, bins=10)[0]
        chi2 = ((table - images / 100) ** 2 / (images / 100)).sum()
        assert 30 < chi2 < 150  # 81 degrees of freedom
        assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.03
        firsts.append(found[0])
    assert len(set(firsts)) > 35


def test_any_part_of_a_keyed_order_is_known_without_the_rest():
    order = KeyedOrder(5000, 1)
    whole = order.images(7, np.arange(5000))
    some = np.array([4999, 0, 17, 17])
    assert (order.images(7, some) == whole[some]).all()


@pytest.mark.parametrize("order", [TorchOrder(101, 5), KeyedOrder(101, 5), WeightedOrder(101, [range(101)], [1.0])])
def test_the_order_does_not_depend_on_the_ranks(order):
    def drawn(ranks, size):
        batches = [ResumableBatches(101, size, rank=r, world_size=ranks, order=order) for r in range(ranks)]
        for one in batches:
            one.seek(2)
        return [p.image for step in zip(*batches, strict=True) for i in range(size) for p in (part[i] for part in step)]

    assert drawn(1, 12) == drawn(2, 6) == drawn(4, 3)


def test_torch_s_order_is_that_of_its_sampler():
    for ranks in (1, 3):
        for rank in range(ranks):
            theirs = DistributedSampler(range(50), ranks, rank, shuffle=True, seed=2)
            theirs.set_epoch(4)
            ours = ResumableBatches(50, 4, rank=rank, world_size=ranks, seed=2, drop_last=False)
            ours.seek(4)
            assert [p.image for batch in ours for p in batch] == list(theirs)


def test_starting_in_the_middle_gives_the_rest():
    batches = ResumableBatches(64, 4, order=KeyedOrder(64))
    batches.seek(1)
    whole = list(batches)
    batches.seek(1, 9)
    assert list(batches) == whole[9:]


def test_weights_are_kept_and_every_image_of_a_group_is_drawn_equally_often():
    groups = [range(0, 90), range(90, 100)]
    order = WeightedOrder(100, groups, [1.0, 3.0], seed=1)
    epochs = [order.images(epoch, np.arange(100)) for epoch in range(12)]
    assert [(one < 90).sum() for one in epochs] == [25] * 12
    drawn = np.bincount(np.concatenate(epochs), minlength=100)
    assert drawn[:90].max() - drawn[:90].min() <= 1
    assert drawn[90:].max() - drawn[90:].min() <= 1
    assert drawn.sum() == 1200


def test_groups_can_be_scattered_images():
    labels = np.array([0, 1, 0, 2, 0, 0, 0, 2])
    groups = [np.flatnonzero(labels == label) for label in range(3)]
    order = WeightedOrder(8, groups, [1.0] * 3)
    found = np.concatenate([order.images(epoch, np.arange(8)) for epoch in range(30)])
    shares = np.bincount(labels[found]) / len(found)
    assert shares == pytest.approx([1 / 3] * 3, abs=0.01)


def test_the_published_order_takes_no_more_memory_than_an_epoch():
    order = TorchOrder(10, 0)
    expected = torch.randperm(10, generator=torch.Generator().manual_seed(6)).numpy()
    assert (order.images(6, np.arange(10)) == expected).all()


@pytest.mark.parametrize(("sizes", "window"), [([7, 3, 12, 5, 9], 2), ([4] * 9, 3), ([5], 16), ([0, 3, 0, 8], 1), ([1, 1], 1)])
def test_shard_orders_are_permutations_of_few_shards_at_a_time(sizes, window):
    ends = np.cumsum(sizes)
    order = ShardOrder(ends, seed=3, window=window)
    epochs = [order.images(epoch, np.arange(ends[-1])) for epoch in range(4)]
    for epoch, found in enumerate(epochs):
        assert sorted(found.tolist()) == list(range(ends[-1]))
        shards = np.searchsorted(ends, found, side="right")
        # of a shard all images come before its block is left
        first, last = (np.array([f(np.flatnonzero(shards == s)) for s in set(shards)]) for f in (np.min, np.max))
        overlapping = [sum(int(a <= at <= b) for a, b in zip(first, last, strict=True)) for at in range(len(found))]
        assert max(overlapping) <= window
        for position in range(len(found)):
            now = np.searchsorted(ends, order.soon(epoch, int(found[position])), side="right")
            assert shards[position] in now[:window]
            later = shards[position:]
            other = next((s for s in later if s not in now[:window]), None)
            assert other is None or other in now, "what comes next is announced"
    if ends[-1] > 20:
        assert any((epochs[0] != one).any() for one in epochs[1:])
    some = np.array([ends[-1] - 1, 0, 0])
    assert (order.images(2, some) == epochs[2][some]).all()


def test_the_next_epochs_shards_are_announced_at_the_end_of_one():
    ends = np.arange(5, 105, 5)
    order = ShardOrder(ends, window=4)
    last = int(order.images(0, np.array([99]))[0])
    announced = np.searchsorted(ends, order.soon(0, last), side="right")
    first_of_next = np.searchsorted(ends, order.images(1, np.arange(20)), side="right")
    assert set(first_of_next) == set(announced[4:])


def test_parts_and_mixtures_of_shards_have_an_order_too(shards):
    source = ShardImages(shards)
    assert first_images(source, 25).storage_ends.tolist() == [10, 20, 25, 25, 25, 25, 25, 25, 25, 25]
    mixed = Mixture([source, source])
    assert mixed.storage_ends[[9, 10, -1]].tolist() == [96, 106, 192]
    order = ShardOrder(mixed.storage_ends, window=3)
    assert sorted(order.images(0, np.arange(192)).tolist()) == list(range(192))
    seen = []
    source.read_ahead = lambda images, soon: seen.append((images, soon))
    mixed.read_ahead([3, 100], [180])
    assert seen == [([3], []), ([4], [84])]

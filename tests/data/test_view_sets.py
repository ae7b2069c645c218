"""TWIST's and MoCo's views against the tables of their specifications."""

import random

import numpy as np
import pytest
import torch

from src.data.datasets import FolderImages
from src.data.draws import GRAYSCALE, keyed_generator
from src.data.loading import ViewDataset, make_loader
from src.data.to_device import ToDevice
from src.data.sampling import Position
from src.data.randaugment import RandAugmentView, seeded
from src.data.view_sets import moco, twist
from src.data.views import Picture

JITTER = (0.4, 0.4, 0.2, 0.1)


def described(view):
    return (view.size, view.scale, view.jitter, view.blur, view.solarize)


def test_multicrop():
    first, second, *local = twist("multicrop", 3, global_scale=(0.4, 1.0), local_scale=(0.05, 0.4))
    assert described(first) == (224, (0.4, 1.0), JITTER, 1.0, 0.0)
    assert described(second) == (224, (0.4, 1.0), JITTER, 0.1, 0.2)
    assert [described(view) for view in local] == [(96, (0.05, 0.4), JITTER, 0.5, 0.0)] * 3


def test_two_views():
    first, second = twist("barlow", 12, img_size=160)
    assert described(first) == (160, (0.08, 1.0), JITTER, 1.0, 0.0)
    assert described(second) == (160, (0.08, 1.0), JITTER, 0.1, 0.2)
    first, second = twist("moco", 12, img_size=160)
    assert described(first) == described(second) == (160, (0.2, 1.0), (0.4, 0.4, 0.4, 0.1), 0.5, 0.0)


@pytest.mark.parametrize("aug", ["multicrop", "barlow", "moco"])
def test_what_all_have_in_common(aug):
    for view in twist(aug, 2):
        assert (view.bicubic, view.flip, view.jitter_probability, view.grayscale) == (True, 0.5, 0.8, 0.2)
        assert (view.ratio, view.blur_sigma) == ((3 / 4, 4 / 3), (0.1, 2.0))


# ------------------------------------------------------------------------------------------------ RandAugment


def test_rand_is_timms_transform(photograph):
    view = RandAugmentView(64)
    draw = view.draw(np.random.default_rng(0), photograph.width, photograph.height)
    ours = view.cut(Picture(photograph), draw)
    with seeded(draw.seed):
        theirs = view._transform(photograph)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    torch.testing.assert_close((ours / 255 - mean) / std, theirs, rtol=1e-4, atol=1e-4)
    names = [type(step).__name__ for step in view._transform.transforms]
    assert names == ["RandomResizedCropAndInterpolation", "RandomHorizontalFlip", "RandAugment", "MaybeToTensor",
                     "Normalize", "RandomErasing"]  # fmt: skip
    assert len(view._transform.transforms[2].ops) == 15


def test_rand_touches_no_global_generator(photograph):
    view = RandAugmentView(32)
    draw = view.draw(np.random.default_rng(0), photograph.width, photograph.height)
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    expected = torch.rand(2), random.random(), np.random.rand()
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    view.cut(Picture(photograph), draw)
    assert torch.equal(torch.rand(2), expected[0])
    assert (random.random(), np.random.rand()) == expected[1:]


@pytest.mark.parametrize("colours_on_device", [False, True])
def test_rand_is_keyed_and_arrives_normalised(patches, colours_on_device):
    images = FolderImages(patches / "test")
    batches = []
    for workers in (0, 2):
        data = ViewDataset(images, twist("rand", 0, sizes=(32, 16)), seed=1, colours_on_device=colours_on_device)
        positions = [[Position(3, index) for index in range(6)]]
        loader = make_loader(data, positions, workers=workers)
        batches.append(ToDevice(torch.device("cpu"), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])(next(iter(loader))))
    for a, b in zip(batches[0].crops, batches[1].crops, strict=True):
        assert torch.equal(a, b)
        assert a.shape == (6, 3, 32, 32)
        assert -6 < a.min() < a.max() < 6
    assert not torch.equal(*batches[0].crops)


def test_mocos_first_version_turns_gray_before_the_jitter():
    draws = {}
    for aug_plus in (True, False):
        view, other = moco(aug_plus, 32, blur=0.5 if aug_plus else 0.0)
        assert view == other
        draws[aug_plus] = [view.draw(keyed_generator(0, 0, index, 0), 90, 70) for index in range(300)]
    old, new = draws[False], draws[True]
    gray = [GRAYSCALE in draw.order for draw in old]
    assert gray == [draw.grayscale for draw in new]  # the same decisions
    assert 0.1 < np.mean(gray) < 0.3
    assert not any(draw.grayscale or draw.blur_sigma for draw in old)
    assert all(draw.order[-4:] and len(draw.order) == 4 + is_gray for draw, is_gray in zip(old, gray, strict=True))
    assert all(draw.order[0] == GRAYSCALE for draw, is_gray in zip(old, gray, strict=True) if is_gray)
    assert max(abs(draw.hue) for draw in old) > 0.3
    assert max(abs(draw.hue) for draw in new) <= 0.1
    assert not any(GRAYSCALE in draw.order for draw in new)


def test_views_may_change_with_the_epoch(patches):
    early, late = twist("barlow", 0, img_size=16), twist("barlow", 0, img_size=24)
    data = ViewDataset(FolderImages(patches / "test"), lambda epoch: late if epoch >= 2 else early)
    assert [data[Position(epoch, 0)].views[0].shape[-1] for epoch in (0, 1, 2, 3)] == [16, 16, 24, 24]

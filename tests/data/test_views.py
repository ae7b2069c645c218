"""The draws follow torchvision's distributions, and applying one is what torchvision does."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch.nn import functional as F
from torchvision.transforms import v2

from src.data.augment import apply_to_image
from src.data.draws import keyed_generator
from src.data.view_sets import multi_crop
from src.data.views import CentreView, Picture, RandomView
from src.errors import UserError
from tests.helpers import ROOT

MANY = 4000


def draws(view, width, height, count=MANY):
    return [view.draw(keyed_generator(0, 0, index, 0), width, height) for index in range(count)]


def show(view, image, draw):
    return apply_to_image(view.cut(Picture(image), draw), draw)


def assert_same_distribution(ours, theirs):
    """Two samples of one distribution: the largest distance of their distribution functions (Kolmogorov-Smirnov).

    The bound is passed by 99.9 % of pairs that really are alike, and the draws are seeded.
    """
    ours, theirs = np.sort(np.asarray(ours, float)), np.sort(np.asarray(theirs, float))
    grid = np.concatenate([ours, theirs])
    a = np.searchsorted(ours, grid, side="right") / len(ours)
    b = np.searchsorted(theirs, grid, side="right") / len(theirs)
    bound = 1.95 * math.sqrt((len(ours) + len(theirs)) / (len(ours) * len(theirs)))
    assert np.abs(a - b).max() < bound


@pytest.mark.parametrize(("width", "height"), [(400, 300), (64, 64), (30, 400), (400, 30)])
@pytest.mark.parametrize("scale", [(0.14, 1.0), (0.05, 0.14)])
def test_crop_boxes_are_distributed_as_torchvisions(width, height, scale):
    torch.manual_seed(0)
    image = torch.zeros(3, height, width)
    crop = v2.RandomResizedCrop(96, scale=scale)
    theirs = [crop.make_params([image]) for _ in range(MANY)]
    ours = draws(RandomView(96, scale), width, height)
    for name in ("top", "left", "height", "width"):
        assert_same_distribution([getattr(d, name) for d in ours], [t[name] for t in theirs])
    assert_same_distribution([d.width * d.height for d in ours], [t["width"] * t["height"] for t in theirs])


def test_jitter_is_distributed_as_torchvisions():
    torch.manual_seed(0)
    jitter = v2.ColorJitter(0.8, 0.8, 0.8, 0.2)
    theirs = [jitter.make_params([]) for _ in range(MANY)]
    ours = [d for d in draws(RandomView(96, (0.14, 1.0)), 64, 64, 2 * MANY) if d.order][:MANY]
    for ours_name, theirs_name in (
        ("brightness", "brightness_factor"),
        ("contrast", "contrast_factor"),
        ("saturation", "saturation_factor"),
        ("hue", "hue_factor"),
    ):
        assert_same_distribution([getattr(d, ours_name) for d in ours], [t[theirs_name] for t in theirs])
    for position in range(4):  # every operation is equally likely at every place
        counts = np.bincount([d.order[position] for d in ours], minlength=4)
        np.testing.assert_allclose(counts / len(ours), 0.25, atol=0.03)


def test_decisions_have_their_probabilities_and_blur_its_range():
    ours = draws(RandomView(96, (0.14, 1.0), solarize=0.1), 64, 64)
    for share, probability in (
        (np.mean([d.flip for d in ours]), 0.5),
        (np.mean([bool(d.order) for d in ours]), 0.8),
        (np.mean([d.grayscale for d in ours]), 0.2),
        (np.mean([d.blur_sigma > 0 for d in ours]), 0.5),
        (np.mean([d.solarize for d in ours]), 0.1),
    ):
        assert share == pytest.approx(probability, abs=0.03)
    sigmas = [d.blur_sigma for d in ours if d.blur_sigma]
    assert_same_distribution(sigmas, np.random.default_rng(0).uniform(0.1, 2.0, MANY))


def test_decisions_are_independent_of_each_other():
    ours = draws(RandomView(96, (0.14, 1.0)), 64, 64)
    columns = np.array([[d.flip, bool(d.order), d.grayscale, d.blur_sigma > 0, d.top, d.brightness] for d in ours], float)
    correlation = np.corrcoef(columns.T) - np.eye(columns.shape[1])
    assert np.abs(correlation).max() < 0.06


def test_pixels_are_distributed_as_those_of_torchvisions_whole_chain(photograph):
    """Means, deviations and histograms of views of one image, over many draws of both chains."""

    def blur(image):
        if torch.rand(()) < 0.5:
            return image.filter(ImageFilter.GaussianBlur(0.1 + 1.9 * torch.rand(()).item()))
        return image

    image = photograph.resize((160, 120))
    chain = v2.Compose(
        [
            v2.RandomResizedCrop(32, scale=(0.14, 1.0)),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.Lambda(blur),
            v2.PILToTensor(),
        ]
    )
    torch.manual_seed(0)
    theirs = torch.stack([chain(image) for _ in range(1500)]).float()
    view = RandomView(32, (0.14, 1.0))
    ours = torch.stack([show(view, image, d) for d in draws(view, 160, 120, 1500)]).float()
    for statistic in (
        lambda x: x.mean(dim=(1, 2, 3)),
        lambda x: x.std(dim=(1, 2, 3)),
        lambda x: x[:, 0].mean(dim=(1, 2)) - x[:, 2].mean(dim=(1, 2)),  # colour
        lambda x: x.diff(dim=3).abs().mean(dim=(1, 2, 3)),  # sharpness
    ):
        assert_same_distribution(statistic(ours).numpy(), statistic(theirs).numpy())
    ours_histogram = torch.histc(ours, 32, 0, 256) / ours.numel()
    theirs_histogram = torch.histc(theirs, 32, 0, 256) / theirs.numel()
    assert (ours_histogram - theirs_histogram).abs().sum() < 0.06


def test_a_draw_depends_on_its_key_only():
    view = RandomView(96, (0.14, 1.0))
    key = (31, 5, 1234, 2)
    first = view.draw(keyed_generator(*key), 64, 64)
    np.random.default_rng().random(10)
    assert view.draw(keyed_generator(*key), 64, 64) == first
    for position in range(4):
        other = list(key)
        other[position] += 1
        assert view.draw(keyed_generator(*other), 64, 64) != first


def test_switching_one_operation_off_leaves_the_other_draws_alone():
    with_blur = draws(RandomView(96, (0.14, 1.0)), 64, 64, 50)
    without = draws(RandomView(96, (0.14, 1.0), blur=0.0), 64, 64, 50)
    assert [d._replace(blur_sigma=0.0) for d in with_blur] == without


@pytest.mark.parametrize("bicubic", [False, True])
@pytest.mark.parametrize(("size", "scale"), [(224, (0.14, 1.0)), (96, (0.05, 0.14)), (32, (0.2, 1.0))])
def test_a_crop_is_torchvisions(photograph, size, scale, bicubic):
    """Against Pillow's resize of the cut-out: within 3 levels (bicubic 4), 1 at most in all but one pixel of a thousand."""
    image = photograph.resize((500, 375))
    view = RandomView(size, scale, bicubic=bicubic)
    mode = v2.InterpolationMode.BICUBIC if bicubic else v2.InterpolationMode.BILINEAR
    picture = Picture(image)
    differences = []
    for d in draws(view, 500, 375, 12):
        expected = v2.functional.resized_crop(image, d.top, d.left, d.height, d.width, [size, size], mode)
        expected = v2.functional.horizontal_flip(expected) if d.flip else expected
        differences.append(np.abs(view.cut(picture, d).permute(1, 2, 0).numpy().astype(int) - np.asarray(expected)))
    assert not picture.is_reduced
    assert np.max(differences) <= (4 if bicubic else 3)
    assert np.mean(np.array(differences) > 1) < 0.001
    assert np.mean(differences) < 0.1


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize(("photograph", "bound"), [("dogs.jpg", 1), ("brushes.jpg", 2)])
def test_decoding_at_a_reduced_scale_stays_within_its_bound(photograph, bound, factor):
    """Where every crop is twice as large as its output in the reduced image."""
    path = ROOT / "data" / "photographs" / photograph
    with Image.open(path) as whole:
        width, height = whole.size
    view = RandomView(32, (0.6, 1.0)) if factor == 4 else RandomView(96, (0.4, 0.6))
    for d in draws(view, width, height, 6):
        assert view.reduction(d) >= factor
        picture = Picture(Image.open(path))
        picture.reduction = factor
        reduced = view.cut(picture, d).int()
        assert picture.is_reduced
        assert picture.image.width == -(-width // factor)
        difference = (reduced - view.cut(Picture(Image.open(path)), d).int()).abs()
        assert difference.float().mean() < bound
        assert difference[:, 1:-1, 1:-1].float().quantile(0.999) <= 10 * bound


def test_the_scale_is_reduced_only_as_far_as_every_crop_allows(patches):
    view = RandomView(32, (0.14, 1.0))
    draw = view.draw(keyed_generator(0, 0, 0, 0), 400, 300)
    expected = {63: 1, 64: 1, 127: 1, 128: 2, 255: 2, 256: 4, 511: 4, 512: 8, 5000: 8}
    assert {side: view.reduction(draw._replace(width=side, height=2 * side)) for side in expected} == expected
    assert {side: view.reduction(draw._replace(width=2 * side, height=side)) for side in expected} == expected
    assert CentreView(32, 32).reduction(None) == 1
    # a format that cannot reduce is decoded whole
    picture = Picture(Image.open(next((patches / "train" / "leaf").iterdir())))
    picture.reduction = 4
    assert not picture.is_reduced


def test_views_come_group_after_group():
    views = multi_crop([224, 96], [2, 6], [0.14, 0.05], [1.0, 0.14])
    assert [view.size for view in views] == [224] * 2 + [96] * 6
    assert [view.scale for view in views] == [(0.14, 1.0)] * 2 + [(0.05, 0.14)] * 6
    assert all(view.jitter == pytest.approx((0.8, 0.8, 0.8, 0.2)) for view in views)
    assert all((view.jitter_probability, view.grayscale, view.blur, view.solarize) == (0.8, 0.2, 0.5, 0) for view in views)


def test_centre_view_is_the_imagenet_protocol(photograph):
    chain = v2.Compose([v2.Resize(256), v2.CenterCrop(224), v2.PILToTensor()])
    assert torch.equal(CentreView(224, 256).cut(Picture(photograph), None), chain(photograph))
    with pytest.raises(UserError, match="cannot cut"):
        CentreView(224, 128)


def test_an_image_of_one_pixel_gives_a_view():
    view = RandomView(8, (0.05, 0.14))
    image = Image.new("RGB", (1, 1), (10, 20, 30))
    draw = view.draw(keyed_generator(0, 0, 0, 0), 1, 1)
    assert show(view, image, draw).shape == (3, 8, 8)


def test_colours_may_come_before_the_crop(photograph):
    """Then the contrast is about the mean of the whole image; everything else is the same."""
    first = RandomView(64, (0.2, 0.5), blur=0.0, colours_first=True, jitter_probability=1.0, grayscale=0.0)
    later = dataclasses.replace(first, colours_first=False)
    rng = [np.random.default_rng(5) for _ in range(2)]
    draw, plain = (v.draw(r, photograph.width, photograph.height) for v, r in zip((first, later), rng, strict=True))
    assert (draw.order, draw.grayscale) == ((), False)
    assert draw.before._replace(before=None) == plain._replace(blur_sigma=0.0, solarize=False)
    coloured = apply_to_image(Picture(photograph).pixels, draw.before)
    box = coloured[None, :, draw.top : draw.top + draw.height, draw.left : draw.left + draw.width]
    expected = F.interpolate(box, size=(64, 64), mode="bilinear", antialias=True)[0]
    ours = first.cut(Picture(photograph), draw)
    assert torch.equal(ours, expected.flip(2) if draw.flip else expected)
    assert torch.equal(apply_to_image(ours, draw), ours)  # nothing is left to do
    assert first.reduction(draw) == 1

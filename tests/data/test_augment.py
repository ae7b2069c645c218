"""Colours changed by Pillow image by image, and on the device batch by batch, against the plain transforms."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torchvision.transforms.v2 import functional as TF

from src.data.augment import PackedDraws, apply_to_batch, apply_to_image, pack
from src.data.draws import BRIGHTNESS, CONTRAST, GRAYSCALE, HUE, SATURATION, Draw, keyed_generator
from src.data.loading import ViewDataset, collate
from src.data.to_device import ToDevice
from src.data.sampling import Position
from src.data.datasets import FolderImages
from src.data.view_sets import multi_crop
from src.data.views import Picture, RandomView

NOTHING = Draw(0, 0, 1, 1, False, (), 1.0, 1.0, 1.0, 0.0, False, 0.0, False)


def plain(image, draw):
    """The drawn chain by torchvision's and Pillow's own operations, one after the other."""
    adjust = {
        BRIGHTNESS: lambda x: TF.adjust_brightness(x, draw.brightness),
        CONTRAST: lambda x: TF.adjust_contrast(x, draw.contrast),
        SATURATION: lambda x: TF.adjust_saturation(x, draw.saturation),
        HUE: lambda x: TF.adjust_hue(x, draw.hue),
        GRAYSCALE: lambda x: TF.rgb_to_grayscale(x, num_output_channels=3),
    }
    for operation in draw.order:
        image = adjust[operation](image)
    if draw.grayscale:
        image = TF.rgb_to_grayscale(image, num_output_channels=3)
    if draw.blur_sigma:
        image = image.filter(ImageFilter.GaussianBlur(radius=draw.blur_sigma))
    if draw.solarize:
        image = TF.solarize(image, 128)
    return TF.pil_to_tensor(image)


@pytest.fixture(params=["photograph", "noise", "ramp", "flat"])
def picture(request, photograph):
    rng = np.random.default_rng(0)
    if request.param == "photograph":
        return photograph.resize((90, 70))
    if request.param == "noise":
        return Image.fromarray(rng.integers(0, 256, (70, 90, 3), dtype=np.uint8))
    if request.param == "flat":
        return Image.new("RGB", (20, 20), (200, 30, 30))
    ramp = np.arange(256, dtype=np.uint8)  # every level, in grays and in pure colours
    return Image.fromarray(np.stack([np.stack([ramp, ramp, ramp], 1), np.stack([ramp, 0 * ramp, 255 - ramp], 1)]))


def factors(name, count=25):
    values = np.random.default_rng(1).uniform(0.0, 2.0, count)
    return [NOTHING._replace(**{name: float(f)}, order=(dict(brightness=0, contrast=1, saturation=2)[name],)) for f in values]


def random_draws(count, **options):
    view = RandomView(96, (0.14, 1.0), solarize=0.2, **options)
    return [view.draw(keyed_generator(7, 0, i, 0), 90, 70) for i in range(count)]


OPERATIONS = {
    "brightness": factors("brightness"),
    "contrast": factors("contrast"),
    "saturation": factors("saturation"),
    "hue": [NOTHING._replace(order=(HUE,), hue=h / 40) for h in range(-20, 21)],
    "grayscale": [NOTHING._replace(grayscale=True)],
    "gray before the jitter": [NOTHING._replace(order=(GRAYSCALE, CONTRAST), contrast=0.5)],
    "solarize": [NOTHING._replace(solarize=True)],
    "neighbouring blends": [
        NOTHING._replace(order=order, brightness=1.7, contrast=0.4)
        for order in ((BRIGHTNESS, CONTRAST), (CONTRAST, BRIGHTNESS))
    ],
    "nothing": [NOTHING],
}


def compare(picture, draws):
    """Levels of the plain chain, and its differences to our two ways."""
    expected = torch.stack([plain(picture, draw) for draw in draws]).int()
    pixels = TF.pil_to_tensor(picture)
    one_by_one = torch.stack([apply_to_image(pixels, draw) for draw in draws])
    at_once = apply_to_batch(pixels.expand(len(draws), -1, -1, -1), pack(draws))
    assert one_by_one.dtype == torch.uint8
    assert at_once.dtype == torch.float32
    assert torch.equal(at_once, at_once.round())
    assert 0 <= at_once.min() <= at_once.max() <= 255
    return (one_by_one.int() - expected).abs(), (at_once.int() - expected).abs()


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_alone_equals_the_plain_one(picture, operation):
    one_by_one, at_once = compare(picture, OPERATIONS[operation])
    assert one_by_one.max() == 0
    assert at_once.max() <= 1
    assert (at_once > 0).float().mean() < 1e-4


@pytest.mark.parametrize("sigmas", [(0.1, 2.0), (2.0, 7.0)])
def test_blur_stays_within_its_bound(picture, sigmas):
    draws = [NOTHING._replace(blur_sigma=float(s)) for s in np.random.default_rng(0).uniform(*sigmas, 25)]
    for differences in (*compare(picture, draws), *compare(picture.resize((260, 140)), draws)):
        assert differences.max() <= 2
        assert (differences > 0).float().mean() < 0.01


def test_the_mean_of_a_large_image_is_its_mean():
    """As colours that are changed before the crop see it."""
    image = torch.full((3, 4200, 4200), 250, dtype=torch.uint8)
    draw = NOTHING._replace(order=(CONTRAST,), contrast=0.0)
    assert (apply_to_image(image, draw) == 250).all()


def every_colour(*reds):
    """All colours with these levels of red, as a picture."""
    levels = np.arange(256, dtype=np.uint8)
    red, green, blue = np.meshgrid(np.array(reds, dtype=np.uint8), levels, levels, indexing="ij")
    return Image.fromarray(np.stack([red, green, blue], axis=-1).reshape(-1, 256, 3))


@pytest.mark.parametrize("reds", [(0, 1, 85, 128, 254, 255), pytest.param(range(256), marks=pytest.mark.slow)])
def test_in_a_worker_each_colour_becomes_pillows(reds):
    picture = every_colour(*reds)
    draws = [NOTHING._replace(order=(HUE,), hue=hue) for hue in (0.0, 0.1, -0.2, 0.5)]
    for draw in [*draws, NOTHING._replace(grayscale=True), NOTHING._replace(order=(SATURATION,), saturation=1.37)]:
        assert torch.equal(apply_to_image(TF.pil_to_tensor(picture), draw), plain(picture, draw))


def test_whole_chains_are_the_plain_ones(picture):
    one_by_one, at_once = compare(picture, [draw._replace(blur_sigma=0.0) for draw in random_draws(60)])
    assert one_by_one.max() == 0
    one_by_one, at_once = compare(picture, random_draws(60))
    assert one_by_one.max() <= 2
    assert (one_by_one > 0).float().mean() < 1e-4
    assert at_once.max() <= 6  # a level of one operation, moved on by those behind it
    assert (at_once > 0).float().mean() < 0.01
    assert at_once.float().mean() < 0.01


def test_each_image_of_a_batch_has_its_own_draw(photograph):
    """A batch gives each image what it gets alone, wherever it stands."""
    pixels = torch.stack([TF.pil_to_tensor(photograph.resize((32, 32)).rotate(20 * i)) for i in range(12)])
    draws = random_draws(12)
    together = apply_to_batch(pixels, pack(draws))
    for row in range(12):
        assert torch.equal(apply_to_batch(pixels[row : row + 1], pack(draws[row : row + 1]))[0], together[row])
    assert len({tuple(picture.flatten().tolist()) for picture in together}) == 12


def test_a_pack_lists_only_what_is_to_be_done():
    packed = pack([NOTHING, NOTHING._replace(order=(HUE, CONTRAST), hue=-0.1, contrast=1.5), NOTHING._replace(blur_sigma=1.0)])
    steps = [(name, rows.tolist(), values.tolist()) for name, rows, values in packed]
    assert [(name, rows) for name, rows, _ in steps] == [("hue", [1]), ("blend", [1]), ("blur", [2])]
    assert steps[0][2][0][0] == 256 - 25  # int(-0.1 * 255) = -25 levels of hue
    assert steps[1][2][0] == [1.5, 1.0, 0.0]
    assert sum([steps[2][2][0][0], *(2 * w for w in steps[2][2][0][1:])]) == pytest.approx(1, abs=1e-6)
    empty = pack([NOTHING, NOTHING])
    assert list(empty) == []
    assert torch.equal(apply_to_batch(torch.full((2, 3, 4, 4), 9, dtype=torch.uint8), empty), torch.full((2, 3, 4, 4), 9.0))
    assert isinstance(empty.each(torch.clone), PackedDraws)


def test_both_ways_give_the_same_batches(patches):
    """From the files to the network's input, over two crop sizes."""
    views = multi_crop([32, 16], [2, 3], [0.14, 0.05], [1.0, 0.14])
    source = FolderImages(patches / "train")
    mean, std = (0.485, 0.456, 0.406), (0.228, 0.224, 0.225)
    prepare = ToDevice(torch.device("cpu"), mean, std)
    positions = [Position(3, i) for i in range(0, 96, 5)]
    in_worker, on_device = (
        prepare(collate([dataset[position] for position in positions]))
        for dataset in (ViewDataset(source, views, 31), ViewDataset(source, views, 31, colours_on_device=True))
    )
    assert torch.equal(in_worker.indices, on_device.indices)
    assert on_device.draws is None
    for ours, theirs in zip(on_device.crops, in_worker.crops, strict=True):
        levels = (ours - theirs).abs() * torch.tensor(std).view(3, 1, 1) * 255
        assert levels.mean() < 0.02
        assert levels.max() < 8
    # and they are what the transforms of the paper make of these draws
    picture = Picture(source.open(positions[4].image))
    view = views[2]
    draw = view.draw(keyed_generator(31, 3, positions[4].image, 2), 64, 64)
    expected = plain(Image.fromarray(view.cut(picture, draw).permute(1, 2, 0).contiguous().numpy()), draw)
    expected = TF.normalize(TF.to_dtype(expected, torch.float32, scale=True), mean, std)
    torch.testing.assert_close(in_worker.crops[2][4], expected, rtol=0, atol=1e-6)

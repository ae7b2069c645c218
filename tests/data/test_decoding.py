"""How files become levels: modes, bit depths, orientation, channels. Right values are computed here."""

import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from scripts import make_lmdb
from src.data.datasets import How, open_images
from src.data.decoding import Decoding, Stack, decode_jpeg
from src.data.folder import FolderImages
from src.data.loading import ViewDataset, collate
from src.data.sampling import Position
from src.data.view_sets.multi_crop import multi_crop
from src.data.views import CentreView, Picture, RandomView
from src.errors import UserError

RAMP = np.linspace(0, 1, 256).reshape(16, 16)
EXPECTED = np.rint(RAMP * 255).astype(np.uint8)
# ending, array as it is stored, --value_range that it needs
DEEP = {
    "16-bit grey PNG": (".png", np.rint(RAMP * 65535).astype(np.uint16), None),
    "16-bit TIFF": (".tif", np.rint(RAMP * 65535).astype(np.uint16), None),
    "32-bit TIFF": (".tif", np.rint(RAMP * 65535).astype(np.int32), None),
    "float TIFF": (".tif", RAMP.astype(np.float32), None),
    "float TIFF of another range": (".tif", (RAMP * 7 - 3).astype(np.float32), (-3.0, 4.0)),
    "12 bits in 16": (".png", np.rint(RAMP * 4095).astype(np.uint16), (0.0, 4095.0)),
    "8-bit grey": (".png", EXPECTED, None),
}


def levels(source, index=0):
    with source.open(index) as image:
        return np.asarray(Picture(image, source.decoding).image)


@pytest.mark.parametrize("kind", DEEP)
@pytest.mark.parametrize("place", ["folder", "lmdb", "webdataset"])
def test_images_of_more_than_8_bits_keep_their_levels(tmp_path, kind, place):
    ending, array, value_range = DEEP[kind]
    folder = tmp_path / "images" / "a"
    folder.mkdir(parents=True)
    Image.fromarray(array).save(folder / f"x{ending}")
    where = tmp_path / "images"
    if place == "lmdb":
        where = tmp_path / "x.lmdb"
        make_lmdb.main(["--data_path", str(tmp_path / "images"), "--out", str(where)])
    if place == "webdataset":
        where = tmp_path / "x.tar"
        with tarfile.open(where, "w") as archive:
            archive.add(folder / f"x{ending}", f"x{ending}")
    source = open_images(place, where, how=How(Decoding(value_range=value_range)))
    found = levels(source)
    assert found.shape == (16, 16, 3)
    assert np.abs(found[..., 0].astype(int) - EXPECTED).max() <= (1 if "12" in kind else 0)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_8_bit_modes_become_what_pillow_makes_of_them(tmp_path, mode):
    colours = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    colours.convert(mode).save(tmp_path / ("x.tif" if mode in ("CMYK", "YCbCr") else "x.png"))
    source = FolderImages(tmp_path)
    with source.open(0) as opened:
        assert np.array_equal(levels(source), np.asarray(opened.convert("RGB")))


@pytest.mark.parametrize(("array", "message"), [
    (np.full((4, 4), 7.0, np.float32), "values from 7 to 7, where 0 to 1 is the rule for F"),
    (np.full((4, 4), 70000, np.int32), "where 0 to 65535 is the rule for I"),
])  # fmt: skip
def test_values_without_a_known_range_are_asked_for(tmp_path, array, message):
    Image.fromarray(array).save(tmp_path / "x.tif")
    dataset = ViewDataset(FolderImages(tmp_path), [CentreView(4, 4)])
    with pytest.raises(UserError, match=message) as error:
        dataset[Position(0, 0)]
    assert str(tmp_path / "x.tif") in str(error.value)
    assert "--value_range" in str(error.value)


def test_values_that_are_no_numbers_are_an_unreadable_image(tmp_path):
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(tmp_path / "x.tif")
    sample = ViewDataset(FolderImages(tmp_path), [CentreView(4, 4)], replace=False)[Position(0, 0)]
    assert sample.views == []
    assert "values that are no numbers" in sample.unreadable[0]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
def test_exif_orientation(tmp_path, orientation, ending):
    """Against the definition: which side of the stored image is the top, and which the left one."""
    stored = np.zeros((48, 96, 3), np.uint8)
    stored[:24, :48], stored[:24, 48:], stored[24:, :48] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    image = Image.fromarray(stored)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / f"x.{ending}", exif=exif, quality=100, **({"lossless": True} if ending == "webp" else {}))
    flipped = {1: stored, 2: stored[:, ::-1], 3: stored[::-1, ::-1], 4: stored[::-1],
               5: stored.transpose(1, 0, 2), 6: stored.transpose(1, 0, 2)[:, ::-1],
               7: stored.transpose(1, 0, 2)[::-1, ::-1], 8: stored.transpose(1, 0, 2)[::-1]}  # fmt: skip
    for applied in (True, False):
        source = open_images("folder", tmp_path, how=How(Decoding(applied)))
        with source.open(0) as opened:
            picture = Picture(opened, source.decoding)
            seen = np.asarray(picture.image).astype(int)
            assert (picture.width, picture.height) == seen.shape[1::-1]
        expected = flipped[orientation if applied else 1].astype(int)
        assert seen.shape == expected.shape
        assert np.abs(seen - expected).mean() < 3  # JPEG
        # a view that decodes at a reduced scale sees the same
        view = RandomView(4, (1.0, 1.0), flip=0.0, jitter_probability=0.0, grayscale=0.0, blur=0.0)
        small = ViewDataset(source, [view])[Position(0, 0)].views[0].permute(1, 2, 0).numpy().astype(int)
        height, width = expected.shape[:2]
        assert np.abs(small[0, 0] - expected[height // 8, width // 8]).max() < 40


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_any_number_of_channels(tmp_path, channels):
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (20, 24, channels), dtype=np.uint8) for _ in range(3)]
    np.save(tmp_path / "a.npy", arrays[0])
    np.save(tmp_path / "b.npy", np.moveaxis(arrays[1], 2, 0))
    pages = [Image.fromarray(plane) for plane in np.moveaxis(arrays[2], 2, 0)]
    pages[0].save(tmp_path / "c.tif", save_all=True, append_images=pages[1:])
    source = open_images("folder", tmp_path, how=How(Decoding(channels=channels), (".npy",)))
    assert len(source) == 3
    for index, array in enumerate(arrays):
        with source.open(index) as opened:
            seen = Picture(opened, source.decoding).pixels.permute(1, 2, 0).numpy()
        assert np.array_equal(seen, array)
    views = multi_crop([16, 8], [2, 1], [0.5, 0.3], [1.0, 0.5])
    for on_device in (False, True):
        dataset = ViewDataset(source, views, colours_on_device=on_device)
        batch = collate([dataset[Position(0, index)] for index in range(3)])
        assert [tuple(crop.shape) for crop in batch.crops] == [(3, channels, 16, 16)] * 2 + [(3, channels, 8, 8)]
    whole = ViewDataset(source, [CentreView(20, 20)])[Position(0, 0)].views[0]
    assert torch.equal(whole, torch.from_numpy(arrays[0][:, 2:22]).permute(2, 0, 1))


def test_colours_are_the_same_in_workers_and_on_the_device(tmp_path):
    from src.data.augment import apply_to_batch

    np.save(tmp_path / "a.npy", np.random.default_rng(1).integers(0, 256, (20, 24, 5), dtype=np.uint8))
    source = open_images("folder", tmp_path, how=How(Decoding(channels=5), (".npy",)))
    views = multi_crop([16], [2], [0.5], [1.0])
    for epoch in range(8):
        there = ViewDataset(source, views)[Position(epoch, 0)].views
        batch = collate([ViewDataset(source, views, colours_on_device=True)[Position(epoch, 0)]])
        here = apply_to_batch(torch.cat(batch.crops), batch.draws[0]).to(torch.uint8)
        assert torch.equal(torch.stack(there), here)


def test_a_wrong_number_of_channels_is_named(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((8, 8, 4), np.uint8))
    source = open_images("folder", tmp_path, how=How(Decoding(channels=5), (".npy",)))
    with pytest.raises(UserError, match="an image of 4 channels, where --channels 5 are expected"):
        ViewDataset(source, [CentreView(8, 8)])[Position(0, 0)]


def test_stacks_refuse_what_is_no_image():
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    with pytest.raises(ValueError, match="shape"):
        Stack(np.load(io.BytesIO(buffer.getvalue())))


def test_whatever_a_decoder_raises_is_one_unreadable_image(tmp_path, monkeypatch):
    for name in "abc":
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    source = FolderImages(tmp_path)
    real = source.open
    for error in (RuntimeError("plugin"), KeyError("x"), MemoryError(), AttributeError("y"), EOFError()):

        def fails(index, error=error):
            if index == 1:
                raise error
            return real(index)

        monkeypatch.setattr(source, "open", fails)
        left_out = ViewDataset(source, [CentreView(8, 8)], replace=False)[Position(0, 1)]
        assert (left_out.views, len(left_out.unreadable)) == ([], 1)
        assert ViewDataset(source, [CentreView(8, 8)])[Position(0, 1)].image == 2


def jpeg(image, **options):
    file = io.BytesIO()
    image.save(file, "jpeg", **options)
    return file.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_fast_decoder_gives_pillows_levels(photograph, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = jpeg(photograph.resize((50, 37)), exif=exif, progressive=orientation % 2 == 0, subsampling=orientation % 3)
    expected = np.asarray(Decoding().picture(Image.open(io.BytesIO(content)), orientation))
    picture = Picture(Image.open(io.BytesIO(content)))
    assert decode_jpeg(Image.open(io.BytesIO(content))) is not None
    assert np.array_equal(picture.pixels.permute(1, 2, 0).numpy(), expected)
    assert np.array_equal(np.asarray(picture.image), expected)


def test_the_fast_decoder_leaves_to_pillow_what_is_not_its_own(photograph, tmp_path):
    assert decode_jpeg(Image.open(io.BytesIO(jpeg(photograph.convert("L"))))) is None
    assert decode_jpeg(Image.open(io.BytesIO(jpeg(photograph.convert("CMYK"))))) is None
    photograph.save(tmp_path / "a.png")
    assert decode_jpeg(Image.open(tmp_path / "a.png")) is None
    assert decode_jpeg(photograph) is None
    reduced = Image.open(io.BytesIO(jpeg(photograph)))
    reduced.draft("RGB", (photograph.width // 4, photograph.height // 4))
    assert decode_jpeg(reduced) is None
    assert Picture(reduced).pixels.shape[1:] == reduced.size[::-1]


def test_damaged_files_are_judged_as_pillow_judges_them(photograph):
    rng = np.random.default_rng(0)
    whole = jpeg(photograph.resize((160, 120)))
    verdicts = set()
    for number in range(200):
        content = bytearray(whole)
        at = int(rng.integers(len(content) // 2, len(content) - 60))
        if number % 4 == 0:
            del content[at:]
        elif number % 4 == 1:
            content[at] ^= 1 << int(rng.integers(8))
        elif number % 4 == 2:
            content[at : at + 50] = bytes(50)
        else:
            content[at : at + 2] = bytes([0xFF, int(rng.integers(0xC0, 0xFF))])
        results = []
        for levels in (
            lambda opened: np.asarray(opened.convert("RGB")),
            lambda opened: Picture(opened).pixels.permute(1, 2, 0).numpy(),
        ):
            try:
                results.append(levels(Image.open(io.BytesIO(bytes(content)))))
            except Exception:  # whatever Pillow raises
                results.append(None)
        by_pillow, ours = results
        assert (by_pillow is None) == (ours is None)
        assert by_pillow is None or np.array_equal(by_pillow, ours)
        verdicts.add(by_pillow is None)
    assert verdicts == {True, False}

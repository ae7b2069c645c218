import re

import numpy as np
import pytest
from PIL import Image

from src.data.patches import cut_patches
from src.errors import UserError
from tests.helpers import ROOT


def test_patches_of_one_photograph_do_not_overlap_and_keep_to_their_side(tmp_path):
    # every pixel says where it is
    x, y = np.meshgrid(np.arange(200), np.arange(130))
    noise = np.random.default_rng(0).integers(0, 255, x.shape)
    (tmp_path / "photos").mkdir()
    Image.fromarray(np.stack([x, y, noise], axis=-1).astype(np.uint8)).save(tmp_path / "photos" / "a.png")
    counts = cut_patches(tmp_path / "photos", tmp_path / "out", size=40)
    assert counts == {"train": 9, "test": 6}
    seen = set()
    for split in ("train", "test"):
        for path in (tmp_path / "out" / split / "a").iterdir():
            patch = np.asarray(Image.open(path))
            columns, rows = patch[..., 0], patch[..., 1]
            assert columns.max() < 120 if split == "train" else columns.min() >= 120
            pixels = set(zip(columns.ravel().tolist(), rows.ravel().tolist(), strict=True))
            assert len(pixels) == 1600
            assert not pixels & seen
            seen |= pixels


def test_flat_patches_are_dropped_and_the_rest_thinned_evenly(tmp_path):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (100, 200, 3)).astype(np.uint8)
    image[:50] = 128
    (tmp_path / "photos").mkdir()
    Image.fromarray(image).save(tmp_path / "photos" / "a.png")
    assert cut_patches(tmp_path / "photos", tmp_path / "out", size=10) == {"train": 60, "test": 40}
    assert cut_patches(tmp_path / "photos", tmp_path / "thin", size=10, max_train=7, max_test=3) == {
        "train": 7, "test": 3,
    }  # fmt: skip
    with pytest.raises(UserError, match="no photographs"):
        cut_patches(tmp_path / "out", tmp_path / "x")


def test_every_photograph_has_its_author_and_licence():
    text = (ROOT / "data" / "README.md").read_text()
    listed = dict(re.findall(r"^\| `(\w+\.jpg)` \| [^|]+ \| ([^|]+) \|", text, re.M))
    assert set(listed) == {path.name for path in (ROOT / "data" / "photographs").iterdir()}
    assert set(listed.values()) == {"CC-BY-4.0", "CC-BY-SA-4.0", "CC-BY-SA-3.0", "CC0-1.0", "GPL-2+"}
    assert sum(path.stat().st_size for path in (ROOT / "data").rglob("*.jpg")) < 16e6

"""Small real images, cut once for all tests from the photographs in data/."""

import shutil
from pathlib import Path

from src.data.patches import cut_patches
from tests.helpers import ROOT

import pytest
import torch
from filelock import FileLock
from PIL import Image

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def patches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``train`` and ``test`` with 4 classes of 24 and 8 patches of 64 pixels."""
    shared = tmp_path_factory.getbasetemp().parent / "patches"
    with FileLock(f"{shared}.lock"):  # the workers of pytest-xdist share the folder
        if not shared.exists():
            photographs = tmp_path_factory.mktemp("photographs")
            for name in ("stream", "brushes", "leaf", "dogs"):
                shutil.copy(ROOT / "data" / "photographs" / f"{name}.jpg", photographs)
            cut_patches(photographs, shared, size=64, max_train=24, max_test=8)
    return shared


@pytest.fixture
def photograph() -> Image.Image:
    with Image.open(ROOT / "data" / "photographs" / "stream.jpg") as image:
        return image.convert("RGB")

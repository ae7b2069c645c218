"""Small real images, cut once for all tests from the photographs in data/."""

from pathlib import Path

from tests.helpers import ROOT, photograph_patches

import pytest
import torch
from filelock import FileLock
from PIL import Image

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def patches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What :func:`photograph_patches` makes, once for all tests."""
    shared = tmp_path_factory.getbasetemp().parent / "patches"
    with FileLock(f"{shared}.lock"):  # the workers of pytest-xdist share the folder
        if not shared.exists():
            photograph_patches(shared)
    return shared


@pytest.fixture
def photograph() -> Image.Image:
    with Image.open(ROOT / "data" / "photographs" / "stream.jpg") as image:
        return image.convert("RGB")

"""Small real images, cut once for all tests from the photographs in data/."""

from collections.abc import Iterator
from pathlib import Path

from src.models.backbones.resnet import RESNETS
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


@pytest.fixture(scope="module")
def short_resnets() -> Iterator[None]:
    """ResNet-18 with one block in each stage: where ranks meet at every layer, layers are what tests wait for."""
    block, _, width = RESNETS["resnet18"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RESNETS, "resnet18", (block, (1, 1, 1, 1), width))
        yield


@pytest.fixture
def photograph() -> Image.Image:
    with Image.open(ROOT / "data" / "photographs" / "stream.jpg") as image:
        return image.convert("RGB")

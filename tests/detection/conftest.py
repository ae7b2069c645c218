from pathlib import Path

from tests.detection.toy import make_coco, make_voc

import pytest


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small COCO and VOC data sets."""
    root = tmp_path_factory.mktemp("datasets")
    make_coco(root)
    make_voc(root)
    return root

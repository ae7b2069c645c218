"""A study that tests look at, and copy before they change it."""

from pathlib import Path

from tests.study.tiny import studied

import pytest


@pytest.fixture(scope="session")
def one(patches, tmp_path_factory) -> Path:
    """A study of two methods with three seeds."""
    folder = tmp_path_factory.mktemp("study") / "one"
    assert studied(patches, folder, "--methods", "swav", "moco", "--seeds", 3) == 0
    return folder

"""scripts/make_class_subset.py"""

import re
from pathlib import Path

from src.data.datasets import open_train_and_test
from tests.helpers import ROOT, run

import pytest

SCRIPT = "scripts/make_class_subset.py"


@pytest.mark.parametrize("copy", [False, True])
def test_the_new_set_has_the_classes_asked_for(patches, tmp_path, copy):
    names = sorted(path.name for path in (patches / "train").iterdir())[:2]
    (tmp_path / "classes.txt").write_text("\n".join(names))
    command = [SCRIPT, "--data_path", patches, "--out", tmp_path / "two", "--classes", tmp_path / "classes.txt"]
    for _ in range(2):  # started again, it finds its work done
        result = run(*command, *(["--copy"] if copy else []))
        assert result.returncode == 0, result.stderr
    assert (tmp_path / "two" / "train" / names[0]).is_symlink() != copy
    train, test = open_train_and_test("folder", tmp_path / "two")
    assert train.classes == test.classes == names
    assert len(train) == sum(len(list((patches / "train" / name).iterdir())) for name in names)


def test_missing_classes_are_refused(patches, tmp_path):
    result = run(SCRIPT, "--data_path", patches, "--out", tmp_path / "out")
    assert result.returncode == 2
    assert "lacks 100 of the 100 classes" in result.stderr
    assert not (tmp_path / "out").exists()
    result = run(SCRIPT, "--data_path", patches, "--out", tmp_path / "out", "--classes", tmp_path / "none.txt")
    assert (result.returncode, "none.txt" in result.stderr) == (2, True)


def test_imagenet_100_is_a_hundred_of_imagenets_classes():
    import timm

    names = (ROOT / "scripts" / "imagenet100.txt").read_text().split()
    info = Path(timm.__file__).parent / "data" / "_info" / "imagenet_synsets.txt"
    assert len(set(names)) == len(names) == 100
    assert set(names) <= set(info.read_text().split())
    assert all(re.fullmatch(r"n\d{8}", name) for name in names)

"""The images of a study: what is held out, and what is taken for what."""

import shutil

from src.errors import UserError
from src.study.images import _held_out, open_study_images
from src.study.settings import StudyDataSettings
from tests.study.tiny import studied

import numpy as np
import pytest


def test_images_are_held_out_class_by_class(tmp_path):
    """Also where classes take turns."""

    class Listed:
        labels, classes, decoding, left_out = np.arange(40) % 4, list("abcd"), None, []

        def __len__(self):
            return 40

    learnt, test = _held_out(Listed(), "take more")
    assert np.bincount(test.labels).tolist() == [2] * 4
    assert np.bincount(learnt.labels).tolist() == [8] * 4
    assert sorted([*learnt._indices, *test._indices]) == list(range(40))
    Listed.labels = np.arange(40) // 4  # of which none can be spared
    with pytest.raises(UserError, match="no class has 5 images, of which one could be held out to judge by: take more"):
        _held_out(Listed(), "take more")


@pytest.mark.parametrize("path", ["train.csv", ""])
def test_labels_that_are_numbers_may_leave_many_out_and_a_val_beside_is_used(patches, tmp_path, path):
    for part in ("train", "test"):
        classes = sorted(entry.name for entry in (patches / part).iterdir())
        rows = [
            f"{image},{1000 * (1 + classes.index(image.parent.name))}" for image in (patches / part).glob("*/*.png")
        ]
        name = {"train": "train.csv", "test": "val.csv"}[part]
        (tmp_path / name).write_text("\n".join(["path,label", *rows]) + "\n")
    data = StudyDataSettings(data_path=str(tmp_path / path), dataset="list" if path else "folder")
    images = open_study_images(data, 3, tmp_path / "out", 1000, 60)
    assert images.words == ("96 training images of 4 classes (1000, 2000, 3000, ...); 32 test images of their own")
    assert images.watched == ""


def test_a_list_among_the_training_images_is_refused(patches, tmp_path):
    shutil.copytree(patches, tmp_path / "data")
    (tmp_path / "data" / "train" / "train.csv").write_text("path,label\n")
    with pytest.raises(UserError, match=r"train holds train.csv, which the training scripts take for the training im"):
        studied(tmp_path / "data", tmp_path / "out", "--methods", "swav")

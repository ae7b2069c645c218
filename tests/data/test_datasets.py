import shutil

import numpy as np
import pytest
import torchvision
from PIL import Image
from torchvision.datasets import ImageFolder

from src.data.datasets import FolderImages, TorchvisionImages, open_images
from src.data.source import evenly_spread, first_images, require_labels
from src.data.splits import find_classifier_images, find_split, find_val_beside
from src.data.views import Picture
from src.errors import UserError


def test_class_folders_are_read_as_torchvision_does(patches):
    ours, theirs = FolderImages(patches / "train"), ImageFolder(patches / "train")
    assert list(zip(map(ours.name, range(len(ours))), ours.labels, strict=True)) == theirs.samples
    assert ours.classes == theirs.classes
    assert np.array_equal(np.asarray(ours.open(3)), np.asarray(theirs[3][0]))


def test_nested_class_folders_belong_to_their_class(tmp_path, patches):
    some = sorted((patches / "train" / "leaf").iterdir())
    for place in ("cat/indoor/a.png", "cat/outdoor/day/b.png", "dog/c.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(some[0], tmp_path / place)
    source = FolderImages(tmp_path)
    assert source.classes == ["cat", "dog"]
    assert list(source.labels) == [0, 0, 1]


def test_classifiers_train_on_clf_where_there_is_one(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
    assert find_classifier_images("in100", tmp_path) == tmp_path / "train"
    (tmp_path / "clf").mkdir()
    assert find_classifier_images("in100", tmp_path) == tmp_path / "clf"


def test_a_flat_folder_has_no_labels(patches):
    source = FolderImages(patches / "train" / "leaf")
    assert len(source) == 24
    assert set(source.labels) == {-1}
    with pytest.raises(UserError, match="no class folders"):
        require_labels(source, "x")


def test_class_folders_win_over_images_beside_them(tmp_path, patches):
    some = sorted((patches / "train" / "leaf").iterdir())
    (tmp_path / "cat").mkdir()
    shutil.copy(some[0], tmp_path / "cat" / "a.png")
    shutil.copy(some[1], tmp_path / "stray.png")
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "empty").mkdir()
    source = FolderImages(tmp_path)
    assert source.classes == ["cat"]
    assert len(source) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "nowhere", "does not exist"),
        (lambda p: p, "no images in"),
        (lambda p: (p / "file").write_text("") and None or p / "file", "is a file"),
    ],
)
def test_folders_without_images_are_refused(tmp_path, make, message):
    with pytest.raises(UserError, match=message):
        FolderImages(make(tmp_path))


def test_grey_and_transparent_images_become_rgb(tmp_path):
    Image.new("L", (4, 4), 7).save(tmp_path / "grey.png")
    Image.new("RGBA", (4, 4), (1, 2, 3, 4)).save(tmp_path / "alpha.png")
    source = FolderImages(tmp_path)
    assert [Picture(source.open(i)).image.mode for i in range(2)] == ["RGB", "RGB"]


def test_torchvision_sets_are_read_from_a_local_root(tmp_path, monkeypatch):
    import pickle

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        entry = {"data": rng.integers(0, 256, (4, 3072), dtype=np.uint8), "labels": [0, 1, 2, 9]}
        (folder / name).write_bytes(pickle.dumps(entry))
    names = [f"class {i}" for i in range(10)]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    # the real files have known check sums, which made-up ones cannot have
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)
    train = open_images("cifar10", tmp_path, "pretrain")
    test = open_images("cifar10", tmp_path, "test")
    assert (len(train), len(test)) == (20, 4)
    assert train.labels[:4] == [0, 1, 2, 9]
    assert train.classes == names
    assert train.open(0).size == (32, 32)
    assert train.name(3) == "cifar10 pretrain[3]"


def test_a_missing_torchvision_set_is_not_downloaded(tmp_path):
    for name in ("cifar10", "cifar100", "stl10", "svhn"):
        with pytest.raises(UserError, match="pass --download"):
            TorchvisionImages(name, tmp_path, "train")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="unknown --dataset"):
        open_images("imagenet", tmp_path)


def test_first_images_and_evenly_spread(patches):
    source = FolderImages(patches / "train")
    assert first_images(source, -1) is source
    first = first_images(source, 30)
    assert list(first.labels) == [0] * 24 + [1] * 6
    assert first.name(29) == source.name(29)
    spread = evenly_spread(source, 8)
    assert list(spread.labels) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert np.array_equal(np.asarray(spread.open(7)), np.asarray(source.open(84)))
    assert evenly_spread(source, 1000) is source
    for count in (0, -2, 97):
        with pytest.raises(UserError, match="size_dataset"):
            first_images(source, count)


def test_splits_are_found(patches, tmp_path):
    assert find_split("folder", patches, "train") == patches / "train"
    assert find_split("folder", patches, "test") == patches / "test"
    assert find_val_beside("folder", patches / "train") == patches / "test"
    with pytest.raises(UserError, match="--val_path"):
        find_val_beside("folder", tmp_path)
    with pytest.raises(UserError, match="val or test"):
        find_split("folder", tmp_path, "test")
    with pytest.raises(UserError, match="takes the training folder"):
        open_images("folder", patches)
    open_images("folder", patches / "train")

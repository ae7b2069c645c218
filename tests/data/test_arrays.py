"""Arrays and Hugging Face's folders give the same batches as the folder of images."""

import datasets
import h5py
import numpy as np
import pytest
import torch
import zarr
from PIL import Image

from src.data.arrays import ArrayImages
from src.data.datasets import How, open_images, open_train_and_test
from src.data.folder import FolderImages
from src.data.hugging_face import HuggingFaceImages
from src.data.loading import ViewDataset, make_loader
from src.data.sampling import ResumableBatches
from src.data.splits import find_split
from src.errors import UserError
from tests.data.test_sources import VIEWS
from tests.helpers import run
from tests.scripts.test_main_swav import command


@pytest.fixture(scope="module")
def folder(patches):
    return FolderImages(patches / "train")


def pixels(folder):
    return np.stack([np.asarray(folder.open(i).convert("RGB")) for i in range(len(folder))])


def encoded(folder):
    return [open(folder.name(i), "rb").read() for i in range(len(folder))]


def write_npy(folder, path):
    np.save(path / "x.npy", pixels(folder))
    np.save(path / "x.labels.npy", np.asarray(folder.labels))
    return "array", path / "x.npy", How()


def write_planes(folder, path):
    np.save(path / "x.npy", np.moveaxis(pixels(folder), 3, 1))
    np.save(path / "x.labels.npy", np.asarray(folder.labels))
    return "array", path / "x.npy", How()


def write_hdf5(folder, path):
    with h5py.File(path / "x.h5", "w") as file:
        file.create_dataset("images", data=pixels(folder), chunks=(1, 64, 64, 3), compression="gzip")
        file["labels"] = np.asarray(folder.labels)
    return "array", path / "x.h5", How()


def write_hdf5_of_files(folder, path):
    with h5py.File(path / "x.hdf5", "w") as file:
        content = file.create_dataset("jpegs", (len(folder),), dtype=h5py.vlen_dtype(np.uint8))
        for i, one in enumerate(encoded(folder)):
            content[i] = np.frombuffer(one, dtype=np.uint8)
        file["kinds"] = np.asarray(folder.labels)
    return "array", path / "x.hdf5", How(path_column="jpegs", label_column="kinds")


def write_zarr(folder, path):
    group = zarr.open_group(path / "x.zarr", mode="w")
    group.create_array("x", data=pixels(folder), chunks=(8, 64, 64, 3))
    group.create_array("y", data=np.asarray(folder.labels))
    return "array", path / "x.zarr", How()


def rows(folder, images):
    return {"picture": images, "label": [int(label) for label in folder.labels], "id": list(range(len(folder)))}


def write_hf(folder, path):
    features = datasets.Features(
        {"picture": datasets.Image(), "label": datasets.ClassLabel(names=folder.classes), "id": datasets.Value("int64")}
    )
    content = rows(folder, [{"bytes": one, "path": None} for one in encoded(folder)])
    datasets.Dataset.from_dict(content, features=features).save_to_disk(path / "hf", num_shards=3)
    return "hf", path / "hf", How()


def write_hf_of_paths(folder, path):
    content = rows(folder, [{"bytes": None, "path": folder.name(i)} for i in range(len(folder))])
    made = datasets.Dataset.from_dict(content).cast_column("picture", datasets.Image())
    # with a list of indices, which such a folder may have
    made.select(range(len(folder))[::-1]).select(range(len(folder))[::-1]).save_to_disk(path / "hf")
    return "hf", path / "hf", How(path_column="picture", label_column="label")


def write_hf_of_names(folder, path):
    names = [folder.classes[label] for label in folder.labels]
    content = {**rows(folder, encoded(folder)), "label": names}
    datasets.Dataset.from_dict(content).save_to_disk(path / "hf")
    return "hf", path / "hf", How(path_column="picture")


KINDS = [
    write_npy, write_planes, write_hdf5, write_hdf5_of_files, write_zarr, write_hf, write_hf_of_paths,
    write_hf_of_names,
]  # fmt: skip


@pytest.mark.parametrize("write", KINDS)
def test_batches_are_those_of_the_folder(folder, tmp_path, write):
    source = open_images(*write(folder, tmp_path)[:2], how=write(folder, tmp_path)[2])
    assert list(source.labels) == list(folder.labels)
    assert len(source.classes) == len(folder.classes)
    if "hf" in str(write) and "paths" not in str(write):
        assert source.classes == folder.classes
    loaded = []
    for one in (folder, source):
        batches = ResumableBatches(len(one), 8)
        batches.seek(2, 9)
        loaded.append(list(make_loader(ViewDataset(one, VIEWS, 31), batches, workers=2)))
    assert len(loaded[0]) == 3
    for ours, theirs in zip(*loaded, strict=True):
        assert torch.equal(ours.indices, theirs.indices)
        assert all(torch.equal(a, b) for a, b in zip(ours.crops, theirs.crops, strict=True))


def test_a_run_on_an_array_resumes(patches, folder, tmp_path):
    _, path, _ = write_hdf5(folder, tmp_path)
    arguments = command(patches, tmp_path / "run", "--epochs", 2, "--batch_size", 16, "--workers", 2,
                        "--dataset", "array")  # fmt: skip
    arguments[arguments.index("--data_path") + 1] = path
    assert run(*arguments, "--max_steps", 8).returncode == 0
    result = run(*arguments)
    assert result.returncode == 0, result.stderr
    assert "continuing from" in result.stdout


def test_splits_are_found(patches, folder, tmp_path):
    np.save(tmp_path / "train.npy", pixels(folder))
    np.save(tmp_path / "train.labels.npy", np.asarray(folder.labels))
    test = FolderImages(patches / "test")
    np.save(tmp_path / "val.npy", pixels(test))
    np.save(tmp_path / "val.labels.npy", np.asarray(test.labels))
    train, val = open_train_and_test("array", tmp_path)
    assert (len(train), len(val)) == (len(folder), len(test))
    _, path, _ = write_hf(folder, tmp_path)
    path.rename(tmp_path / "validation")
    assert find_split("hf", tmp_path, "test") == tmp_path / "validation"


def bad(path):
    np.save(path / "flat.npy", np.zeros((3, 4)))
    np.save(path / "none.npy", np.zeros((0, 8, 8), dtype=np.uint8))
    np.save(path / "short.npy", np.zeros((5, 8, 8), dtype=np.uint8))
    np.save(path / "short.labels.npy", np.zeros(4, dtype=int))
    np.save(path / "real.npy", np.zeros((5, 8, 8), dtype=np.uint8))
    np.save(path / "real.labels.npy", np.zeros(5))
    (path / "torn.h5").write_bytes(b"\x89HDF\r\n")
    (path / "no.npy").write_bytes(b"")
    (path / "empty.zarr").mkdir()
    with h5py.File(path / "other.h5", "w") as file:
        file["pictures"] = np.zeros((5, 8, 8), dtype=np.uint8)
    (path / "empty").mkdir()
    datasets.Dataset.from_dict({"a": [1]}).save_to_disk(path / "numbers")
    datasets.DatasetDict({"train": datasets.Dataset.from_dict({"a": [1]})}).save_to_disk(path / "splits")


@pytest.mark.parametrize(("dataset", "name", "words"), [
    ("array", "flat.npy", "shape"),
    ("array", "none.npy", "no images"),
    ("array", "short.npy", "labels of the type int64 and shape"),
    ("array", "real.npy", "labels of the type float64"),
    ("array", "torn.h5", "cannot read"),
    ("array", "no.npy", "cannot read"),
    ("array", "empty.zarr", "cannot read|say with --path_column"),
    ("array", "other.h5", "has the arrays pictures: say with --path_column"),
    ("array", "nowhere.npy", "does not exist"),
    ("array", "empty", "expected .npy"),
    ("hf", "empty", "no folder that save_to_disk"),
    ("hf", "numbers", "no column of images"),
    ("hf", "splits", "holds the splits train"),
    ("hf", "nowhere", "does not exist"),
])  # fmt: skip
def test_bad_ones_are_refused(tmp_path, dataset, name, words):
    bad(tmp_path)
    with pytest.raises(UserError, match=words):
        open_images(dataset, tmp_path / name)


def test_columns_that_are_not_there(folder, tmp_path):
    _, array, _ = write_hdf5(folder, tmp_path)
    _, table, _ = write_hf(folder, tmp_path)
    with pytest.raises(UserError, match="has no array other; it has images, labels"):
        ArrayImages(array, "other")
    with pytest.raises(UserError, match="leave out x"):
        np.save(tmp_path / "a.npy", np.zeros((5, 8, 8), dtype=np.uint8))
        ArrayImages(tmp_path / "a.npy", "x")
    with pytest.raises(UserError, match="--label_column kind: .* has the columns picture, label, id"):
        HuggingFaceImages(table, "", "kind")


def test_an_image_that_is_damaged_is_named(folder, tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        content = file.create_dataset("images", (3,), dtype=h5py.vlen_dtype(np.uint8))
        for i in range(3):
            content[i] = np.frombuffer(b"no image" if i == 1 else encoded(folder)[0], dtype=np.uint8)
    source = ArrayImages(tmp_path / "x.h5")
    with source.open(0) as image:
        assert isinstance(image, Image.Image)
    sample = ViewDataset(source, VIEWS, 0, replace=False)[(0, 1)]
    assert not sample.views
    assert "x.h5[1]" in sample.unreadable[0]

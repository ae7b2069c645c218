"""Lists, mixtures and classes of one's own: the same images as the folder's, by index."""

import csv
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import parquet

from src.data import remote
from src.data.datasets import How, open_images, open_train_and_test
from src.data.folder import FolderImages
from src.data.index_cache import IndexCache
from src.data.lists import ListImages
from src.data.loading import ViewDataset, make_loader
from src.data.mixture import Mixture
from src.data.own_class import OwnImages
from src.data.sampling import ResumableBatches
from src.data.splits import find_split, find_training, find_val_beside
from src.errors import UserError
from tests.data.servers import serving
from tests.data.test_sources import VIEWS, assert_same_images
from tests.helpers import run
from tests.scripts.test_main_swav import command


def rows_of(folder, names=None):
    names = names or [folder.name(i) for i in range(len(folder))]
    return [(name, folder.classes[label]) for name, label in zip(names, folder.labels, strict=True)]


def write(path, rows, header=("path", "label")):
    if path.suffix == ".txt":
        path.write_text("\n".join(name for name, _ in rows))
    elif path.suffix == ".parquet":
        columns = {head: [row[i] for row in rows] for i, head in enumerate(header)}
        parquet.write_table(pyarrow.table(columns), path, row_group_size=17)
    else:
        with open(path, "w", newline="") as file:
            writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writerows([header, *rows])
    return path


@pytest.mark.parametrize("ending", [".txt", ".csv", ".tsv", ".parquet"])
@pytest.mark.parametrize("kept", [False, True])
def test_batches_are_those_of_the_folder(folder, tmp_path, ending, kept):
    path = write(tmp_path / f"train{ending}", rows_of(folder))
    cache = IndexCache(str(tmp_path / "lists") if kept else None, at_least=0)
    for _ in range(2 if kept else 1):
        source = open_images("folder", path, how=How(cache=cache))
    if ending != ".txt":
        assert list(source.labels) == list(folder.labels)
        assert source.classes == folder.classes
    else:
        assert set(source.labels) == {-1}
    loaded = []
    for one in (folder, source):
        batches = ResumableBatches(len(one), 8)
        batches.seek(2, 3)
        loaded.append(list(make_loader(ViewDataset(one, VIEWS, 31), batches, workers=2)))
    for ours, theirs in zip(*loaded, strict=True):
        assert torch.equal(ours.indices, theirs.indices)
        assert all(torch.equal(a, b) for a, b in zip(ours.crops, theirs.crops, strict=True))


def test_paths_are_relative_to_the_list(patches, folder, tmp_path):
    names = [f"train/{name}" for name in folder.names]
    (tmp_path / "here").symlink_to(patches)
    path = write(tmp_path / "here.csv", rows_of(folder, [f"here/{name}" for name in names]))
    assert_same_images(ListImages(path), folder)


def test_columns_are_found_or_named(folder, tmp_path):
    rows = [(7, *row, 0.5) for row in rows_of(folder)]
    path = write(tmp_path / "a.csv", rows, ("id", "Image", "Target", "weight"))
    assert_same_images(ListImages(path), folder)
    path = write(tmp_path / "b.parquet", rows, ("id", "where", "what", "weight"))
    assert_same_images(ListImages(path, "where", "what"), folder)
    for columns, words in {
        ("", ""): "say with --path_column",
        ("there", ""): "has the columns id, where, what, weight",
        ("where", "kind"): "--label_column kind",
        ("id", ""): "holds int64, expected paths",
        ("where", "weight"): "holds double, expected class",
    }.items():
        with pytest.raises(UserError, match=words):
            ListImages(path, *columns)


def test_labels_may_be_numbers_names_or_missing(folder, tmp_path):
    names = [folder.name(i) for i in range(4)]
    path = write(tmp_path / "a.csv", zip(names, ["3", "", "0", "3"], strict=True))
    assert list(ListImages(path).labels) == [3, -1, 0, 3]
    assert ListImages(path).classes == ["0", "1", "2", "3"]
    path = write(tmp_path / "b.csv", zip(names, ["cat", "", "ant", "cat"], strict=True))
    assert list(ListImages(path).labels) == [1, -1, 0, 1]
    table = pyarrow.table({"path": names, "label": pyarrow.array(["b", None, "a", "b"]).dictionary_encode()})
    parquet.write_table(table, tmp_path / "c.parquet")
    assert list(ListImages(tmp_path / "c.parquet").labels) == [1, -1, 0, 1]
    path = write(tmp_path / "d.csv", zip(names, ["1", "-7", "0", "3"], strict=True))
    with pytest.raises(UserError, match="holds -7"):
        ListImages(path)


def test_text_files_of_all_kinds(folder, tmp_path):
    names = [folder.name(i) for i in range(3)]
    for text in ("\n".join(names), "\r\n".join(names) + "\r\n", "\ufeff\n\n" + "\n\n".join(names) + "\n\n"):
        (tmp_path / "x.txt").write_text(text)
        assert list(ListImages(tmp_path / "x.txt").names) == names


BAD = {
    "empty.txt": ("", "names no images"),
    "blank.txt": ("\n\n", "names no images"),
    "empty.csv": ("", "say with --path_column"),
    "header.csv": ("path,label\n", "names no images"),
    "ragged.csv": ("path,label\na.jpg\n", "cannot read"),
    "hole.csv": ("path,label\na.jpg,1\n,1\n", "row 2 has no path"),
    "wrong.parquet": ("path,label\n", "cannot read"),
    "gone.csv": ("path\nnowhere.jpg\n", "does not exist, nor do others"),
    "binary.csv": (b"\xff\xfe\x00\x01", "cannot read"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_lists_are_refused(tmp_path, name):
    content, words = BAD[name]
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError, match=words):
        ListImages(tmp_path / name)


def test_lists_are_splits_too(patches, folder, tmp_path):
    test = FolderImages(patches / "test")
    train_list, val_list = write(tmp_path / "train.csv", rows_of(folder)), write(tmp_path / "val.tsv", rows_of(test))
    assert find_training("folder", tmp_path) == train_list
    assert find_split("list", tmp_path, "test") == val_list
    assert find_val_beside("folder", train_list) == val_list
    train, val = open_train_and_test("folder", tmp_path)
    assert_same_images(train, folder)
    assert_same_images(val, test)


def test_a_run_on_a_list_is_that_on_the_folder(patches, folder, tmp_path):
    path = write(tmp_path / "list.parquet", rows_of(folder))
    for name, where in (("a", patches / "train"), ("b", path)):
        arguments = command(patches, tmp_path / name, "--epochs", 1, "--batch_size", 16, "--workers", 0)
        arguments[arguments.index("--data_path") + 1] = where
        result = run(*arguments)
        assert result.returncode == 0, result.stderr
    a, b = (torch.load(tmp_path / name / "checkpoint.pth.tar", weights_only=True) for name in "ab")
    assert all(torch.equal(a["state_dict"][key], b["state_dict"][key]) for key in a["state_dict"])


# ------------------------------------------------------------------------------------------------ the network


@pytest.fixture
def server(patches, monkeypatch):
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.01)
    with serving(patches / "train") as started:
        started.faults.kinds = ("error", "cut")
        yield started


def test_urls_are_read_in_spite_of_faults(folder, tmp_path, server):
    path = write(tmp_path / "urls.csv", rows_of(folder, [f"{server.url}/{name}" for name in folder.names]))
    source = ListImages(path)
    assert source.name(3) == f"{server.url}/{folder.names[3]}"
    assert_same_images(source, folder)


def test_a_server_that_stays_broken_stops_the_run_and_a_missing_file_does_not(folder, server):
    with pytest.raises(FileNotFoundError):
        remote.read(f"{server.url}/nothing.png")
    server.faults.kinds = ("error", "cut") * 500
    with pytest.raises(UserError, match="could not be read in 6 tries"):
        remote.read(f"{server.url}/{folder.names[0]}")


# ------------------------------------------------------------------------------------------------ mixtures


def test_a_mixture_holds_all_images_and_unites_classes(patches):
    a, b = FolderImages(patches / "train"), FolderImages(patches / "test")
    flat = FolderImages(patches / "train" / "leaf")
    mixed = Mixture([b, flat, a])
    assert len(mixed) == len(a) + len(b) + len(flat)
    assert mixed.classes == a.classes
    assert mixed.name(len(b)) == flat.name(0)
    assert list(mixed.labels[len(b) : len(b) + len(flat)]) == [-1] * len(flat)
    assert list(mixed.labels[-len(a) :]) == list(a.labels)
    assert np.array_equal(np.asarray(mixed.open(len(mixed) - 1)), np.asarray(a.open(len(a) - 1)))
    assert mixed.list_digest != Mixture([b, flat]).list_digest


def test_weights_say_how_often_each_source_is_drawn(patches, tmp_path):
    arguments = command(patches, tmp_path, "--epochs", 2, "--batch_size", 16, "--workers", 0)
    where = arguments.index("--data_path") + 1
    arguments[where : where + 1] = [patches / "train", patches / "test", "--weights", 1, 3]
    half = run(*arguments, "--max_steps", 11)
    assert half.returncode == 0, half.stderr
    assert "128 images" in half.stdout
    assert run(*arguments).returncode == 0
    refused = run(*[word for word in arguments if word not in ("--weights", 1, 3)])
    assert refused.returncode == 2
    assert "weights" in refused.stderr


@pytest.mark.parametrize(("extra", "words"), [
    (["--weights", 1, 2], "--weights: 2 numbers for 1 --data_path"),
    (["--weights", 1, "--balanced"], "choose one"),
    (["--balanced", "--shuffle", "torch"], "--shuffle torch draws every image once"),
    (["--more_data", "{test}", "--size_dataset", 20], "goes with one --data_path"),
    (["--path_column", "x"], "--path_column x belongs to lists"),
    (["--more_data", "/nowhere"], "/nowhere does not exist"),
    (["--balanced", "--method", "deepcluster-v2"], "every image once an epoch"),
])  # fmt: skip
def test_flags_that_do_not_go_together(patches, tmp_path, extra, words):
    extra = [str(one).format(test=patches / "test") for one in extra]
    result = run(*command(patches, tmp_path, "--epochs", 1, "--batch_size", 16, "--workers", 0, *extra))
    assert result.returncode == 2
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


# ------------------------------------------------------------------------------------------------ classes of one's own

MODULE = '''
from PIL import Image

class Plain:
    def __init__(self, path):
        self.images = [Image.new("RGB", (20, 20), (i, 0, 0)) for i in range(40)]
    def __len__(self):
        return len(self.images)
    def open(self, index):
        return self.images[index]

class Full(Plain):
    def __init__(self, path):
        super().__init__(path)
        self.labels, self.classes = [i % 2 for i in range(40)], ["even", "odd"]
    def name(self, index):
        return f"image {index}"

class Odd(Full):
    def __init__(self, path):
        super().__init__(path)
        self.labels = self.labels[1:]

class High(Full):
    def __init__(self, path):
        super().__init__(path)
        self.labels[3] = 2

class Empty(Plain):
    def __len__(self):
        return 0

class Nothing:
    def __init__(self, path):
        pass
'''


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_images.py").write_text(MODULE)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "my_images", raising=False)


def test_own_classes_are_sources(module):
    plain, full = OwnImages("my_images:Plain", "x"), open_images("my_images:Full", "x")
    assert set(plain.labels) == {-1}
    assert plain.name(3) == "my_images:Plain[3]"
    assert (full.classes, full.name(3), full.labels[3]) == (["even", "odd"], "image 3", 1)
    assert full.open(7).getpixel((0, 0)) == (7, 0, 0)


@pytest.mark.parametrize(("where", "words"), [
    ("my_images:Odd", "one for each of 40 images"),
    ("my_images:High", "labels must be -1 or below 2"),
    ("my_images:Empty", "no images"),
    ("my_images:Nothing", "no __len__ and no open"),
    ("my_images:Gone", "has no class Gone"),
    ("no_module_of_that_name:X", "no module no_module_of_that_name"),
])  # fmt: skip
def test_bad_own_classes_are_refused(module, where, words):
    with pytest.raises(UserError, match=words):
        OwnImages(where, "x")


def test_a_run_on_a_class_of_ones_own(patches, tmp_path, module, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    arguments = command(patches, tmp_path / "run", "--epochs", 1, "--batch_size", 16, "--workers", 2,
                        "--dataset", "my_images:Full")  # fmt: skip
    result = run(*arguments)
    assert result.returncode == 0, result.stderr
    assert "40 images" in result.stdout

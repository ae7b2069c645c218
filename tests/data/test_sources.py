"""LMDB files and shards give the same images as the folder they were made from."""

import io
import os
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
import torch

from scripts import make_lmdb
from src.data.datasets import FolderImages, open_images, open_train_and_test
from src.data.splits import find_split, find_val_beside
from src.data.lmdb_file import LMDBImages
from src.data.loading import ViewDataset, make_loader
from src.data.sampling import ResumableBatches
from src.data.shards import ShardImages, expand
from src.data.views import RandomView
from src.errors import UserError
from tests.helpers import ROOT, run

VIEWS = [RandomView(16, (0.3, 1.0)), RandomView(16, (0.3, 1.0))]


def write_shards(source, folder, per_shard=40, labels=True):
    """As webdataset's writer lays them out: key.png and key.cls beside each other."""
    folder.mkdir(parents=True, exist_ok=True)
    for first in range(0, len(source), per_shard):
        with tarfile.open(folder / f"train-{first // per_shard:03d}.tar", "w") as archive:
            for index in range(first, min(first + per_shard, len(source))):
                members = {"png": open(source.name(index), "rb").read(), "json": b"{}"}
                if labels:
                    members["cls"] = str(source.labels[index]).encode()
                for ending, content in members.items():
                    member = tarfile.TarInfo(f"some/folder.d/{index:06d}.{ending}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))


@pytest.fixture
def lmdb_path(patches, tmp_path):
    assert make_lmdb.main(["--data_path", str(patches / "train"), "--out", str(tmp_path / "train.lmdb")]) == 0
    return tmp_path / "train.lmdb"


def assert_same_images(a, b):
    assert list(a.labels) == list(b.labels)
    assert len(a) == len(b)
    for index in range(0, len(a), 7):
        assert np.array_equal(np.asarray(a.open(index)), np.asarray(b.open(index)))


def test_an_lmdb_file_holds_the_folders_images(folder, lmdb_path):
    source = open_images("lmdb", lmdb_path)
    assert_same_images(source, folder)
    assert source.classes == folder.classes
    assert source.name(30).endswith(os.path.relpath(folder.name(30), folder.root))


def test_shards_hold_the_folders_images(folder, tmp_path):
    write_shards(folder, tmp_path)
    source = open_images("webdataset", tmp_path)
    assert_same_images(source, folder)
    assert source.classes == ["0", "1", "2", "3"]
    assert source.name(41).endswith("train-001.tar:some/folder.d/000041.png")
    unlabelled = tmp_path / "unlabelled"
    write_shards(folder, unlabelled, labels=False)
    assert set(ShardImages(unlabelled).labels) == {-1}


def test_batches_are_those_of_the_folder_whatever_the_source_and_workers(folder, lmdb_path, tmp_path):
    """So a resume is exact with every source, and a run may even change its source."""
    write_shards(folder, tmp_path / "shards")
    expected = None
    for source in (folder, LMDBImages(lmdb_path), ShardImages(tmp_path / "shards")):
        for workers in (0, 2):
            batches = ResumableBatches(len(source), 8)
            batches.seek(3, 5)
            loaded = list(make_loader(ViewDataset(source, VIEWS, 31), batches, workers=workers))
            expected = expected or loaded
            for ours, theirs in zip(loaded, expected, strict=True):
                assert torch.equal(ours.indices, theirs.indices)
                assert all(torch.equal(a, b) for a, b in zip(ours.crops, theirs.crops, strict=True))


def test_patterns_and_urls_name_shards(folder, tmp_path):
    write_shards(folder, tmp_path / "s")
    names = [str(tmp_path / "s" / f"train-{i:03d}.tar") for i in range(3)]
    assert expand(str(tmp_path / "s")) == names
    assert expand(str(tmp_path / "s" / "train-{000..002}.tar")) == names
    assert expand(str(tmp_path / "s" / "*-00[01].tar")) == names[:2]
    assert expand(names[1]) == [names[1]]
    assert expand("https://host/a-{0..1}.tar") == ["https://host/a-0.tar", "https://host/a-1.tar"]
    remote = ShardImages(f"pipe:cat {tmp_path}/s/train-{{000..002}}.tar", cache=tmp_path / "cache", run_pipes=True)
    assert_same_images(remote, folder)
    assert len(list((tmp_path / "cache").glob("*.tar"))) == 3
    for name in names:
        os.remove(name)
    with pytest.raises(UserError, match="would run a command"):
        ShardImages(f"pipe:touch {tmp_path}/x", cache=tmp_path / "cache")
    assert not (tmp_path / "x").exists()
    again = ShardImages(f"pipe:cat {tmp_path}/s/train-{{000..002}}.tar", cache=tmp_path / "cache", run_pipes=True)
    assert_same_images(again, folder)


def test_the_list_of_members_is_kept_and_follows_the_shard(folder, tmp_path, monkeypatch):
    write_shards(folder, tmp_path, per_shard=200)
    assert len(ShardImages(tmp_path)) == 96
    monkeypatch.setattr("src.data.shard_index._scan", lambda path, file: pytest.fail("scanned again"))
    assert_same_images(ShardImages(tmp_path), folder)
    monkeypatch.undo()
    (tmp_path / "train-000.tar.index.npz").write_bytes(b"torn")
    assert len(ShardImages(tmp_path)) == 96
    time.sleep(0.01)
    with tarfile.open(tmp_path / "train-000.tar", "a") as archive:
        archive.add(folder.name(0), "more/x.png")
    assert len(ShardImages(tmp_path)) == 97


def test_the_writer_goes_on_after_kill_9(folder, patches, tmp_path, monkeypatch):
    out = tmp_path / "train.lmdb"
    program = (
        "import sys, os, signal; sys.path.insert(0, '.'); from scripts import make_lmdb\n"
        "make_lmdb.PER_COMMIT = 10\n"
        "original = make_lmdb.encoded\n"
        "def encoded(source, index):\n"
        "    if index == 57: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return original(source, index)\n"
        "make_lmdb.encoded = encoded\n"
        f"make_lmdb.main(['--data_path', {str(patches / 'train')!r}, '--out', {str(out)!r}])\n"
    )
    killed = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert not out.exists()
    with pytest.raises(UserError, match="finish"):
        LMDBImages(f"{out}.partial")
    read = []
    original = make_lmdb.encoded
    monkeypatch.setattr(make_lmdb, "encoded", lambda source, index: read.append(index) or original(source, index))
    assert make_lmdb.write(folder, out) == 50
    assert read == list(range(50, 96))
    assert_same_images(LMDBImages(out), folder)


def test_a_named_set_becomes_png(tmp_path, patches, folder, monkeypatch):
    class Named:
        labels, classes = folder.labels[:3], folder.classes

        def __len__(self):
            return 3

        def open(self, index):
            return folder.open(index).convert("RGB")

        def name(self, index):
            return f"named[{index}]"

        relative_name = name

    make_lmdb.write(Named(), tmp_path / "x.lmdb")
    source = LMDBImages(tmp_path / "x.lmdb")
    assert source.open(2).format == "PNG"
    assert np.array_equal(np.asarray(source.open(2)), np.asarray(folder.open(2).convert("RGB")))


def test_evaluations_find_both_splits(folder, patches, tmp_path):
    for split in ("train", "test"):
        make_lmdb.main(["--data_path", str(patches / split), "--out", str(tmp_path / f"{split}.lmdb")])
    train, test = open_train_and_test("lmdb", tmp_path)
    assert (len(train), len(test)) == (96, 32)
    assert find_val_beside("lmdb", tmp_path / "train.lmdb") == tmp_path / "test.lmdb"
    with pytest.raises(UserError, match=r"val\.lmdb or test\.lmdb"):
        find_split("lmdb", patches, "test")


def test_a_training_reads_lmdb_and_shards(folder, patches, lmdb_path, tmp_path):
    from tests.scripts.test_main_swav import assert_same_end, command

    write_shards(folder, tmp_path / "shards")
    extra = ("--epochs", 1, "--batch_size", 16, "--workers", 1)
    assert run(*command(patches, tmp_path / "a", *extra)).returncode == 0
    for dataset, path in (("lmdb", lmdb_path), ("webdataset", tmp_path / "shards")):
        arguments = command(patches, tmp_path / dataset, *extra, "--dataset", dataset)
        arguments[arguments.index("--data_path") + 1] = path
        result = run(*arguments)
        assert result.returncode == 0, result.stderr
        assert_same_end(tmp_path / "a", tmp_path / dataset)


def bad_sources(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.lmdb").write_text("not a database " * 1000)
    (tmp_path / "text.tar").write_text("not an archive " * 1000)
    with tarfile.open(tmp_path / "none.tar", "w"):
        pass
    with tarfile.open(tmp_path / "label.tar", "w") as archive:
        member = tarfile.TarInfo("a.cls")
        member.size = 3
        archive.addfile(member, io.BytesIO(b"dog"))
    return [
        ("lmdb", "missing.lmdb", "does not exist"),
        ("lmdb", "text.lmdb", "not a readable LMDB file"),
        ("lmdb", "empty", "not a readable LMDB file"),
        ("webdataset", "empty", "no .tar shards"),
        ("webdataset", "missing.tar", "no .tar shards"),
        ("webdataset", "missing-{00..03}.tar", "no .tar shards"),
        ("webdataset", "text.tar", "not a readable tar"),
        ("webdataset", "none.tar", "no images"),
        ("webdataset", "label.tar", "expected a class number"),
    ]


def test_bad_sources_get_one_line(tmp_path):
    for dataset, name, message in bad_sources(tmp_path):
        with pytest.raises(UserError, match=message) as error:
            open_images(dataset, tmp_path / name)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="cannot fetch"):
        ShardImages("pipe:false {0..1}.tar", cache=tmp_path / "cache", run_pipes=True)
    with pytest.raises(UserError, match="exists already"):
        make_lmdb.write(None, tmp_path / "text.lmdb")


def test_an_lmdb_file_in_use_can_be_read_by_new_workers(lmdb_path, folder):
    source = LMDBImages(lmdb_path)
    source.open(0)
    (batch,) = list(make_loader(ViewDataset(source, VIEWS), ResumableBatches(96, 96), workers=1))
    assert batch.unreadable == []
    assert_same_images(LMDBImages(lmdb_path), source)
    assert_same_images(source, folder)

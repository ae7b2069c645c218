"""Packed lists of images: what they hold, when they are taken from the cache, and when they are not."""

import gc
import json
import multiprocessing
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.timing import anonymous_bytes
from src.data import folder as folders
from src.data.fingerprint import fingerprint, list_digest_of
from src.data.folder import FolderImages
from src.data.index_cache import IndexCache
from src.data.packed import PackedIndex, PackedStrings, list_digest
from src.data.shards import ShardImages
from src.data.source import Subset
from tests.helpers import on_ranks, run
from tests.scripts.test_main_swav import command

NAMES = ["a.jpg", "", "ä/ö.png", os.fsdecode(b"\xff\xfe.jpg"), "x" * 5000, "b c"]


def test_packed_strings_are_a_list_of_strings():
    packed = PackedStrings.of(NAMES)
    assert list(packed) == NAMES == [packed[i] for i in range(len(NAMES))]
    assert packed[-1] == NAMES[-1]
    assert packed[1:4] == NAMES[1:4]
    assert "b c" in packed
    for outside in (6, -7):
        with pytest.raises(IndexError):
            packed[outside]


def test_blocks_cover_long_lists():
    names = [f"n{i}" * (i % 5) for i in range(150_000)]
    assert list(PackedStrings.of(names)) == names


def test_an_index_is_what_was_saved(tmp_path):
    labels = np.arange(6, dtype=np.int32)
    made = PackedIndex(PackedStrings.of(NAMES), {"labels": labels}, {"classes": ["ä"]})
    made.save(tmp_path / "x")
    made.save(tmp_path / "x")  # over the first
    found = PackedIndex.load(tmp_path / "x")
    assert list(found.names) == NAMES
    assert isinstance(found.columns["labels"], np.memmap)
    assert (found.columns["labels"] == labels).all()
    assert found.meta["classes"] == ["ä"]
    assert found.list_digest == list_digest(made.names, labels)
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def settle(folder: Path) -> None:
    """As if nothing had been changed for an hour."""
    for path in [folder, *folder.rglob("*/")]:
        os.utime(path, (time.time() - 3600,) * 2)


@pytest.fixture
def photos(patches, tmp_path):
    shutil.copytree(patches / "train", tmp_path / "photos")
    settle(tmp_path / "photos")
    return tmp_path / "photos"


class Looks:
    """Counts how often the folder was looked through."""

    def __init__(self, monkeypatch):
        self.count = 0
        look = folders._listed

        def counted(*arguments):
            self.count += 1
            return look(*arguments)

        monkeypatch.setattr(folders, "_listed", counted)


def same(a, b):
    return [a.name(i) for i in range(len(a))] == [b.name(i) for i in range(len(b))] and list(a.labels) == list(b.labels)


def test_the_second_start_takes_the_list_of_the_first(photos, tmp_path, monkeypatch):
    looks = Looks(monkeypatch)
    cache = IndexCache(str(tmp_path / "cache"), at_least=0)
    first, second = (FolderImages(photos, cache=cache) for _ in range(2))
    assert looks.count == 1
    assert same(first, second)
    assert same(second, FolderImages(photos))
    assert (second.classes, second.left_out) == (first.classes, first.left_out)
    assert fingerprint(second) == fingerprint(FolderImages(photos))
    assert second.list_digest == list_digest_of(Subset(second, range(len(second))))
    FolderImages(photos, [".gif"], cache)
    assert looks.count == 4  # other endings make another list


CHANGES = {
    "new": lambda photos: Image.new("RGB", (8, 8)).save(next(photos.iterdir()) / "new.png"),
    "gone": lambda photos: next(next(photos.iterdir()).iterdir()).unlink(),
    "renamed": lambda photos: next(photos.iterdir()).rename(photos / "zzz"),
    "class gone": lambda photos: shutil.rmtree(next(photos.iterdir())),
    "deep": lambda photos: shutil.copytree(next(photos.iterdir()), next(photos.iterdir()) / "deep"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_folder_that_changed_is_looked_through_again(photos, tmp_path, change):
    cache = IndexCache(str(tmp_path / "cache"), at_least=0)
    before = FolderImages(photos, cache=cache)
    CHANGES[change](photos)
    after = FolderImages(photos, cache=cache)
    assert not same(before, after)
    assert same(after, FolderImages(photos))


def test_a_folder_that_was_just_changed_is_not_trusted(photos, tmp_path, monkeypatch):
    looks = Looks(monkeypatch)
    cache = IndexCache(str(tmp_path / "cache"), at_least=0)
    (photos / "just_now").mkdir()
    for _ in range(2):
        FolderImages(photos, cache=cache)
    assert looks.count == 2


@pytest.mark.parametrize("damage", ["cut", "empty", "json", "gone", "format"])
def test_a_damaged_list_is_made_again(photos, tmp_path, damage):
    cache = IndexCache(str(tmp_path / "cache"), at_least=0)
    FolderImages(photos, cache=cache)
    expected = FolderImages(photos)
    (kept,) = (tmp_path / "cache").iterdir()
    if damage == "cut":
        os.truncate(kept / "names.npy", 1000)
    elif damage == "empty":
        (kept / "labels.npy").write_bytes(b"")
    elif damage == "json":
        (kept / "index.json").write_text("{")
    elif damage == "format":
        meta = json.loads((kept / "index.json").read_text())
        (kept / "index.json").write_text(json.dumps({**meta, "format": "ssl-vision-index/0"}))
    else:
        (kept / "ends.npy").unlink()
    assert same(FolderImages(photos, cache=cache), expected)
    assert same(FolderImages(photos, cache=cache), expected)


def test_small_folders_leave_no_files(photos, tmp_path):
    FolderImages(photos, cache=IndexCache(str(tmp_path / "cache")))
    assert not (tmp_path / "cache").exists()


def test_a_place_that_cannot_be_written_is_told_and_harmless(photos, tmp_path, capsys):
    (tmp_path / "file").touch()
    found = FolderImages(photos, cache=IndexCache(str(tmp_path / "file"), at_least=0))
    assert same(found, FolderImages(photos))
    assert "is not kept" in capsys.readouterr().err


def test_shards_have_a_list_too(patches, tmp_path):
    import tarfile

    for number in range(2):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as archive:
            for path in sorted((patches / "train").rglob("*.png"))[number::2]:
                archive.add(path, path.relative_to(patches / "train"))
        os.utime(tmp_path / f"{number}.tar", (time.time() - 3600,) * 2)
    cache = IndexCache(str(tmp_path / "cache"), at_least=0)
    first, second = (ShardImages(tmp_path, index_cache=cache) for _ in range(2))
    assert same(first, second)
    assert isinstance(second.labels, np.memmap)
    with tarfile.open(tmp_path / "1.tar", "w") as archive:
        archive.add(next((patches / "train").rglob("*.png")), "only.png")
    assert len(ShardImages(tmp_path, index_cache=cache)) == len(first) // 2 + 1


@pytest.fixture
def deep(photos):
    """Folders in folders, and all that is left out."""
    for number in range(12):
        shutil.copytree(photos / "leaf", photos / "dogs" / f"{number % 3}" / f"{number}" / "leaf")
    (photos / "dogs" / "1" / "notes.txt").touch()
    (photos / "dogs" / "2" / ".hidden").mkdir()
    (photos / "dogs" / "2" / "back").symlink_to(photos)
    return photos


def test_processes_find_what_one_finds(deep, monkeypatch):
    alone = FolderImages(deep)
    monkeypatch.setattr(folders, "_PATIENCE", -1.0)
    monkeypatch.setattr(folders, "_PROCESSES", 2)
    together = FolderImages(deep)
    assert same(alone, together)
    assert alone.left_out == together.left_out
    assert len(alone.left_out) == 3
    assert sum(name.startswith("dogs/1/") for name in alone.names) == 4 * 24


def _looked_at_by_processes(folder):
    folders._PATIENCE, folders._PROCESSES = -1.0, 2
    return FolderImages(folder).list_digest


def test_processes_look_for_ranks_too(deep):
    first, second = on_ranks(2, _looked_at_by_processes, deep)
    assert first == second == FolderImages(deep).list_digest


def _on_a_rank(photos, cache):
    source = FolderImages(photos, cache=IndexCache(cache, at_least=0))
    return len(source), isinstance(source.labels, np.memmap), source.list_digest


def test_all_ranks_share_one_list(photos, tmp_path):
    found = on_ranks(2, _on_a_rank, photos, str(tmp_path / "cache"))
    assert found[0] == found[1]
    assert found[0][1]


def _refused(folder):
    try:
        FolderImages(folder)
    except ValueError as error:
        return str(error)


def test_all_ranks_say_what_is_wrong(tmp_path):
    (tmp_path / "empty").mkdir()
    first, second = on_ranks(2, _refused, tmp_path / "empty")
    assert first == second
    assert "no images in" in first


def _read_all(index_folder, answer):
    index = PackedIndex.load(index_folder)

    def read(first):
        for i in range(first, len(index.names), 7):
            assert index.names[i]
            int(index.columns["labels"][i])

    read(499_000)
    gc.collect()  # touches, and so copies, all that Python had before the fork: once, and nothing of the list
    before = anonymous_bytes()
    read(0)
    answer.put(anonymous_bytes() - before)


def test_workers_hold_nothing_of_their_own(tmp_path):
    """A list of Python strings would cost a worker that reads all of it 60 MB here."""
    names = PackedStrings.of(f"n{i % 1000:08d}/n{i % 1000:08d}_{i}.JPEG" for i in range(500_000))
    PackedIndex(names, {"labels": np.zeros(len(names), dtype=np.int32)}, {}).save(tmp_path / "x")
    context = multiprocessing.get_context("fork")
    answer = context.Queue()
    worker = context.Process(target=_read_all, args=(tmp_path / "x", answer))
    worker.start()
    grown = answer.get(timeout=60)
    worker.join()
    assert grown < 25e6  # what Python had before the fork, and touches again


def test_a_run_keeps_and_finds_its_list(patches, tmp_path):
    settle(patches / "train")
    arguments = command(patches, tmp_path / "run", "--epochs", 1, "--batch_size", 16, "--workers", 0,
                        "--index_cache", tmp_path / "lists")  # fmt: skip
    assert run(*arguments, "--max_steps", 3).returncode == 0
    (kept,) = (tmp_path / "lists").iterdir()
    made = (kept / "index.json").stat().st_mtime_ns
    result = run(*arguments)
    assert result.returncode == 0, result.stderr
    assert (kept / "index.json").stat().st_mtime_ns == made


def test_the_order_of_a_run_is_kept(patches, tmp_path):
    arguments = command(patches, tmp_path / "run", "--epochs", 1, "--batch_size", 16, "--workers", 0)
    assert run(*arguments, "--max_steps", 3, "--shuffle", "keyed").returncode == 0
    result = run(*arguments)
    assert result.returncode == 2
    assert "shuffle keyed -> torch" in result.stderr
    assert run(*arguments, "--shuffle", "keyed").returncode == 0

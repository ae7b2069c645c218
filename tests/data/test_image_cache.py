"""Decoded images kept in shared memory: the same batches, no file opened twice, no more memory than there is."""

import multiprocessing
import os

import numpy as np
import pytest
import torch
from PIL import Image

import main_swav
from src.data import image_cache
from src.data.decoding import Decoding
from src.data.folder import FolderImages
from src.data.datasets import TrainingDataSettings
from src.data.image_cache import ImageCache, bytes_decoded, memory_folder
from src.data.loading import ViewDataset, make_loader
from src.data.sampling import Position, ResumableBatches
from src.data.views import RandomView
from src.errors import UserError
from src.parallel import collectives
from src.pretraining import images
from tests import built
from tests.helpers import on_ranks, run
from tests.scripts.test_main_swav import command


@pytest.fixture
def cache():
    made = ImageCache(f"ssl-vision-test-{os.getpid()}", 200, 10_000_000)
    made.forget_name()
    return made


def pixels(seed, height=20, width=30, channels=3):
    array = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return torch.from_numpy(array).permute(2, 0, 1)


def test_what_is_put_in_comes_out_in_the_same_layout(cache):
    assert cache.get(3) is None
    for index, channels in ((3, 3), (0, 1), (199, 5)):
        one = pixels(index, height=index + 1, channels=channels)
        cache.put(index, one)
        assert torch.equal(cache.get(index), one)
        assert cache.get(index).stride()[1:] == one.stride()[1:]
    assert cache.get(4) is None
    before = cache.used
    cache.put(3, pixels(9))
    assert cache.used == before, "the first one stays"
    assert torch.equal(cache.get(3), pixels(3, height=4))


def test_beyond_the_limit_nothing_is_kept():
    small = ImageCache(f"ssl-vision-test-small-{os.getpid()}", 5, 4000)
    small.forget_name()
    for index in range(5):
        small.put(index, pixels(index, channels=3))
    assert [small.get(index) is not None for index in range(5)] == [True, True, False, False, False]
    assert small.used <= 4000


def _fill(cache, start):
    for index in range(start, 200, 4):
        cache.put(index, pixels(index, height=1 + index % 7))
        cache.put((index * 7) % 200, pixels((index * 7) % 200, height=1 + (index * 7) % 200 % 7))


def test_processes_fill_it_together(cache):
    processes = [multiprocessing.get_context("fork").Process(target=_fill, args=(cache, start)) for start in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    for index in range(200):
        assert torch.equal(cache.get(index), pixels(index, height=1 + index % 7))
    assert len({row[0] for row in cache._table.tolist()}) == 200


@pytest.mark.parametrize("kind", ["png", "jpeg"])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_and_no_file_is_opened_twice(tmp_path, photograph, workers, kind, cache):
    for index in range(12):
        image = photograph.crop((index * 10, 0, index * 10 + 150 + index, 120))
        image.save(tmp_path / f"{index:02d}.{kind}", exif=image.getexif() if kind == "png" else _turned(image, index % 9))
    source = FolderImages(tmp_path)
    views = [RandomView(32, (0.1, 1.0)), RandomView(16, (0.05, 0.3))]
    expected = None
    for kept in (None, cache, cache):
        batches = ResumableBatches(12, 4)
        batches.seek(2)
        loaded = list(make_loader(ViewDataset(source, views, 31, cache=kept), batches, workers=workers))
        expected = expected or loaded
        for ours, theirs in zip(loaded, expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours.crops, theirs.crops, strict=True))
    assert all(cache.get(index) is not None for index in range(12))
    dataset = ViewDataset(source, views, 31, cache=cache)
    source.open = lambda index: pytest.fail("opened again")
    assert len(dataset.__getitems__([Position(5, index) for index in range(12)])) == 12


def _turned(image, orientation):
    exif = image.getexif()
    exif[0x0112] = max(1, orientation)
    return exif


def test_images_that_are_decoded_at_a_reduced_scale_are_not_kept(tmp_path, photograph, cache):
    photograph.resize((1200, 900)).save(tmp_path / "a.jpg")
    source = FolderImages(tmp_path)
    with_cache, without = (ViewDataset(source, [RandomView(32, (0.5, 1.0))], cache=one) for one in (cache, None))
    assert torch.equal(with_cache[0, 0].views[0], without[0, 0].views[0])
    assert cache.get(0) is None
    ViewDataset(source, [RandomView(600, (0.5, 1.0))], cache=cache)[0, 0]
    assert cache.get(0) is not None
    assert torch.equal(with_cache[0, 0].views[0], without[0, 0].views[0])


def test_one_grey_channel_is_kept_too(tmp_path, photograph, cache):
    photograph.convert("L").resize((40, 30)).save(tmp_path / "a.png")
    source = FolderImages(tmp_path)
    source.decoding = Decoding(channels=1)
    datasets = [ViewDataset(source, [RandomView(16, (0.5, 1.0))], cache=one) for one in (None, cache, cache)]
    first, *others = [dataset[0, 0].views[0] for dataset in datasets]
    assert all(torch.equal(first, other) for other in others)


def test_data_that_does_not_fit_is_refused(tmp_path, monkeypatch):
    for index in range(3):
        Image.new("RGB", (100, 100)).save(tmp_path / f"{index}.png")
    source = FolderImages(tmp_path)
    assert 90_000 <= bytes_decoded(source) < 91_000
    settings = TrainingDataSettings(data_path="x", cache_images="ram")
    assert images.cache_of(settings, source)._limit < 100_000
    assert images.cache_of(TrainingDataSettings(data_path="x"), source) is None
    monkeypatch.setattr(images, "free_memory", lambda: 50_000)
    with pytest.raises(UserError, match="take about"):
        images.cache_of(settings, source)


def _two_caches(folder, where):
    source = FolderImages(folder)
    free = [10**8, 1000][collectives.rank()] if where == "little" else 10**8
    images.free_memory = lambda: free
    if where == "broken" and collectives.rank() == 1:
        images.ImageCache = broken
    try:
        cache = images.cache_of(TrainingDataSettings(data_path="x", cache_images="ram"), source)
    except UserError as error:
        return str(error)
    if collectives.rank() == 0:
        cache.put(2, pixels(1))
    collectives.barrier()
    return torch.equal(cache.get(2), pixels(1))


def broken(*_):
    raise OSError("no room")


def test_processes_share_it_and_decide_alike(tmp_path):
    for index in range(3):
        Image.new("RGB", (100, 100)).save(tmp_path / f"{index}.png")
    assert on_ranks(2, _two_caches, tmp_path, "") == [True, True]
    for where, words in (("little", "take about"), ("broken", "no room")):
        assert all(words in said for said in on_ranks(2, _two_caches, tmp_path, where))


@pytest.mark.parametrize(("files", "left"), [
    ({"memory.max": "1000", "memory.current": "800", "memory.stat": "anon 5\ninactive_file 300"}, 500),
    ({"memory.limit_in_bytes": "1000", "memory.usage_in_bytes": "900", "memory.stat": "total_inactive_file 1"}, 101),
])  # fmt: skip
def test_the_bound_of_a_job_counts(tmp_path, monkeypatch, files, left):
    inner = tmp_path / "job" / "step"
    inner.mkdir(parents=True)
    for name, content in files.items():
        (tmp_path / "job" / name).write_text(content)
    monkeypatch.setattr(image_cache, "_control_groups", lambda: [inner, inner.parent])
    assert image_cache.free_memory() == left


def test_a_training_gets_it(patches, tmp_path):
    line = f"--data_path {patches / 'train'} --dump_path {tmp_path} --cache_images ram --workers 0 --batch_size 16"
    dataset = built.built(main_swav, line, 1, FolderImages(patches / "train"), on_meta=False).run.loader.dataset
    _ = dataset[Position(0, 5)]
    assert dataset.cache.get(5) is not None


def test_a_run_with_it_equals_one_without_and_leaves_nothing(patches, tmp_path):
    before = set(os.listdir(memory_folder()))
    for name, extra in (("a", []), ("b", ["--cache_images", "ram", "--max_steps", 7]), ("b", ["--cache_images", "ram"])):
        arguments = command(patches, tmp_path / name, "--epochs", 2, "--batch_size", 16, "--workers", 2)
        result = run(*arguments, *extra)
        assert result.returncode == 0, result.stderr
    a, b = (torch.load(tmp_path / name / "checkpoint.pth.tar", weights_only=True) for name in "ab")
    assert all(torch.equal(a["state_dict"][key], b["state_dict"][key]) for key in a["state_dict"])
    assert not [name for name in set(os.listdir(memory_folder())) - before if name.startswith("ssl-vision")]

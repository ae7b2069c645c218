"""Copies of shards: within the bound, fetched once, whole and of one version."""

import os
import signal
import subprocess
import sys
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from src.data import remote, shard_cache
from src.data.datasets import open_images
from src.data.index_cache import IndexCache
from src.data.folder import FolderImages
from src.data.loading import ViewDataset, make_loader
from src.data.mixture import Mixture
from src.data.order import ShardOrder
from src.data.sampling import ResumableBatches
from src.data.shard_cache import RemoteShard, ShardCache
from src.data.shards import ShardImages
from src.data.source import first_images
from src.errors import UserError
from tests.data.servers import until
from tests.data.test_sources import VIEWS, assert_same_images, write_shards
from tests.helpers import ROOT, run
from tests.scripts.test_main_swav import command




def copies(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache" / "bounded").glob("*.tar.????????????????"))


def test_copies_fill_the_cache_and_no_more(folder, web, shards, tmp_path):
    size = (shards / "train-000.tar").stat().st_size
    source = ShardImages(web.pattern, cache_gb=3.5 * size / 1e9)
    images = list(range(len(source)))
    for _ in range(20):
        source.read_ahead(images, ())
        time.sleep(0.02)
    until(lambda: len(copies(tmp_path)) == 3 and source._cache.full)
    kept = copies(tmp_path)
    source.read_ahead(images, ())
    assert_same_images(source, folder)
    assert copies(tmp_path) == kept
    web.faults.log.clear()
    for index in range(10):
        source.open(index).load()
    assert len(web.faults.log) in (0, 10), "from the copy or from the server"


def test_shards_go_when_others_are_needed(folder, web, shards, tmp_path):
    size = max(path.stat().st_size for path in shards.glob("*.tar"))
    limit = 4.2 * size
    source = ShardImages(web.pattern, cache_gb=limit / 1e9)
    order = ShardOrder(source.storage_ends, seed=1, window=2)
    batches = ResumableBatches(len(source), 8, order=order)
    for batch in batches:
        source.read_ahead([p.image for p in batch], order.soon(*batch[0]))
        needed = {source._cache.place(source._shard_of(image)).name for image in order.soon(*batch[0])}
        until(lambda: needed <= set(copies(tmp_path)))  # noqa: B023
        there = sum(path.stat().st_size for path in (tmp_path / "cache" / "bounded").iterdir())
        assert there <= limit
        web.faults.log.clear()
        for position in batch:
            source.open(position.image).load()
        assert [entry for entry in web.faults.log if entry[0] == "GET"] == []


def test_a_copy_of_another_state_is_not_read(folder, shards, web, tmp_path):
    source = ShardImages(web.pattern, cache_gb=1)
    source.read_ahead([0], source.storage_ends[:1] - 1)
    until(lambda: len(copies(tmp_path)) == 1)
    (shards / "train-000.tar").write_bytes((shards / "train-001.tar").read_bytes())
    changed = ShardImages(web.pattern, cache_gb=1)
    assert np.array_equal(np.asarray(changed.open(0)), np.asarray(folder.open(10)))


def test_a_killed_fetch_is_continued(shards, web, tmp_path, monkeypatch):
    monkeypatch.setattr(shard_cache, "_CHUNK", 1000)
    path = shards / "train-000.tar"
    shard = RemoteShard.now(f"{web.url}/{path.name}")
    program = (
        "import os, sys; sys.path.insert(0, '.')\n"
        "from src.data import remote, shard_cache\n"
        "from pathlib import Path\n"
        "shard_cache._CHUNK = 1000\n"
        "original = remote.read\n"
        "def read(url, start, size):\n"
        "    if start == 5000: os.kill(os.getpid(), 9)\n"
        "    return original(url, start, size)\n"
        "remote.read = read\n"
        f"shard_cache.ShardCache(Path({str(tmp_path / 'c')!r}), 10**6).fetch(shard_cache.RemoteShard{tuple(shard)!r})\n"
    )
    killed = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    web.faults.log.clear()
    cache = ShardCache(tmp_path / "c", 10**6)
    assert cache.fetch(shard)
    assert cache.place(shard).read_bytes() == path.read_bytes()
    assert min(int(part.removeprefix("bytes=").split("-")[0]) for _, _, part in web.faults.log if part) == 5000
    assert [one.name for one in (tmp_path / "c").iterdir() if one.suffix == ".part"] == []


@pytest.mark.parametrize("limit", [None, 10**6])
def test_a_copy_is_never_part_of_one_shard_and_part_of_another(shards, web, tmp_path, monkeypatch, limit):
    """Neither when a fetch that was cut off goes on with a shard that was replaced, nor when it is replaced meanwhile."""
    monkeypatch.setattr(shard_cache, "_CHUNK", 1000)
    path = shards / "train-000.tar"
    content = path.read_bytes()
    cache = ShardCache(tmp_path / "c", limit)
    read = remote.read

    def stop(url, start, size):
        if start == 5000:
            raise UserError("stopped")
        return read(url, start, size)

    def replaced(url, start, size):
        if start == 5000:
            path.write_bytes(content[5000:] + content[:5000])
        return read(url, start, size)

    monkeypatch.setattr(remote, "read", stop)
    with pytest.raises(UserError, match="stopped"):
        cache.fetch(RemoteShard.now(f"{web.url}/{path.name}"))
    path.write_bytes(content[::-1])
    now = RemoteShard.now(f"{web.url}/{path.name}")
    monkeypatch.setattr(remote, "read", replaced)
    with pytest.raises(UserError, match="was changed while"):
        cache.fetch(now)
    monkeypatch.setattr(remote, "read", read)
    now = RemoteShard.now(f"{web.url}/{path.name}")
    assert cache.fetch(now)
    assert cache.place(now).read_bytes() == path.read_bytes()


def test_another_users_copy_is_read(shards, web, tmp_path, monkeypatch):
    cache = ShardCache(tmp_path / "c", 10**6)
    shard = RemoteShard.now(f"{web.url}/train-000.tar")
    assert cache.fetch(shard)

    def refused(*_):
        raise PermissionError

    monkeypatch.setattr(os, "utime", refused)
    assert cache.read(shard, 0, 100) == (shards / "train-000.tar").read_bytes()[:100]


def test_nothing_goes_for_what_does_not_fit(shards, web, tmp_path):
    shard, second = (RemoteShard.now(f"{web.url}/train-00{number}.tar") for number in (0, 1))
    size = shard.size
    cache = ShardCache(tmp_path / "c", int(1.5 * size))
    assert cache.fetch(shard)
    for limit, keep, idle in ((0, (), 0), (int(0.5 * size), (), 0), (int(1.5 * size), (cache.place(shard).name,), 0),
                              (int(1.5 * size), (), 3600.0)):  # fmt: skip
        smaller = ShardCache(tmp_path / "c", limit)
        assert not smaller.fetch(second, keep, idle_for=idle)
        assert smaller.full
        assert cache.read(shard, 0, 10) is not None
    assert cache.fetch(second)
    assert cache.read(shard, 0, 10) is None


def test_sources_of_a_run_do_not_take_each_others_copies(web, shards, tmp_path):
    size = max(path.stat().st_size for path in shards.glob("*.tar"))
    gb = 4.2 * size / 1e9
    sources = [ShardImages(f"{web.url}/train-00{{{numbers}}}.tar", cache_gb=gb) for numbers in ("0..3", "4..7")]
    assert sources[0]._cache is sources[1]._cache
    mixed = Mixture(sources)
    assert mixed.storage_sizes.min() > 0
    order = ShardOrder(mixed.storage_ends, window=2)
    first = int(order.images(0, np.array([0]))[0])
    needed = order.soon(0, first)
    for _ in range(10):
        mixed.read_ahead([first], needed)
        time.sleep(0.03)
    until(lambda: len(copies(tmp_path)) == 4)
    web.faults.log.clear()
    for _ in range(5):
        mixed.read_ahead([first], needed)
        time.sleep(0.03)
    assert [entry for entry in web.faults.log if entry[0] == "GET"] == []


def test_processes_fetch_a_shard_once(shards, web, tmp_path):
    web.faults.delay = 0.2
    shard = RemoteShard.now(f"{web.url}/train-000.tar")
    web.faults.log.clear()
    caches = [ShardCache(tmp_path / "c", 10**6) for _ in range(4)]
    threads = [threading.Thread(target=cache.fetch, args=(shard,)) for cache in caches]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    assert caches[0].fetch(shard, wait=False) is False
    for thread in threads:
        thread.join()
    assert len([entry for entry in web.faults.log if entry[0] == "GET"]) == 1
    assert {path.name for path in (tmp_path / "c").iterdir()} == {caches[0].place(shard).name, "lock"}


def test_parts_that_nobody_is_at_go_and_those_under_way_do_not(tmp_path):
    folder = tmp_path / "c"
    folder.mkdir()
    cache = ShardCache(folder, 100)
    (folder / "dead.60.part").write_bytes(b"x")
    (folder / "alive.30.part").write_bytes(b"x")
    mine = folder / "mine.60.part"
    mine.touch()
    with shard_cache._locked(folder / "alive.30.part"):
        assert cache._make_room((), mine)
        huge = folder / "huge.80.part"
        huge.touch()
        assert not cache._make_room((), huge)
    assert not (folder / "dead.60.part").exists()
    assert (folder / "alive.30.part").exists()

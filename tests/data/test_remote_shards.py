"""Shards on web servers and in object stores: the folder's images and batches, in spite of faults and within a bound."""

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
from tests.data.test_sources import VIEWS, assert_same_images, write_shards
from tests.helpers import ROOT, run
from tests.scripts.test_main_swav import command

pytest.importorskip("aiohttp")


class Faults:
    """What goes wrong before a request is answered, and what was asked for."""

    def __init__(self):
        self.kinds, self.delay, self.asked, self.log = (), 0.0, {}, []

    def next_for(self, method, path, part):
        """"error", "cut" or "", in turn for each part of each file."""
        time.sleep(self.delay)
        self.log.append((method, path, part))
        count = self.asked[method, path, part] = self.asked.get((method, path, part), -1) + 1
        return self.kinds[count] if count < len(self.kinds) else ""


class Handler(SimpleHTTPRequestHandler):
    """Files, whole or in parts."""

    protocol_version = "HTTP/1.1"

    def __init__(self, *arguments, faults, how, **options):
        self.faults, self.how = faults, how
        super().__init__(*arguments, **options)

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        part = self.headers.get("Range") if self.how["ranges"] else None
        fault = self.faults.next_for(self.command, self.path, part)
        path = Path(self.translate_path(self.path))
        if fault == "error" or not path.is_file():
            self.send_error(500 if path.is_file() else self.how["missing"])
            return
        content, whole = path.read_bytes(), path.stat().st_size
        if part:
            start, _, end = part.removeprefix("bytes=").partition("-")
            content = content[int(start) : int(end or whole) + 1]
        self.send_response(206 if part else 200)
        if part:
            self.send_header("Content-Range", f"bytes {start}-{int(start) + len(content) - 1}/{whole}")
        if self.how["size"]:
            self.send_header("Content-Length", str(len(content)))
        if "ETag" in self.how["signs"]:
            self.send_header("ETag", f'"{path.stat().st_mtime_ns}"')
        if "Last-Modified" in self.how["signs"]:
            self.send_header("Last-Modified", self.date_time_string(path.stat().st_mtime))
        if self.how["ranges"]:
            self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if body:
            self.wfile.write(content[: len(content) // 2] if fault == "cut" else content)
        self.close_connection = fault == "cut" or not self.how["size"]

    def log_message(self, *arguments):
        pass


@pytest.fixture
def folder(patches):
    return FolderImages(patches / "train")


@pytest.fixture
def shards(folder, tmp_path):
    write_shards(folder, tmp_path / "s", per_shard=10)
    return tmp_path / "s"


@pytest.fixture
def web(shards, tmp_path, monkeypatch):
    """The shards on a web server: ``pattern`` of all, ``url`` of the server, ``faults`` of it."""
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.002)
    monkeypatch.setenv("SSL_SHARD_CACHE", str(tmp_path / "cache"))
    faults = Faults()
    options = {"ranges": True, "signs": ("ETag", "Last-Modified"), "size": True, "missing": 404}
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *a: Handler(*a, directory=str(shards), faults=faults, how=options)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    yield SimpleNamespace(url=url, pattern=f"{url}/train-{{000..009}}.tar", faults=faults, options=options)
    server.shutdown()


@pytest.fixture
def s3(shards, tmp_path, monkeypatch):
    """The same in a bucket of a pretended S3."""
    moto = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    from werkzeug.serving import make_server

    faults = Faults()
    inner = moto.DomainDispatcherApplication(moto.create_backend_app)

    def application(environ, start_response):
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        fault = faults.next_for(method, path, environ.get("HTTP_RANGE")) if method in ("GET", "HEAD") else ""
        if fault == "error":
            start_response("500 Internal Server Error", [("Content-Length", "0")])
            return [b""]
        answer = b"".join(inner(environ, start_response))
        return [answer[: len(answer) // 2] if fault == "cut" else answer]

    server = make_server("127.0.0.1", 0, application, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    for name, value in {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",  # ours are counted
        "SSL_SHARD_CACHE": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.002)
    import boto3
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()
    client = boto3.client("s3", endpoint_url=url)
    client.create_bucket(Bucket="shards")
    for path in sorted(shards.glob("*.tar")):
        client.upload_file(str(path), "shards", path.name)
    yield SimpleNamespace(pattern="s3://shards/train-{000..009}.tar", faults=faults)
    server.shutdown()


def copies(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache" / "bounded").glob("*.tar.????????????????"))


def until(condition, seconds=20):
    for _ in range(seconds * 50):
        if condition():
            return
        time.sleep(0.02)
    pytest.fail("did not happen")


# ------------------------------------------------------------------------------------------------ reading in parts


@pytest.mark.parametrize("kinds", [(), ("error", "cut"), ("cut", "cut", "error")])
def test_a_web_server_gives_the_folders_images_in_spite_of_faults(folder, web, kinds):
    web.faults.kinds = kinds
    assert_same_images(ShardImages(web.pattern, cache_gb=0), folder)
    asked = {part for method, path, part in web.faults.log if method == "GET" and part}
    assert len(asked) >= 14, "images are read one by one"


@pytest.mark.parametrize("kinds", [(), ("error", "cut")])
def test_an_object_store_gives_the_folders_images_in_spite_of_faults(folder, s3, kinds):
    s3.faults.kinds = kinds
    assert_same_images(ShardImages(s3.pattern, cache_gb=0), folder)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_folders_and_are_read_at_once(folder, web, workers):
    web.faults.kinds = ("error",)
    source = ShardImages(web.pattern, cache_gb=0)
    batches = ResumableBatches(len(source), 8)
    expected = list(make_loader(ViewDataset(folder, VIEWS, 31), batches, workers=0))
    web.faults.delay = 0.05
    started = time.monotonic()
    loaded = list(make_loader(ViewDataset(source, VIEWS, 31), batches, workers=workers))
    one_by_one = 2 * 0.05 * len(source)
    assert time.monotonic() - started < one_by_one / 2
    for ours, theirs in zip(loaded, expected, strict=True):
        assert torch.equal(ours.indices, theirs.indices)
        assert all(torch.equal(a, b) for a, b in zip(ours.crops, theirs.crops, strict=True))


@pytest.mark.parametrize("signs", [("ETag",), ("Last-Modified",)])
def test_the_list_is_kept_and_follows_the_shards(folder, shards, web, tmp_path, monkeypatch, signs, capsys):
    web.options["signs"] = signs
    for path in shards.glob("*.tar"):
        os.utime(path, (1e9, 1e9))
    cache = IndexCache(str(tmp_path / "index"))
    ShardImages(web.pattern, cache_gb=0, index_cache=cache)
    with monkeypatch.context() as patched:
        patched.setattr("src.data.shards.read_index", lambda shard: pytest.fail("looked through again"))
        assert_same_images(ShardImages(web.pattern, cache_gb=0, index_cache=cache), folder)
    (shards / "train-001.tar").write_bytes((shards / "train-000.tar").read_bytes())
    changed = ShardImages(web.pattern, cache_gb=0, index_cache=cache)
    assert list(changed.labels[:20]) == list(folder.labels[:10]) * 2
    assert "versions" not in capsys.readouterr().err
    web.options["signs"] = ()
    ShardImages(web.pattern, cache_gb=0)
    assert "does not tell versions" in capsys.readouterr().err


def test_a_list_beside_a_shard_saves_looking_through_it(folder, shards, web):
    ShardImages(shards)  # writes the lists
    web.faults.log.clear()
    source = ShardImages(web.pattern, cache_gb=0)
    assert not [path for method, path, part in web.faults.log if method == "GET" and path.endswith(".tar")]
    assert_same_images(source, folder)
    os.utime(shards / "train-001.tar", (4e9, 4e9))  # changed after its list was made
    with open(shards / "train-000.tar", "ab") as file:  # the list is now of another shard
        file.write(bytes(1024))
    web.faults.log.clear()
    assert_same_images(ShardImages(web.pattern, cache_gb=0), folder)
    assert {path for method, path, part in web.faults.log if method == "GET" and path.endswith(".tar")} >= {
        "/train-000.tar",
        "/train-001.tar",
    }


def test_a_refused_list_is_not_asked_for_again_and_again(folder, web, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_PAUSE", 100.0)
    web.options["missing"] = 403
    assert_same_images(ShardImages(web.pattern, cache_gb=0), folder)


@pytest.mark.parametrize("status", [401, 403, 416, 404, 410])
def test_what_is_refused_for_good_is_not_tried_again(web, status, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_PAUSE", 100.0)
    web.options["missing"] = status
    for call in (remote.read, remote.state):
        with pytest.raises((UserError, FileNotFoundError), match="nothing"):
            call(f"{web.url}/nothing.tar")


def test_a_slow_server_is_not_a_missing_file(web, monkeypatch):
    monkeypatch.setattr(remote, "SILENCE", 0.05)
    monkeypatch.setattr(remote, "TRIES", 2)
    web.faults.delay = 0.3
    with pytest.raises(UserError, match="could not be read in 2 tries"):
        remote.state(f"{web.url}/train-000.tar")


def test_nothing_is_nothing(s3, web):
    assert remote.read("s3://shards/train-000.tar", 100, 0) == b""
    assert remote.read(f"{web.url}/train-000.tar", 100, 0) == b""


# ------------------------------------------------------------------------------------------------ copies


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
    shard = remote_shard(web, path)
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
        cache.fetch(remote_shard(web, path))
    path.write_bytes(content[::-1])
    now = remote_shard(web, path)
    monkeypatch.setattr(remote, "read", replaced)
    with pytest.raises(UserError, match="was changed while"):
        cache.fetch(now)
    monkeypatch.setattr(remote, "read", read)
    now = remote_shard(web, path)
    assert cache.fetch(now)
    assert cache.place(now).read_bytes() == path.read_bytes()


def test_another_users_copy_is_read(shards, web, tmp_path, monkeypatch):
    cache = ShardCache(tmp_path / "c", 10**6)
    shard = remote_shard(web, shards / "train-000.tar")
    assert cache.fetch(shard)

    def refused(*_):
        raise PermissionError

    monkeypatch.setattr(os, "utime", refused)
    assert cache.read(shard, 0, 100) == (shards / "train-000.tar").read_bytes()[:100]


def test_nothing_goes_for_what_does_not_fit(shards, web, tmp_path):
    shard, second = (remote_shard(web, shards / f"train-00{number}.tar") for number in (0, 1))
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


def test_the_end_of_a_program_does_not_wait_for_a_broken_server(web):
    web.faults.kinds = ("error",) * 10_000
    program = (
        "import sys; sys.path.insert(0, '.')\n"
        "from src.data import remote\n"
        "remote.FIRST_PAUSE = 100.0\n"
        f"remote.ReadAhead().announce(remote.Part('{web.url}/train-000.tar', 0, n) for n in range(1, 65))\n"
    )
    started = time.monotonic()
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=60).returncode == 0
    assert time.monotonic() - started < 30


def test_the_first_failure_ends_the_others(monkeypatch):
    begun = []

    def call(number):
        begun.append(number)
        if number == 0:
            raise UserError("no")
        time.sleep(0.3)

    started = time.monotonic()
    with pytest.raises(UserError, match="no"):
        list(remote.in_parallel(call, range(1000)))
    assert time.monotonic() - started < 5
    assert len(begun) < 100


def remote_shard(web, path):
    version, size, _ = remote.state(f"{web.url}/{path.name}")
    return RemoteShard(f"{web.url}/{path.name}", size, version)


def test_processes_fetch_a_shard_once(shards, web, tmp_path):
    web.faults.delay = 0.2
    shard = remote_shard(web, shards / "train-000.tar")
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


def test_without_a_bound_shards_are_copied_before_the_start(folder, web, tmp_path, capsys):
    web.faults.kinds = ("error", "cut")
    assert_same_images(ShardImages(web.pattern), folder)
    assert len(list((tmp_path / "cache").glob("*.tar"))) == 10
    assert "fetching" in capsys.readouterr().err
    web.faults.log.clear()
    assert_same_images(ShardImages(web.pattern), folder)
    assert not web.faults.log


@pytest.mark.parametrize("options", [{"ranges": False}, {"ranges": False, "size": False}])
def test_servers_that_send_whole_files_only_do_for_whole_copies(folder, web, options, monkeypatch):
    monkeypatch.setattr(shard_cache, "_CHUNK", 1000)
    web.options.update(options)
    assert_same_images(ShardImages(web.pattern), folder)


# ------------------------------------------------------------------------------------------------ the order


@pytest.mark.parametrize(("sizes", "window"), [([7, 3, 12, 5, 9], 2), ([4] * 9, 3), ([5], 16), ([0, 3, 0, 8], 1), ([1, 1], 1)])
def test_shard_orders_are_permutations_of_few_shards_at_a_time(sizes, window):
    ends = np.cumsum(sizes)
    order = ShardOrder(ends, seed=3, window=window)
    epochs = [order.images(epoch, np.arange(ends[-1])) for epoch in range(4)]
    for epoch, found in enumerate(epochs):
        assert sorted(found.tolist()) == list(range(ends[-1]))
        shards = np.searchsorted(ends, found, side="right")
        # of a shard all images come before its block is left
        first, last = (np.array([f(np.flatnonzero(shards == s)) for s in set(shards)]) for f in (np.min, np.max))
        overlapping = [sum(int(a <= at <= b) for a, b in zip(first, last, strict=True)) for at in range(len(found))]
        assert max(overlapping) <= window
        for position in range(len(found)):
            now = np.searchsorted(ends, order.soon(epoch, int(found[position])), side="right")
            assert shards[position] in now[:window]
            later = shards[position:]
            other = next((s for s in later if s not in now[:window]), None)
            assert other is None or other in now, "what comes next is announced"
    if ends[-1] > 20:
        assert any((epochs[0] != one).any() for one in epochs[1:])
    some = np.array([ends[-1] - 1, 0, 0])
    assert (order.images(2, some) == epochs[2][some]).all()


def test_the_next_epochs_shards_are_announced_at_the_end_of_one():
    ends = np.arange(5, 105, 5)
    order = ShardOrder(ends, window=4)
    last = int(order.images(0, np.array([99]))[0])
    announced = np.searchsorted(ends, order.soon(0, last), side="right")
    first_of_next = np.searchsorted(ends, order.images(1, np.arange(20)), side="right")
    assert set(first_of_next) == set(announced[4:])


def test_parts_and_mixtures_of_shards_have_an_order_too(shards):
    source = ShardImages(shards)
    assert first_images(source, 25).storage_ends.tolist() == [10, 20, 25, 25, 25, 25, 25, 25, 25, 25]
    mixed = Mixture([source, source])
    assert mixed.storage_ends[[9, 10, -1]].tolist() == [96, 106, 192]
    order = ShardOrder(mixed.storage_ends, window=3)
    assert sorted(order.images(0, np.arange(192)).tolist()) == list(range(192))
    seen = []
    source.read_ahead = lambda images, soon: seen.append((images, soon))
    mixed.read_ahead([3, 100], [180])
    assert seen == [([3], []), ([4], [84])]


# ------------------------------------------------------------------------------------------------ runs


def test_a_run_on_a_server_equals_one_on_the_disk_and_resumes_exactly(patches, shards, web, tmp_path):
    web.faults.kinds, web.faults.delay = ("error",), 0.005
    size = max(path.stat().st_size for path in shards.glob("*.tar"))

    def train(name, where, *extra):
        arguments = command(patches, tmp_path / name, "--epochs", 2, "--batch_size", 16, "--workers", 2)
        arguments[arguments.index("--data_path") + 1] = where
        more = ["--dataset", "webdataset", "--shuffle", "shards", "--shuffle_window", 2]
        result = run(*arguments, *more, *extra)
        assert result.returncode == 0, result.stderr

    remotely = (web.pattern, "--shard_cache_gb", 5 * size / 1e9)
    train("a", shards)
    train("b", *remotely, "--max_steps", 8)
    train("b", *remotely)
    a, b = (torch.load(tmp_path / name / "checkpoint.pth.tar", weights_only=True) for name in "ab")
    assert all(torch.equal(a["state_dict"][key], b["state_dict"][key]) for key in a["state_dict"])
    assert copies(tmp_path)


@pytest.mark.parametrize(("extra", "words"), [
    (["--shuffle", "shards"], "needs --dataset webdataset"),
    (["--shard_cache_gb", 1], "belongs to --dataset webdataset"),
    (["--shuffle", "shards", "--dataset", "webdataset", "--weights", 1], "draws every image once"),
    (["--dataset", "webdataset", "--shuffle", "shards", "--shard_cache_gb", 1e-6, "{web}"], "must be at hand"),
    (["--dataset", "webdataset", "--shard_cache_gb", 1, "pipe:cat x.tar", "--run_pipes"], "cannot be read in parts"),
    (["--dataset", "webdataset", "--shard_cache_gb", 1, "{url}/nothing.tar"], "does not exist"),
    (["--dataset", "webdataset", "{url}/nothing.tar"], "does not exist"),
])  # fmt: skip
def test_what_does_not_go_together_is_one_line(patches, tmp_path, web, extra, words):
    extra = [str(one).format(web=web.pattern, url=web.url) for one in extra]
    arguments = command(patches, tmp_path, "--epochs", 1, "--batch_size", 16, "--workers", 0)
    where = [one for one in extra if "://" in one or one.startswith("pipe:")]
    if where:
        arguments[arguments.index("--data_path") + 1] = extra.pop(extra.index(where[0]))
    result = run(*arguments, *extra)
    assert result.returncode == 2
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_servers_that_cannot_do_it_are_named(web, monkeypatch):
    web.options["ranges"] = False
    source = ShardImages(web.pattern, cache_gb=0)  # each is one part
    with pytest.raises(UserError, match="sends whole files only"):
        source.open(0)
    web.options["ranges"] = True
    web.faults.kinds = ("error",) * 100
    with pytest.raises(UserError, match="could not be read in 6 tries"):
        ShardImages(web.pattern, cache_gb=0)


def test_open_images_passes_the_bound_on(web, folder):
    from src.data.datasets import How

    source = open_images("webdataset", web.pattern, how=How(shard_cache_gb=0.5))
    assert source._cache.limit == 500_000_000
    assert source.name(41) == f"{web.url}/train-004.tar:some/folder.d/000041.png"
    assert source.relative_name(41) == "train-004.tar:some/folder.d/000041.png"

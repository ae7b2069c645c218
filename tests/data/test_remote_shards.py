"""Shards on web servers and in object stores: the folder's images and batches, in spite of faults and within a bound."""

import os
import signal
import subprocess
import sys
import threading
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
    web.faults.at_once.clear()
    loaded = list(make_loader(ViewDataset(source, VIEWS, 31), batches, workers=workers))
    assert len(web.faults.at_once) >= 2 * len(source)  # the first answer to each is an error
    assert np.mean(web.faults.at_once) > 2  # one by one it would be 1
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
    assert list((tmp_path / "cache" / "bounded").glob("*.tar.????????????????"))


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

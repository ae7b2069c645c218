"""Reading from servers: what is tried again, what is not, and what nobody waits for."""

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

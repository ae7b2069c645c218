"""Two starts in one folder, killed launchers, full disks: seen from outside, with real processes."""

import json
import os
import signal
import time

from src.checkpoints.store import read_run
from src.errors import UserError
from tests.helpers import run, torchrun
from tests.runs import children_of, kill_everything, start, wait_for_steps

import pytest
import torch

SWAV = (
    "main_swav.py --arch resnet18 --width 0.0625 --stem small --device cpu --tensorboard false --size_crops 16 "
    "--nmb_crops 2 --hidden_mlp 8 --feat_dim 8 --nmb_prototypes 6 --warmup_epochs 0 --batch_size 16 --workers 0 "
    "--log_every 1 --save_every 3"
)


def command(patches, folder, *more):
    return [*SWAV.split(), "--data_path", patches / "train", "--dump_path", folder, *more]


def test_a_second_start_is_refused_while_the_first_runs(patches, tmp_path):
    first = start(command(patches, tmp_path, "--epochs", 2000))
    try:
        wait_for_steps(first, tmp_path, 3)
        log = len((tmp_path / "log.jsonl").read_text())
        second = run(*command(patches, tmp_path, "--epochs", 2000))
        assert second.returncode == 2
        assert f"is in use by process {first.pid} on " in second.stderr
        assert second.stderr.count("\n") == 1
        assert first.poll() is None
        assert len((tmp_path / "log.jsonl").read_text()) >= log
    finally:
        first.send_signal(signal.SIGTERM)
        first.communicate(timeout=30)
    assert first.returncode == 128 + signal.SIGTERM
    assert not (tmp_path / ".lock").exists()
    third = run(*command(patches, tmp_path, "--epochs", 2000, "--max_steps", 1))
    assert third.returncode == 0, third.stderr


@pytest.mark.slow
def test_ranks_end_with_a_killed_launcher_and_the_next_start_goes_on(patches, tmp_path):
    """kill -9 of torchrun: its ranks save, for the first time, and end; a start at once waits for them, and continues.

    The ranks met in the launcher, so that whatever they need for it must have been joined before.
    """
    launched = start([*command(patches, tmp_path, "--epochs", 2000), "--save_every", 0], torchrun(2))
    wait_for_steps(launched, tmp_path, 3)
    ranks = children_of(launched.pid)
    assert len(ranks) == 2
    os.kill(launched.pid, signal.SIGKILL)
    launched.wait()
    again = start(command(patches, tmp_path, "--epochs", 2000), torchrun(2))
    try:
        deadline = time.monotonic() + 60
        while any(os.path.exists(f"/proc/{pid}") and "Z" not in open(f"/proc/{pid}/stat").read() for pid in ranks):  # noqa: SIM115
            assert time.monotonic() < deadline
            time.sleep(0.2)
        lines = (tmp_path / "log.jsonl").read_text().count("\n")
        while (tmp_path / "log.jsonl").read_text().count("\n") < lines + 3:
            assert time.monotonic() < deadline + 60
            assert again.poll() is None, again.stdout.read()
            time.sleep(0.1)
    finally:
        kill_everything(again)
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)  # not two runs in turns


def test_a_full_disk_keeps_the_last_checkpoint(patches, tmp_path):
    """A limit on the size of files stands for the disk."""
    import resource

    good = run(*command(patches, tmp_path, "--epochs", 1))
    assert good.returncode == 0, good.stderr
    size = (tmp_path / "checkpoint.pth.tar").stat().st_size
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, old[1]))
    try:
        full = run(*command(patches, tmp_path, "--epochs", 2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, ignored)
    assert full.returncode == 2
    assert "error: cannot write" in full.stderr
    assert "Traceback" not in full.stderr
    assert list(tmp_path.rglob("*.tmp")) == []
    assert read_run(tmp_path / "checkpoint.pth.tar")["epoch"] == 1
    assert run(*command(patches, tmp_path, "--epochs", 2)).returncode == 0


def test_a_flipped_bit_anywhere_is_seen(patches, tmp_path):
    """Also in the archive's directory, which its own check sums do not cover."""
    assert run(*command(patches, tmp_path, "--epochs", 1)).returncode == 0
    path = tmp_path / "checkpoint.pth.tar"
    content = path.read_bytes()
    whole = read_run(path)
    weights = {name: tensor.clone() for name, tensor in whole["state_dict"].items()}
    directory = content.rindex(b"PK\x01\x02", 0, len(content))
    first = content.index(b"PK\x01\x02")
    generator = torch.Generator().manual_seed(0)
    places = [first + int(x) for x in torch.randint(0, len(content) - first, (120,), generator=generator)]
    assert directory > first
    for place in places:
        for bit in (0, 3, 7):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            (tmp_path / "damaged.pth").write_bytes(damaged)
            try:
                found = read_run(tmp_path / "damaged.pth")
            except UserError:
                continue  # any other exception fails the test
            assert all(torch.equal(found["state_dict"][name], weights[name]) for name in weights)

"""Slurm for real, and torchrun's restarts. The Slurm test runs wherever `sinfo` shows two idle nodes."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

from tests.helpers import ROOT, run, torchrun
from tests.runs import assert_same_end, children_of, kill_everything, logged_steps, start, wait_for_steps
from tests.scripts.test_main_swav import SMALL, command

import pytest


def slurm(*arguments, **environ):
    result = subprocess.run(
        arguments, cwd=ROOT, env={**os.environ, **environ}, capture_output=True, text=True, timeout=240
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def reason_without_slurm() -> str:
    if shutil.which("sbatch") is None:
        return "Slurm is not installed"
    listing = subprocess.run(
        ["sinfo", "-h", "-N", "-t", "idle", "-o", "%N"], capture_output=True, text=True, timeout=60
    )
    if listing.returncode:
        return f"no Slurm controller answers: {listing.stderr.strip().splitlines()[-1]}"
    nodes = set(listing.stdout.split())
    return "" if len(nodes) >= 2 else f"Slurm has {len(nodes)} idle nodes, the test needs 2"


def submit(patches, folder, name, wait):
    """A published recipe on two nodes with one process each, and small flags behind its own."""
    small = [*SMALL, "--epochs", "20", "--batch_size", "8", "--workers", "1", "--log_every", "1",
             "--freeze_prototypes_niters", "5", "--sync_bn", "pytorch", "--final_lr", "0",
             "--knn_freq", "0", "--ranks", "0", "--virtual_ranks", "1"]  # fmt: skip
    environ = {"NPROC": "1", "OMP_NUM_THREADS": "1", "PYTHON": sys.executable,
               "DATASET_PATH": str(patches / "train"), "EXPERIMENT_PATH": str(folder / name)}  # fmt: skip
    options = ["--nodes=2", "--gpus-per-node=1", "--cpus-per-task=1", "--mem=1G", "--time=10", "--parsable",
               f"--output={folder}/{name}.log", "--export=ALL"]  # fmt: skip
    return slurm("sbatch", *options, *(["--wait"] if wait else []), "scripts/swav_100ep_pretrain.sh", *small, **environ)


@pytest.mark.slow
def test_a_recipe_trains_on_two_nodes_and_goes_on_after_usr1_and_requeue(patches, tmp_path):
    """Ends in the weights of an undisturbed run."""
    reason = reason_without_slurm()
    if reason:
        pytest.skip(reason)
    submit(patches, tmp_path, "undisturbed", wait=True)
    log = (tmp_path / "undisturbed.log").read_text()
    assert re.search(r"batch +8 x 2 processes = 16 images", log), log

    job = submit(patches, tmp_path, "disturbed", wait=False)
    deadline = time.monotonic() + 120
    while logged_steps(tmp_path / "disturbed") < 20 and time.monotonic() < deadline:
        time.sleep(0.1)
    slurm("scancel", "--signal=USR1", job)  # what --signal=USR1@120 has Slurm do before the time limit
    restarts = ""
    while "Restarts=1" not in restarts and time.monotonic() < deadline:
        time.sleep(0.5)
        restarts = slurm("scontrol", "show", "job", job)
    time.sleep(3)  # the old start's credential is revoked for a moment
    slurm("scontrol", "update", f"jobid={job}", "StartTime=now")  # a requeued job would wait two minutes
    log = ""
    while "epoch 20/20  step 6/6" not in log and time.monotonic() < deadline:
        time.sleep(0.5)
        log = (tmp_path / "disturbed.log").read_text()
    while slurm("squeue", "-h", "-j", job) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert "stopped by a signal after step" in log
    assert "back into the queue" in log
    assert "continuing from" in log
    assert_same_end(tmp_path / "undisturbed", tmp_path / "disturbed")


@pytest.mark.slow
def test_without_slurm_a_recipe_runs_on_this_machine(patches, tmp_path):
    environ = {**os.environ, "NPROC": "2", "OMP_NUM_THREADS": "1", "PYTHON": sys.executable,
               "DATASET_PATH": str(patches / "train"), "EXPERIMENT_PATH": str(tmp_path)}  # fmt: skip
    environ.pop("SLURM_JOB_ID", None)
    flags = [*SMALL, "--epochs", "1", "--batch_size", "8", "--workers", "0", "--queue_length", "0"]
    result = subprocess.run(
        ["bash", "scripts/swav_400ep_single_node.sh", *flags],
        cwd=ROOT, env=environ, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert re.search(r"batch +8 x 2 processes", result.stdout)
    assert (tmp_path / "checkpoint.pth.tar").exists()


@pytest.mark.slow
def test_torchrun_restarts_a_killed_rank_and_the_run_ends_as_if_undisturbed(patches, tmp_path):
    extra = ("--epochs", 4, "--batch_size", 8, "--workers", 1, "--log_every", 1, "--save_every", 2)

    assert run(*command(patches, tmp_path / "a", *extra), ranks=2).returncode == 0
    process = start(command(patches, tmp_path / "b", *extra), [*torchrun(2), "--max_restarts=2"])
    wait_for_steps(process, tmp_path / "b", 10)
    ranks = [pid for pid in children_of(process.pid) if children_of(pid)]  # each has a loader's worker
    os.kill(ranks[-1], signal.SIGKILL)
    try:
        output, _ = process.communicate(timeout=200)
    except subprocess.TimeoutExpired:
        kill_everything(process)
        raise
    assert process.returncode == 0, output
    assert "continuing from" in output
    assert_same_end(tmp_path / "a", tmp_path / "b")


@pytest.mark.slow
def test_four_ranks_go_on_as_two_and_say_what_changes(patches, tmp_path):
    extra = ("--epochs", 4, "--batch_size", 4, "--workers", 0, "--queue_length", 32, "--epoch_queue_starts", 0)

    first = run(*command(patches, tmp_path, *extra, "--max_steps", 14), ranks=4)
    assert first.returncode == 0, first.stderr
    second = run(*command(patches, tmp_path, *extra, "--batch_size", 8), ranks=2)
    assert second.returncode == 0, second.stderr
    assert "resuming on 2 ranks with 16 images a step what ran on 4 with 16" in second.stderr
    assert re.search(r"epoch 4/4", second.stdout)


def launched(*words, **environ):
    """What launch.sh would have started, with a stand-in for Python that shows its words."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    return subprocess.run(
        ["bash", "scripts/launch.sh", *words], cwd=ROOT, env={**clean, **environ}, capture_output=True, text=True
    )


def test_machines_without_slurm_meet_at_the_first_one():
    answer = launched("main_swav.py", PYTHON="/bin/echo", NPROC="2", NNODES="3", NODE_RANK="1", MASTER_ADDR="10.0.0.1")
    assert answer.stdout.split() == [
        "-m", "torch.distributed.run", "--nproc_per_node=2", "--max_restarts=0", "--nnodes=3", "--node_rank=1",
        "--master_addr=10.0.0.1", "--master_port=29500", "main_swav.py",
    ]  # fmt: skip
    for missing in ("NODE_RANK", "MASTER_ADDR"):
        environ = {"NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1", "NNODES": "2", "NPROC": "2", "PYTHON": "/bin/echo"}
        del environ[missing]
        answer = launched("main_swav.py", **environ)
        assert answer.returncode
        assert missing in answer.stderr


def test_a_machine_without_gpus_starts_one_process():
    answer = launched("main_swav.py", "--help", PYTHON=sys.executable, PATH="/usr/bin:/bin")
    assert answer.returncode == 0, answer.stderr
    assert "--queue_length" in answer.stdout

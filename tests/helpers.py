"""What several tests need: small real images, scripts run as users run them, and ranks as forked processes."""

import atexit
import multiprocessing
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from src.data.patches import cut_patches

import torch
import torch.distributed as dist

ROOT = Path(__file__).resolve().parent.parent


def photograph_patches(folder: Path) -> Path:
    """``train`` and ``test`` in ``folder``: 4 classes of 24 and 8 patches of 64 pixels, cut from real photographs."""
    with tempfile.TemporaryDirectory() as photographs:
        for name in ("stream", "brushes", "leaf", "dogs"):
            shutil.copy(ROOT / "data" / "photographs" / f"{name}.jpg", photographs)
        cut_patches(photographs, folder, size=64, max_train=24, max_test=8)
    return folder


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _one_rank(function: Callable[..., Any], rank: int, size: int, port: int, arguments: tuple, results: Any) -> None:
    try:
        torch.set_num_threads(1)
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank))
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
        results.put((rank, function(*arguments), None))
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        results.put((rank, None, traceback.format_exc()))


def on_ranks(size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What ``function(*arguments)`` returns on each of ``size`` forked gloo ranks.

    Results must be plain values or numpy arrays: tensors would have to share memory with a process that is gone.
    """
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    port = free_port()
    processes = [
        context.Process(target=_one_rank, args=(function, rank, size, port, arguments, results)) for rank in range(size)
    ]
    for process in processes:
        process.start()
    found = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(timeout=30)
    for rank, _, error in found:
        assert error is None, f"rank {rank}:\n{error}"
    return [value for _, value, _ in sorted(found, key=lambda item: item[0])]


def script(*arguments: object, launcher: list[str] | None = None) -> list[str]:
    """The command line of one of the repository's scripts."""
    return [*(launcher or [sys.executable]), *map(str, arguments)]


def torchrun(processes: int) -> list[str]:
    return [
        sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}",
        f"--master_port={free_port()}",
    ]  # fmt: skip


def run(
    *arguments: object, ranks: int = 0, launcher: list[str] | None = None, timeout: float = 300
) -> "subprocess.CompletedProcess[str]":
    """Runs a script in the repository, as a user does, with one thread for each process.

    Without a launcher the script runs in a fork of this process, or in ``ranks`` of them, which has imported torch
    already: a new Python would take seconds to do so. Not where it may use a GPU, which a fork cannot, or
    torch.compile, which has processes of its own.
    """
    words = [str(argument) for argument in arguments]
    on_cpu = "cpu" in words or not torch.cuda.is_available()
    if launcher is None and on_cpu and "--compile" not in words:
        return _run_forked(words, ranks, timeout)
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = script(*words, launcher=torchrun(ranks) if ranks and launcher is None else launcher)
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=timeout)


def _run_forked(words: list[str], ranks: int, timeout: float) -> "subprocess.CompletedProcess[str]":
    """In one process alone, or in so many that find each other; if one fails, the others are killed."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        sys.stdout.flush()
        sys.stderr.flush()
        port, running, code = str(free_port()), set(), 0
        for rank in range(max(ranks, 1)):
            child = os.fork()
            if child == 0:
                if ranks:
                    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks))
                    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
                become_the_script(words, out.fileno(), err.fileno())
            running.add(child)
        deadline = time.monotonic() + timeout
        while running:
            time.sleep(0.01)
            for child in list(running):
                pid, status = os.waitpid(child, os.WNOHANG)
                if pid:
                    running.remove(child)
                    code = code or os.waitstatus_to_exitcode(status)
            if running and (code or time.monotonic() > deadline):
                for child in running:
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
                if not code:
                    raise TimeoutError(f"{words} took more than {timeout} s")
                break
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read())
        return subprocess.CompletedProcess(words, code, *texts)


def become_the_script(words: list[str], out: int, err: int, folder: Path = ROOT) -> None:
    """In a fork: what ``python SCRIPT ...`` does in a folder, with nothing left of the process before."""
    code = 1
    try:
        atexit._clear()
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.stdout = os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", closefd=False)
        os.chdir(folder)
        sys.argv = words
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_DFL)
        warnings.resetwarnings()
        for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)  # as Python does by itself
        runpy.run_path(words[0], run_name="__main__")
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

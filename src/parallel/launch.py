"""Which process this is, on which device, and how the processes meet: torchrun, Slurm, or one process alone."""

import contextlib
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from ..errors import UserError
from ..settings import setting
from .collectives import is_active
from .orphans import end_with_the_launcher


@dataclass(frozen=True)
class DeviceSettings:
    """Device and processes"""

    device: str = setting("auto", "auto (a GPU where there is one), cpu or cuda")
    dist_url: str = setting("env://", "where the processes meet: env://, tcp://HOST:PORT or file:///PATH")


@dataclass(frozen=True)
class Launch:
    """What the launcher said: who we are and where the ranks meet. ``init_method`` None means no process group."""

    rank: int
    size: int
    local_rank: int
    init_method: str | None


@dataclass(frozen=True)
class World:
    """This process among all ranks, and its device."""

    rank: int
    size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def _integer(environ: Mapping[str, str], name: str) -> int:
    try:
        return int(environ[name])
    except KeyError:
        raise UserError(
            f"the launcher set RANK but not {name}: start with torchrun, or unset RANK for one process"
        ) from None
    except ValueError:
        raise UserError(f"{name}={environ[name]!r} in the environment is not a number") from None


def discover(environ: Mapping[str, str], dist_url: str = "env://") -> Launch:
    """Reads rank and world size from torchrun's variables, else from a Slurm step's, else assumes one process.

    torchrun wins when it runs inside a Slurm allocation. ``dist_url`` is where the ranks meet (``env://`` or
    ``tcp://host:port``); under ``srun`` without one, the first host of the step and a port made from the job id.
    Raises UserError for contradictory settings.
    """
    if dist_url != "env://" and not dist_url.startswith(("tcp://", "file://")):
        raise UserError(f"--dist_url {dist_url!r}: expected env://, tcp://HOST:PORT or file:///PATH")
    if "RANK" in environ:
        rank, size = _integer(environ, "RANK"), _integer(environ, "WORLD_SIZE")
        local_rank = _integer(environ, "LOCAL_RANK") if "LOCAL_RANK" in environ else rank
        if dist_url == "env://" and not {"MASTER_ADDR", "MASTER_PORT"} <= environ.keys():
            raise UserError("MASTER_ADDR and MASTER_PORT are not set: start with torchrun, or pass --dist_url")
        init_method: str | None = dist_url
    elif int(environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        rank, size = _integer(environ, "SLURM_PROCID"), _integer(environ, "SLURM_STEP_NUM_TASKS")
        local_rank = int(environ.get("SLURM_LOCALID", "0"))
        init_method = dist_url if dist_url != "env://" else _slurm_meeting_point(environ)
    else:
        return Launch(rank=0, size=1, local_rank=0, init_method=None)
    if not 0 <= rank < size:
        raise UserError(f"rank {rank} does not exist in a world of {size}: check RANK and WORLD_SIZE")
    return Launch(rank, size, local_rank, init_method)


def _slurm_meeting_point(environ: Mapping[str, str]) -> str:
    if {"MASTER_ADDR", "MASTER_PORT"} <= environ.keys():
        return f"tcp://{environ['MASTER_ADDR']}:{environ['MASTER_PORT']}"
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST", "")
    try:
        hosts = subprocess.run(
            ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True
        ).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        hosts = []
    if not hosts:
        raise UserError("cannot read the hosts of this Slurm step: pass --dist_url tcp://HOST:PORT")
    return f"tcp://{hosts[0]}:{20000 + int(environ['SLURM_JOB_ID']) % 20000}"


def choose_device(name: str, local_rank: int) -> torch.device:
    """``auto`` is this rank's GPU where there is one, else the CPU. ``cuda`` means the rank's own GPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name!r}: expected auto, cpu or cuda") from None
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise UserError(f"--device {name!r}: expected auto, cpu or cuda")
    if not torch.cuda.is_available():
        raise UserError("--device cuda: this machine has no usable GPU (try --device cpu)")
    index = local_rank if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise UserError(
            f"local rank {index} has no GPU: {torch.cuda.device_count()} visible; start at most one process per GPU"
        )
    return torch.device("cuda", index)


def start(device: str = "auto", dist_url: str = "env://") -> World:
    """Joins the process group that the launcher describes (NCCL on GPUs, gloo on CPUs) and picks the device."""
    launch = discover(os.environ, dist_url)
    end_with_the_launcher()
    chosen = choose_device(device, launch.local_rank)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if launch.init_method is not None and not is_active():
        try:
            store = _store_of_this_attempt(launch, os.environ)
            dist.init_process_group(
                # gloo beside NCCL carries the CPU-side agreements (stop signals, gathered objects)
                backend="cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo",
                init_method=launch.init_method if store is None else None,
                store=store,
                rank=launch.rank,
                world_size=launch.size,
                timeout=timedelta(minutes=30),
            )
        except (ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"rank {launch.rank} of {launch.size} could not join the others: {reason}") from None
    return World(launch.rank, launch.size, launch.local_rank, chosen)


def _store_of_this_attempt(launch: Launch, environ: Mapping[str, str]) -> Store | None:
    """Where the ranks leave their addresses for each other, if torchrun has started them anew on this machine.

    Without a rendezvous backend torchrun keeps one store through all its restarts, in which the ranks would find the
    addresses of their dead predecessors, and wait for them. (On several machines its c10d backend makes a new one.)
    """
    attempt = environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    on_one_machine = environ.get("LOCAL_WORLD_SIZE") == str(launch.size)
    if launch.init_method != "env://" or attempt == "0" or not on_one_machine:
        return None
    store, _, _ = next(rendezvous("env://", launch.rank, launch.size))
    return PrefixStore(f"attempt_{attempt}", store)


def rank_in_environment() -> int:
    """The rank as far as it is known before the process group exists."""
    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    return int(rank) if rank.isdigit() else 0


def stop() -> None:
    """Leaves the process group, if there is one."""
    if is_active():
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()

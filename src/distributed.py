"""Which process this is, on which device, and the collectives that the rest uses.

Every collective is a no-op in a single process without a process group, so no caller asks how it was started.
"""

import contextlib
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from src.errors import UserError


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


def _store_of_this_attempt(launch: Launch, environ: Mapping[str, str]) -> dist.Store | None:
    """Where the ranks leave their addresses for each other, if torchrun has started them anew on this machine.

    Without a rendezvous backend torchrun keeps one store through all its restarts, in which the ranks would find the
    addresses of their dead predecessors, and wait for them. (On several machines its c10d backend makes a new one.)
    """
    attempt = environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    on_one_machine = environ.get("LOCAL_WORLD_SIZE") == str(launch.size)
    if launch.init_method != "env://" or attempt == "0" or not on_one_machine:
        return None
    store, _, _ = next(dist.rendezvous("env://", launch.rank, launch.size))
    return dist.PrefixStore(f"attempt_{attempt}", store)


def stop() -> None:
    """Leaves the process group, if there is one."""
    if is_active():
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


def is_active() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if is_active() else 0


def world_size() -> int:
    return dist.get_world_size() if is_active() else 1


def is_main() -> bool:
    return rank() == 0


def barrier() -> None:
    if is_active():
        # a CPU tensor goes over gloo on every backend, so that no GPU stream is blocked
        dist.all_reduce(torch.zeros(1))


def all_reduce_(tensor: Tensor, op: Any = dist.ReduceOp.SUM) -> Tensor:
    """Reduces over all ranks in place and returns the tensor. No gradient."""
    if world_size() > 1:
        dist.all_reduce(tensor, op=op)
    return tensor


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total, None


def sum_with_gradient(tensor: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """The sum over the ranks of a group (None: all), as a new tensor.

    Its gradient is summed over the ranks too: that of the sum of all ranks' losses, as for one joined batch.
    """
    return tensor if world_size() == 1 else _Sum.apply(tensor, group)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        parts = [torch.empty_like(tensor) for _ in range(world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = all_reduce_(grads[0].clone(memory_format=torch.contiguous_format))
        return total.chunk(world_size())[rank()]


def gather_with_gradient(tensor: Tensor) -> Tensor:
    """(n, ...) on each rank -> (W n, ...) in rank order, with equal n.

    Its gradient is summed over the ranks. When every rank then computes the loss of the whole batch, averaging the
    parameters' gradients over the ranks gives exactly those of one process.
    """
    return tensor if world_size() == 1 else _Gather.apply(tensor)


@torch.no_grad()
def permute_rows(tensor: Tensor, order: Tensor) -> Tensor:
    """Deals the rows of all ranks out anew. No gradient.

    Args:
        tensor: (n, ...) on each rank, with equal n; their rows are numbered in rank order.
        order: (W n,) int64 on the CPU, a permutation that all ranks know: row i of the result, counted over the ranks
            in the same way, is row ``order[i]``.

    Each rank sends every other one only what that one needs.
    """
    count, ranks, mine = len(tensor), world_size(), rank()
    if ranks == 1:
        return tensor[order.to(tensor.device)]
    wanted = order.view(ranks, count)
    owner = wanted // count
    to_each = [wanted[r][owner[r] == mine] - mine * count for r in range(ranks)]
    from_each = torch.bincount(owner[mine], minlength=ranks).tolist()
    sent = tensor[torch.cat(to_each).to(tensor.device)].contiguous()
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, from_each, [len(rows) for rows in to_each])
    # they come grouped by the rank that owned them, within it in the order in which they are wanted
    arrival = torch.argsort(owner[mine], stable=True)
    return received[torch.argsort(arrival).to(tensor.device)]


def all_gather_rows(tensor: Tensor) -> Tensor:
    """(n_r, ...) on each rank -> (sum of n_r, ...), in rank order; the ranks may have different n_r. No gradient."""
    if world_size() == 1:
        return tensor
    count = torch.tensor([len(tensor)], device=tensor.device)
    counts = [torch.zeros_like(count) for _ in range(world_size())]
    dist.all_gather(counts, count)
    sizes = [int(c) for c in counts]
    padded = tensor.new_zeros(max(sizes), *tensor.shape[1:])
    padded[: len(tensor)] = tensor
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def gather_to_main(value: Any) -> list[Any] | None:
    """One picklable value of each rank, as a list on the main rank and None on the others."""
    if world_size() == 1:
        return [value]
    gathered: list[Any] | None = [None] * world_size() if is_main() else None
    dist.gather_object(value, gathered, dst=0)
    return gathered


def broadcast_object(value: Any) -> Any:
    """The main rank's picklable value, on every rank."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def broadcast_(tensors: list[Tensor]) -> None:
    """Overwrites the tensors with the main rank's."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


class Agreement:
    """Whether any rank has raised its flag, asked every step without waiting for the device.

    The ranks exchange one byte over gloo while the step runs and read the answer one step later, so all of them see
    it at the same step. One process answers at once.
    """

    def __init__(self) -> None:
        self._pending: tuple[Any, Tensor] | None = None

    def any(self, flag: bool) -> bool:
        if world_size() == 1:
            return flag
        answer = False
        if self._pending is not None:
            work, tensor = self._pending
            work.wait()
            answer = bool(tensor.item())
        ours = torch.tensor([int(flag)], dtype=torch.uint8)
        self._pending = (dist.all_reduce(ours, op=dist.ReduceOp.MAX, async_op=True), ours)
        return answer

    def finish(self) -> None:
        """Completes the exchange under way; to be called by all ranks at the same step."""
        if self._pending is not None:
            self._pending[0].wait()
            self._pending = None

"""What a checkpoint captures and a resume fills."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..clock import Clock
from ..errors import UserError
from ..parallel import collectives
from ..parallel.sharding import part_like
from ..randomness import random_state, set_random_state
from .files import describe_mismatch

# Options of optimisers that choose kernels for a device, and are no part of what a run computes
KERNELS = ("fused", "foreach", "capturable")


class Ranks(Protocol):
    """See :class:`src.engine.cast.Cast`."""

    @property
    def methods(self) -> Sequence[nn.Module]: ...

    def random_states(self) -> list[dict[str, Tensor]]: ...

    def set_random_states(self, states: Sequence[dict[str, Tensor]]) -> None: ...


@dataclass
class RunState:
    """The live objects that a checkpoint captures and a resume fills.

    Attributes:
        method: with ``per_rank_buffers``, see :class:`src.engine.method.Method`.
        batch_size: images of a step, over all ranks.
        cast: the ranks that this process plays, if it is more than one; the first one's method is ``method``.
    """

    method: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    clock: Clock
    batch_size: int
    cast: Ranks | None = None

    @property
    def methods(self) -> Sequence[nn.Module]:
        """Of each rank of this process."""
        return [self.method] if self.cast is None else self.cast.methods

    @property
    def first_rank(self) -> int:
        """Of this process, among all."""
        return collectives.rank() * len(self.methods)

    @property
    def world_size(self) -> int:
        """Number of ranks, over all processes."""
        return collectives.world_size() * len(self.methods)

    def of_each_rank(self) -> list[dict[str, Any]]:
        """What each rank of this process has of its own: buffers and random state."""
        states = [random_state()] if self.cast is None else self.cast.random_states()
        return [
            {"buffers": {name: method.get_buffer(name) for name in self.per_rank_buffers}, "rng": state}
            for method, state in zip(self.methods, states, strict=True)
        ]

    @property
    def per_rank_buffers(self) -> dict[str, int]:
        return getattr(self.method, "per_rank_buffers", {})


def fill(state: RunState, content: dict[str, Any], path: str, warn: Callable[[str], None]) -> None:
    """Fills the live objects from a checkpoint's content, see :meth:`CheckpointStore.resume`.

    Raises UserError, which names ``path``, where it is of another model or optimiser.
    """
    own = {n: t for n, t in state.method.state_dict().items() if n not in state.per_rank_buffers}
    problem = describe_mismatch(own, content["state_dict"], path)
    if problem:
        raise UserError(f"{problem}; choose another --dump_path for another model")
    state.method.load_state_dict({n: part_like(own[n], t) for n, t in content["state_dict"].items()}, strict=False)
    try:
        state.optimizer.load_state_dict(_optimizer_parts(state.optimizer, content["optimizer"]))
    except ValueError as error:
        raise UserError(
            f"the optimiser in {path} does not fit: {str(error).splitlines()[0]}; choose another --dump_path"
        ) from None
    if content["scaler"]:
        state.scaler.load_state_dict(content["scaler"])

    clock, world = state.clock, state.world_size
    same_plan = (
        content["world_size"] == world
        and content["batch_size"] == state.batch_size
        and content["steps_per_epoch"] == clock.steps_per_epoch
    )
    if content["world_size"] == world:
        random = [rank["rng"] for rank in content["per_rank"][state.first_rank :]][: len(state.methods)]
        if state.cast is None:
            set_random_state(random[0])
        else:
            state.cast.set_random_states(random)
    for name, dimension in state.per_rank_buffers.items():
        parts = [rank["buffers"][name] for rank in content["per_rank"]]
        for rank, method in enumerate(state.methods, start=state.first_rank):
            buffer = method.get_buffer(name)
            if content["world_size"] == world and parts[0].shape == buffer.shape:
                buffer.copy_(parts[rank])
            else:
                _share_out(buffer, parts, dimension, rank, world)
    if same_plan:
        clock.step = content["step"]
        return
    done, inside = divmod(content["step"], content["steps_per_epoch"])
    seen = inside * content["batch_size"]
    clock.step = done * clock.steps_per_epoch + min(seen // state.batch_size, clock.steps_per_epoch - 1)
    warn(
        f"resuming on {world} ranks with {state.batch_size} images a step what ran on {content['world_size']} "
        f"with {content['batch_size']}: weights, optimiser and schedule position carry over, but batches are cut "
        "differently from here on, batch statistics change with them, and each process's own buffers and random "
        "state are shared out anew, so the run is not bit-exact with an undisturbed one"
    )


def _optimizer_parts(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    """The saved state with the tensors of sharded parameters cut to this rank's part, for kernels of this device."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    groups = []
    for old, new in zip(saved["param_groups"], optimizer.state_dict()["param_groups"], strict=False):
        if old.keys() != new.keys():
            raise ValueError(f"it is another one, with other options ({', '.join(sorted(old.keys() ^ new.keys()))})")
        groups.append({**old, **{name: new[name] for name in KERNELS if name in new}})
    groups += saved["param_groups"][len(groups) :]
    state = {}
    for index, values in saved["state"].items():
        if index >= len(params):
            raise ValueError(f"it holds state for parameter {index}, and there are {len(params)}")
        state[index] = {
            name: part_like(params[index], value) if torch.is_tensor(value) and value.ndim else value
            for name, value in values.items()
        }
    return {**saved, "param_groups": groups, "state": state}


def _share_out(buffer: Tensor, parts: list[Tensor], dimension: int, rank: int, world: int) -> None:
    """Deals the rows of all old ranks to the new ones, newest first; rows that are missing stay zero."""
    stacked = torch.stack(parts, dim=dimension + 1)  # row i of every old rank, before row i + 1 of any
    rows = stacked.flatten(dimension, dimension + 1)
    every = range(rank, rows.shape[dimension], world)  # none in an empty queue
    mine = torch.tensor(every[: buffer.shape[dimension]], dtype=torch.int64)
    buffer.zero_()
    buffer.narrow(dimension, 0, len(mine)).copy_(rows.index_select(dimension, mine))

"""What happened since the last log line."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..parallel import collectives


@dataclass
class Interval:
    """Values gathered on the device since the last log line, and the time they took."""

    values: dict[str, list[Tensor]] = field(default_factory=dict)
    images: int = 0
    waited: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    def add(self, outputs: Mapping[str, Tensor]) -> None:
        for name, value in outputs.items():
            self.values.setdefault(name, []).append(value.detach())

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time of evaluations and checkpoints out of the rate."""
        since = time.perf_counter()
        yield
        self.started += time.perf_counter() - since

    def means(self) -> dict[str, float]:
        """Means over the interval and over the ranks: the one place where training waits for the device."""
        if not self.values:
            return {}
        stacked = torch.stack([torch.stack(values).mean().float() for values in self.values.values()])
        collectives.all_reduce_(stacked)
        return dict(zip(self.values, (stacked / collectives.world_size()).tolist(), strict=True))

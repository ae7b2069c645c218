"""What a method is to the training loop."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

from ..clock import Clock
from ..data.loading import Batch
from .diagnostics import Check


@dataclass(frozen=True)
class Scale:
    """How large the run is that a method is built for.

    Attributes:
        batch_size: images of one rank.
        world_size: number of ranks.
        num_images: of the data set.
        rows_per_epoch: images that one rank sees in an epoch.
        seed: of the run.
        device: of this process.
        virtual_ranks: how many of the ranks each process plays.
    """

    batch_size: int
    world_size: int
    num_images: int
    rows_per_epoch: int
    seed: int
    device: torch.device
    virtual_ranks: int = 1


M = TypeVar("M", bound="Method")


class Method(nn.Module):
    """A model and its training step.

    Everything it must remember between steps is a parameter or a registered buffer, so that checkpoints hold it
    without special cases. Subclasses set ``backbone``, which evaluation and export read, and define ``forward``.

    Attributes:
        backbone: (n, 3, h, w) -> (n, F).
        per_rank_buffers: names of buffers that differ between ranks (queues, memory banks), each with the dimension
            along which it holds samples. All other state is the same on every rank.
        called_outside_of_steps: names of methods that use parameters and are called outside of ``forward``.
        advice: what may help when the loss is not finite.
        remembers_evaluations: whether evaluations change its state, so that one that was lost must be repeated.
        loss_is_local: whether ``forward`` calls no collective once it has computed something with gradient.
    """

    backbone: nn.Module
    called_outside_of_steps: ClassVar[tuple[str, ...]] = ()
    advice: str = "Try a lower learning rate, a longer warm-up, a bound on the gradient norm, or --precision fp32"
    remembers_evaluations: ClassVar[bool] = False
    per_rank_buffers: ClassVar[dict[str, int]] = {}
    loss_is_local: ClassVar[bool] = False

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """One step's loss, a float32 scalar under ``loss``, and detached scalars worth logging.

        Runs under the loop's autocast; losses belong in an fp32 island. Values that are costly to compute need only
        be there while ``clock.logging`` is set.
        """
        raise NotImplementedError  # every method has its own

    @property
    def backbones(self) -> list[nn.Module]:
        """The backbone and its momentum copies."""
        return [module for module in self.modules() if type(module) is type(self.backbone)]

    def as_rank(self: M) -> M:
        """The method for another rank that this process plays: the same networks, parameters and buffers, but for
        those buffers that differ between ranks, and for attributes. What is equal on all ranks is changed where
        :func:`src.parallel.virtual.keeps_state` says so."""
        other = object.__new__(type(self))  # the class of a sharded module makes others than its own
        other.__dict__.update(self.__dict__)
        other._buffers = {**self._buffers, **{name: self.get_buffer(name).clone() for name in self.per_rank_buffers}}
        return other

    def before_training(self, batches: Iterable[Batch]) -> None:
        """Called once, before the first step of a run; ``batches`` goes through the first epoch if it is iterated."""

    def before_epoch(self, clock: Clock) -> None:
        """Called before an epoch, and again when training resumes inside one (``clock.step_in_epoch > 0``)."""

    def before_step(self, clock: Clock) -> None:
        """Called once before the forward pass or passes of a step; may change parameters, which may be sharded."""

    def after_backward(self, clock: Clock) -> None:
        """Gradients are there, averaged over ranks and unscaled; the optimiser has not stepped yet."""

    def after_step(self, clock: Clock) -> None:
        """The optimiser has stepped; ``clock.step`` still is the number of that step."""

    def health_checks(self) -> list[Check]:
        """Signs of collapse, judged on the logged values."""
        return []

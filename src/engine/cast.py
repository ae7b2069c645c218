"""The ranks that a process plays in a training: what each of them has of its own, and the steps they make together."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as tree

from ..clock import Clock
from ..data.loading import Batch
from ..parallel import collectives, virtual
from ..parallel.gradients import average_gradients_
from ..parallel.sharding import give_back, is_sharded
from ..parallel.sync_bn import ranks_in_one_batch
from ..randomness import random_state, set_random_state
from .method import Method

T = TypeVar("T")


MOST_OPERATIONS_OF_A_RANK = 20_000


@dataclass
class Pass:
    """A pass through a network without gradient, which is made again when the gradient of its output is known.

    Attributes:
        function: of the pass.
        images: of the ranks that go through it together.
        random: the state of the generators at its start.
        outputs: what the losses were computed from; their gradients are those of the pass.
    """

    function: Callable[[Tensor], Any]
    images: list[Tensor]
    random: dict[str, Tensor]
    outputs: list[Tensor]


class Cast:
    """The ranks of a process.

    Each has a method of its own that shares all networks and buffers with the others, but for buffers that differ
    between ranks, attributes, and random state. Networks update their batch-norm statistics in the first rank's passes
    only, whose statistics are those that are saved.

    What the losses of a step need of other ranks they get from the *outputs* of the networks. So the passes are made
    one by one without gradient, then all losses with their gradient down to these outputs, then each pass once more,
    now with its activations, to take the gradient on to the parameters. The memory of activations is that of one
    rank, whatever their number. A method whose losses need nothing of other ranks beyond what is computed without
    gradient (``Method.loss_is_local``) makes each pass once.

    Args:
        method: the first rank's.
        count: ranks of this process.
        seed: of the random state; rank r of all has ``seed + r``.
        device: of the method.
        autocast: for forward passes.
    """

    def __init__(
        self,
        method: Method,
        count: int,
        seed: int,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        process, processes = collectives.rank(), collectives.world_size()
        self.methods = [method, *(method.as_rank() for _ in range(count - 1))]
        self._autocast = autocast
        self._norms = [module for module in method.modules() if isinstance(module, _BatchNorm)]
        self._device = device
        self._players = virtual.Players(
            count, process, processes, self._before_turn, self._after_turn, self._choose_device
        )
        self._passes: list[Pass] = []
        self._random = [self._seeded(seed + process * count + number) for number in range(count)]
        set_random_state(self._random[0])
        # Gradients are added up in the order of numbers that each thread gives its operations. Those of passes, made by
        # this thread, must lie above the ranks' from the first step on, or a resumed run would add in another order
        one = torch.zeros((), requires_grad=True)
        for _ in range(MOST_OPERATIONS_OF_A_RANK):
            _ = one + one
        self._is_sharded = is_sharded(method)  # its backward passes leave means over the processes
        self._one_pass_is_enough = method.loss_is_local and ranks_in_one_batch(method) == 1
        for network in method.backbones:
            self._lead_through_here(network)

    def __len__(self) -> int:
        return len(self.methods)

    # ------------------------------------------------------------------------------------------------ turns

    def each(self, task: Callable[[Method], T], at_its_end: Callable[[T], T] | None = None) -> list[T]:
        """What the task gives for each rank's method, with collectives between them all.

        ``at_its_end`` as for :meth:`src.parallel.virtual.Players.run`.
        """
        # between turns the generators are the first rank's
        self._random[0] = random_state()
        try:
            return self._players.run([functools.partial(task, method) for method in self.methods], at_its_end)
        finally:
            set_random_state(self._random[0])
            self._keep_statistics(True)
            give_back(self.methods[0])

    def before_training(self, batches: Iterable[Batch], prepare: Callable[[Batch], Batch]) -> None:
        """``batches`` come for all ranks by turns."""
        stream = iter(batches)

        def task(method: Method) -> None:
            with self._autocast():
                method.before_training(map(prepare, self.shared_out(stream)))

        self.each(task)

    def shared_out(self, stream: Iterator[Batch]) -> Iterator[Batch]:
        """In a rank's task: its batches, of those that come for all ranks by turns."""
        rank = virtual.here()
        assert rank is not None
        count = len(self)

        def deal(streams: list[Iterator[Batch]]) -> list[Batch | None]:
            found: list[Batch | None] = list(islice(streams[0], count))
            return found if len(found) == count else [None] * count

        while (batch := rank.meet(deal, stream)) is not None:
            yield batch

    def _choose_device(self) -> None:
        if self._device.index is not None:  # a new thread is on the first GPU
            torch.accelerator.set_device_index(self._device.index)

    def _before_turn(self, number: int) -> None:
        set_random_state(self._random[number])
        self._keep_statistics(number == 0)

    def _after_turn(self, number: int) -> None:
        self._random[number] = random_state()

    def _seeded(self, seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        return random_state()

    def _keep_statistics(self, keep: bool) -> None:
        for norm in self._norms:
            norm.track_running_stats = keep

    # ------------------------------------------------------------------------------------------------ random states

    def random_states(self) -> list[dict[str, Tensor]]:
        """Of each rank."""
        return [random_state(), *self._random[1:]]

    def set_random_states(self, states: Sequence[dict[str, Tensor]]) -> None:
        self._random = list(states)
        set_random_state(states[0])

    # ------------------------------------------------------------------------------------------------ a step

    def forward_backward(
        self,
        parts: Sequence[Batch],
        prepare: Callable[[Batch], Batch],
        clock: Clock,
        scale: Callable[[Tensor], Tensor],
    ) -> dict[str, Tensor]:
        """The gradient of the mean of all ranks' losses, and the means of their outputs.

        Args:
            parts: a batch for each rank.
            prepare: makes of a batch what the method expects.
            scale: the loss scaler's.
        """
        one_by_one = self._one_pass_is_enough
        batches = dict(zip(map(id, self.methods), parts, strict=True))

        def forward(method: Method) -> dict[str, Tensor]:
            with self._autocast():
                outputs: dict[str, Tensor] = method(prepare(batches[id(method)]), clock)
            return outputs

        def backward(outputs: dict[str, Tensor]) -> dict[str, Tensor]:
            scale(outputs["loss"] / len(self)).backward()
            return {**outputs, "loss": outputs["loss"].detach()}

        self._passes = []
        found = self.each(forward, backward if one_by_one else None)
        outputs = {name: torch.stack([one[name] for one in found]).mean() for name in found[0]}
        if not one_by_one:
            scale(outputs["loss"]).backward()
            give_back(self.methods[0])
            self._pass_again()
        outputs["loss"] = outputs["loss"].detach()
        if not self._is_sharded:
            average_gradients_(self.methods[0].parameters())
        return outputs

    def _lead_through_here(self, network: nn.Module) -> None:
        """Puts :meth:`_through` before a network's forward pass."""
        way = functools.partial(self._through, ranks_in_one_batch(network))
        network._way_of_passes = way  # type: ignore[assignment]
        # where torch looks for what a call does: with hooks, which put a sharded network together
        call = network._compiled_call_impl or network._call_impl
        network._compiled_call_impl = functools.partial(way, network, call)

    def _through(self, together: int, network: nn.Module, function: Callable[[Tensor], Any], images: Tensor) -> Any:
        """A pass of a rank, of whose network so many ranks share the batch norms."""
        rank = virtual.here()
        if rank is None:
            return function(images)
        with_gradient = torch.is_grad_enabled()
        if together == 1 and (self._one_pass_is_enough or not with_gradient):
            return self._led(function, images, with_gradient)
        return rank.meet(functools.partial(self._pass, function, together, with_gradient), images)

    def _led(self, function: Callable[[Tensor], Any], images: Tensor, with_gradient: bool) -> Any:
        """A pass in the thread that leads, with autocast as in steps."""

        def task() -> Any:
            with self._autocast(), torch.set_grad_enabled(with_gradient):
                return function(images)

        return virtual.by_the_leader(task)

    def _pass(
        self, function: Callable[[Tensor], Any], together: int, with_gradient: bool, images: list[Tensor]
    ) -> list[Any]:
        """The passes of all ranks, of which some have their batch norms in common. In the first rank's thread."""
        answers: list[Any] = []
        for first in range(0, len(images), together):
            part = images[first : first + together]
            if first:
                self._random[0] = random_state()
                self._before_turn(first)
            state = random_state()
            outputs = self._led(function, _joined(part), with_gradient=False)
            if first:
                self._after_turn(first)
                self._before_turn(0)
            if with_gradient:
                outputs = tree.tree_map(lambda tensor: tensor.detach().requires_grad_(), outputs)
                self._passes.append(Pass(function, part, state, tree.tree_leaves(outputs)))
            answers += [tree.tree_map(lambda t, i=i: t.chunk(together)[i], outputs) for i in range(together)]
        return answers

    def _pass_again(self) -> None:
        before = random_state()
        self._keep_statistics(False)
        for one in self._passes:
            set_random_state(one.random)
            with self._autocast():
                outputs = tree.tree_leaves(one.function(_joined(one.images)))
            used = [(o, leaf.grad) for o, leaf in zip(outputs, one.outputs, strict=True) if leaf.grad is not None]
            if used:
                torch.autograd.backward([output for output, _ in used], [gradient for _, gradient in used])
        self._passes = []
        self._keep_statistics(True)
        set_random_state(before)


def _joined(images: list[Tensor]) -> Tensor:
    return torch.cat(images) if len(images) > 1 else images[0]

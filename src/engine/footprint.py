"""What memory a step needs, found by making one with tensors that have sizes and no numbers."""

import contextlib
import copy
import functools
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as tree
from torch.utils._python_dispatch import TorchDispatchMode

from ..clock import Clock
from ..data.loading import Batch
from ..parallel import collectives, virtual
from ..parallel.sync_bn import of_all_ranks, ranks_in_one_batch
from ..randomness import random_state, set_random_state
from .method import Method


@dataclass(frozen=True)
class Footprint:
    """Bytes that one process needs on its device, beside what the driver and libraries take.

    Attributes:
        networks: parameters and buffers, those of momentum copies and teachers too.
        gradients, optimizer: of the trained parameters.
        ranks: how many the process plays.
        images: of a batch, of which each of its ranks holds one during a step.
        together: ranks whose images go through the networks as one part, as their batch norms are synchronised.
        all_together: whether these are all ranks, however many there are.
        part: the most that a part's passes, forwards and back, need at a time.
        features: what each rank keeps until the last part has passed: networks' outputs and their gradients.
        losses: what each rank keeps from its passes to the end of all losses.
        shared: of that, what is computed once for all ranks.
        aside: the most that is needed for a moment beside what is kept for losses.
    """

    networks: int
    gradients: int
    optimizer: int
    ranks: int
    images: int
    together: int
    part: int
    all_together: bool = False
    features: int = 0
    losses: int = 0
    shared: int = 0
    aside: int = 0

    @property
    def bytes(self) -> int:
        """All of it: losses are gone when parts pass with gradients."""
        always = self.networks + self.gradients + self.optimizer + self.ranks * self.images
        return always + max(self.of_passes, self.of_losses)

    @property
    def of_passes(self) -> int:
        return self.ranks * self.features + self.part

    @property
    def of_losses(self) -> int:
        return self.ranks * self.losses + self.shared + self.aside

    def with_smaller_ranks(self, times: int) -> "Footprint":
        """The same images of a step, played by so many times as many ranks with as many fewer images each.

        Not where batch norms take all ranks together, and not of a single rank, whose passes are made otherwise.
        """
        smaller = {name: getattr(self, name) // times for name in ("images", "part", "features", "losses", "aside")}
        return replace(self, ranks=self.ranks * times, **smaller)


def footprint(
    method: Method,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    clock: Clock,
    ranks: int,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> Footprint:
    """What a step of a method needs, which is not sharded; nothing is computed, and nothing of the method changes.

    Args:
        method: on its device.
        batch: a rank's, of which only the shapes matter; crops as they come from the loader.
        ranks: that the process plays.
        autocast: for forward passes.
    """
    state = random_state()
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    networks = [method, *teachers_of(method)]
    own = {tensor for one in networks for tensor in (*one.parameters(), *one.buffers())}
    with _as_it_was(method), collectives.alone(), mode:
        try:
            step = _Step(method, clock, autocast, [mode.from_tensor(tensor) for tensor in own])
            once = ranks == 1 or (method.loss_is_local and ranks_in_one_batch(method) == 1)
            measured = step.once(batch, ranks) if once else step.by_parts(batch)
        finally:
            set_random_state(state)
    trained = sum(_bytes(p) for p in method.parameters() if p.requires_grad)
    return Footprint(
        networks=sum(map(_bytes, own)),
        gradients=trained if ranks > 1 else 0,  # a single rank's arrive while its activations go
        optimizer=trained * _values_of_a_weight(optimizer),
        ranks=ranks,
        together=1 if once else ranks_in_one_batch(method),
        all_together=not once and of_all_ranks(method),
        **measured,
    )


class _Step:
    """A step with tensors that have sizes only.

    Args:
        method, clock, autocast: see :func:`footprint`.
        own: the stand-ins of what the method holds.
    """

    def __init__(
        self, method: Method, clock: Clock, autocast: Callable[[], AbstractContextManager[Any]], own: list[Tensor]
    ) -> None:
        self.method, self.clock, self.autocast = method, clock, autocast
        self.device = own[0].device
        self.own = own  # kept alive: their storages are known by their addresses
        self.known = {tensor.untyped_storage()._cdata for tensor in own}

    def watched(self) -> "_Peak":
        """Counts what is made inside."""
        return _Peak(self.known)

    def once(self, batch: Batch, ranks: int) -> dict[str, int]:
        """What it needs in one go, forward and back."""
        images, size = self.images(batch)
        if ranks > 1:
            self.fill_gradients()
        with self.watched() as peak:
            with self.autocast():
                loss = self.method(images, self.clock)["loss"]
            loss.backward()
            del loss
        return {"images": size, "part": peak.most}

    def by_parts(self, batch: Batch) -> dict[str, int]:
        """What it needs as :class:`src.engine.cast.Cast` makes it where losses need all ranks."""
        together = ranks_in_one_batch(self.method)
        images, size = self.images(batch)
        passes: list[tuple[Callable[[Tensor], Any], tuple[int, ...]]] = []
        aside = copied = features = shared = 0
        crops = {crop.untyped_storage()._cdata for crop in images.crops}

        def through(network: nn.Module, function: Callable[[Tensor], Any], images: Tensor) -> Any:
            nonlocal aside, copied, features
            with_gradient = torch.is_grad_enabled()
            shape = (together * len(images), *images.shape[1:])
            with self.watched() as alone, torch.no_grad():
                outputs = function(torch.empty(shape, device=self.device))
            aside = max(aside, alone.most)
            outputs = tree.tree_map(lambda t: t[: len(images)].clone().requires_grad_(with_gradient), outputs)
            if with_gradient:
                passes.append((function, shape))
                copied += _bytes(images) if images.untyped_storage()._cdata not in crops else 0
                features += 2 * sum(map(_bytes, tree.tree_leaves(outputs)))
            return outputs

        for network in self.method.backbones:
            call = network._call_impl
            network._compiled_call_impl = functools.partial(through, network, call)
            network._way_of_passes = through  # type: ignore[assignment]

        @contextlib.contextmanager
        def for_all() -> Iterator[None]:
            nonlocal shared
            before = peak.now
            yield
            shared += peak.now - before

        with self.watched() as peak:
            with self.autocast(), virtual.in_each_once(for_all):
                loss = self.method(images, self.clock)["loss"]
            kept = peak.now
            loss.backward()
            del loss
        aside = max(aside, peak.most - kept)
        self.fill_gradients()
        part = max((self.pass_and_back(function, shape) for function, shape in passes), default=0)
        found = {"part": part, "features": features, "losses": kept - shared, "shared": shared, "aside": aside}
        return {"images": size + copied, **found}

    def pass_and_back(self, function: Callable[[Tensor], Any], shape: tuple[int, ...]) -> int:
        given = torch.empty(shape, device=self.device)
        with self.watched() as peak:
            with self.autocast():
                outputs = tree.tree_leaves(function(given))
            torch.autograd.backward(outputs, [torch.empty_like(one) for one in outputs])
            del outputs
        return peak.most

    def images(self, batch: Batch) -> tuple[Batch, int]:
        """What a method gets of such a batch, crops as numbers around 0; and its bytes."""

        def floating(crop: Tensor) -> Tensor:
            return torch.empty(crop.shape, device=self.device)

        def alike(tensor: Tensor) -> Tensor:
            return torch.empty(tensor.shape, dtype=tensor.dtype, device=self.device)

        with self.watched() as peak:
            moved = replace(batch, crops=[], draws=None).each(alike)
            return replace(moved, crops=[floating(crop) for crop in batch.crops]), peak.now

    def fill_gradients(self) -> None:
        for parameter in self.method.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.empty_like(parameter)


@contextlib.contextmanager
def _as_it_was(method: Method) -> Iterator[None]:
    """Brings back afterwards what a method and its modules have as attributes, parameters and buffers."""
    modules = [one for network in (method, *teachers_of(method)) for one in network.modules()]
    kept = [(one, dict(one.__dict__), _contents_of(one)) for one in modules]
    for module in modules:
        # calls that torch compiles, or shares out over processes, are made as they are written
        module._compiled_call_impl = None
        if isinstance(module, nn.SyncBatchNorm):
            module.forward = functools.partial(_BatchNorm.forward, module)  # type: ignore[method-assign]
        for name, buffer in list(module._buffers.items()):
            if buffer is not None and buffer.numel() == 1:  # torch computes with single numbers, to know them later
                module._buffers[name] = buffer.clone()
    try:
        yield
    finally:
        for module, attributes, contents in kept:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            for container, content in contents:
                _refill(container, content)
            for parameter in module.parameters(recurse=False):
                parameter.grad = None


def _contents_of(module: nn.Module) -> list[tuple[Any, Any]]:
    """The containers among a module's attributes, parameters and buffers among them, and what is in each."""
    kinds = (list, dict, set, deque)
    return [(value, copy.copy(value)) for value in module.__dict__.values() if isinstance(value, kinds)]


def _refill(container: Any, content: Any) -> None:
    container.clear()
    if isinstance(container, (dict, set)):
        container.update(content)
    else:
        container.extend(content)


def teachers_of(method: Method) -> list[nn.Module]:
    """Networks that are used and are no part of the method."""
    networks = [getattr(value, "networks", None) for value in vars(method).values()]
    return [one for one in networks if isinstance(one, nn.Module)]


def _values_of_a_weight(optimizer: torch.optim.Optimizer) -> int:
    """How many numbers an optimiser remembers for each."""
    if isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW)):
        return 2
    return int(any(group.get("momentum") for group in optimizer.param_groups))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


class _Peak(TorchDispatchMode):
    """Adds up the memory of tensors that operations inside make, until they are gone.

    Args:
        known: storages that were there before, which views lead to.
    """

    def __init__(self, known: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = known
        self.now = self.most = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        reads_number = func is torch.ops.aten._local_scalar_dense.default
        if reads_number and isinstance(args[0], FakeTensor) and args[0].dtype is torch.bool:
            return True  # checks (is this matrix definite?) are the only numbers that a step reads
        found = func(*args, **(kwargs or {}))
        given = {one.untyped_storage()._cdata for one in tree.tree_leaves((args, kwargs)) if isinstance(one, Tensor)}
        for one in tree.tree_leaves(found):
            if isinstance(one, Tensor):
                storage = one.untyped_storage()
                if storage._cdata not in given and storage._cdata not in self._known:
                    self._add(storage)
        return found

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._alive:
            return
        size = storage.nbytes()
        self._alive.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size

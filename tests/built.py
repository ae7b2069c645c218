"""Everything that a script builds, up to the call that would train it: through its real ``main``, without images."""

import contextlib
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar
from unittest import mock

from src import pretraining
from src.data.decoding import Decoding
from src.engine.judging import Evaluation
from src.evaluation import classification, protocols
from src.evaluation.protocols import Protocol
from src.methods import disco, swav_disco
from src.parallel import sync_bn
from src.parallel.launch import World
from src.pretraining import images as opening
from src.pretraining import online, running
from src.pretraining import run as starting
from src.settings import flat

import torch
from PIL import Image

IMAGENET = 1_281_167  # training images


class FakeImages:
    """A source of so many images, all alike."""

    def __init__(self, count: int = IMAGENET, classes: int = 1000) -> None:
        self.labels = [index % classes for index in range(count)]
        self.classes = [str(n) for n in range(classes)]
        self.decoding, self.left_out = Decoding(), ()

    def __len__(self) -> int:
        return len(self.labels)

    def open(self, index: int) -> Image.Image:
        return Image.new("RGB", (64, 64))

    def name(self, index: int) -> str:
        return str(index)

    relative_name = name


class FakeTeacher:
    """Stands for a checkpoint that is not there; remembers how it was asked for."""

    sha256, description, width = "of the teacher", "a teacher", 128
    identity: ClassVar[dict[str, str]] = {"teacher_sha256": sha256}

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.asked = (arguments, options)
        self.queue = torch.ones(128, 16)
        self.backbone = torch.nn.Linear(1, 1)
        self.networks = torch.nn.ModuleList([self.backbone])

    def to(self, device: torch.device) -> "FakeTeacher":
        return self


class _Captured(Exception):
    pass


@dataclass
class Built:
    """What a command line came to.

    Attributes:
        run: the :class:`src.pretraining.Pretraining`.
        training: the arguments of the :class:`src.engine.loop.Training` that would have started.
        checkpoints: those of its :class:`src.checkpoints.store.CheckpointStore`.
        sync_bn: group sizes of the batch norms that were synchronised, in order; 0 = all processes.
        monitor: the arguments of the :class:`src.engine.monitor.Monitor`.
        asked: what was asked of functions that the world answers: which images to open, which device, ...
    """

    run: Any
    training: dict[str, Any]
    checkpoints: Any
    sync_bn: list[int]
    monitor: Any
    asked: list[Any]

    @property
    def method(self) -> Any:
        return self.training["method"]

    @property
    def groups(self) -> list[dict[str, Any]]:
        return self.training["optimizer"].param_groups

    @property
    def evaluations(self) -> Sequence[Evaluation]:
        return self.training["evaluations"]

    @property
    def views(self) -> Any:
        return self.run.loader.dataset.views_of(0)

    def rate(self, epoch: float, option: str = "lr") -> float:
        """A schedule's value at the step nearest to so many epochs."""
        clock = self.training["clock"]
        clock.step = round(epoch * clock.steps_per_epoch)
        return self.training["schedules"][option](clock)

    @property
    def values(self) -> dict[str, Any]:
        """Name -> what a flag came to; of a batch that processes share out, the whole."""
        settings = flat(self.run.settings)
        became = self.checkpoints.settings
        return {**became, "batch_size": settings.get("batch_size", became["batch_size"])}


@contextlib.contextmanager
def _without_the_world(
    processes: int, images: Any, found: dict[str, Any], on_meta: bool, device: torch.device | None
) -> Iterator[None]:
    def capture(**arguments: Any) -> None:
        found["training"] = arguments
        raise _Captured

    def start(call: Any, views: Any, *rest: Any, **options: Any) -> Any:
        found["run"] = real_start(call, views, *rest, **options)
        return found["run"]

    def convert(module: Any, group_size: int = 0, device_type: str = "cpu", virtual_ranks: int = 1) -> Any:
        found["sync_bn"].append(group_size)
        return module

    def monitor(*arguments: Any, **options: Any) -> Any:
        found["monitor"] = arguments
        return mock.MagicMock()

    def answer(value: Any) -> Any:
        def answered(*arguments: Any, **options: Any) -> Any:
            found["asked"].append((*arguments, *map(repr, options.items())))
            return value

        return answered

    def seed_everything(seed: int, deterministic: bool) -> None:
        found["asked"].append((seed, deterministic))
        torch.manual_seed(seed)

    def choose_precision(name: str, device: torch.device) -> Any:
        found["asked"].append(name)
        return real_precision(name, device)

    real_start, real_precision, tensor = pretraining.start, starting.choose_precision, torch.tensor
    on_cpu = lambda *a, **k: tensor(*a, **{"device": "cpu", **k})  # noqa: E731
    world = World(0, processes, 0, device or torch.device("cpu"))
    with contextlib.ExitStack() as stack:
        for owner, name, stand_in in (
            (pretraining, "start", start),
            (online, "open_images", answer(images)),
            (opening, "open_images", answer(images)),
            (online, "open_labelled", answer(images)),
            (online, "find_val_beside", lambda *_: "val"),
            (running, "Training", capture),
            (running, "Monitor", monitor),
            (running, "alone_in", lambda _: contextlib.nullcontext()),
            (starting.launch, "start", answer(world)),
            (starting, "seed_everything", seed_everything),
            (starting, "choose_precision", choose_precision),
            (sync_bn, "convert", convert),
            *([] if device else [(disco, "Teacher", FakeTeacher), (swav_disco, "Teacher", FakeTeacher)]),
            *([(pretraining, "place", lambda *_: None), (torch, "tensor", on_cpu)] if on_meta else []),
        ):
            stack.enter_context(mock.patch.object(owner, name, stand_in))
        if on_meta:
            stack.enter_context(torch.device("meta"))
        yield


def built(
    script: ModuleType, line: str | Sequence[object], processes: int = 1, images: Any = None, on_meta: bool = True,
    device: torch.device | None = None,
) -> Built:  # fmt: skip
    """Runs a script's ``main`` up to the training.

    Args:
        on_meta: networks have no values, so large ones cost nothing.
        device: where all of it is, teachers too; without one, the CPU, and teachers are fake.
    """
    words = shlex.split(line) if isinstance(line, str) else [str(word) for word in line]
    found: dict[str, Any] = {"sync_bn": [], "asked": []}
    world = _without_the_world(processes, images or FakeImages(), found, on_meta and device is None, device)
    with world, contextlib.suppress(_Captured):
        script.main(words)
    checkpoints = found["training"]["checkpoints"]
    return Built(found["run"], found["training"], checkpoints, found["sync_bn"], found["monitor"], found["asked"])


def resolved(script: ModuleType, line: str | Sequence[object], processes: int = 1) -> SimpleNamespace:
    """:attr:`Built.values` as attributes."""
    return SimpleNamespace(**built(script, line, processes).values)


def judged(
    script: ModuleType, table: dict[str, Protocol], line: str | Sequence[str], family: str, processes: int = 1,
    is_transformer: bool = False,
) -> SimpleNamespace:  # fmt: skip
    """What an evaluation's command line comes to for weights of a family."""
    words = shlex.split(line) if isinstance(line, str) else list(line)
    call = script.SCRIPT.parse(words)
    settings = call.settings
    name, _ = protocols.choose(
        table, settings.protocol.protocol, family, is_transformer, call.flags, settings.data.dataset
    )
    recipe = protocols.resolve(settings.classifier, settings.labels.labels_perc, table[name], processes)
    classification.check(settings, recipe)
    return SimpleNamespace(**{**flat(settings), **recipe.plain(), "protocol": name})

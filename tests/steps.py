"""Real training steps of every method of every script, one by one, on any device."""

import contextlib
import importlib
import itertools
import shlex
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from src.data.folder import FolderImages
from src.engine.loop import Training
from tests.built import built
from tests.same_runs import RUNS, TWO

import torch

# The command lines of one process
LINES = {name: line for name, line in RUNS.items() if not line.startswith(TWO)}


def training_of(name: str, patches: Path, runs: Path, device: torch.device, *extra: str) -> Training:
    """What the command line ``name`` of :data:`LINES` would train, on a device, without files.

    Args:
        patches: the folder of images.
        runs: where ``moco`` has its checkpoint, the teacher of others.
        extra: further words of the command line.
    """
    script, *words = shlex.split(LINES[name].format(data=patches, runs=runs))
    words += ["--device", device.type, "--workers", "0", "--dump_path", str(runs / "none"), *extra]
    words += ["--knn_freq", "0"] if "--knn_freq" in words else []
    module = importlib.import_module(script.removesuffix(".py"))
    images = FolderImages(patches / "train")
    found = built(module, words, images=images, device=device)
    return Training(**{**found.training, "monitor": mock.MagicMock(), "checkpoints": None, "evaluations": ()})


def make_teacher(patches: Path, runs: Path) -> None:
    """A checkpoint of ``moco`` after a step, where :func:`training_of` expects it."""
    script, *words = shlex.split(LINES["moco"].format(data=patches, runs=runs))
    words += ["--dump_path", str(runs / "moco"), "--workers", "0", "--max_steps", "1"]
    assert not importlib.import_module(script.removesuffix(".py")).main(words)


def steps(
    training: Training,
    around: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
    counts: Sequence[int | None] = (None, None),
) -> Iterator[dict[str, torch.Tensor]]:
    """Makes the training's steps of some epochs; gives their outputs.

    Args:
        around: what each step is made in.
        counts: for each epoch how many of its steps are made; None = all.
    """
    clock, method = training.clock, training.method
    with torch.enable_grad():
        training._first_look()
        for epoch, count in enumerate(counts):
            clock.step = epoch * clock.steps_per_epoch
            method.train()
            training._before_epoch()
            training.batches.seek(epoch)
            loader = iter(training.loader)
            for _ in range(count or clock.steps_per_epoch):
                parts = list(itertools.islice(loader, training.virtual_ranks))
                with around():
                    outputs = training._step(parts)
                    method.after_step(clock)
                clock.step += 1
                yield outputs


def waits_of(training: Training) -> list[str]:
    """The places where steps of two epochs wait for the GPU; AssertionError where the loss is not finite."""
    waits: set[str] = set()
    # not in the first step, which allocates and tunes
    for outputs in steps(training, lambda: waits_named(waits if training.clock.step else set())):
        assert torch.isfinite(outputs["loss"])
    return sorted(waits)


@contextlib.contextmanager
def waits_named(found: set[str]) -> Iterator[None]:
    """Adds the places that make the host wait for the GPU to ``found``, each as the calls that led there."""

    def remember(message: Any, *rest: Any, **named: Any) -> None:
        if "synchronizing" not in str(message):
            return
        calls = [call for call in traceback.extract_stack() if "/src/" in call.filename]
        found.add(" < ".join(f"{Path(call.filename).name}:{call.lineno} {call.line}" for call in reversed(calls[-3:])))

    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = remember
            yield
    finally:
        torch.cuda.set_sync_debug_mode("default")

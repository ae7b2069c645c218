"""The first lines of a run: what is about to happen, in numbers that a user can check against the recipe."""

from collections.abc import Sequence

import numpy as np
from torch import nn

from ..data.source import ImageSource
from ..data.views import View
from ..engine.monitor import Monitor
from .run import Pretraining, S


def echo_data(run: Pretraining[S], monitor: Monitor, crops: str) -> None:
    """The lines about images and batches that all methods have."""
    settings, clock = run.settings, run.clock
    played = f" x {run.virtual_ranks} virtual ranks" if run.virtual_ranks > 1 else ""
    monitor.say(f"data       {len(run.images)} images of {run.train_path} ({settings.data.dataset}), crops {crops}")
    monitor.say(f"classes    {classes_in_words(run.images)}; training does not look at them")
    if run.source.left_out:
        monitor.warn(f"left out at {run.train_path}: {'; '.join(run.source.left_out)}")
    monitor.say(
        f"batch      {run.batch_size} x {run.world.size} processes{played} = {run.step_batch} images; "
        f"{clock.steps_per_epoch} steps an epoch, {clock.total_steps} in all"
    )
    if settings.precision.precision == "auto" and run.precision.name == "fp32":
        monitor.say("precision  fp32: on the CPU it is faster than 16 bits (--precision bf16 insists)")


def classes_in_words(images: ImageSource) -> str:
    """``4, with 20 to 24 images each``."""
    labels = np.asarray(images.labels)
    counts = np.bincount(labels + 1)[1:]  # -1 is no class
    counts = counts[counts > 0]
    if not len(counts):
        return "none: there are no class folders or labels"
    least, most = counts.min(), counts.max()
    return f"{len(counts)}, with {least if least == most else f'{least} to {most}'} images each"


def echo_model(run: Pretraining[S], monitor: Monitor, method: nn.Module, more: str = "") -> None:
    """The line about the networks; ``more`` goes between the number of parameters and the precision."""
    settings = run.settings
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    size = f"{trained / 1e6:.1f} M parameters{', ' if more else ''}{more}"
    monitor.say(f"model      {settings.method}, {settings.backbone.arch}, {size}, {run.precision.name}")
    if run.initial:
        for line in run.initial.said:
            monitor.say(f"init       {line}")
        for line in run.initial.warnings(settings.data.mean, settings.data.std):
            monitor.warn(line)
    frozen = settings.initial.freeze_backbone_epochs
    if frozen:
        monitor.say(f"frozen     the backbone's weights, in the first {frozen} epochs")


def crops_in_words(views: Sequence[View]) -> str:
    """``2x224 + 6x96``."""
    sizes = [view.size for view in views]
    return " + ".join(f"{sizes.count(size)}x{size}" for size in dict.fromkeys(sizes))

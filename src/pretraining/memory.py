"""What a run says of the memory that its steps need, before the first one."""

import torch

from ..clock import Clock
from ..data.loading import Batch, ViewDataset, collate
from ..data.sampling import Position
from ..engine.footprint import Footprint, footprint
from ..engine.method import Method
from ..engine.monitor import Monitor
from ..parallel import collectives
from .run import Pretraining, S

# What the driver, the libraries' workspaces and the gaps between tensors may take of a device
RESERVED = 1.5e9
TIMES = (2, 4, 8, 16)  # how many times as many ranks are tried


def say_memory(run: Pretraining[S], method: Method, optimizer: torch.optim.Optimizer, monitor: Monitor) -> None:
    """The line about memory, on the first process; and what would fit, where this does not.

    Runs on the CPU say it with ``--dry_run`` only, which also names other numbers of ranks.
    """
    dry, device = run.settings.run.dry_run, run.world.device
    if not collectives.is_main() or not (dry or device.type == "cuda"):
        return
    if run.settings.speed.shard:
        monitor.say("memory     not estimated with --shard")
        return
    try:
        needed = footprint(
            method,
            optimizer,
            batch_of_shapes(run),
            Clock(run.clock.steps_per_epoch, run.clock.epochs, logging=False),
            run.virtual_ranks,
            lambda: run.precision.autocast(device),
        )
    except Exception as error:  # torch may not know of an operation what it makes; the step itself will tell
        monitor.warn(f"the memory of a step could not be estimated ({error})")
        return
    monitor.say(f"memory     {in_words(needed)}")
    smaller = (
        []
        if needed.all_together or needed.ranks == 1
        else [(times, needed.with_smaller_ranks(times)) for times in TIMES if run.batch_size % times == 0]
    )
    if device.type == "cuda":
        there = torch.cuda.get_device_properties(device).total_memory - RESERVED
        if needed.bytes > there:
            fitting = [f"{of_ranks(run, *choice)} would fit" for choice in smaller if choice[1].bytes <= there]
            ways = "--checkpoint_activations or more processes"
            if needed.ranks == 1:
                ways = f"fewer images for each of several --virtual_ranks, {ways}"
            advice = fitting[0] if fitting else f"{ways} need less; --dry_run with them says how much"
            monitor.warn(f"this device has {in_bytes(there)}: {advice}")
    if dry:
        for choice in smaller:
            monitor.say(f"           {of_ranks(run, *choice)} would need {in_bytes(choice[1].bytes)}")
        if needed.all_together:
            monitor.say("           batch norms take all ranks together, so smaller ranks would need as much")


def of_ranks(run: Pretraining[S], times: int, needed: Footprint) -> str:
    return f"--virtual_ranks {needed.ranks} with {run.batch_size // times} images each"


def in_words(needed: Footprint) -> str:
    """One line of it."""
    played = f" of {needed.ranks} ranks" if needed.ranks > 1 else ""
    shared = f" ({needed.together} ranks together)" if needed.together > 1 else ""
    parts = {
        "networks": needed.networks,
        "gradients": needed.gradients,
        "optimizer": needed.optimizer,
        f"images{played}": needed.images * needed.ranks,
    }
    said = [f"{name} {in_bytes(size)}" for name, size in parts.items() if size]
    passes = f"passes{shared} {in_bytes(needed.of_passes)}"
    if needed.of_losses:
        passes = f"the larger of losses {in_bytes(needed.of_losses)} and {passes}"
    return f"about {in_bytes(needed.bytes)} for each process: {', '.join([*said, passes])}"


def in_bytes(size: float) -> str:
    """``12.3 GB``, ``114 MB`` or ``7 kB``."""
    if size >= 1e9:
        return f"{size / 1e9:.1f} GB"
    return f"{size / 1e6:.0f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"


def batch_of_shapes(run: Pretraining[S]) -> Batch:
    """A rank's batch as the loader gives it, all of its images the first one; numbers are there for one image."""
    dataset = run.loader.dataset
    assert isinstance(dataset, ViewDataset)
    one = collate([dataset[Position(0, 0)]])
    size = run.batch_size
    return Batch(
        crops=[crop.expand(size, *crop.shape[1:]) for crop in one.crops],
        labels=one.labels.expand(size),
        indices=one.indices.expand(size),
        boxes=None if one.boxes is None else one.boxes.expand(-1, size, -1),
        flips=None if one.flips is None else one.flips.expand(-1, size),
    )

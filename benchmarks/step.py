"""Time and peak memory of a training step, as ratios to a plain loop in the same run.

    python benchmarks/step.py [--method swav moco ...] [--recipe small imagenet ...] [--compile]
    python benchmarks/step.py --methods        # MoCo-v2, SwAV and W2SSL on the same images

The baseline, `benchmarks/plain.py`, computes the same step as the papers' code did: crops in torch's default memory
layout, SwAV's Sinkhorn for each assigned crop, loops over crops and parameters, the loss read after every step. Both
run the same network on the same crops, which are on the device already; on a GPU both use bf16 autocast.
"""

import argparse
import functools
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import methods
from benchmarks.plain import plain_step
from benchmarks.timing import by_turns, machine, record, table
from src.clock import Clock
from src.data.loading import Batch
from src.data.sampling import ResumableBatches
from src.engine.loop import Training
from src.engine.method import Method
from src.engine.monitor import Monitor
from src.engine.precision import choose_precision
from src.methods.intl import Intl
from src.methods.moco import MoCo
from src.methods.swav import SwAV
from src.methods.twist import Twist
from src.models.backbones import create_backbone, feature_width
from src.models.heads import TwistHead, mlp, projector
from src.optim.larc import LARC
from src.optim.lars import LARS
from src.optim.plain import SGD

METHODS = ("swav", "moco", "intl", "twist")
BASELINE, OURS, COMPILED = "plain loop (baseline)", "ours", "ours, --compile"


@dataclass(frozen=True)
class Recipe:
    """A network and its crops.

    Attributes:
        backbone: of :func:`src.models.backbones.create_backbone`.
        sides: of the crops, of which the first two are the views of methods that have two.
        on_cpu, on_gpu: images of a step.
        is_small: heads in proportion.
    """

    backbone: dict[str, Any]
    sides: list[int]
    on_cpu: int
    on_gpu: int
    is_small: bool = False

    def images(self, device: torch.device) -> int:
        return self.on_gpu if device.type == "cuda" else self.on_cpu


RECIPES = {
    "small": Recipe({"name": "resnet18", "width": 0.25, "stem": "small"}, [32, 32], 100, 512, is_small=True),
    "resnet18-64px": Recipe({"name": "resnet18"}, [64, 64] + [32] * 6, 32, 256),
    "resnet50-64px": Recipe({"name": "resnet50"}, [64, 64] + [32] * 6, 16, 256),
    "imagenet": Recipe({"name": "resnet50"}, [224, 224] + [96] * 6, 4, 64),
}


def make_method(name: str, recipe: Recipe, device: torch.device) -> SwAV | MoCo | Intl | Twist:
    """With heads of the published sizes."""
    torch.manual_seed(0)
    backbone: Any = create_backbone(**recipe.backbone)
    width, small = feature_width(backbone), recipe.is_small
    method: SwAV | MoCo | Intl | Twist
    if name == "swav":
        head = {"nmb_prototypes": 100, "hidden_mlp": 256, "feat_dim": 64} if small else {"nmb_prototypes": 3000}
        method = SwAV(backbone, **head, freeze_prototypes_niters=0)
    elif name == "moco":
        queue = 4096 if small else 65536
        method = MoCo(backbone, projector(width, width, 128, batch_norm=False), queue_columns=queue)
    elif name == "intl":
        hidden = 256 if small else 2048
        method = Intl(backbone, mlp(width, hidden, hidden, bias=False), weight=0.02)
    else:
        hidden = 256 if small else 4096
        method = Twist(backbone, TwistHead(width, hidden, hidden), mme_epochs=10)
    return method.to(device)


def make_optimizer(name: str, method: Method) -> torch.optim.Optimizer:
    """The kind that the method is published with."""
    parameters = [p for p in method.parameters() if p.requires_grad]
    if name == "swav":
        return LARC(parameters, lr=0.01, weight_decay=1e-6)
    if name == "twist":
        return LARS(parameters, lr=0.01, weight_decay=1e-6, variant="twist")
    return SGD(parameters, lr=0.01, momentum=0.9)


def our_training(
    name: str,
    recipe: Recipe,
    size: int,
    device: torch.device,
    compiled: bool,
    prepare: Callable[[Batch], Batch],
    virtual_ranks: int = 1,
) -> Training:
    """A training whose steps can be called one by one."""
    method = make_method(name, recipe, device).to(memory_format=torch.channels_last)
    if compiled:
        method.backbone.compile(dynamic=False)
    training = Training(
        method=method,
        optimizer=make_optimizer(name, method),
        loader=cast(Any, None),  # batches are handed over by hand
        batches=ResumableBatches(size, size),
        prepare=prepare,
        schedules={"lr": lambda clock: 0.01},
        clock=Clock(1000, 1),
        device=device,
        precision=choose_precision("auto", device),
        monitor=Monitor(None),
        virtual_ranks=virtual_ranks,
    )
    training._before_epoch()
    return training


def our_step(
    name: str, recipe: Recipe, crops: Sequence[Tensor], device: torch.device, compiled: bool
) -> Callable[[], object]:
    training = our_training(name, recipe, len(crops[0]), device, compiled, lambda batch: batch)
    return functools.partial(training._step, [batch_of(crops)])


def batch_of(crops: Sequence[Tensor]) -> Batch:
    size = len(crops[0])
    return Batch(
        [crop.contiguous(memory_format=torch.channels_last) for crop in crops], torch.zeros(size), torch.arange(size)
    )


def peak_of_this_process() -> float:
    """MB; not `ru_maxrss`, which a new process inherits from its parent."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1e3


def print_peak(make_step: Callable[[], Callable[[], object]]) -> None:
    """MB that two steps of this process need, and what they are made of."""
    before = peak_of_this_process()
    step = make_step()
    step()
    step()
    print(peak_of_this_process() - before)


def peak_memory(method: str, recipe: str, name: str, size: int, device: torch.device) -> float:
    """MB that two steps need at most: of the GPU's memory, or of a process of its own on a CPU."""
    if device.type == "cpu":
        command = [sys.executable, __file__, "--method", method, "--recipe", recipe, "--batch_size", str(size)]
        found = subprocess.run(
            [*command, "--device", "cpu", "--peak_of", name], capture_output=True, text=True, check=True
        )
        return float(found.stdout.split()[-1])
    step = step_of(name, method, RECIPES[recipe], crops_of(method, RECIPES[recipe], size, device), device)
    step()
    torch.cuda.reset_peak_memory_stats()
    step()
    return torch.cuda.max_memory_allocated() / 1e6


def crops_of(method: str, recipe: Recipe, size: int, device: torch.device) -> list[Tensor]:
    sides = recipe.sides[:2] if method in ("moco", "intl") else recipe.sides
    return [torch.randn(size, 3, side, side, device=device) for side in sides]


def step_of(
    name: str, method: str, recipe: Recipe, crops: Sequence[Tensor], device: torch.device
) -> Callable[[], object]:
    if name == BASELINE:
        return functools.partial(plain_step(make_method(method, recipe, device)), crops)
    return our_step(method, recipe, crops, device, compiled=name == COMPILED)


def compare(method: str, recipe_name: str, size: int | None, device: torch.device, rounds: int, compiled: bool) -> None:
    """Prints and records the step of one method against its plain loop."""
    recipe = RECIPES[recipe_name]
    size = size or recipe.images(device)
    crops = crops_of(method, recipe, size, device)
    names = [BASELINE, OURS, *([COMPILED] if compiled else [])]
    steps = {name: step_of(name, method, recipe, crops, device) for name in names}
    results = by_turns(steps, BASELINE, rounds, seconds=1.0)
    print(table(f"{method}, {recipe_name}: step of {size} images", results, "images/s", size))
    del steps  # so that each is measured alone
    peaks = {name: peak_memory(method, recipe_name, name, size, device) for name in (BASELINE, OURS)}
    listing = ", ".join(f"{name} {peak:.0f} MB" for name, peak in peaks.items())
    print(f"\npeak memory: {listing} (x {peaks[OURS] / peaks[BASELINE]:.2f})\n")
    for name, timing in results.items():
        record(what=f"step, {method}, {recipe_name}, {name}", images_per_second=size / timing.seconds,
               times_the_baseline=timing.speedup, quartiles=timing.spread,
               **({"peak_mb": peaks[name]} if name in peaks else {}))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=RECIPES, nargs="+", default=list(RECIPES))
    parser.add_argument("--method", choices=METHODS, nargs="+", default=["swav"])
    parser.add_argument("--compile", action="store_true", help="also time our step with a compiled backbone")
    parser.add_argument("--methods", action="store_true", help="compare methods instead")
    parser.add_argument("--batch_size", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--peak_of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    device = torch.device(args.device)
    if args.peak_of:
        method, recipe = args.method[0], RECIPES[args.recipe[0]]
        crops = crops_of(method, recipe, args.batch_size, device)
        print_peak(lambda: step_of(args.peak_of, method, recipe, crops, device))
        return
    print(f"{machine()}\n")
    for recipe_name in args.recipe:
        if args.methods:
            size = args.batch_size or methods.RECIPES[recipe_name][3 if device.type == "cuda" else 2]
            results = methods.compare(recipe_name, size, device, args.rounds)
            print(table(f"{recipe_name}: step of {size} images", results, "images/s", size), "\n")
            continue
        for method in args.method:
            compare(method, recipe_name, args.batch_size, device, args.rounds, args.compile)


if __name__ == "__main__":
    main()

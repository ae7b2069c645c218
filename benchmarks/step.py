"""Time and peak memory of a SwAV training step, as ratios to a plain loop in the same run.

    python benchmarks/step.py [--recipe small|imagenet] [--compile]
    python benchmarks/step.py --methods        # MoCo-v2, SwAV and W2SSL on the same images

The baseline computes the same step as the paper's code did: crops in torch's default memory layout, one Sinkhorn call
for each assigned crop, a loop over crops in the loss, LARC parameter by parameter, the loss read after every step.
Both run the same network on the same crops, which are on the device already; on a GPU both use bf16 autocast.
"""

import argparse
import functools
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import methods
from benchmarks.timing import by_turns, machine, record, table
from src.clock import Clock
from src.data.loading import Batch
from src.data.sampling import ResumableBatches
from src.engine.loop import Training
from src.engine.monitor import Monitor
from src.engine.precision import choose_precision
from src.methods.swav import SwAV
from src.models.backbones import create_backbone
from src.models.backbones.convolution import Conv2d
from src.optim.larc import LARC

BASELINE, OURS, COMPILED = "plain loop (baseline)", "ours", "ours, --compile"
# backbone, crop sizes, batch on the CPU, batch on a GPU, further options of SwAV
RECIPES: dict[str, tuple[dict[str, Any], list[int], int, int, dict[str, Any]]] = {
    "small": (
        {"name": "resnet18", "width": 0.25, "stem": "small"},
        [32, 32],
        100,
        512,
        {"nmb_prototypes": 100, "hidden_mlp": 256, "feat_dim": 64},
    ),
    **{
        f"{name}-64px": (
            {"name": name},
            [64, 64] + [32] * 6,
            32 if name == "resnet18" else 16,
            256,
            {"nmb_prototypes": 3000},
        )
        for name in ("resnet18", "resnet50")
    },
    "imagenet": ({"name": "resnet50"}, [224, 224] + [96] * 6, 4, 64, {"nmb_prototypes": 3000}),
}


def plain_sinkhorn(scores: Tensor) -> Tensor:
    q = torch.exp(scores / 0.05).t()
    q /= q.sum()
    for _ in range(3):
        q /= q.sum(dim=1, keepdim=True)
        q /= q.shape[0]
        q /= q.sum(dim=0, keepdim=True)
        q /= q.shape[1]
    return (q * q.shape[1]).t()


def plain_loss(scores: Tensor, num_crops: int, batch_size: int) -> Tensor:
    total = scores.new_zeros(())
    for assigned in (0, 1):
        q = plain_sinkhorn(scores[assigned * batch_size : (assigned + 1) * batch_size].detach().float())
        subloss = scores.new_zeros(())
        for crop in range(num_crops):
            if crop != assigned:
                x = scores[crop * batch_size : (crop + 1) * batch_size] / 0.1
                subloss = subloss - (q * F.log_softmax(x.float(), dim=1)).sum(dim=1).mean()
        total = total + subloss / (num_crops - 1)
    return total / 2


@torch.no_grad()
def plain_larc(parameters: Sequence[nn.Parameter], sgd: torch.optim.SGD, weight_decay: float) -> None:
    for parameter in parameters:
        assert parameter.grad is not None
        weight_norm, grad_norm = parameter.norm().item(), parameter.grad.norm().item()
        if weight_norm != 0 and grad_norm != 0:
            rate = 0.001 * weight_norm / (grad_norm + weight_decay * weight_norm + 1e-8)
            parameter.grad.add_(parameter, alpha=weight_decay).mul_(rate)
    sgd.step()


def make_method(recipe: str, device: torch.device) -> SwAV:
    torch.manual_seed(0)
    backbone, _, _, _, options = RECIPES[recipe]
    return SwAV(create_backbone(**backbone), **options, freeze_prototypes_niters=0).to(device)


def plain_step_on(recipe: str, device: torch.device) -> Callable[[Sequence[Tensor]], float]:
    """The baseline's step: takes crops on the device, returns the loss."""
    method = make_method(recipe, device)
    for module in method.modules():
        if isinstance(module, Conv2d):
            module.__class__ = nn.Conv2d  # type: ignore[assignment]
    parameters = list(method.parameters())
    sgd = torch.optim.SGD(parameters, lr=0.01, momentum=0.9, foreach=False)
    dtype = torch.bfloat16 if device.type == "cuda" else None

    def step(crops: Sequence[Tensor]) -> float:
        with torch.no_grad():
            weight = method.prototypes.heads()[0].weight
            weight.copy_(F.normalize(weight, dim=1))
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            scores = method.prototypes.heads()[0](method.embed(crops))
            loss = plain_loss(scores, len(crops), len(crops[0]))
        sgd.zero_grad()
        loss.backward()
        plain_larc(parameters, sgd, 1e-6)
        return loss.item()

    return step


def our_training(
    recipe: str, size: int, device: torch.device, compiled: bool, prepare: Callable[[Batch], Batch]
) -> Training:
    """A training whose steps can be called one by one."""
    method = make_method(recipe, device).to(memory_format=torch.channels_last)
    if compiled:
        method.backbone.compile(dynamic=False)
    training = Training(
        method=method,
        optimizer=LARC(method.parameters(), lr=0.01, weight_decay=1e-6),
        loader=cast(Any, None),  # batches are handed over by hand
        batches=ResumableBatches(size, size),
        prepare=prepare,
        schedules={"lr": lambda clock: 0.01},
        clock=Clock(1000, 1),
        device=device,
        precision=choose_precision("auto", device),
        monitor=Monitor(None),
    )
    method.before_epoch(training.clock)
    return training


def our_step(recipe: str, crops: Sequence[Tensor], device: torch.device, compiled: bool) -> Callable[[], object]:
    size = len(crops[0])
    batch = Batch(
        [crop.contiguous(memory_format=torch.channels_last) for crop in crops], torch.zeros(size), torch.arange(size)
    )
    return functools.partial(our_training(recipe, size, device, compiled, lambda batch: batch)._step, [batch])


def peak_of_this_process() -> float:
    """MB; not `ru_maxrss`, which a new process inherits from its parent."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1e3


def peak_memory(recipe: str, name: str, size: int, device: torch.device) -> float:
    """MB that two steps need at most: of the GPU's memory, or of a process of its own on a CPU."""
    if device.type == "cpu":
        command = [sys.executable, __file__, "--recipe", recipe, "--batch_size", str(size), "--device", "cpu"]
        found = subprocess.run([*command, "--peak_of", name], capture_output=True, text=True, check=True)
        return float(found.stdout.split()[-1])
    step = step_of(name, recipe, crops_of(recipe, size, device), device)
    step()
    torch.cuda.reset_peak_memory_stats()
    step()
    return torch.cuda.max_memory_allocated() / 1e6


def crops_of(recipe: str, size: int, device: torch.device) -> list[Tensor]:
    return [torch.randn(size, 3, side, side, device=device) for side in RECIPES[recipe][1]]


def step_of(name: str, recipe: str, crops: Sequence[Tensor], device: torch.device) -> Callable[[], object]:
    if name == BASELINE:
        return functools.partial(plain_step_on(recipe, device), crops)
    return our_step(recipe, crops, device, compiled=name == COMPILED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=RECIPES, nargs="+", default=list(RECIPES))
    parser.add_argument("--compile", action="store_true", help="also time our step with a compiled backbone")
    parser.add_argument("--methods", action="store_true", help="compare methods instead")
    parser.add_argument("--batch_size", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--peak_of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    device = torch.device(args.device)
    if args.peak_of:
        crops = crops_of(args.recipe[0], args.batch_size, device)
        before = peak_of_this_process()
        step = step_of(args.peak_of, args.recipe[0], crops, device)
        step()
        step()
        print(peak_of_this_process() - before)
        return
    print(f"{machine()}\n")
    for recipe in args.recipe if args.methods else []:
        size = args.batch_size or methods.RECIPES[recipe][3 if device.type == "cuda" else 2]
        results = methods.compare(recipe, size, device, args.rounds)
        print(table(f"{recipe}: step of {size} images", results, "images/s", size), "\n")
    for recipe in [] if args.methods else args.recipe:
        _, _, on_cpu, on_gpu, _ = RECIPES[recipe]
        size = args.batch_size or (on_gpu if device.type == "cuda" else on_cpu)
        crops = crops_of(recipe, size, device)
        names = [BASELINE, OURS, *([COMPILED] if args.compile else [])]
        steps = {name: step_of(name, recipe, crops, device) for name in names}
        results = by_turns(steps, BASELINE, args.rounds, seconds=1.0)
        print(table(f"{recipe}: step of {size} images", results, "images/s", size))
        del steps  # so that each is measured alone
        peaks = {name: peak_memory(recipe, name, size, device) for name in (BASELINE, OURS)}
        listing = ", ".join(f"{name} {peak:.0f} MB" for name, peak in peaks.items())
        print(f"\npeak memory: {listing} (x {peaks[OURS] / peaks[BASELINE]:.2f})\n")
        for name, timing in results.items():
            record(what=f"step, {recipe}, {name}", images_per_second=size / timing.seconds,
                   times_the_baseline=timing.speedup, quartiles=timing.spread,
                   **({"peak_mb": peaks[name]} if name in peaks else {}))  # fmt: skip


if __name__ == "__main__":
    main()

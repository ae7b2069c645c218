"""The cost of a training step of several methods on the same images; `benchmarks/step.py --methods` runs it."""

from collections.abc import Callable

from benchmarks.timing import Timing, by_turns
from src.clock import Clock
from src.data.loading import Batch
from src.engine.method import Method
from src.methods.moco import MoCo
from src.methods.swav import SwAV
from src.methods.w2ssl import W2SSL
from src.models.backbones import create_backbone, feature_width
from src.models.heads import projector

import torch
from torch import nn

# network, side of a whole image's view, images of a step on the CPU and on a GPU
RECIPES: dict[str, tuple[dict[str, object], int, int, int]] = {
    "small": ({"name": "resnet18", "width": 0.25, "stem": "small"}, 64, 64, 512),
    "imagenet": ({"name": "resnet50"}, 224, 8, 128),
}
MOCO, SWAV, WHAT_WHERE = "MoCo-v2, 2 views", "SwAV, 2 views", "W2SSL, 2 x 2 patches"


def build(name: str, recipe: str) -> Method:
    """The method with heads of about the published sizes."""
    torch.manual_seed(0)
    backbone: nn.Module = create_backbone(**RECIPES[recipe][0])  # type: ignore[arg-type]
    width = feature_width(backbone)
    if name == MOCO:
        return MoCo(backbone, projector(width, width, 128, batch_norm=False), queue_columns=16384)
    if name == SWAV:
        return SwAV(backbone, hidden_mlp=width, freeze_prototypes_niters=0)
    return W2SSL(backbone, hidden=2 * width)


def step_of(name: str, recipe: str, size: int, device: torch.device) -> Callable[[], object]:
    """Forward, backward and a plain SGD step, with the moving averages that a method has."""
    method = build(name, recipe).to(device).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.01, momentum=0.9)
    side = RECIPES[recipe][1]
    views, side = (4, side // 2) if name == WHAT_WHERE else (2, side)
    crops = [torch.randn(size, 3, side, side, device=device) for _ in range(views)]
    batch = Batch(crops, torch.zeros(size, dtype=torch.long), torch.arange(size))
    return training_step(method, optimizer, batch, Clock(1000, 1))


def training_step(method: Method, optimizer: torch.optim.Optimizer, batch: Batch, clock: Clock) -> Callable[[], object]:
    """A step on the device of the batch, in bf16 on a GPU."""
    device = batch.crops[0].device
    dtype = torch.bfloat16 if device.type == "cuda" else None

    def step() -> None:
        method.before_step(clock)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            loss = method(batch, clock)["loss"]
        loss.backward()
        method.after_backward(clock)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        method.after_step(clock)

    return step


def compare(recipe: str, size: int, device: torch.device, rounds: int) -> dict[str, Timing]:
    """All three by turns; the baseline is MoCo-v2."""
    steps = {name: step_of(name, recipe, size, device) for name in (MOCO, SWAV, WHAT_WHERE)}
    return by_turns(steps, MOCO, rounds, seconds=1.0)

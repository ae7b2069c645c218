"""What a checkpoint costs: how long the steps stand still, and how much slower they are beside the writing.

    python benchmarks/checkpoint.py [--rounds 5] [--images 8] [--folder FOLDER]

Two runs of published size: MoCo-v2's ResNet-50 with a queue of 65,536 keys, and DeepCluster-v2's ResNet-50 with a
memory bank of 1.28 million images in two crops. In every round, by turns: some steps alone; torch.save of the same
content; a checkpoint that the caller waits for; one that is begun, and the steps beside its writing. Needs 8 GB of
memory and 6 GB of disk.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.methods import training_step
from benchmarks.timing import machine, wait_for_device
from src.checkpoints.state import RunState
from src.checkpoints.store import CheckpointStore
from src.clock import Clock
from src.data.loading import Batch
from src.engine.method import Method
from src.methods.deepcluster import DeepClusterV2
from src.methods.moco import MoCo
from src.models.backbones import create_backbone
from src.models.heads import projector
from src.optim.plain import SGD

import torch

IMAGENET = 1_281_167


def moco() -> Method:
    return MoCo(create_backbone("resnet50"), projector(2048, 2048, 128, batch_norm=False), queue_columns=65536)


def deepcluster() -> Method:
    method = DeepClusterV2(create_backbone("resnet50"), num_images=IMAGENET, bank_rows=IMAGENET, hidden_mlp=2048,
                           nmb_prototypes=[3000, 3000, 3000], crops_for_assign=(0, 1))  # fmt: skip
    method.labels.zero_()
    return method


def timed(function: Callable[[], object]) -> float:
    wait_for_device()
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def measure(method: Method, images: int, rounds: int, folder: Path) -> dict[str, list[float]]:
    """Seconds of each thing, a round each."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    method.to(device).to(memory_format=torch.channels_last).train()
    optimizer = SGD([p for p in method.parameters() if p.requires_grad], lr=0.001, momentum=0.9)
    scaler, clock = torch.amp.GradScaler(device.type, enabled=False), Clock(10**6, 1)
    state = RunState(method, optimizer, scaler, clock, images)
    crops = [torch.randn(images, 3, 224, 224, device=device) for _ in range(2)]
    batch = Batch(crops, torch.zeros(images, dtype=torch.long), torch.arange(images, device=device))
    train = training_step(method, optimizer, batch, clock)

    def step() -> None:
        train()
        if isinstance(method, DeepClusterV2):
            method._next_row = 0
        clock.step += 1

    def plain() -> None:
        torch.save({"state_dict": method.state_dict(), "optimizer": optimizer.state_dict()}, folder / "plain.pth")

    def steps_beside_the_writing() -> float:
        count, started = 0, time.perf_counter()
        while count == 0 or store._background.is_busy:
            step()
            wait_for_device()
            count += 1
        return (time.perf_counter() - started) / count

    store = CheckpointStore(folder / "run", {}, keep_last=1)
    found: dict[str, list[float]] = {name: [] for name in ("step", "torch.save", "waits", "begins", "step beside it")}
    step()
    for round_ in range(rounds + 1):
        times = {"step": min(timed(lambda: (step(), wait_for_device())) for _ in range(3))}
        times["torch.save"] = timed(plain)
        step()
        times["waits"] = timed(lambda: store.save(state))
        step()
        times["begins"] = timed(lambda: store.begin(state))
        times["step beside it"] = steps_beside_the_writing()
        store.finish()
        if round_:  # the first makes the room for the copies
            for name, seconds in times.items():
                found[name].append(seconds)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=64 if torch.cuda.is_available() else 8, help="of a step")
    parser.add_argument("--folder", type=Path, help="where to write; default: a temporary folder")
    given = parser.parse_args()
    print(f"{machine()}; {given.images} images of 2 x 224 pixels a step, {given.rounds} rounds\n")
    print("| run | a step, s | torch.save, s | a whole checkpoint, s | stands still, s | in steps | a step beside it |")
    print("|---|---|---|---|---|---|---|")
    for name, build in (("MoCo-v2, queue of 65,536", moco), ("DeepCluster-v2, bank of 1.28 M x 2", deepcluster)):
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            found = measure(build(), given.images, given.rounds, Path(folder))
        cells = [f"{statistics.median(found[key]):.3g}" for key in ("step", "torch.save", "waits", "begins")]
        for top in ("begins", "step beside it"):
            ratios = [a / b for a, b in zip(found[top], found["step"], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
            cells.append(f"**{middle:.2f}** ({low:.2f} to {high:.2f})")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

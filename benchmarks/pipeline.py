"""Images/s of a whole training, from JPEG files to updated weights, as a ratio to a plain one in the same run.

    python benchmarks/pipeline.py [--recipe imagenet|small] [--workers 16]

The baseline is `benchmarks/data.py`'s paper transforms in a torch DataLoader and `benchmarks/plain.py`'s loop.
The last line is our step on a batch that is on the device already: what the data pipeline costs beyond it.
"""

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.data import RECIPES as DATA_RECIPES
from benchmarks.data import paper_transform, write_images
from benchmarks.plain import plain_step
from benchmarks.step import RECIPES as STEP_RECIPES
from benchmarks.step import make_method, our_training
from benchmarks.timing import machine, record, wait_for_device
from src.data.datasets import IMAGENET_MEAN, SWAV_STD, FolderImages, TrainingDataSettings
from src.data.loading import Batch, ViewDataset, make_loader
from src.data.sampling import ResumableBatches
from src.data.source import Subset
from src.data.to_device import ToDevice
from src.data.view_sets import multi_crop
from src.data.views import RandomView


class PaperDataset(Dataset[list[Tensor]]):
    """Each item is what the paper's code made of an image: normalised float crops."""

    def __init__(self, source: FolderImages, views: Sequence[RandomView], length: int) -> None:
        self.source, self.length = source, length
        self.chains = [paper_transform(view) for view in views]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> list[Tensor]:
        with Image.open(self.source.name(index % len(self.source))) as opened:
            image = opened.convert("RGB")
        return [chain(image) for chain in self.chains]


def endless(loader: "DataLoader[Batch]", batches: ResumableBatches) -> Iterator[Batch]:
    for epoch in itertools.count():
        batches.seek(epoch)
        yield from loader


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=sorted(set(STEP_RECIPES) & set(DATA_RECIPES)), default="imagenet")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--batch_size", type=int, default=None)
    parser.add_argument("--steps", type=int, default=20, help="of each in every round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="our step with a compiled backbone")
    parser.add_argument("--augment_on", choices=["auto", "worker", "device"], default="auto")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    on_device = TrainingDataSettings(augment_on=args.augment_on).colours_on(device)
    recipe = STEP_RECIPES[args.recipe]
    size = args.batch_size or recipe.images(device)
    image_size, crops = DATA_RECIPES[args.recipe]
    views = multi_crop(**crops)
    pin = device.type == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        source = write_images(Path(folder) / "images", image_size)
        many = Subset(source, [i % len(source) for i in range(max(len(source), 50 * size))])

        plain_loader = DataLoader(
            PaperDataset(source, views, len(many)),
            batch_size=size,
            shuffle=True,
            drop_last=True,
            num_workers=args.workers,
            pin_memory=pin,
            persistent_workers=True,
        )
        plain_batches = itertools.chain.from_iterable(itertools.repeat(plain_loader))
        plain = plain_step(make_method("swav", recipe, device))
        batches = ResumableBatches(len(many), size)
        loader = make_loader(
            ViewDataset(many, views, 31, colours_on_device=on_device), batches, workers=args.workers, pin_memory=pin
        )
        our_batches = endless(loader, batches)
        prepare = ToDevice(device, IMAGENET_MEAN, SWAV_STD)
        training = our_training("swav", recipe, size, device, args.compile, prepare)
        resting = our_training("swav", recipe, size, device, args.compile, lambda batch: batch)
        ready = prepare(next(our_batches))

        contestants: dict[str, Callable[[], object]] = {
            "plain data, plain step (baseline)": lambda: plain(
                [crop.to(device, non_blocking=True) for crop in next(plain_batches)]
            ),
            "ours": lambda: training._step([next(our_batches)]),
            "our step, data already there": lambda: resting._step([ready]),
        }
        rates: dict[str, list[float]] = {name: [] for name in contestants}
        for round_ in range(args.rounds + 1):  # the first one warms up
            for name, step in contestants.items():
                # what the workers have ready from the pause is used up before the clock starts
                warm_up = 0 if "there" in name else 2 * max(1, args.workers) + 2
                for _ in range(warm_up):
                    step()
                wait_for_device()
                started = time.perf_counter()
                for _ in range(args.steps):
                    step()
                wait_for_device()
                if round_:
                    rates[name].append(size * args.steps / (time.perf_counter() - started))
    print(f"{machine()}, {args.workers} workers, colours {'on the device' if on_device else 'in the workers'}\n")
    print(f"| {args.recipe}: batch of {size} | images/s | times the baseline |\n|---|---|---|")
    base = rates["plain data, plain step (baseline)"]
    for name, own in rates.items():
        ratio = statistics.median(mine / plain for mine, plain in zip(own, base, strict=True))
        print(f"| {name} | {statistics.median(own):.4g} | {ratio:.2f} |")
        alone = statistics.median(a / b for a, b in zip(own, rates["our step, data already there"], strict=True))
        record(what=f"from files, {args.recipe}{', --compile' if args.compile else ''}, {name}",
               images_per_second=statistics.median(own), times_the_baseline=ratio, times_the_step=alone)  # fmt: skip


if __name__ == "__main__":
    main()

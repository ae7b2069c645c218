"""Images/s of the data pipeline on one core, both ways, as ratios to the paper's transforms in the same run.

    python benchmarks/data.py [--recipe imagenet|large|small] [--peer]

The baseline is what the paper's code did in its workers: for each crop torchvision's v1 transforms on the Pillow
image, to float, normalised. Ours with the colours in the worker does the same work and hands over uint8; with the
colours left to the device the worker only decodes, crops, resizes and flips, and the rest is timed apart.
"""

import argparse
import itertools
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageFilter
from torchvision import transforms
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.timing import Timing, by_turns, machine, table
from src.data.datasets import IMAGENET_MEAN, SWAV_STD, FolderImages
from src.data.image_cache import ImageCache
from src.data.loading import ViewDataset, collate
from src.data.patches import cut_patches
from src.data.sampling import Position
from src.data.to_device import ToDevice
from src.data.view_sets import multi_crop
from src.data.views import RandomView

MULTI_CROP = {
    "size_crops": [224, 96],
    "nmb_crops": [2, 6],
    "min_scale_crops": [0.14, 0.05],
    "max_scale_crops": [1.0, 0.14],
}
SMALL = {
    "size_crops": [32],
    "nmb_crops": [2],
    "min_scale_crops": [0.15],
    "max_scale_crops": [0.6],
    "jitter_strength": 0.25,
    "grayscale": 0.0,
    "blur": 0.0,
}
# pixels of the source images (None: the quickstart's patches), and the views
RECIPES = {"imagenet": ((500, 375), MULTI_CROP), "large": ((4000, 3000), MULTI_CROP), "small": (None, SMALL)}


class RandomPillowBlur:
    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, image: Image.Image) -> Image.Image:
        if torch.rand(()) >= self.probability:
            return image
        return image.filter(ImageFilter.GaussianBlur(0.1 + 1.9 * torch.rand(()).item()))


def paper_transform(view: RandomView) -> transforms.Compose:
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(view.size, scale=view.scale),
            transforms.RandomHorizontalFlip(view.flip),
            transforms.RandomApply([transforms.ColorJitter(*view.jitter)], view.jitter_probability),
            transforms.RandomGrayscale(view.grayscale),
            RandomPillowBlur(view.blur),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, SWAV_STD),
        ]
    )


def torchvision_v2(view: RandomView) -> v2.Compose:
    """The same on uint8 tensors, as torchvision advises today."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(view.size, scale=view.scale, antialias=True),
            v2.RandomHorizontalFlip(view.flip),
            v2.RandomApply([v2.ColorJitter(*view.jitter)], view.jitter_probability),
            v2.RandomGrayscale(view.grayscale),
            v2.RandomApply([v2.GaussianBlur(9, (0.1, 2.0))], view.blur),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGENET_MEAN, SWAV_STD),
        ]
    )


def write_images(folder: Path, size: tuple[int, int] | None) -> FolderImages:
    """JPEGs of the given size from the photographs, or the quickstart's patches."""
    photographs = ROOT / "data" / "photographs"
    if size is None:
        cut_patches(photographs, folder)
        return FolderImages(folder / "train")
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(photographs.glob("*.jpg")):
        with Image.open(path) as image:
            image.convert("RGB").resize(size).save(folder / path.name, quality=90)
    return FolderImages(folder)


def contestants(source: FolderImages, views: Sequence[RandomView], peer: bool) -> dict[str, Callable[[], object]]:
    chains = [paper_transform(view) for view in views]
    numbers = {name: itertools.count() for name in ("paper", "v2", "worker", "device", "cached", "peer")}
    chains_v2 = [torchvision_v2(view) for view in views]

    def paper() -> list[torch.Tensor]:
        with Image.open(source.name(next(numbers["paper"]) % len(source))) as opened:
            image = opened.convert("RGB")
        return [chain(image) for chain in chains]

    def tensors() -> list[torch.Tensor]:
        image = decode_image(source.name(next(numbers["v2"]) % len(source)), ImageReadMode.RGB)
        return [chain(image) for chain in chains_v2]

    cache = ImageCache(f"ssl-vision-benchmark-{os.getpid()}", len(source), 4_000_000_000)
    cache.forget_name()
    filling = ViewDataset(source, views, cache=cache)
    for index in range(len(source)):
        _ = filling[Position(0, index)]

    def ours(dataset: ViewDataset, name: str) -> Callable[[], object]:
        return lambda: dataset[Position(0, next(numbers[name]) % len(source))]

    found = {
        "the paper's torchvision transforms (baseline)": paper,
        "torchvision's transforms.v2 on tensors": tensors,
        "colours in the worker": ours(ViewDataset(source, views), "worker"),
        "the same, `--cache_images ram`": ours(ViewDataset(source, views, cache=cache), "cached"),
        "colours left to the device": ours(ViewDataset(source, views, colours_on_device=True), "device"),
    }
    if peer:
        from lightly.transforms.swav_transform import SwaVTransform

        sizes = sorted({view.size for view in views}, reverse=True)
        groups = [[view for view in views if view.size == size] for size in sizes]
        transform = SwaVTransform(
            crop_sizes=tuple(sizes),
            crop_counts=tuple(len(group) for group in groups),
            crop_min_scales=tuple(group[0].scale[0] for group in groups),
            crop_max_scales=tuple(group[0].scale[1] for group in groups),
        )

        def lightly() -> object:
            with Image.open(source.name(next(numbers["peer"]) % len(source))) as opened:
                return transform(opened.convert("RGB"))

        found["lightly's SwaVTransform"] = lightly
    return found


def device_part(source: FolderImages, views: Sequence[RandomView], batch_size: int, device: str) -> dict[str, Timing]:
    """What is left to the device: colours and normalising, for a batch that is there already."""
    batches = {
        on_device: collate(
            [
                ViewDataset(source, views, colours_on_device=on_device)[Position(0, i % len(source))]
                for i in range(batch_size)
            ]
        ).to(torch.device(device))
        for on_device in (False, True)
    }
    prepare = ToDevice(torch.device(device), IMAGENET_MEAN, SWAV_STD)
    return by_turns(
        {
            "normalise (baseline)": lambda: prepare(batches[False]),
            "change colours and normalise": lambda: prepare(batches[True]),
        },
        "normalise (baseline)",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=RECIPES, nargs="+", default=list(RECIPES))
    parser.add_argument("--peer", action="store_true", help="also time lightly, where it is installed")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch_size", type=int, default=32, help="of the part on the device")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{machine()}\n")
    for recipe in args.recipe:
        size, crops = RECIPES[recipe]
        views = multi_crop(**crops)
        with tempfile.TemporaryDirectory() as folder:
            source = write_images(Path(folder) / "images", size)
            functions = contestants(source, views, args.peer and recipe != "small")
            results = by_turns(functions, next(iter(functions)), args.rounds, seconds=0.5)
            print(table(f"{recipe}: worker, one core", results, "images/s", 1.0, cpu=True) + "\n")
            part = device_part(source, views, args.batch_size, args.device)
            title = f"{recipe}: on the device ({args.device}), batch of {args.batch_size}"
            print(table(title, part, "images/s", args.batch_size) + "\n")


if __name__ == "__main__":
    main()

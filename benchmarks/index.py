"""What the list of a large set costs: disk, start, memory of a worker, the order of an epoch; and the look at a folder.

    python benchmarks/index.py [--images 100000000] [--scan 200000]

The names are made up; no image is read. The folder for the look is made of empty files, and torchvision's
`ImageFolder` looks at the same one, by turns.
"""

import argparse
import gc
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.timing import anonymous_bytes, by_turns, machine, table
from src.data.decoding import Decoding
from src.data.fingerprint import fingerprint
from src.data.folder import FolderImages
from src.data.index_cache import IndexCache
from src.data.order import KeyedOrder, Order, TorchOrder
from src.data.packed import PackedIndex, Packer
from src.data.sampling import ResumableBatches
from src.pretraining.echo import classes_in_words

CLASSES = 21_841  # as ImageNet-22k


def in_worker(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a forked process."""
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe()
    process = context.Process(target=lambda: theirs.send(function(*arguments)))
    process.start()
    theirs.close()  # so that a process that fails ends the wait
    found = mine.recv()
    process.join()
    return found


def made_up(images: int) -> PackedIndex:
    packer = Packer()
    step = 1 << 20
    for first in range(0, images, step):
        numbers = range(first, min(images, first + step))
        packer.add([f"n{n * CLASSES // images:08d}/n{n * CLASSES // images:08d}_{n}.JPEG" for n in numbers])
    labels = (np.arange(images, dtype=np.int64) * CLASSES // images).astype(np.int32)
    times = np.zeros(1, dtype=np.int64)
    return PackedIndex(packer.packed(), {"labels": labels, "folder_times": times}, {"classes": [], "left_out": []})


def reads(folder: Path, images: int) -> float:
    """Bytes of its own that a worker has more after it looked up a million images."""
    index = PackedIndex.load(folder)

    def look_up(count: int) -> None:
        i = 0
        for _ in range(count):
            i = (i * 1103515245 + 12345) % images
            assert index.names[i]
            int(index.columns["labels"][i])

    look_up(1_000_000)  # what Python itself needs for them is there then
    gc.collect()
    before = anonymous_bytes()
    look_up(1_000_000)
    return anonymous_bytes() - before


def strings(folder: Path, images: int) -> float:
    """The same for Python strings of the parent, for each million of them."""
    global listed
    listed = list(PackedIndex.load(folder).names[: min(images, 1_000_000)])
    return in_worker(_read_strings) / len(listed) * 1e6


listed: list[str] = []


def _read_strings() -> float:
    gc.collect()
    before = anonymous_bytes()
    for name in listed:
        assert name
    return anonymous_bytes() - before


class _Named:
    """What a run's start asks of a source, over a list that was mapped."""

    def __init__(self, index: PackedIndex) -> None:
        self.labels, self.list_digest = index.columns["labels"], index.list_digest
        self.classes, self.decoding, self.left_out = index.meta["classes"], Decoding(), ()

    def __len__(self) -> int:
        return len(self.labels)

    def open(self, index: int) -> Any:
        raise OSError("made up")


def start(cache: IndexCache) -> float:
    """Seconds from nothing to the first batch of positions."""
    began = time.perf_counter()
    index = cache.find(["made up"], lambda: made_up(0), lambda kept: True)
    source: Any = _Named(index)
    fingerprint(source)
    classes_in_words(source)
    next(iter(ResumableBatches(len(source), 256, order=KeyedOrder(len(source)))))
    return time.perf_counter() - began


def order_cost(make: Callable[[int], Order], images: int) -> tuple[float, float, float]:
    """Seconds to the first batch of an epoch, ms for each further batch of 256, and bytes at the peak."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    batches = ResumableBatches(images, 256, rank=3, world_size=8, order=make(images))
    began = time.perf_counter()
    stream = iter(batches)
    next(stream)
    first = time.perf_counter() - began
    times = []
    for _ in range(200):
        began = time.perf_counter()
        next(stream)
        times.append(time.perf_counter() - began)
    return first, 1e3 * statistics.median(times), 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def looks(files: int, rounds: int) -> str:
    """A table: our look at a folder against torchvision's."""
    from torchvision.datasets import ImageFolder

    with tempfile.TemporaryDirectory() as folder:
        for number in range(files):
            path = Path(folder) / f"n{number * 200 // files:08d}"
            path.mkdir(exist_ok=True)
            (path / f"n{number:08d}.JPEG").touch()
        found = by_turns(
            {"torchvision's ImageFolder (baseline)": lambda: ImageFolder(folder), "ours": lambda: FolderImages(folder)},
            "torchvision's ImageFolder (baseline)",
            rounds,
            seconds=0.0,
        )
    return table(f"a look at a folder of {files:,} files", found, "images/s", files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000_000)
    parser.add_argument(
        "--scan", type=int, default=200_000, help="files of the folder that is looked at; 0 leaves it out"
    )
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    print(f"{machine()}\n")
    with tempfile.TemporaryDirectory() as temporary:
        cache = IndexCache(temporary, at_least=0)
        began = time.perf_counter()
        index = cache.find(["made up"], lambda: made_up(args.images), lambda kept: True)
        built = time.perf_counter() - began
        (folder,) = (path for path in Path(temporary).iterdir() if path.is_dir())
        on_disk = sum(path.stat().st_size for path in folder.iterdir()) - len(index.names.content)
        del index
        starts = [in_worker(start, cache) for _ in range(args.rounds)]
        low, middle, high = statistics.quantiles(starts, n=4)
        print(f"| a list of {args.images:,} images | |\n|---|---|")
        print(f"| made, digested and written | {built:.0f} s |")
        print(f"| on disk beside the names | {on_disk / args.images:.2f} bytes an image |")
        print(f"| start from the list that is kept | {middle:.2f} s (quartiles {low:.2f} to {high:.2f}) |")
        own = in_worker(reads, folder, args.images)
        print(f"| a worker's own memory after a second million look-ups | {own / 1e3:.0f} kB |")
        print(
            f"| the same with Python strings, for each million images | {strings(folder, args.images) / 1e6:.0f} MB |"
        )
        orders: dict[str, Callable[[int], Order]] = {"torch": TorchOrder, "keyed": KeyedOrder}
        print("\n| order of an epoch | first batch | each further one | memory of each process |\n|---|---|---|---|")
        for name, make in orders.items():
            first, each, peak = in_worker(order_cost, make, args.images)
            print(f"| {name} | {first:.3f} s | {each:.2f} ms | {peak / 1e6:.0f} MB |")
    if args.scan:
        print("\n" + looks(args.scan, args.rounds))


if __name__ == "__main__":
    main()

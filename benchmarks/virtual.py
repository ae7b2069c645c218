"""What virtual ranks cost: time and peak memory of a step that one process makes for several ranks.

    python benchmarks/virtual.py [--method swav moco ...] [--recipe resnet18-64px ...] [--ranks 8]

Time is compared, in the same run, with a step on the same images in one piece (whose batch norms, and so whose numbers,
are other ones); memory with a step on one rank's images, in a process of its own on a CPU.
"""

import argparse
import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.step import METHODS, RECIPES, batch_of, crops_of, our_training, print_peak
from benchmarks.timing import by_turns, machine, record, table

PIECE, RANKS, ONE = "in one piece (baseline)", "in ranks", "one rank alone"


def step_of(kind: str, method: str, recipe: str, size: int, ranks: int, device: torch.device) -> Callable[[], object]:
    """A step on so many images for each rank."""
    count, images = {PIECE: (1, size * ranks), RANKS: (ranks, size), ONE: (1, size)}[kind]
    training = our_training(method, RECIPES[recipe], images, device, False, lambda batch: batch, count)
    batches = [batch_of(crops_of(method, RECIPES[recipe], images, device)) for _ in range(count)]
    return functools.partial(training._step, batches)


def peak(kind: str, method: str, recipe: str, size: int, ranks: int, device: torch.device) -> float:
    """MB that two steps need at most, crops included."""
    if device.type == "cpu":
        words = ["--method", method, "--recipe", recipe, "--batch_size", str(size), "--ranks", str(ranks)]
        command = [sys.executable, __file__, *words, "--device", "cpu", "--peak_of", kind]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    step = step_of(kind, method, recipe, size, ranks, device)
    step()
    step()
    return torch.cuda.max_memory_allocated() / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=RECIPES, nargs="+", default=["resnet18-64px"])
    parser.add_argument("--method", choices=METHODS, nargs="+", default=list(METHODS))
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--batch_size", type=int, default=None, help="images of a rank")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--peak_of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    device = torch.device(args.device)
    if args.peak_of:
        what = (args.method[0], args.recipe[0], args.batch_size, args.ranks, device)
        print_peak(lambda: step_of(args.peak_of, *what))
        return
    print(f"{machine()}\n")
    for recipe in args.recipe:
        size = args.batch_size or RECIPES[recipe].images(device)
        for method in args.method:
            what = (method, recipe, size, args.ranks, device)
            steps = {kind: step_of(kind, *what) for kind in (PIECE, RANKS)}
            results = by_turns(steps, PIECE, args.rounds, seconds=1.0)
            del steps
            images = size * args.ranks
            print(table(f"{method}, {recipe}: {args.ranks} x {size} images", results, "images/s", images))
            peaks = {kind: peak(kind, *what) for kind in (PIECE, RANKS, ONE)}
            listing = ", ".join(f"{kind} {megabytes:.0f} MB" for kind, megabytes in peaks.items())
            print(f"\npeak memory: {listing}\n")
            record(what=f"virtual ranks, {method}, {recipe}, {args.ranks} x {size} images",
                   images_per_second=images / results[RANKS].seconds, times_the_baseline=results[RANKS].speedup,
                   quartiles=results[RANKS].spread, peak_mb=peaks[RANKS], peak_of_one_rank_mb=peaks[ONE])  # fmt: skip


if __name__ == "__main__":
    main()

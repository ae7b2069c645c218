"""A run on ten million images: how long it takes to start, whether it resumes exactly, whether its memory stays flat.

    python benchmarks/ten_million.py [--shards 10000] [--workers 2]

The images are those of ten thousand shards of a thousand each, which are one file of small patches under ten thousand
names: for the program they are ten million. Two runs are trained for so many steps, one of them in two parts, once with
the keyed order and once with that of few shards at a time; their weights must be equal bit for bit. Memory is what
each process has, with its share of what several have, and without what it could read again from files.
"""

import argparse
import io
import os
import re
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from src.data.shard_index import LISTING, read_index

PER_SHARD = 1000
NETWORK = "--arch resnet18 --width 0.0625 --stem small --size_crops 16 --nmb_crops 2 --min_scale_crops 0.3"
METHOD = "--max_scale_crops 1 --nmb_prototypes 20 --hidden_mlp 32 --feat_dim 16 --batch_size 32 --base_lr 0.05"
SHORT = "--epochs 1 --log_every 10"


def make_shards(folder: Path, count: int) -> str:
    """Many names of one shard, each with the list of what it holds beside it; returns their pattern."""
    folder.mkdir()
    one = folder / "one.tar"
    generator = np.random.default_rng(0)
    with tarfile.open(one, "w") as archive:
        for number in range(PER_SHARD):
            file = io.BytesIO()
            Image.fromarray(generator.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(file, "png")
            for ending, content in (("png", file.getvalue()), ("cls", str(number % 10).encode())):
                member = tarfile.TarInfo(f"{number:06d}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    read_index(str(one))
    for number in range(count):
        os.link(one, folder / f"train-{number:05d}.tar")
        os.link(f"{one}{LISTING}", folder / f"train-{number:05d}.tar{LISTING}")
    return f"{folder}/train-{{00000..{count - 1:05d}}}.tar"


def own_bytes(pid: int) -> int:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(found) * 1024 for found in re.findall(r"Pss_Anon: +(\d+)", text))


class Watched:
    """A training as a process of its own, with its memory and that of its workers, once a second."""

    def __init__(self, arguments: list[str]) -> None:
        self.started = time.monotonic()
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "main_swav.py", *arguments], cwd=ROOT, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.first_step = 0.0
        self.memory: list[tuple[float, int, list[int]]] = []
        self.lines: list[str] = []
        threading.Thread(target=self._look, daemon=True).start()
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if not self.first_step and " loss " in line:
                self.first_step = time.monotonic() - self.started
        if self.process.wait():
            raise SystemExit("".join(self.lines))

    def _look(self) -> None:
        while self.process.poll() is None:
            try:
                children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
                now = time.monotonic() - self.started
                self.memory.append((now, own_bytes(self.process.pid), [own_bytes(int(child)) for child in children]))
            except (OSError, ValueError):  # it ended meanwhile
                pass
            time.sleep(1)

    def growth(self) -> tuple[str, str]:
        """Of the main process and of a worker: the memory in the second and in the last quarter of the steps, in MB."""
        after = [entry for entry in self.memory if entry[0] > self.first_step and entry[2]]
        quarter = max(1, len(after) // 4)
        early, late = after[quarter : 2 * quarter] or after, after[-quarter:]
        main = [statistics.median(entry[1] for entry in part) / 1e6 for part in (early, late)]
        worker = [statistics.median(max(entry[2]) for entry in part) / 1e6 for part in (early, late)]
        return tuple(f"{before:.0f} -> {then:.0f} MB" for before, then in (main, worker))  # type: ignore[return-value]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=1000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pattern = make_shards(folder / "shards", args.shards)
        count = args.shards * PER_SHARD
        print(f"{count:,} images, {args.steps} steps, {args.workers} workers, torch {torch.__version__}\n")
        print("| order | first step, new list | first step, kept list | main process | a worker | resumed exactly |")
        print("|---|---|---|---|---|---|")
        for order in ("keyed", "shards"):
            common = f"--dataset webdataset --data_path {pattern} --shuffle {order} --workers {args.workers}"
            common += f" --index_cache {folder}/index-{order} {NETWORK} {METHOD} {SHORT}"
            whole = Watched([*common.split(), "--dump_path", f"{folder}/{order}-a", "--max_steps", str(args.steps)])
            halves = [
                Watched([*common.split(), "--dump_path", f"{folder}/{order}-b", "--max_steps", str(steps)])
                for steps in (args.steps // 2, args.steps)
            ]
            a, b = (torch.load(folder / f"{order}-{one}" / "checkpoint.pth.tar", weights_only=True) for one in "ab")
            equal = all(torch.equal(a["state_dict"][key], b["state_dict"][key]) for key in a["state_dict"])
            main_memory, worker_memory = whole.growth()
            starts = f"{whole.first_step:.1f} s | {halves[0].first_step:.1f} s"
            print(f"| {order} | {starts} | {main_memory} | {worker_memory} | {'yes' if equal else 'NO'} |", flush=True)


if __name__ == "__main__":
    main()

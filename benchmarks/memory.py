"""What memory the recipes need on 1, 8 and the published number of GPUs: estimates, for `docs/clusters.md`.

    python benchmarks/memory.py [--recipe swav_400ep_pretrain ...]

Nothing is trained, and no GPU, data or other process is needed: each recipe's command line is run with `--dry_run` as
the first of so many processes, on images that are not there, in the precision that it has on a GPU.
"""

import argparse
import contextlib
import importlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from PIL import Image
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import main_cwrgp
import main_intl
from src.parallel import collectives, launch, sync_bn
from src.parallel.launch import World

RECIPES = [
    "swav_400ep_pretrain", "swav_400ep_2x224_pretrain", "swav_200ep_bs256_pretrain", "swav_RN50w4_400ep_pretrain",
    "deepclusterv2_400ep_pretrain", "selav2_400ep_pretrain", "twist_resnet50_multicrop", "twist_vit_b",
    "intl_ep800", "cwrgp_imagenet_ep100", "moco_resnet50", "w2ssl_bs1024",
]  # fmt: skip


class NoImages:
    """ImageNet's number of images, each as gray as the others."""

    def __init__(self, path: str) -> None:
        pass

    def __len__(self) -> int:
        return 1_281_167

    def open(self, index: int) -> Image.Image:
        return Image.new("RGB", (256, 256))


def command_of(recipe: str) -> list[str]:
    """The words of a recipe's command."""
    environment = {**os.environ, "DRY_RUN": "1", "DATASET_PATH": "none", "EXPERIMENT_PATH": "none"}
    script = str(ROOT / "scripts" / f"{recipe}.sh")
    answer = subprocess.run(["bash", script], env=environment, capture_output=True, text=True, check=True, cwd=ROOT)
    return shlex.split(answer.stdout)


@contextlib.contextmanager
def as_first_of(processes: int) -> Iterator[None]:
    """Inside, a script starts as one of so many processes, of which the others are not there."""

    def convert(
        module: nn.Module,
        group_size: int = 0,
        device_type: str = "cpu",
        virtual_ranks: int = 1,
        real: Callable[..., Any] = sync_bn.convert,
    ) -> Any:
        with mock.patch.object(collectives, "world_size", return_value=processes):
            return real(module, group_size, "cuda", virtual_ranks)

    world = World(0, processes, 0, torch.device("cpu"))
    with (
        mock.patch.object(launch, "start", return_value=world),
        mock.patch.object(sync_bn, "convert", convert),
        mock.patch.object(sync_bn, "process_group_of", return_value=None),
    ):
        yield


def said(recipe: str, processes: int, *more: str) -> str:
    """The lines of a dry run."""
    script, *words = command_of(recipe)
    module = importlib.import_module(script.removesuffix(".py"))
    module = main_cwrgp if module is main_intl and main_intl.is_cwrgp(words) else module
    words += ["--dataset", "benchmarks.memory:NoImages", "--dry_run", "--device", "cpu", "--workers", "0", *more]
    if module.SCRIPT.parse(words).settings.precision.precision == "auto":
        words += ["--precision", "bf16"]
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), as_first_of(processes):
        assert module.main(words) == 0, out.getvalue()
    return out.getvalue()


def row(recipe: str) -> str:
    """A line of the table."""
    words = command_of(recipe)
    ranks = int(words[words.index("--ranks") + 1]) if "--ranks" in words else 1
    cells: dict[int, str] = {}
    for gpus in sorted({1, 8, ranks}):
        if ranks % gpus == 0:
            cells[gpus] = cell(said(recipe, gpus))
    alone = cell(said(recipe, 1, "--checkpoint_activations"))
    images = re.search(r"batch      (\d+) x", said(recipe, ranks))
    assert images
    published = cells[ranks] if ranks not in (1, 8) else "as on the left"
    eight = cells.get(8, "-")
    return f"| `{recipe}.sh` | {ranks} x {images[1]} | {cells[1]} | {alone} | {eight} | {published} |"


def cell(lines: str) -> str:
    """``8 parts of 512: 64.6 GB``."""
    needed = re.search(r"memory     about ([\d.]+ [GM]B)", lines)
    batch = re.search(r"batch      (\d+) x \d+ processes(?: x (\d+) virtual ranks)?", lines)
    together = re.search(r"\((\d+) ranks together\)", lines)
    assert needed, lines
    assert batch, lines
    played, group = int(batch[2] or 1), int(together[1]) if together else 1
    return f"{played // group} x {int(batch[1]) * group}: {needed[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", nargs="+", default=RECIPES)
    args = parser.parse_args()
    os.chdir(ROOT)
    print("| recipe | published: GPUs x images | 1 GPU | with `--checkpoint_activations` | 8 GPUs | as published |")
    print("|---|---|---|---|---|---|", flush=True)
    for recipe in args.recipe:
        print(row(recipe), flush=True)


if __name__ == "__main__":
    main()

"""Draws how W2SSL makes montages: the parts of some images, their patches, and the montages of one view.

scripts/draw_montage.py --data_path data/photographs --out docs/montage.png
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from src import cli
from src.data.datasets import open_images
from src.data.loading import ViewDataset, collate
from src.data.source import evenly_spread
from src.data.view_sets import GRIDS, w2ssl
from src.errors import UserError
from src.ops.montage import deal_out
from src.plots import montage_figure
from src.settings import setting

import numpy as np
import torch


@dataclass(frozen=True)
class Settings:
    """Picture"""

    data_path: str = setting("", "a folder of images", required=True)
    out: str = setting("montage.png", "the picture to write")
    grid: str = setting("1x2", "parts of an image, rows x columns", choices=GRIDS)
    images: int = setting(4, "number of images, a multiple of 4", at_least=4, at_most=1024)
    crop_size: int = setting(112, "side of a patch in pixels", at_least=8, at_most=2048)
    seed: int = setting(0, "seed of the draws", at_least=0, at_most=2**32 - 1)


SCRIPT = cli.Script(
    "Draws how W2SSL makes montages of a folder of images.",
    Settings(),
)


def main(argv: Sequence[str] | None = None) -> int:
    args = SCRIPT.parse(argv).settings
    if args.images % 4:
        raise UserError(f"--images {args.images}: expected a multiple of 4")
    source = evenly_spread(open_images("folder", args.data_path), args.images)
    if len(source) < args.images:
        raise UserError(f"{args.data_path} has only {len(source)} images")
    views = w2ssl(args.grid, args.crop_size, blur=(0.0, 0.0))
    parts = len(views) // 2
    dataset = ViewDataset(source, views, args.seed)
    patches = collate([dataset[0, index] for index in range(args.images)]).crops[:parts]
    order = torch.from_numpy(np.random.default_rng(args.seed).permutation(parts * args.images))
    windows = [view.box for view in views[:parts]]
    pictures = [source.open(index).convert("RGB") for index in range(args.images)]
    montage_figure(pictures, windows, patches, order, deal_out(patches, order), args.out)
    print(f"drew {parts * args.images // 4} montages: {args.out}")
    return 0


if __name__ == "__main__":
    cli.run(main)

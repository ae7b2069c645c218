"""Draws how W2SSL makes montages: the parts of some images, their patches, and the montages of one view.

scripts/draw_montage.py --data_path data/photographs --out docs/montage.png
"""

import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
import torch

from src import cli
from src.data.datasets import evenly_spread, open_images
from src.data.loading import ViewDataset, collate
from src.data.view_sets import GRIDS, w2ssl
from src.errors import UserError
from src.ops.montage import deal_out
from src.plots import montage_figure


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.Parser((__doc__ or "").partition("\n")[0])
    parser.add_argument("--data_path", required=True, help="a folder of images")
    parser.add_argument("--out", default="montage.png", help="the picture")
    parser.add_argument("--grid", default="1x2", choices=GRIDS, help="parts of an image, rows x columns")
    parser.add_argument("--images", type=cli.positive, default=4, help="a multiple of 4")
    parser.add_argument("--crop_size", type=cli.positive, default=112, help="pixels of a patch")
    parser.add_argument("--seed", type=cli.non_negative, default=0, help="of the draws")
    args = parser.parse_args(argv)
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

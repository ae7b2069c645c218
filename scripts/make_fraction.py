"""Makes a data set of the images that a list names: 1 % or 10 % of ImageNet, by SimCLR's lists.

    scripts/make_fraction.py --ratio 1 --data_path /path/to/imagenet --subset_file 1percent.txt --out imagenet_1

The new folder holds links to those images of `train` and to `val`, so it takes no space; `--copy` copies instead. Not
needed for `eval_semisup.py`, which reads such lists itself (`--subset_file`).
"""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from src import cli
from src.data.folder import FolderImages
from src.data.splits import find_split
from src.data.subset import is_share, listed, read_list
from src.errors import UserError
from src.settings import setting


@dataclass(frozen=True)
class Settings:
    """Fraction"""

    data_path: str = setting("", "the folder that holds train and val", required=True)
    subset_file: str = setting("", "the list: a name of an image on each line", required=True)
    out: str = setting("", "the new folder", required=True)
    ratio: float = setting(
        1.0, "percent of the images that the list must have, give or take a tenth; 0 = any", at_least=0, at_most=100
    )
    copy: bool = setting(False, "copy instead of linking", switch=True)


SCRIPT = cli.Script("Makes a data set of the images that a list names.", Settings())


def main(argv: Sequence[str] | None = None) -> int:
    args = SCRIPT.parse(argv).settings
    out = Path(args.out)
    if out.exists():
        raise UserError(f"{out} exists: choose another --out")
    train, val = (find_split("folder", args.data_path, split) for split in ("train", "test"))
    images = FolderImages(train)
    chosen = listed(images, read_list(args.subset_file), args.subset_file)
    percent = 100 * len(chosen) / len(images)
    if args.ratio and not is_share(len(chosen), len(images), args.ratio):
        raise UserError(
            f"{args.subset_file} names {len(chosen)} of {len(images)} images, {percent:.2g} %, not {args.ratio:g}: "
            "another list? (--ratio 0 takes any)"
        )
    for index in chosen:
        source = Path(images.name(index)).absolute()
        target = out / "train" / source.relative_to(train.absolute())
        target.parent.mkdir(parents=True, exist_ok=True)
        if args.copy:
            shutil.copy2(source, target)
        else:
            target.symlink_to(source)
    if args.copy:
        shutil.copytree(val, out / "val")
    else:
        (out / "val").symlink_to(val.absolute(), target_is_directory=True)
    print(f"{out}: {len(chosen)} of {len(images)} training images ({percent:.2g} %), and the test images")
    return 0


if __name__ == "__main__":
    cli.run(main)

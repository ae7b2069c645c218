"""Makes a data set of some classes of another: ImageNet-100 of ImageNet, by default.

    scripts/make_class_subset.py --data_path /path/to/imagenet --out /path/to/imagenet100

The new folder holds links to the class folders of `train` and `val`, so it takes no space; `--copy` copies instead.
The 100 classes of scripts/imagenet100.txt are those of CMC (Tian et al., arXiv 1906.05849), which most papers mean by
ImageNet-100.
"""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from src import cli
from src.data.splits import find_split
from src.errors import UserError
from src.settings import setting


@dataclass(frozen=True)
class Settings:
    """Subset"""

    data_path: str = setting("", "the folder that holds train and val", required=True)
    out: str = setting("", "the new folder", required=True)
    classes: str = setting(str(ROOT / "scripts" / "imagenet100.txt"), "list of the classes, one on each line")
    copy: bool = setting(False, "copy the images instead of linking their folders", switch=True)


SCRIPT = cli.Script(
    "Makes a data set of some classes of another one, such as ImageNet-100 of ImageNet.",
    Settings(),
)


def main(argv: Sequence[str] | None = None) -> int:
    args = SCRIPT.parse(argv).settings
    try:
        classes = Path(args.classes).read_text().split()
    except OSError as error:
        raise UserError(f"--classes {args.classes}: {error.strerror}") from None
    source, out = Path(args.data_path).resolve(), Path(args.out)
    splits = [find_split("folder", source, split) for split in ("train", "test")]
    for split in splits:
        missing = [name for name in classes if not (split / name).is_dir()]
        if missing or not classes:
            raise UserError(f"{split} lacks {len(missing)} of the {len(classes)} classes: {missing[:3]}")
    for split in splits:
        (out / split.name).mkdir(parents=True, exist_ok=True)
        for name in classes:
            place = out / split.name / name
            if place.exists():
                continue
            if args.copy:
                partial = place.with_name(place.name + ".partial")
                shutil.copytree(split / name, partial, dirs_exist_ok=True)
                partial.rename(place)
            else:
                place.symlink_to(split / name, target_is_directory=True)
    print(f"{out}: {' and '.join(split.name for split in splits)} with {len(classes)} classes of {source}")
    return 0


if __name__ == "__main__":
    cli.run(main)

"""Cuts photographs into a small labelled set of natural image patches.

The label of a patch is the photograph it comes from. Training and test patches come from different parts of it, so
that no pixel is in both.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from .folder import EXTENSIONS
from ..errors import UserError

TRAIN_SHARE = 0.6  # training patches: the left part of every photograph; test patches: the rest
MIN_CONTRAST = 6.0  # grey levels; patches of sky or blurred background below it show nothing to learn from


def cut_patches(
    photographs: str | Path,
    out: str | Path,
    *,
    size: int = 64,
    max_train: int = 240,
    max_test: int = 50,
    min_contrast: float = MIN_CONTRAST,
) -> dict[str, int]:
    """Writes ``out/train/NAME/*.png`` and ``out/test/NAME/*.png`` for every photograph ``NAME``.

    Patches lie on a grid without overlap. Those whose grey-level standard deviation is below ``min_contrast`` are
    dropped, and of the others at most ``max_train`` and ``max_test`` are kept, evenly spread over the photograph.

    Returns the number of patches in ``train`` and ``test``. Raises UserError when there are no photographs.
    """
    paths = sorted(path for path in Path(photographs).glob("*") if path.suffix.lower() in EXTENSIONS)
    if not paths:
        raise UserError(f"no photographs in {photographs}")
    counts = {"train": 0, "test": 0}
    for path in paths:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        split_at = int(image.width * TRAIN_SHARE)
        for split, left, right, limit in (
            ("train", 0, split_at, max_train),
            ("test", split_at, image.width, max_test),
        ):
            patches = _patches(image, left, right, size, min_contrast)
            chosen = np.linspace(0, len(patches) - 1, min(limit, len(patches))).round().astype(int)
            folder = Path(out) / split / path.stem
            folder.mkdir(parents=True, exist_ok=True)
            for number, index in enumerate(chosen):
                patches[index].save(folder / f"{number:03d}.png")
            counts[split] += len(chosen)
    return counts


def _patches(image: Image.Image, left: int, right: int, size: int, min_contrast: float) -> list[Image.Image]:
    found = []
    for top in range(0, image.height - size + 1, size):
        for x in range(left, right - size + 1, size):
            patch = image.crop((x, top, x + size, top + size))
            if np.asarray(patch.convert("L"), dtype=np.float32).std() >= min_contrast:
                found.append(patch)
    return found

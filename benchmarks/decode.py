"""Which library decodes a JPEG fastest, and how far its levels are from Pillow's, whole and at a reduced scale.

    pip install simplejpeg PyTurboJPEG torchcodec
    python benchmarks/decode.py

PyTurboJPEG wants libturbojpeg 3 on the system as well. All give (h, w, 3) or (3, h, w) uint8 from the file's content;
those that are not installed are left out. The reduced scales are those for crops that are at least eight or sixteen
times as large as their output.
"""

import argparse
import functools
import glob
import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.timing import by_turns, machine, table

Decoder = Callable[[bytes, int], object]
BASELINE = "Pillow"


def pillow(content: bytes, reduction: int) -> np.ndarray:
    image = Image.open(io.BytesIO(content))
    if reduction > 1:
        image.draft(None, (image.width // reduction, image.height // reduction))
    return np.asarray(image.convert("RGB"))


def of_torchvision(content: bytes, reduction: int) -> torch.Tensor:
    encoded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    return torchvision.io.decode_jpeg(encoded, torchvision.io.ImageReadMode.RGB)


def decoders() -> dict[str, tuple[Decoder, bool]]:
    """Each with whether it knows reduced scales."""
    found: dict[str, tuple[Decoder, bool]] = {BASELINE: (pillow, True), "torchvision.io": (of_torchvision, False)}
    try:
        from torchcodec.decoders import decode_jpeg

        found["torchcodec"] = (lambda content, reduction: decode_jpeg(content), False)
    except ImportError:
        pass
    try:
        import simplejpeg

        def simple(content: bytes, reduction: int, **options: bool) -> object:
            height, width, *_ = simplejpeg.decode_jpeg_header(content)
            return simplejpeg.decode_jpeg(
                content, min_height=-(-height // reduction), min_width=-(-width // reduction), **options
            )

        found["simplejpeg"] = (simple, True)
        found["simplejpeg, fast"] = (functools.partial(simple, fastdct=True, fastupsample=True), True)
    except ImportError:
        pass
    try:
        import turbojpeg

        turbo = turbojpeg.TurboJPEG()

        def pyturbo(content: bytes, reduction: int) -> object:
            return turbo.decode(content, turbojpeg.TJPF_RGB, (1, reduction))

        found["PyTurboJPEG"] = (pyturbo, True)
    except (ImportError, RuntimeError):
        pass
    return found


def all_of(decode: Decoder, contents: list[bytes], reduction: int) -> list[object]:
    return [decode(content, reduction) for content in contents]


def levels(image: object) -> np.ndarray:
    array = np.asarray(image)
    return (np.moveaxis(array, 0, 2) if array.shape[0] == 3 else array).astype(int)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{machine()}, Pillow {Image.__version__}\n")
    photographs = [
        Image.open(path).convert("RGB") for path in sorted(glob.glob(str(ROOT / "data/photographs/*.jpg")))[:8]
    ]
    for size, reduction in (((500, 375), 1), ((4000, 3000), 1), ((4000, 3000), 4), ((4000, 3000), 8)):
        contents = []
        for photograph in photographs[: 8 if size[0] < 1000 else 2]:
            file = io.BytesIO()
            photograph.resize(size).save(file, "jpeg", quality=90)
            contents.append(file.getvalue())
        functions: dict[str, Callable[[], object]] = {}
        far = {}
        for name, (decode, reduces) in decoders().items():
            if reduction > 1 and not reduces:
                continue
            functions[name] = functools.partial(all_of, decode, contents, reduction)
            off = [
                np.abs(levels(decode(content, reduction)) - levels(pillow(content, reduction))) for content in contents
            ]
            far[name] = (
                f"at most {max(one.max() for one in off)}, on average {np.mean([one.mean() for one in off]):.2g}"
            )
        results = by_turns(functions, BASELINE, args.rounds, seconds=0.2)
        print(table(f"{size[0]}x{size[1]} at 1/{reduction}", results, "images/s", len(contents)))
        print("\nLevels from Pillow's: " + "; ".join(f"{name} {text}" for name, text in far.items()) + "\n")


if __name__ == "__main__":
    main()

"""Writes a folder of images, or any other set, into one LMDB file: one large file instead of a million small ones.

    scripts/make_lmdb.py --data_path /path/to/imagenet/train --out /path/to/lmdb/train.lmdb
    main_swav.py --dataset lmdb --data_path /path/to/lmdb/train.lmdb ...

Image files are copied as they are, byte for byte; images of torchvision's sets are stored as PNG. Started again after
an interruption, it goes on where it was. The file is complete when it has its final name; evaluations look for
`train.lmdb` and `val.lmdb` in one folder.
"""

import hashlib
import io
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from src import cli
from src.data.datasets import DATASETS, open_images
from src.data.folder import FolderImages
from src.data.lmdb_file import FORMAT, image_key, import_lmdb
from src.data.source import ImageSource
from src.errors import UserError
from src.settings import setting

from tqdm import tqdm

PER_COMMIT = 1000  # what an interruption can cost


def encoded(source: ImageSource, index: int) -> bytes:
    if isinstance(source, FolderImages):
        return Path(source.name(index)).read_bytes()
    buffer = io.BytesIO()
    source.open(index).save(buffer, "PNG")
    return buffer.getvalue()


class Writer:
    """An LMDB file that grows as needed."""

    def __init__(self, path: Path) -> None:
        self._lmdb = import_lmdb()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._environment = self._lmdb.open(str(path), subdir=False, map_size=1 << 28, lock=False)
        except (OSError, self._lmdb.Error) as error:
            raise UserError(f"cannot write {path}: {error}") from None

    def get(self, key: bytes) -> bytes | None:
        with self._environment.begin() as transaction:
            return transaction.get(key)

    def put(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        """All or nothing, forced to disk."""
        while True:
            try:
                with self._environment.begin(write=True) as transaction:
                    for key, value in items:
                        transaction.put(key, value)
                return
            except self._lmdb.MapFullError:
                self._environment.set_mapsize(2 * self._environment.info()["map_size"])
            except self._lmdb.Error as error:
                raise UserError(f"cannot write to the LMDB file: {error}") from None

    def close(self) -> None:
        self._environment.close()


def write(source: ImageSource, out: Path) -> int:
    """Fills the file and returns how many images an earlier start had left behind."""
    if out.exists():
        raise UserError(f"{out} exists already")
    names = "\n".join(source.relative_name(index) for index in range(len(source))).encode(errors="surrogateescape")
    digest = hashlib.sha256(names).hexdigest()
    partial = out.with_name(out.name + ".partial")
    writer = Writer(partial)
    progress: dict[str, Any] = json.loads(writer.get(b"__progress__") or b"{}")
    if progress and progress["names"] != digest:
        raise UserError(f"{partial} was begun from other images; remove it to start anew")
    found = int(progress.get("images", 0))
    for first in tqdm(
        range(found, len(source), PER_COMMIT), "writing", unit=f" x {PER_COMMIT} images", disable=None, leave=False
    ):
        indices = range(first, min(first + PER_COMMIT, len(source)))
        items = [(image_key(index), encoded(source, index)) for index in indices]
        state = json.dumps({"names": digest, "images": indices[-1] + 1}).encode()
        writer.put([*items, (b"__progress__", state)])
    meta = {"format": FORMAT, "images": len(source), "classes": source.classes}
    labels = np.array(source.labels, dtype="<i8").tobytes()
    writer.put([(b"__labels__", labels), (b"__names__", names)])
    writer.put([(b"__meta__", json.dumps(meta).encode())])
    writer.close()
    os.replace(partial, out)
    return found


@dataclass(frozen=True)
class Settings:
    """Writing"""

    data_path: str = setting("", "the images, as for training", required=True)
    dataset: str = setting("folder", "kind of data that is there", choices=DATASETS)
    split: str = setting("train", "split of a torchvision set", choices=["pretrain", "train", "test"])
    out: str = setting("", "the file to write, such as train.lmdb", required=True)


SCRIPT = cli.Script(
    "Writes images into one LMDB file.",
    Settings(),
)


def main(argv: Sequence[str] | None = None) -> int:
    args = SCRIPT.parse(argv).settings
    source = open_images(args.dataset, args.data_path, args.split)
    out = Path(args.out)
    found = write(source, out)
    again = f", {found} of them by an earlier start" if found else ""
    print(f"{len(source)} images of {len(source.classes)} classes in {out}{again} ({out.stat().st_size / 1e9:.2f} GB)")
    return 0


if __name__ == "__main__":
    cli.run(main)

"""An embedding's files: ``features.npy``, ``features.parquet``, and what belongs to them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoints.files import write_atomically, write_json
from ..data.labels import UNLABELLED
from ..data.source import ImageSource
from ..errors import UserError, first_line
from .chunks import ABOUT, FEATURES, PIXELS, ROWS, SMALL, TABLE, UNREADABLE, Parts, read_about

GROUP = 2048  # rows that are written together


@dataclass(frozen=True)
class Embedding:
    """A finished one; arrays are read from the disk as they are needed.

    Attributes:
        features: (M, F) float32 or float16.
        pixels: (M, SMALL, SMALL) uint8, the images in grey.
        rows: (M,) int64, which image of the list each row is.
        num_images: N.
    """

    features: np.ndarray
    pixels: np.ndarray
    rows: np.ndarray
    num_images: int

    def __len__(self) -> int:
        return len(self.rows)


def require_pyarrow() -> None:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise UserError(
            "Parquet needs the package pyarrow: install it (pip install pyarrow), or say --parquet false"
        ) from None


def finish(folder: Path, parts: Parts) -> None:
    """Puts the parts together, chunk by chunk, and removes them. Raises UserError where no image could be read."""
    rows = np.concatenate([chunk.indices.numpy() for chunk in parts])
    unreadable = [name for chunk in parts for name in chunk.unreadable]
    if not len(rows):
        raise UserError(f"none of the {len(unreadable)} images could be read, the first: {unreadable[0]}")
    first = next(chunk for chunk in parts if len(chunk.indices))
    width, kind = first.features.shape[1], first.features.numpy().dtype
    features = ((chunk.features.numpy() for chunk in parts if len(chunk.indices)), (len(rows), width), kind)
    pixels = ((chunk.small.numpy() for chunk in parts if len(chunk.indices)), (len(rows), SMALL, SMALL), np.uint8)
    write_atomically(folder / FEATURES, lambda file: _write_array(file, *features))
    write_atomically(folder / PIXELS, lambda file: _write_array(file, *pixels))
    write_atomically(folder / ROWS, lambda file: np.save(file, rows))
    lines = [_as_line(name) for name in unreadable]
    told = "".join(f"{line}\n" for line in lines).encode()
    if unreadable:
        write_atomically(folder / UNREADABLE, lambda file: file.write(told))
    else:
        (folder / UNREADABLE).unlink(missing_ok=True)
    (folder / TABLE).unlink(missing_ok=True)  # of other features
    about = read_about(folder)
    write_json(folder / ABOUT, {**about, "rows": len(rows), "width": width, "unreadable": len(unreadable)})
    parts.remove()


def open_finished(folder: Path, num_images: int) -> Embedding:
    """Raises UserError where a file is missing or not what it was."""
    about = read_about(folder)
    Parts(folder, num_images, 1).remove()  # a kill may have left them
    try:
        features, pixels, rows = (np.load(folder / name, mmap_mode="r") for name in (FEATURES, PIXELS, ROWS))
        fits = features.shape == (about["rows"], about["width"]) and len(pixels) == len(rows) == about["rows"]
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{folder}: {first_line(error)}; say --overwrite to make it again") from None
    if not fits:
        raise UserError(f"{folder}: its files do not belong together; say --overwrite to make them again")
    return Embedding(features, pixels, np.asarray(rows), num_images)


def _write_array(file: Any, blocks: Any, shape: tuple[int, ...], kind: Any) -> None:
    """As np.save does, without holding all of it."""
    header: dict[str, Any] = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(kind)),
        "fortran_order": False,
        "shape": shape,
    }
    np.lib.format.write_array_header_1_0(file, header)
    for block in blocks:
        file.write(np.ascontiguousarray(block).tobytes())


def unreadable_names(folder: Path) -> list[str]:
    """What ``unreadable.txt`` names."""
    path = folder / UNREADABLE
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def write_table(folder: Path, embedding: Embedding, images: ImageSource) -> None:
    """``features.parquet``, a row for each readable image: path, label and class where images have labels, vector."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    labels = np.asarray(images.labels)
    labelled = bool((labels != UNLABELLED).any())
    columns: list[Any] = [("path", pa.string())]
    if labelled:
        columns += [("label", pa.int64()), ("class", pa.string())]
    kind = pa.from_numpy_dtype(embedding.features.dtype)
    width = embedding.features.shape[1]
    schema = pa.schema([*columns, ("vector", pa.list_(kind, width))])

    def block(first: int) -> Any:
        indices = embedding.rows[first : first + GROUP]
        arrays = [pa.array([as_utf8(images.relative_name(int(index))) for index in indices], pa.string())]
        if labelled:
            own = [int(labels[index]) for index in indices]
            arrays.append(pa.array([None if label == UNLABELLED else label for label in own], pa.int64()))
            names = [None if label == UNLABELLED else as_utf8(images.classes[label]) for label in own]
            arrays.append(pa.array(names, pa.string()))
        flat = np.ascontiguousarray(embedding.features[first : first + GROUP]).reshape(-1)
        arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(flat), width))
        return pa.Table.from_arrays(arrays, schema=schema)

    def write(file: Any) -> None:
        with pq.ParquetWriter(file, schema) as writer:
            for first in range(0, len(embedding), GROUP):
                writer.write_table(block(first))

    write_atomically(folder / TABLE, write)


def has_table(folder: Path, rows: int) -> bool:
    """Whether there is a whole ``features.parquet`` of so many rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        found: int = pq.read_metadata(folder / TABLE).num_rows
    except (OSError, pa.ArrowException):
        return False
    return found == rows


def _as_line(name: str) -> str:
    """The same, with escapes for whatever would end a line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in as_utf8(name))


def as_utf8(name: str) -> str:
    """A file's name with escapes for bytes that are no letters."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")

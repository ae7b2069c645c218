"""Images named in a list: a text file, a table in CSV or TSV, or Parquet."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError, first_line
from . import remote
from .decoding import Opened, open_encoded, open_file
from .folder import ImageFiles
from .index_cache import IndexCache, states_of
from .labels import UNLABELLED
from .packed import PackedIndex, PackedStrings
from .remote import Part, ReadAhead

ENDINGS = (".txt", ".csv", ".tsv", ".parquet")
# What the columns are called where nobody says it
PATH_COLUMNS = ("path", "file", "file_path", "filepath", "file_name", "filename", "image", "image_path", "img", "url")
LABEL_COLUMNS = ("label", "class", "target", "category", "class_name")


def is_list(path: str | Path) -> bool:
    """Whether a path is a list, by its ending."""
    return str(path).lower().endswith(ENDINGS)


class ListImages(ImageFiles):
    """The images that a list names, in its order.

    Paths are relative to the list's folder, or absolute, or URLs that fsspec opens. A ``.txt`` file has a path on each
    line; a ``.csv`` or ``.tsv`` file begins with the names of its columns. Labels are class numbers, if all of them are
    whole numbers, or class names, which are numbered in sorted order. An empty label, null or -1 is none.

    Args:
        path: the list.
        path_column, label_column: which columns of a table; "" looks for those of PATH_COLUMNS and LABEL_COLUMNS.
        cache: where a long list is kept in the form in which processes share it.
    """

    def __init__(
        self, path: str | Path, path_column: str = "", label_column: str = "", cache: IndexCache | None = None
    ) -> None:
        self.path = str(path)
        if not os.path.isfile(self.path):
            raise UserError(f"{self.path} does not exist" if not os.path.exists(self.path) else f"{self.path}: no file")
        self.root = Path(self.path).parent
        of = ["list", os.path.abspath(self.path), path_column, label_column]
        index = (cache or IndexCache()).find(
            of,
            lambda: _read(self.path, path_column, label_column),
            lambda kept: np.array_equal(kept.columns["list_times"], states_of([self.path])),
        )
        self._index, self.names, self._ahead = index, index.names, ReadAhead()
        self.labels: np.ndarray = index.columns["labels"]
        self.classes: list[str] = index.meta["classes"]
        self._require_some()

    def name(self, index: int) -> str:
        entry = self.names[index]
        return entry if remote.is_remote(entry) else os.path.join(self.root, entry)

    def open(self, index: int) -> Opened:
        name = self.name(index)
        return open_encoded(self._ahead.read(Part(name))) if remote.is_remote(name) else open_file(name)

    def read_ahead(self, images: Sequence[int], soon: Sequence[int]) -> None:
        """Starts to read those of the next images that lie on servers."""
        self._ahead.announce(Part(name) for name in map(self.name, images) if remote.is_remote(name))

    @property
    def list_digest(self) -> str:
        return self._index.list_digest

    def _require_some(self) -> None:
        """Raises UserError where the first, the last and the images between them are not where the list says."""
        places = np.unique(np.linspace(0, len(self) - 1, 5).astype(int)).tolist()
        names = [self.name(place) for place in places]
        if not any(remote.is_remote(name) or os.path.exists(name) for name in names):
            raise UserError(f"{self.path}: {names[0]} does not exist, nor do others; paths are relative to the list")


def _read(path: str, path_column: str, label_column: str) -> PackedIndex:
    state = states_of([path])
    if path.lower().endswith(".txt"):
        for flag, value in (("path_column", path_column), ("label_column", label_column)):
            if value:
                raise UserError(f"--{flag} {value}: {path} is a text file, which has no columns; use .csv or .tsv")
        names, labels, classes = _lines(path), None, list[str]()
    else:
        names, labels, classes = _table(path, path_column, label_column)
    if not len(names):
        raise UserError(f"{path} names no images")
    if labels is None:
        labels = np.full(len(names), UNLABELLED, dtype=np.int32)
    return PackedIndex(names, {"labels": labels, "list_times": state}, {"classes": classes})


def _lines(path: str) -> PackedStrings:
    """The lines of a text file that are not empty."""
    try:
        content = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if content[:3].tobytes() == b"\xef\xbb\xbf":  # what Windows puts before UTF-8
        content = content[3:]
    return PackedStrings.of_lines(content[content != ord("\r")], skip_empty=True)


def _table(path: str, path_column: str, label_column: str) -> tuple[PackedStrings, np.ndarray | None, list[str]]:
    """Names, labels (None without such a column) and classes."""
    try:
        import pyarrow
        from pyarrow import csv as arrow_csv
        from pyarrow import parquet
    except ImportError:
        raise UserError("tables need a package: pip install pyarrow") from None
    try:
        if path.lower().endswith(".parquet"):
            there = parquet.read_schema(path).names
            paths, labels = _choose(path, there, path_column, label_column)
            table = parquet.read_table(path, columns=[paths, *([labels] if labels else [])])
        else:
            delimiter = "\t" if path.lower().endswith(".tsv") else ","
            with open(path, newline="", encoding="utf-8-sig") as file:
                there = next(csv.reader(file, delimiter=delimiter), [])
            paths, labels = _choose(path, there, path_column, label_column)
            table = arrow_csv.read_csv(
                path,
                read_options=arrow_csv.ReadOptions(column_names=there, skip_rows=1),
                parse_options=arrow_csv.ParseOptions(delimiter=delimiter),
                convert_options=arrow_csv.ConvertOptions(
                    include_columns=[paths, *([labels] if labels else [])],
                    column_types={paths: pyarrow.large_string()},
                    strings_can_be_null=False,
                ),
            )
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {path}: {first_line(error)}") from None
    names = _packed(path, paths, table.column(paths))
    return names, *(labels_of(path, labels, table.column(labels)) if labels else (None, []))


def _choose(path: str, there: Sequence[str], path_column: str, label_column: str) -> tuple[str, str]:
    """The columns of the paths and of the labels, "" for no labels."""
    for flag, name in (("path_column", path_column), ("label_column", label_column)):
        if name and name not in there:
            raise UserError(f"--{flag} {name}: {path} has the columns {', '.join(there)}")
    by_name = {name.lower(): name for name in reversed(there)}
    paths = path_column or next((by_name[name] for name in PATH_COLUMNS if name in by_name), "")
    if not paths:
        raise UserError(f"{path} has the columns {', '.join(there)}: say with --path_column which one holds the paths")
    return paths, label_column or next((by_name[name] for name in LABEL_COLUMNS if name in by_name), "")


def _packed(path: str, column: str, values: Any) -> PackedStrings:
    """An Arrow column of strings, whose memory has the same form."""
    import pyarrow
    from pyarrow import compute

    if not (pyarrow.types.is_string(values.type) or pyarrow.types.is_large_string(values.type)):
        raise UserError(f"{path}: the column {column} holds {values.type}, expected paths")
    empty = compute.fill_null(compute.equal(values, ""), True)
    if compute.any(empty).as_py():
        raise UserError(f"{path}: row {compute.index(empty, True).as_py() + 1} has no path")
    whole = values.cast(pyarrow.large_string()).combine_chunks()
    if isinstance(whole, pyarrow.ChunkedArray):  # without rows there is no chunk
        return PackedStrings.of([])
    _, offsets, content = whole.buffers()
    edges = np.frombuffer(offsets, dtype=np.int64)[whole.offset : whole.offset + len(whole) + 1]
    letters = np.frombuffer(content or b"", dtype=np.uint8)[edges[0] : edges[-1]]
    return PackedStrings(letters, (edges[1:] - edges[0]).astype(np.uint64))


def labels_of(path: str, column: str, values: Any) -> tuple[np.ndarray, list[str]]:
    """Class numbers of an Arrow column of numbers or names, and the classes; the path is for messages."""
    import pyarrow
    from pyarrow import compute

    kind = values.type.value_type if pyarrow.types.is_dictionary(values.type) else values.type
    if pyarrow.types.is_integer(kind) or pyarrow.types.is_boolean(kind) or pyarrow.types.is_null(kind):
        numbers = compute.fill_null(values.cast(pyarrow.int64()), UNLABELLED).to_numpy()
        if len(numbers) and numbers.min() < UNLABELLED:
            raise UserError(f"{path}: the column {column} holds {numbers.min()}, expected class numbers from 0 on")
        return numbers.astype(np.int32), [str(number) for number in range(int(numbers.max(initial=-1)) + 1)]
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
        raise UserError(f"{path}: the column {column} holds {kind}, expected class numbers or names")
    strings = compute.fill_null(values.cast(pyarrow.large_string()), "")
    classes = sorted(name for name in compute.unique(strings).to_pylist() if name)
    found = compute.index_in(strings, pyarrow.array(classes, pyarrow.large_string()))
    return compute.fill_null(found, UNLABELLED).to_numpy().astype(np.int32), classes

"""A data set that Hugging Face's ``datasets`` package has written with ``save_to_disk``."""

import os
from pathlib import Path
from typing import Any

from ..errors import UserError, first_line
from .decoding import Opened, open_encoded, open_file
from .lists import labels_of
from .numbered import NumberedImages


class HuggingFaceImages(NumberedImages):
    """The rows of one split; Arrow files that are mapped into memory, so that processes share them.

    Args:
        path: a folder that ``Dataset.save_to_disk`` has written.
        image_column, label_column: of the table; "" takes the first column of images, and of class labels or, without
            one, the column ``label``.
    """

    def __init__(self, path: str | Path, image_column: str = "", label_column: str = "") -> None:
        try:
            import datasets
        except ImportError:
            raise UserError("--dataset hf needs a package: pip install datasets") from None
        where = str(path)
        if not os.path.exists(where):
            raise UserError(f"{where} does not exist")
        try:
            rows: Any = datasets.load_from_disk(where)
        except Exception as error:  # each kind of damage has an error of its own
            raise UserError(f"{where} is no folder that save_to_disk has written: {first_line(error)}") from None
        if isinstance(rows, datasets.DatasetDict):
            raise UserError(f"{where} holds the splits {', '.join(rows)}: say which one, as {where}/{next(iter(rows))}")
        kinds = rows.features
        for flag, name in (("path_column", image_column), ("label_column", label_column)):
            if name and name not in kinds:
                raise UserError(f"--{flag} {name}: {where} has the columns {', '.join(kinds)}")
        pictures = [name for name, kind in kinds.items() if isinstance(kind, datasets.Image)]
        if not image_column and not pictures:
            raise UserError(f"{where} has no column of images; its columns are {', '.join(kinds)}")
        self._column = image_column or pictures[0]
        named = [name for name, kind in kinds.items() if isinstance(kind, datasets.ClassLabel)]
        labels = label_column or next(iter([*named, *(name for name in kinds if name == "label")]), "")
        self._rows = rows.select_columns([self._column])
        if isinstance(kinds[self._column], datasets.Image):
            self._rows = self._rows.cast_column(self._column, datasets.Image(decode=False))
        found, classes = None, None
        if labels:
            column = rows.select_columns([labels]).with_format("arrow")[:].column(labels)
            found, classes = labels_of(where, labels, column)
            classes = kinds[labels].names if labels in named else classes
        super().__init__(where, found, len(rows), classes)

    def open(self, index: int) -> Opened:
        found = self._rows[index][self._column]
        if isinstance(found, dict):
            return open_encoded(found["bytes"]) if found["bytes"] is not None else open_file(found["path"])
        return open_encoded(found) if isinstance(found, bytes) else open_file(found)

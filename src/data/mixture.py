"""Several sources as one."""

import hashlib
from collections.abc import Sequence

import numpy as np

from .decoding import Opened
from .fingerprint import list_digest_of
from .source import ImageSource, read_ahead, storage_ends, storage_sizes, unite_classes


class Mixture:
    """The images of several sources, one source after the other; classes of the same name are one class.

    Attributes:
        parts: the images of each source, by index.
    """

    def __init__(self, sources: Sequence[ImageSource]) -> None:
        self._sources = sources
        self.classes, translations = unite_classes(sources)
        labels = [table[np.asarray(one.labels)] for table, one in zip(translations, sources, strict=True)]
        self.labels = np.concatenate(labels).astype(np.int32)
        self.decoding = sources[0].decoding
        self.left_out: Sequence[str] = [line for one in sources for line in one.left_out]
        self._ends = np.cumsum([len(one) for one in sources])
        self.parts = [range(end - len(one), end) for one, end in zip(sources, self._ends.tolist(), strict=True)]

    def __len__(self) -> int:
        return len(self.labels)

    def open(self, index: int) -> Opened:
        source, own = self._place(index)
        return source.open(own)

    def name(self, index: int) -> str:
        source, own = self._place(index)
        return source.name(own)

    def relative_name(self, index: int) -> str:
        source, own = self._place(index)
        return source.relative_name(own)

    def read_ahead(self, images: Sequence[int], soon: Sequence[int]) -> None:
        for source, part in zip(self._sources, self.parts, strict=True):
            read_ahead(source, *([index - part.start for index in some if index in part] for some in (images, soon)))

    @property
    def storage_sizes(self) -> np.ndarray:
        return np.concatenate([storage_sizes(source) for source in self._sources])

    @property
    def storage_ends(self) -> np.ndarray | None:
        ends = [storage_ends(source) for source in self._sources]
        known = [one + part.start for one, part in zip(ends, self.parts, strict=True) if one is not None]
        return np.concatenate(known) if len(known) == len(ends) else None

    @property
    def list_digest(self) -> str:
        digests = [list_digest_of(one) for one in self._sources]
        return hashlib.sha256("\n".join([*digests, *self.classes]).encode(errors="surrogateescape")).hexdigest()[:16]

    def _place(self, index: int) -> tuple[ImageSource, int]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self._sources[number], index - self.parts[number].start

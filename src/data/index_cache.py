"""Where the lists of large sources are kept: made once, then mapped into the memory of every process."""

import contextlib
import ctypes
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from ..errors import UserError
from ..parallel import collectives
from .packed import PackedIndex

T = TypeVar("T")

# A smaller source is looked through at every start: that takes a second, and leaves no files behind
LARGE = 100_000
# File systems count time in steps: a folder changed within one of them looks unchanged
SETTLED = 2.0
_BEAT = 20.0  # seconds after which waiting processes hear that the first one is still at work


def states_of(paths: Sequence[str]) -> np.ndarray:
    """When each file was changed last, in ns, and its size: (files, 2) int64."""
    found = [os.stat(path) for path in paths]
    return np.array([(status.st_mtime_ns, status.st_size) for status in found], dtype=np.int64)


@dataclass(frozen=True)
class IndexCache:
    """A folder for lists of images.

    Attributes:
        folder: None keeps none.
        at_least: images that a source must have for its list to be kept.
    """

    folder: str | None = None
    at_least: int = LARGE

    def find(
        self, of: Sequence[str], make: Callable[[], PackedIndex], is_current: Callable[[PackedIndex], bool]
    ) -> PackedIndex:
        """The list of a source: the one that is kept, if it still holds, else a new one.

        With several processes the first one looks, the others take what it has kept, where they see it. All must call.

        Args:
            of: what the list depends on: kind, place, options.
            make: makes it.
            is_current: whether a kept one still tells what is there.
        """
        return _first_alone(lambda: self._find(of, make, is_current))

    def _find(
        self, of: Sequence[str], make: Callable[[], PackedIndex], is_current: Callable[[PackedIndex], bool]
    ) -> PackedIndex:
        if self.folder is None:
            return make()
        place = Path(self.folder) / hashlib.sha256("\0".join(of).encode(errors="surrogateescape")).hexdigest()[:16]
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, EOFError):  # there is none, or a damaged one
            kept = PackedIndex.load(place)
            if kept.meta["of"] == list(of) and kept.meta["settled"] and is_current(kept):
                return kept
        started = time.time()
        made = make()
        if len(made.names) < self.at_least:
            return made
        # of times in ns, with sizes beside them, which are smaller
        newest = max(int(column.max(initial=0)) for name, column in made.columns.items() if name.endswith("_times"))
        made.meta |= {"of": list(of), "settled": newest / 1e9 < started - SETTLED}
        try:
            made.save(place)
            found = PackedIndex.load(place)  # mapped: memory that the system can take back, and processes share
        except OSError as error:
            print(f"note: the list of images is not kept in {self.folder}: {error.strerror}", file=sys.stderr)
            return made
        del made
        with contextlib.suppress(OSError, AttributeError):  # glibc keeps what it could give back to the system
            ctypes.CDLL(None).malloc_trim(0)
        return found


def _first_alone(call: Callable[[], T]) -> T:
    """``call()`` on the main rank, then on all others; what it raises for bad input is raised on all.

    However long the first takes: waiting ranks hear from it, so none gives up.
    """
    if collectives.world_size() == 1:
        return call()
    if not collectives.is_main():
        while (news := collectives.broadcast_object(None)) == "working":
            pass
        error = json.loads(news)
        if error is not None:
            raise UserError(error)
        return call()
    with ThreadPoolExecutor(1) as pool:
        task = pool.submit(call)
        while True:
            try:
                found = task.result(timeout=_BEAT)
            except NotYet:
                collectives.broadcast_object("working")
            except UserError as error:
                collectives.broadcast_object(json.dumps(str(error)))
                raise
            else:
                collectives.broadcast_object(json.dumps(None))
                return found

"""The right of a run, all its ranks together, to its folder."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from ..checkpoints.lock import RunLock, this_process
from ..parallel import collectives


@contextlib.contextmanager
def alone_in(folder: str | Path) -> Iterator[None]:
    """Holds the folder's lock on the main rank. Raises UserError while another run has it; all ranks must enter."""
    processes = collectives.gather_to_main(this_process())
    if processes is None:
        yield
        return
    lock = RunLock(folder, lambda line: print(f"note: {line}", file=sys.stderr, flush=True), processes).acquire()
    try:
        yield
    finally:
        lock.release()

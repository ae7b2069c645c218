"""When Python looks for cycles of dead objects."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def collected_between_steps() -> Iterator[None]:
    """No pauses for cycles at random moments, which differ between ranks, so that each waits for every other's.

    What exists already (torch, the network, the list of images) is left out of later collections, which then take
    milliseconds.
    """
    was_enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()

"""Ranks end with the launcher that started them, also when it was killed and could not tell them to."""

import contextlib
import os
import signal
import sys
import threading
import time

LOOK_EVERY = 1.0  # seconds
_watching = threading.Event()


def end_with_the_launcher(patience: float = 30.0) -> None:
    """Under torchrun: when the parent is gone, asks this process to stop, and after ``patience`` seconds ends it.

    A rank that trains on would keep its GPU and write into a folder that the next start uses.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or _watching.is_set():
        return
    _watching.set()
    threading.Thread(target=_watch, args=(os.getpid(), os.getppid(), patience), daemon=True, name="launcher").start()


def _watch(own: int, launcher: int, patience: float) -> None:
    while os.getppid() == launcher:
        time.sleep(LOOK_EVERY)
    if os.getpid() != own:
        return  # a fork
    with contextlib.suppress(OSError, ValueError):  # the launcher may have held the other end
        print(f"the launcher (process {launcher}) is gone: rank {os.environ.get('RANK')} ends", file=sys.stderr)
    os.kill(own, signal.SIGTERM)
    time.sleep(patience)
    os._exit(128 + signal.SIGTERM)

"""Runs a script: errors in one line, exit codes."""

import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

import torch

from ..errors import Diverged, UserError, first_line
from ..parallel import collectives, launch

OUT_OF_MEMORY = (
    "Try fewer images at a time: a smaller --batch_size, in a training with as many more --virtual_ranks; or "
    "--checkpoint_activations, or --precision bf16"
)


def run(main: Callable[[Sequence[str] | None], int]) -> NoReturn:
    """Runs a script. A user's mistake is one line on stderr and exit code 2; a diverged training, exit code 1.

    Names of files that are no UTF-8 are printed with escapes.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = main(None)
    except UserError as error:
        _fail(_own_message(error), 2)
    except Diverged as error:
        _fail(str(error), 1)
    except torch.OutOfMemoryError as error:
        _fail(f"{first_line(error)} {OUT_OF_MEMORY}", 1)
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    if code > 128 and collectives.is_active():
        # a signal: other ranks may wait in a collective, or be gone
        sys.stdout.flush()
        os._exit(code)
    launch.stop()
    sys.exit(code)


def _fail(message: str, code: int) -> NoReturn:
    rank = launch.rank_in_environment()
    # Before the ranks have met, all of them stumble over the same mistake; later it may be one rank's own.
    if rank == 0 or collectives.is_active():
        prefix = f"[rank {rank}] " if rank else ""
        print(f"error: {prefix}{message}", file=sys.stderr, flush=True)
    if collectives.is_active():
        # Other ranks may wait in a collective that this one never joins: leave without the orderly shutdown, so that
        # the launcher sees the failure and ends them.
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def _own_message(error: UserError) -> str:
    """The message itself, also of an error that a loader's worker sent with its traceback."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].partition("UserError: ")[2] or lines[-1] if len(lines) > 1 else str(error)

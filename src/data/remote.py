"""Bytes from object stores and web servers, through fsspec: ``https://``, ``s3://``, ``gs://`` and what else it knows."""

import random
import time
from typing import Any

from ..errors import UserError

TRIES = 6
FIRST_PAUSE = 0.5  # seconds; each one is twice as long as the one before, give or take half
_EXTRA = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface-hub"}


def is_remote(path: str) -> bool:
    return "://" in path


def file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path in it; raises UserError where a package is missing."""
    import fsspec

    protocol = url.partition("://")[0]
    try:
        found: tuple[Any, str] = fsspec.core.url_to_fs(url)
    except ImportError:
        raise UserError(f"{protocol}:// needs a package: pip install {_EXTRA.get(protocol, protocol)}") from None
    except ValueError as error:
        raise UserError(f"{url}: {error}") from None
    return found


def read(url: str, start: int = 0, size: int | None = None) -> bytes:
    """The content of a file, or ``size`` bytes of it from ``start`` on.

    What fails is tried again, after longer and longer pauses. A file that is not there raises FileNotFoundError; one
    that cannot be had after TRIES tries raises UserError, since going on without it would give other numbers.
    """
    system, path = file_system(url)
    for left in reversed(range(TRIES)):
        try:
            content: bytes = system.cat_file(path, start=start or None, end=None if size is None else start + size)
            if size is None or len(content) == size:
                return content
            problem = f"{len(content)} of {size} bytes came"
        except FileNotFoundError:
            raise
        except PermissionError as error:
            raise UserError(f"{url}: permission denied ({error})") from None
        except Exception as error:  # each file system has errors of its own
            problem = f"{type(error).__name__}: {error}"
        if left:
            time.sleep(FIRST_PAUSE * 2 ** (TRIES - 1 - left) * random.uniform(0.5, 1.5))
    raise UserError(f"{url} could not be read in {TRIES} tries: {problem.splitlines()[0]}")

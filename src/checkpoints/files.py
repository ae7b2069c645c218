"""Single files: written whole or not at all, read without running code, compared entry by entry."""

import argparse
import codecs
import contextlib
import json
import os
import secrets
import shutil
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..surroundings import commit, versions

# What old checkpoints hold besides tensors, and what can only make values: parsed flags and numpy's numbers, whose
# module had another name before numpy 2
HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")),
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
    codecs.encode,
]


def temporary_beside(path: Path) -> Path:
    """A hidden name beside ``path`` that no other writer has, on this machine or on one that shares the folder."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def write_atomically(path: Path, write: Callable[[Any], object]) -> None:
    """Lets ``write(file)`` fill a temporary file beside ``path``, forces it to disk and renames it over ``path``.

    Whoever reads ``path`` sees the old content or the new, never a part. Raises UserError when the disk refuses.
    """
    temporary = temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except Exception as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if not isinstance(error, (OSError, RuntimeError)):
            raise
        # torch reports a full disk from inside its writer as a RuntimeError
        raise UserError(f"cannot write {path}: {str(error).splitlines()[0]}") from None


def refuse_overwriting(out: Path, source: str | Path, overwrite: bool) -> None:
    """Raises UserError for a file that is the one to be read, or exists while nobody said ``--overwrite``."""
    if not out.exists():
        return
    if Path(source).exists() and out.samefile(source):
        raise UserError(f"{out} is the file to read")
    if not overwrite:
        raise UserError(f"{out} exists already: choose another name, or say --overwrite")


def require_writable(folder: str | Path) -> None:
    """Makes a folder where there is none; raises UserError where nothing can be written into it.

    For results that take hours: it is better to know before.
    """
    probe = temporary_beside(Path(folder) / "writable")
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from None


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: str | Path, content: Any, sort_keys: bool = False) -> None:
    """Writes results, indented for people, in one go."""
    text = json.dumps(content, indent=2, sort_keys=sort_keys).encode()
    write_atomically(Path(path), lambda file: file.write(text))


def read_json(path: Path) -> Any:
    """What a file of results says; raises UserError for one that cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {error}") from None


def write_settings(
    folder: str | Path,
    command: str,
    given: Mapping[str, Any],
    arguments: Mapping[str, Any],
    derived: Mapping[str, Any],
    world_size: int,
) -> None:
    """Writes ``settings.json``.

    Args:
        folder: the run's.
        command: the command line.
        given: what the user typed, by name; ``--config`` reads it.
        arguments: every setting, with its default where the user gave nothing.
        derived: what the settings became: batch of a process, precision, ...
        world_size: number of processes.
    """
    content = {
        "command": command,
        "given": dict(given),
        "arguments": dict(arguments),
        "derived": dict(derived),
        "world_size": world_size,
        "versions": versions(),
        "commit": commit(),
    }
    write_json(Path(folder) / "settings.json", content, sort_keys=True)


def link(source: Path, target: Path) -> None:
    """Makes ``target`` another name of ``source``, atomically; a copy where the file system has no hard links."""
    temporary = temporary_beside(target)
    try:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        os.replace(temporary, target)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UserError(f"cannot write {target}: {error.strerror}") from None


def read_file(path: str | Path) -> Any:
    """Loads a file written by torch.save without running any code in it.

    Raises UserError, in one line, when it is missing, torn, damaged, no such file, or would need code to load.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"checkpoint {path} does not exist")
    if path.is_dir():
        raise UserError(f"{path} is a folder; expected a checkpoint file in it")
    if path.suffix == ".safetensors":
        from .weights import read_safetensors  # which writes files by this module

        return read_safetensors(path)
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()  # torch itself does not compare the check sums
            if damaged is not None:
                raise UserError(f"checkpoint {path} is damaged: wrong check sum of {damaged}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with torch.serialization.safe_globals(HARMLESS):
                return torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except PermissionError:
        raise UserError(f"checkpoint {path} cannot be read: permission denied") from None
    except Exception as error:  # torch.load fails in many ways on foreign bytes; all of them mean the same
        text = str(error)
        if "Weights only load failed" in text or "weights_only" in text:
            raise UserError(
                f"{path} holds objects other than tensors and plain values; refused, as loading them could run code"
            ) from None
        raise UserError(f"{path} is torn or not a PyTorch checkpoint ({type(error).__name__})") from None


def describe_mismatch(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], source: str | Path) -> str | None:
    """None when both have the same names and shapes, else one line with the counts and an example of each."""
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    misshapen = [n for n in expected if n in found and tuple(expected[n].shape) != tuple(found[n].shape)]
    if not (missing or unexpected or misshapen):
        return None
    matched = len(expected) - len(missing) - len(misshapen)
    parts = [f"{matched} of {len(expected)} entries match"]
    if missing:
        parts.append(f"{len(missing)} missing (such as {missing[0]})")
    if unexpected:
        parts.append(f"{len(unexpected)} unexpected (such as {unexpected[0]})")
    if misshapen:
        name = misshapen[0]
        shapes = f"{tuple(found[name].shape)} instead of {tuple(expected[name].shape)}"
        parts.append(f"{len(misshapen)} of another shape (such as {name}: {shapes})")
    return f"{source} does not fit this model: {', '.join(parts)}"

"""Studies of a tiny network, whose trainings are forks of the test."""

from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import study
from src.study import work
from tests.helpers import run

TINY = ["--epochs", "2", "--arch", "resnet18", "--width", "0.0625", "--size", "16", "--batch_size", "32",
        "--device", "cpu", "--workers", "0", "--scored_images", "60"]  # fmt: skip


def in_a_fork(command: Sequence[str], folder: Path) -> tuple[int, str]:
    """Stands for ``work._run``, whose new Pythons would take most of the time."""
    folder.mkdir(parents=True, exist_ok=True)
    done = run(*command[1:])
    return done.returncode, done.stderr.strip().rpartition("\n")[2].removeprefix("error: ")


def studied(data: Path, folder: Path, *words: object, trains: object = in_a_fork, tiny: Sequence[str] = TINY) -> int:
    with mock.patch.object(work, "_run", trains):
        return study.main([str(data), "--dump_path", str(folder), *tiny, *map(str, words)])

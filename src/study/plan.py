"""The runs of a study, what each waits for, and how far they are: all of it is told by files, so that any number of
processes on any number of machines can share the work, and go on after a kill."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoints.files import read_json, write_json
from ..errors import UserError
from .judge import JUDGED

FAILED = "failed.json"
RANDOM = "random"  # a method that is not trained: what random weights are worth


@dataclass(frozen=True)
class Task:
    """One run.

    Attributes:
        name: of its folder, such as ``swav-1``.
        place: which folder that is in: ``runs``, ``rates`` or ``timing``.
        method, seed: of it.
        folder: where it is.
        command: the script and its flags, once what it needs is there; None for random weights.
        needs: runs that come before, without which it cannot be.
        after: runs that come before and may have failed.
    """

    name: str
    place: str
    method: str
    seed: int
    folder: Path
    command: Callable[[], Sequence[str]] | None
    needs: tuple["Task", ...] = ()
    after: tuple["Task", ...] = ()

    @property
    def is_judged(self) -> bool:
        return (self.folder / JUDGED).exists()

    @property
    def has_failed(self) -> bool:
        return (self.folder / FAILED).exists()

    @property
    def is_over(self) -> bool:
        return self.is_judged or self.has_failed

    @property
    def is_ready(self) -> bool:
        return not self.is_over and all(task.is_over for task in (*self.needs, *self.after))

    def judged(self) -> dict[str, Any]:
        """What ``judged.json`` says."""
        return read_object(self.folder / JUDGED)

    def fail(self, code: int, reason: str) -> None:
        write_json(self.folder / FAILED, {"code": code, "reason": reason, "job": array_job()})

    def forget_failure(self) -> None:
        """But for one of this Slurm array, whose tasks begin at different times, some of them more than once."""
        if self.has_failed and not (array_job() and read_object(self.folder / FAILED).get("job") == array_job()):
            (self.folder / FAILED).unlink(missing_ok=True)

    def reason(self) -> str:
        """Why it failed."""
        return str(read_object(self.folder / FAILED).get("reason", ""))


def trainings_of(tasks: Sequence[Task]) -> list[Task]:
    """All but random weights, which are only judged."""
    return [task for task in tasks if task.command is not None]


def array_job() -> str:
    """The same for all tasks of a Slurm array; "" outside of one."""
    return os.environ.get("SLURM_ARRAY_JOB_ID", "")


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; raises UserError for a file that holds none."""
    try:
        content = read_json(path)
    except UserError as error:
        raise UserError(f"{error}; remove it, and the study makes it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not what a study writes; remove it, and the study makes it again")
    return content

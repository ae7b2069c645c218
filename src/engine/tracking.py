"""Where else numbers go than into the run's own files: one small interface, and Weights & Biases behind it."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from ..checkpoints.files import write_atomically
from ..errors import UserError, first_line


class Tracker(Protocol):
    """What a monitor hands its numbers to, beside the run's JSON lines. Nothing of it may stop a run."""

    def write(self, values: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


# Makes a tracker of the function that says what goes wrong
MakeTracker = Callable[[Callable[[str], None]], Tracker]


class WeightsAndBiases:
    """A run at Weights & Biases; ``WANDB_MODE=offline`` keeps it in the run's folder, for ``wandb sync``.

    The run's id is kept in its folder, so that a job that is put back into the queue goes on with the same record.
    Repeated steps are written again, under their own numbers.

    Args:
        folder: the run's.
        project, name: as they are shown.
        settings: what is kept as the run's configuration.
        complain: says what does not work; the training goes on.

    Raises UserError where the package is missing, or nobody is logged in.
    """

    def __init__(
        self, folder: Path, project: str, name: str, settings: Mapping[str, Any], complain: Callable[[str], None]
    ) -> None:
        try:
            import wandb
        except ImportError:
            raise UserError("--wandb needs a package: pip install wandb") from None
        self._complain = complain
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "wandb.id"
        known = file.read_text().strip() if file.exists() else ""
        os.environ.setdefault("WANDB_SILENT", "true")
        self._run: Any = None
        try:
            self._run = wandb.init(
                project=project,
                name=name,
                id=known or None,
                resume="allow",
                dir=str(folder),
                config=dict(settings),
                mode=os.environ.get("WANDB_MODE"),  # type: ignore[arg-type]
            )
            self._run.define_metric("step")
            self._run.define_metric("*", step_metric="step")
        except wandb.errors.UsageError as error:  # nobody is logged in
            raise UserError(
                f"--wandb: {first_line(error)} (`wandb login`; or WANDB_MODE=offline, for a record in the run's folder)"
            ) from None
        except Exception as error:  # such as a network that is down
            self._fail(error)
            return
        write_atomically(file, lambda out: out.write(self._run.id.encode()))

    def _fail(self, error: Exception) -> None:
        self._complain(f"Weights & Biases: {first_line(error)}; the run goes on without it")
        self._run = None

    def write(self, values: Mapping[str, float], step: int) -> None:
        if self._run is None:
            return
        try:
            self._run.log({"step": step, **values})
        except Exception as error:
            self._fail(error)

    def close(self) -> None:
        if self._run is not None:
            try:
                self._run.finish(quiet=True)
            except Exception as error:
                self._complain(f"Weights & Biases: {first_line(error)}")

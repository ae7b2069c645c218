"""Where else numbers and pictures go than into the run's own files: one small interface, and the services behind it."""

import contextlib
import io
import os
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from ..checkpoints.files import write_atomically
from ..errors import UserError, first_line
from ..settings import setting
from ..surroundings import commit, versions
from .log_files import Points


class Tracker(Protocol):
    """What a monitor hands its numbers and pictures to, beside the run's JSON lines. Nothing of it may stop a run."""

    def write(self, values: Mapping[str, float], step: int) -> None: ...

    def picture(self, name: str, path: Path, step: int) -> None: ...

    def close(self) -> None: ...


# Says what does not work; the training goes on
Complain = Callable[[str], None]
# Makes a tracker of the function that says what goes wrong
MakeTracker = Callable[[Complain], Tracker]


@dataclass(frozen=True)
class TrackSettings:
    """Tracking"""

    track: tuple[str, ...] = setting(
        ("tensorboard",),
        "where numbers and pictures go besides the run's log.jsonl: tensorboard (event files in the run's folder), "
        "wandb (pip install wandb; with WANDB_MODE=offline in the run's folder), trackio (pip install trackio; on this "
        "machine, see `trackio show`), none",
        choices=("tensorboard", "wandb", "trackio", "none"),
    )
    tensorboard: bool = setting(True, "false leaves tensorboard out of --track")
    project: str = setting("ssl-vision-training", "name of the project of --track wandb and trackio")
    wandb: str = setting("", "--track wandb as well, in the project of this name")

    def trackers(self, folder: Path, name: str, configuration: Mapping[str, Any]) -> list[MakeTracker]:
        """What begins, or continues, the records; raises UserError for ``none`` beside others.

        Args:
            folder: the run's.
            name: the run's, as it is shown.
            configuration: what is kept of the run's settings.
        """
        names = dict.fromkeys([*self.track, *(["wandb"] if self.wandb else [])])
        if "none" in self.track and len(self.track) > 1:
            raise UserError(f"--track {' '.join(self.track)}: none goes with nothing else")
        project = self.wandb or self.project
        makers: dict[str, MakeTracker] = {
            "tensorboard": partial(Points, folder / "tensorboard"),
            "wandb": partial(WeightsAndBiases, folder, project, name, configuration),
            "trackio": partial(Trackio, folder, self.project, name, configuration),
        }
        left_out = {"none", *([] if self.tensorboard else ["tensorboard"])}
        return [makers[one] for one in names if one not in left_out]


class Service(ABC):
    """A run's record in another program. The first thing that fails ends the record, and is said.

    The record's id is kept in the run's folder, so that a job that is put back into the queue goes on with the same
    one. Repeated steps are written again, under their own numbers.

    Args:
        folder: the run's.
        project, name: as they are shown.
        configuration: what is kept as the run's configuration; the code's commit and versions with it.

    Raises UserError where the package is missing, or nobody is logged in.
    """

    title: str
    package: str

    def __init__(
        self, folder: Path, project: str, name: str, configuration: Mapping[str, Any], complain: Complain
    ) -> None:
        self._complain = complain
        self._run: Any = None
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{self.package}.id"
        known = file.read_text().strip() if file.exists() else ""
        try:
            around = {"commit": commit(), "versions": versions()}
            identity = self._begin(folder, project, name, known, {**configuration, **around})
        except ImportError:
            raise UserError(f"--track {self.package} needs a package: pip install {self.package}") from None
        except UserError:
            raise
        except Exception as error:  # such as a network that is down
            self._fail(error)
            return
        write_atomically(file, lambda out: out.write(identity.encode()))

    @abstractmethod
    def _begin(self, folder: Path, project: str, name: str, known: str, configuration: dict[str, Any]) -> str:
        """Sets ``_run``, continuing the record with the id ``known`` if that is not ""; returns the id."""

    @abstractmethod
    def _log(self, values: Mapping[str, Any], step: int) -> None: ...

    @abstractmethod
    def _shown(self, path: Path) -> Any:
        """A picture as the service takes it."""

    @abstractmethod
    def _end(self) -> None: ...

    def _fail(self, error: Exception) -> None:
        self._complain(f"{self.title}: {first_line(error)}; the run goes on without it")
        self._run = None

    def write(self, values: Mapping[str, float], step: int) -> None:
        self._try(lambda: self._log(values, step))

    def picture(self, name: str, path: Path, step: int) -> None:
        self._try(lambda: self._log({name: self._shown(path)}, step))

    def _try(self, action: Callable[[], None]) -> None:
        if self._run is None:
            return
        try:
            action()
        except Exception as error:
            self._fail(error)

    def close(self) -> None:
        if self._run is not None:
            try:
                self._end()
            except Exception as error:
                self._complain(f"{self.title}: {first_line(error)}")


class WeightsAndBiases(Service):
    """A run at Weights & Biases; ``WANDB_MODE=offline`` keeps it in the run's folder, for ``wandb sync``."""

    title, package = "Weights & Biases", "wandb"

    def _begin(self, folder: Path, project: str, name: str, known: str, configuration: dict[str, Any]) -> str:
        import wandb

        os.environ.setdefault("WANDB_SILENT", "true")
        try:
            self._run = wandb.init(
                project=project,
                name=name,
                id=known or None,
                resume="allow",
                dir=str(folder),
                config=configuration,
                mode=os.environ.get("WANDB_MODE"),  # type: ignore[arg-type]
            )
        except wandb.errors.UsageError as error:  # nobody is logged in
            raise UserError(
                f"--track wandb: {first_line(error)} (`wandb login`; or WANDB_MODE=offline, for a record in the run's "
                "folder)"
            ) from None
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        return str(self._run.id)

    def _log(self, values: Mapping[str, Any], step: int) -> None:
        self._run.log({"step": step, **values})

    def _shown(self, path: Path) -> Any:
        import wandb

        return wandb.Image(str(path))

    def _end(self) -> None:
        self._run.finish()


class Trackio(Service):
    """A run in Trackio's data base on this machine (``TRACKIO_DIR``), or where its environment variables say."""

    title, package = "Trackio", "trackio"

    def _begin(self, folder: Path, project: str, name: str, known: str, configuration: dict[str, Any]) -> str:
        import trackio

        # runs are known by their names: two folders of one name are two runs
        identity = known or f"{name}-{uuid.uuid4().hex[:6]}"
        with contextlib.redirect_stdout(io.StringIO()):  # how to look at it, in five lines
            self._run = trackio.init(
                project,
                identity,
                config=configuration,
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        return identity

    def _log(self, values: Mapping[str, Any], step: int) -> None:
        self._run.log(dict(values), step=step)

    def _shown(self, path: Path) -> Any:
        import trackio

        return trackio.Image(str(path))

    def _end(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self._run.finish()

"""The settings that all pre-trainings have."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ..cli import boolean
from ..clock import Clock
from ..data.datasets import TrainingDataSettings, usual
from ..data.decoding import Decoding
from ..data.splits import name_of_data
from ..engine.method import Scale
from ..engine.precision import PrecisionSettings
from ..engine.tracking import TrackSettings
from ..errors import UserError
from ..evaluation.knn import OnlineKNNSettings
from ..evaluation.online import OnlineSettings
from ..models.backbones import BackboneSpec
from ..parallel.launch import DeviceSettings
from ..settings import Word, flat, replaced, setting
from .initial import InitialSettings


@dataclass(frozen=True)
class RunSettings:
    """Run"""

    dump_path: str = setting(
        "",
        "folder of the run: checkpoints, logs, settings; default: runs/METHOD-ARCH-DATA, or the current folder where "
        "an earlier release has left a run there",
        flags=["--output_dir", "--save_dir"],
    )
    resume: str = setting(
        "auto",
        "auto: continue from the newest readable checkpoint in --dump_path; never: refuse to start if there is one; or "
        "the path of a checkpoint, or of another run's folder, to continue from",
        spellings={"": "auto"},
    )
    accept_changes: tuple[str, ...] = setting(
        (),
        "names of settings that may differ from those of the checkpoint that the run continues from; without it a run "
        "with other settings is refused",
        empty=True,
    )
    env_name: str = setting("", "name of the run; shown in its first lines and by --track")
    seed: int = setting(31, "seed of the initial weights and of every draw", at_least=0, at_most=2**32 - 1)
    checkpoint_freq: int = setting(25, "keep a checkpoint every so many epochs", at_least=1, at_most=1e9)
    keep_last: int = setting(2, "number of newest checkpoints that are kept besides", at_least=1, at_most=1e9)
    save_every: int = setting(0, "also save every so many steps inside an epoch; 0 = never", at_least=0, at_most=1e12)
    log_every: int = setting(
        50, "number of steps from one log line to the next", flags=["--print_freq", "-p"], at_least=1, at_most=1e12
    )
    max_steps: int | None = setting(None, "stop after so many steps in all", at_least=1, at_most=1e12)
    dry_run: bool = setting(
        False,
        "say what the run would be and what memory it needs, with other numbers of ranks too, and end: nothing is "
        "trained or written",
        switch=True,
    )
    deterministic: bool = setting(
        False,
        "use only deterministic GPU kernels: slower, and needed there for a bit-exact resume",
        switch=True,
        words=[Word("--determine", "TWIST's flag for it: 0 or 1", lambda w: {"deterministic": boolean(w[0])}, nargs=1)],
    )


@dataclass(frozen=True)
class SpeedSettings:
    """Speed and memory"""

    compile: bool = setting(False, "compile the backbone (torch.compile)", switch=True)
    checkpoint_activations: bool = setting(
        False,
        "recompute activations in the backward pass: one more forward pass, a fraction of the memory",
        switch=True,
    )
    shard: bool = setting(
        False,
        "share parameters, gradients, optimiser state and moving averages out over the processes (FSDP2), for networks "
        "as wide as resnet50w4",
        switch=True,
    )


@dataclass(frozen=True)
class RankSettings:
    """Ranks"""

    virtual_ranks: str = setting(
        "1",
        "number of ranks that each process plays one after another, which computes what so many processes would with "
        "the memory of one; auto: its share of --ranks",
    )
    ranks: int = setting(
        0, "number of ranks of the run, as published; 0: as many as there are processes", at_least=0, at_most=1e6
    )

    def of_a_process(self, processes: int) -> int:
        """Raises UserError where the ranks cannot be shared out."""
        word = self.virtual_ranks
        if word != "auto" and not (word.isascii() and word.isdigit() and 0 < int(word) < 10**6):
            raise UserError(f"--virtual_ranks {word}: expected a whole number from 1 on, or auto")
        if word == "auto" and not self.ranks:
            raise UserError("--virtual_ranks auto needs --ranks, the number of ranks of the published run")
        if self.ranks % processes:
            raise UserError(f"--ranks {self.ranks} cannot be shared out over {processes} processes")
        if word == "auto":
            return self.ranks // processes
        if self.ranks not in (0, int(word) * processes):
            raise UserError(
                f"--ranks {self.ranks}: {processes} processes with --virtual_ranks {word} are {int(word) * processes}"
            )
        return int(word)


@dataclass(frozen=True)
class Plan:
    """How long a run is, and how its steps are made.

    Attributes:
        batch_size: images of each rank; or of all ranks together, where ``in_all``, for each of ``accumulate`` batches.
        accumulate: the number of virtual ranks, by another name.
        clip_norm: bound on the gradient norm; 0 = none.
    """

    epochs: int
    batch_size: int
    in_all: bool
    accumulate: int = 1
    clip_norm: float = 0.0

    def warmup(self, name: str, epochs: int, typed: bool) -> tuple[int, str]:
        """A warm-up of so many epochs, or for short runs a tenth of them if nobody asked for it; and a line about it.

        Raises UserError for one that was asked for and is longer than the run.
        """
        if not epochs or epochs < self.epochs:
            return epochs, ""
        if typed:
            if epochs > self.epochs:
                raise UserError(f"--{name} {epochs} is more than --epochs {self.epochs}")
            return epochs, ""
        fits = round(self.epochs / 10) or int(self.epochs > 1)
        return fits, f"--{name} is {fits} instead of {epochs}, for a run of {self.epochs} epochs"

    def batch_of_a_rank(self, world_size: int) -> int:
        if not self.in_all:
            return self.batch_size
        images = self.batch_size * self.accumulate
        if images % world_size:
            raise UserError(f"a batch of {images} cannot be shared out over {world_size} processes")
        return images // world_size


# Settings that are warm-ups in epochs, under the names of the published programs
WARMUPS = ("warmup_epochs", "warmup_eps")


@dataclass(frozen=True)
class PretrainingSettings:
    """What every script has; each adds its method, views and optimisation."""

    method: str
    data: TrainingDataSettings = TrainingDataSettings()
    backbone: BackboneSpec = BackboneSpec()
    run: RunSettings = RunSettings()
    tracking: TrackSettings = TrackSettings()
    knn: OnlineKNNSettings = OnlineKNNSettings()
    online: OnlineSettings = OnlineSettings()
    device: DeviceSettings = DeviceSettings()
    precision: PrecisionSettings = PrecisionSettings()
    speed: SpeedSettings = SpeedSettings()
    ranks: RankSettings = RankSettings()
    initial: InitialSettings = InitialSettings()

    def virtual_ranks(self, processes: int) -> tuple[int, list[str]]:
        """Of each process; and a line for the user."""
        count, said = self.ranks.of_a_process(processes), []
        if self.plan.accumulate > 1:
            if count > 1:
                raise UserError("--accumulate is --virtual_ranks by its old name: leave it out")
            count = self.plan.accumulate
            said = [
                f"--accumulate {count} is --virtual_ranks {count} now: a step computes what {count} times as many "
                "processes would"
            ]
        return count, said

    @property
    def decoding(self) -> Decoding:
        """How images become levels."""
        return Decoding(self.data.exif_orientation, self.data.value_range, self.backbone.channels)

    def adapted(self, given: Mapping[str, Any]) -> tuple[Self, list[str]]:
        """The same with defaults that fit what was given, and a line for each that the user should know of."""
        values: dict[str, Any] = {}
        said: list[str] = []
        if not self.run.dump_path:
            values["dump_path"] = self.default_folder()
        channels = self.backbone.channels
        if channels != 3:
            values |= {
                name: usual(channels, (), value) for name, value in (("mean", 0.5), ("std", 0.25)) if name not in given
            }
            if channels > 1:
                said.append(
                    f"saturation, hue and grayscale need RGB, and are left out of the views (--channels {channels})"
                )
        for name in WARMUPS:
            default = flat(self).get(name, 0)
            values[name], line = self.plan.warmup(name, default, name in given)
            if values[name] == default:
                del values[name]
            said += [line] if line else []
        return replaced(self, values), said

    def default_folder(self) -> str:
        """Where a run goes that was given no ``--dump_path``: a folder with the names of what goes in."""
        if Path("checkpoint.pth.tar").exists() and Path("settings.json").exists():
            return "."
        return f"runs/{self.method}-{self.backbone.arch}-{name_of_data(self.data.data_path or self.data.dataset)}"

    def fitted(self, given: Mapping[str, Any], scale: Scale, clock: Clock) -> tuple[Self, list[str]]:
        """The same with defaults that fit the processes and images, and a line for each; see :meth:`adapted`."""
        there = min(scale.num_images, self.knn.knn_train_images)
        if not self.knn.knn_freq or "knn_k" in given or self.knn.knn_k <= there:
            return self, []
        return replaced(self, {"knn_k": there}), [f"--knn_k is {there}, as there are no more training images"]

    @property
    def plan(self) -> Plan:
        raise NotImplementedError  # every script has its own names for these

    @property
    def training_size(self) -> int:
        """Side of the first training view in pixels; evaluated images are cut to it."""
        raise NotImplementedError  # likewise

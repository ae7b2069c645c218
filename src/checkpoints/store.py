"""One atomic file per checkpoint, and an exact resume from the newest readable one.

A run's folder holds

=============================  ====================================================================================
``checkpoints/step-N.pth``     the newest few (``keep_last``), N optimiser steps done
``checkpoints/ckp-E.pth``      kept for good, after zero-based epoch E
``checkpoint.pth.tar``         the newest, under the name that the published code gave it
=============================  ====================================================================================

The last two are hard links where the file system has them, so they cost no space.

A file is a dict of ``format``, ``epoch`` (finished epochs), ``step``, ``steps_per_epoch``, ``state_dict``,
``per_rank`` (one dict per rank: its own buffers and random state), ``optimizer``, ``scaler``, ``settings``,
``world_size`` and ``batch_size``, and, unless it is an older one, a ``checksum`` over all of them;
it loads with ``weights_only=True``.
"""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ..errors import UserError
from ..parallel import collectives
from ..parallel.sharding import whole
from . import identity
from .background import Background, Snapshot
from .checksum import FIELD, checksum
from .files import link, write_atomically
from .run_file import FORMAT, read_run
from .state import RunState, fill
from .weights import write_weights


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        folder: the run's; created when needed.
        settings: plain values that describe the run, saved along; read back by evaluations. A run continues only from
            a checkpoint with the same ones, see :mod:`src.checkpoints.identity`.
        frequency: every how many epochs a checkpoint is kept for good.
        keep_last: how many of the newest files are kept besides.
        accepted: names of settings that may differ from the checkpoint's, because the user says so.
        backbone_file: also write the backbone alone, under its own names, to this file of the folder.
    """

    def __init__(
        self,
        folder: str | Path,
        settings: Mapping[str, Any],
        frequency: int = 25,
        keep_last: int = 2,
        accepted: Sequence[str] = (),
        backbone_file: str | None = None,
    ) -> None:
        if frequency < 1 or keep_last < 1:
            raise UserError("--checkpoint_freq and --keep_last must be at least 1")
        self.folder = Path(folder)
        self.history = self.folder / "checkpoints"
        self.settings = dict(settings)
        self.frequency, self.keep_last = frequency, keep_last
        self.accepted = tuple(accepted)
        self.backbone_file = backbone_file
        self.saved_step: int | None = None
        self._background, self._snapshot = Background(), Snapshot()
        self._group: dist.ProcessGroup | None = None

    # --- saving

    def connect(self) -> None:
        """Joins the ranks' threads, once. Every rank must call it at the same time.

        Ranks meet in the launcher, so that a save is only sure to outlive it when they have met before.
        """
        if collectives.world_size() > 1 and self._group is None:
            group = dist.new_group(backend="gloo")
            assert isinstance(group, dist.ProcessGroup)
            self._group = group

    def save(self, state: RunState, epoch_finished: bool = False) -> None:
        """Saves on the main rank what all ranks hold. Every rank must call it at the same step."""
        self.begin(state, epoch_finished)
        self.finish()

    def begin(self, state: RunState, epoch_finished: bool = False) -> None:
        """The same while the caller goes on: it waits for a copy of everything, and for the save before, only.

        Raises the error of the save before.
        """
        self._background.wait()
        self.connect()
        own = state.of_each_rank()
        shared = {n: whole(t) for n, t in state.method.state_dict().items() if n not in state.per_rank_buffers}
        optimizer = whole(state.optimizer.state_dict())
        if not collectives.is_main():
            shared, optimizer = {}, {}
        scaler = state.scaler.state_dict()  # read from the device, so before that waits for the copies
        own, shared, optimizer = self._snapshot.take((own, shared, optimizer))
        clock = state.clock
        content = {
            "format": FORMAT,
            "epoch": clock.epoch,
            "step": clock.step,
            "steps_per_epoch": clock.steps_per_epoch,
            "state_dict": shared,
            "per_rank": [],
            "optimizer": optimizer,
            "scaler": scaler,
            "settings": self.settings,
            "world_size": state.world_size,
            "batch_size": state.batch_size,
        }
        last_epoch = clock.epoch - 1
        is_kept = epoch_finished and (last_epoch % self.frequency == 0 or clock.epoch == clock.epochs)
        kept_as = f"ckp-{last_epoch}.pth" if is_kept else None

        def gather_and_write() -> None:
            self._snapshot.arrive()
            per_rank = collectives.gather_to_main(own, self._group)
            if per_rank is not None:
                self._write({**content, "per_rank": list(itertools.chain(*per_rank))}, kept_as)
            self.saved_step = content["step"]

        self._background.start(gather_and_write)

    def check(self) -> None:
        """Raises the error of a save that has failed since; never waits."""
        self._background.check()

    def wait(self) -> None:
        """Waits for a save of this rank; raises its error."""
        self._background.wait()

    def finish(self) -> None:
        """Waits for a save to be on disk, on all ranks; raises its error."""
        self.wait()
        collectives.barrier()

    def _write(self, content: dict[str, Any], kept_as: str | None) -> None:
        content[FIELD] = checksum(content)
        path = self.history / f"step-{content['step']:09d}.pth"
        write_atomically(path, lambda file: torch.save(content, file))
        link(path, self.folder / "checkpoint.pth.tar")
        if self.backbone_file:
            prefix = "backbone."
            backbone = {n[len(prefix) :]: t for n, t in content["state_dict"].items() if n.startswith(prefix)}
            write_weights(self.folder / self.backbone_file, backbone, self.settings)
        if kept_as:
            link(path, self.history / kept_as)
        for old in self._rolling()[self.keep_last :]:
            old.unlink(missing_ok=True)

    def _rolling(self) -> list[Path]:
        return sorted(self.history.glob("step-*.pth"), reverse=True)

    # --- resuming

    def candidates(self) -> list[Path]:
        """Every checkpoint of the run, the newest first."""
        kept = sorted(self.history.glob("ckp-*.pth"), key=_epoch_in_name, reverse=True)
        latest = self.folder / "checkpoint.pth.tar"
        return [*self._rolling(), *([latest] if latest.exists() else []), *kept]

    def newest(self, warn: Callable[[str], None]) -> str | None:
        """The newest readable checkpoint; names each newer one that is not. None when there is no file at all.

        Raises UserError when there are files and none is usable, so that nothing of the user's is overwritten.
        """
        candidates = self.candidates()
        for path in candidates:
            try:
                read_run(path)
                return str(path)
            except UserError as error:
                warn(f"{error}; trying the one before")
        if candidates:
            raise UserError(
                f"none of the {len(candidates)} checkpoints in {self.folder} is usable; "
                "move them away, or choose another --dump_path"
            )
        return None

    def resume(self, state: RunState, warn: Callable[[str], None], which: str = "auto") -> Path | None:
        """Fills the state from a checkpoint and returns its path; None when there is none.

        ``which`` is ``auto`` for the newest readable checkpoint of the run, the path of a certain one or of another
        run's folder, or ``never`` for a fresh start, which is refused where it would overwrite something.

        Exact on the same number of ranks and batch size. Otherwise the position is carried over by epochs, ranks'
        buffers are shared out anew, and a warning says what cannot be bit-exact.
        """
        chosen: Any = None
        if collectives.is_main():
            try:
                chosen = self._choose(which, warn)
            except UserError as error:
                chosen = error
        chosen = collectives.broadcast_object(chosen)
        if isinstance(chosen, UserError):
            raise chosen
        if chosen is None:
            return None
        if not Path(chosen).exists():
            raise UserError(f"rank {collectives.rank()} does not see {chosen}: --dump_path must be on a shared disk")
        content = read_run(chosen)
        changes = identity.compare(content["settings"], self.settings, chosen, self.accepted)
        if content["epoch"] > state.clock.epochs:
            raise UserError(
                f"{chosen} has gone through {content['epoch']} epochs, and {state.clock.epochs} are asked for: choose "
                "another --dump_path"
            )
        try:
            fill(state, content, chosen, warn)
        except UserError:
            raise
        except Exception as error:  # a file that somebody has changed may hold anything
            raise UserError(f"{chosen} is damaged or of another program: {type(error).__name__}: {error}") from None
        if changes and collectives.is_main():
            warn(f"settings changed since the checkpoint was written: {changes}")
        return Path(chosen)

    def _choose(self, which: str, warn: Callable[[str], None]) -> str | None:
        if which == "auto":
            return self.newest(warn)
        if Path(which).is_dir():
            newest = CheckpointStore(which, self.settings).newest(warn)
            if newest is None:
                raise UserError(f"{which} is a folder without checkpoints: expected a checkpoint, or a run's folder")
            return newest
        if which == "never":
            if self.candidates():
                raise UserError(f"{self.folder} holds checkpoints: choose another --dump_path, or --resume auto")
            return None
        read_run(which)
        return which


def _epoch_in_name(path: Path) -> int:
    digits = re.findall(r"\d+", path.stem)
    return int(digits[-1]) if digits else -1

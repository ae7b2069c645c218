"""The checkpoints of a training: begun between two steps, written while it goes on."""

from collections.abc import Callable
from pathlib import Path

from ..checkpoints.state import RunState
from ..checkpoints.store import CheckpointStore


class Saving:
    """To be used in a ``with``, which waits for what is being written. Without a store it does nothing.

    Args:
        store: the run's checkpoints.
        state: what they capture.
        warn: takes what a resume warns of, and what goes wrong while something worse does.
    """

    def __init__(self, store: CheckpointStore | None, state: RunState, warn: Callable[[str], None]) -> None:
        self.store, self.state, self._warn = store, state, warn
        self._newest = -1

    def restore(self, which: str) -> Path | None:
        """Fills the state, as :meth:`CheckpointStore.resume` does."""
        assert self.store is not None
        path = self.store.resume(self.state, self._warn, which)
        if path is not None:
            self._newest = self.store.saved_step = self.state.clock.step
        return path

    @property
    def is_due(self) -> bool:
        """Whether there is no checkpoint of this step yet."""
        return self.store is not None and self._newest != self.state.clock.step

    def begin(self, epoch_finished: bool) -> None:
        """See :meth:`CheckpointStore.begin`."""
        assert self.store is not None
        self.store.begin(self.state, epoch_finished)
        self._newest = self.state.clock.step

    def check(self) -> None:
        """Raises the error of a checkpoint that could not be written; never waits."""
        if self.store is not None:
            self.store.check()

    def finish(self) -> None:
        """Waits until the newest checkpoint is on disk; raises the error of one that could not be written."""
        if self.store is not None:
            self.store.finish()

    @property
    def saved_step(self) -> int:
        """The step of the newest checkpoint that this rank has seen to: on the main rank, the newest on disk."""
        return (self.store and self.store.saved_step) or 0

    def __enter__(self) -> "Saving":
        if self.store is not None:
            self.store.connect()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Nothing is left half written, unless the user is in a hurry (a second Ctrl-C)."""
        if error is None:
            self.finish()
        elif self.store is not None and not isinstance(error, KeyboardInterrupt):
            try:
                self.store.wait()
            except Exception as second:  # the first one counts
                self._warn(str(second) or type(second).__name__)

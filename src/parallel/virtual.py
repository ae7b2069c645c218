"""Ranks that one process plays, one after another.

What a method computes depends on the batch of each rank (batch norm) and on those of all ranks (Sinkhorn, whitening,
queues), so a published run wants the published number of processes. Here a process plays several ranks. Each runs the
same code in a thread of its own, of which one runs at a time. Where the code calls a collective
(:mod:`src.parallel.collectives`), its thread stops until all ranks of the process have come there; then their values
are joined, exchanged with those of other processes, and handed back. So each rank computes what it would compute as a
process of its own, and the code need not know.
"""

import contextlib
import ctypes
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")
Join = Callable[[list[Any]], list[Any]]
_local = threading.local()


class _Abandoned(BaseException):
    """Ends the thread of a rank when another one has failed."""


class _Rank(threading.Thread):
    """One rank of this process at its task, in a thread."""

    def __init__(self, players: "Players", number: int, task: Callable[[], Any]) -> None:
        super().__init__(name=f"virtual rank {number}", daemon=True)
        self.players, self.number, self.task = players, number, task
        self.turn = threading.Semaphore(0)
        self.has_ended = self.is_abandoned = False
        self.meeting: tuple[Join, Any] | None = None
        self.request: Callable[[], Any] | None = None  # what the thread that leads is to do for this one
        self.values: list[Any] = []  # the first rank's: what all have brought
        self.answer: Any = None
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        _local.rank = _local.thread = self
        self.turn.acquire()
        try:
            if not self.is_abandoned:
                self.players._in_thread()
                self.result = self.task()
        except BaseException as error:
            self.error = error
        self.has_ended = True
        self.players._stopped.release()

    def meet(self, join: Join, value: Any) -> Any:
        """Stops until all ranks of the process are here; what ``join`` makes of their values for this one."""
        self.meeting = (join, value)
        self.players._stopped.release()
        self.turn.acquire()
        if self.is_abandoned:
            raise _Abandoned
        if self.number == 0:  # here, so that gradients and autocast are as where the ranks have stopped
            values, self.values = self.values, []
            _local.rank = None  # what is done for all is the process's
            try:
                answers = join(values)
            finally:
                _local.rank = self
            for rank, answer in zip(self.players._ranks, answers, strict=True):
                rank.answer = answer
        answer, self.answer = self.answer, None
        return answer


class Players:
    """The ranks of one process.

    Args:
        count: how many there are.
        process, processes: the process among all. Its ranks are ``process * count`` and the following.
        before_turn, after_turn: called with a rank's number in this process around each of its turns.
        in_thread: called in each rank's thread at its start.
    """

    def __init__(
        self,
        count: int,
        process: int = 0,
        processes: int = 1,
        before_turn: Callable[[int], None] = lambda number: None,
        after_turn: Callable[[int], None] = lambda number: None,
        in_thread: Callable[[], None] = lambda: None,
    ) -> None:
        self.count, self.first, self.world_size = count, process * count, processes * count
        self._before_turn, self._after_turn, self._in_thread = before_turn, after_turn, in_thread
        self._stopped = threading.Semaphore(0)
        self._running: _Rank | None = None
        self._ranks: list[_Rank] = []
        _share_one_heap()

    def run(self, tasks: Sequence[Callable[[], T]], at_its_end: Callable[[T], T] | None = None) -> list[T]:
        """One task for each rank, by turns; their results. Raises what the first of them raises.

        ``at_its_end`` is called here with each result when that task has ended, before the next one's turn.
        """
        # new threads: a thread's operations are numbered, and gradients are added up in the order of these numbers
        self._ranks = [_Rank(self, number, task) for number, task in enumerate(tasks)]
        for rank in self._ranks:
            rank.start()
        try:
            while any(not rank.has_ended for rank in self._ranks):
                for rank in self._ranks:
                    if not rank.has_ended:
                        self._resume(rank)
                        if at_its_end is not None and rank.has_ended:
                            rank.result = at_its_end(rank.result)
                waiting = [rank for rank in self._ranks if rank.meeting]
                if waiting:
                    self._bring_together(waiting)
        except BaseException:
            self._abandon()
            raise
        finally:
            for rank in self._ranks:
                rank.join()
        results, self._ranks = [rank.result for rank in self._ranks], []
        return results

    def _resume(self, rank: _Rank) -> None:
        self._before_turn(rank.number)
        self._running = rank
        rank.turn.release()
        self._stopped.acquire()
        while rank.request is not None:
            request, rank.request = rank.request, None
            rank.answer = _tried(request)
            rank.turn.release()
            self._stopped.acquire()
        self._running = None
        self._after_turn(rank.number)
        if rank.error is not None:
            raise rank.error

    def _bring_together(self, waiting: list[_Rank]) -> None:
        if len(waiting) < self.count:
            raise RuntimeError("some ranks wait for others, which have come to their end")
        waiting[0].values = [rank.meeting[1] for rank in waiting if rank.meeting]
        for rank in waiting:
            rank.meeting = None

    def _abandon(self) -> None:
        if self._running is not None:  # the wait for it was interrupted
            self._stopped.acquire()
            self._running = None
        for rank in self._ranks:
            rank.meeting = None
            if not rank.has_ended:
                rank.is_abandoned = True
                rank.turn.release()
                self._stopped.acquire()


def _share_one_heap() -> None:
    """Lets glibc's malloc serve all threads from one heap, in which one rank's memory is used again by the next one.

    Several heaps, for threads that run at the same time, would keep what each rank has freed.
    """
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


_M_ARENA_MAX = -8


def by_the_leader(task: Callable[[], T]) -> T:
    """``task()``, computed by the thread that leads the ranks; from there by itself.

    Long computations belong there: a thread keeps memory, and helpers, of its own.
    """
    rank: _Rank | None = getattr(_local, "thread", None)
    if rank is None:
        return task()
    rank.request = task
    rank.players._stopped.release()
    rank.turn.acquire()
    answer, rank.answer = rank.answer, None
    if isinstance(answer, _Failure):
        raise answer.error
    result: T = answer
    return result


class _Failure(NamedTuple):
    error: BaseException


def _tried(task: Callable[[], Any]) -> Any:
    try:
        return task()
    except BaseException as error:
        return _Failure(error)


def led_through(network: Any, function: Callable[[Any], Any], images: Any) -> Any:
    """``function(images)``, a pass through a network that is not its own call: the way that its calls take."""
    way: Callable[[Any, Callable[[Any], Any], Any], Any] | None = getattr(network, "_way_of_passes", None)
    return function(images) if way is None else way(network, function, images)


def here() -> _Rank | None:
    """The rank whose thread this is; None outside of them, where the process is the rank."""
    return getattr(_local, "rank", None)


def keeps_state() -> bool:
    """Whether what is equal on all ranks is to be changed here: True but for all but the first rank of a process."""
    rank = here()
    return rank is None or rank.number == 0


_around_once: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext


@contextlib.contextmanager
def in_each_once(around: Callable[[], contextlib.AbstractContextManager[Any]]) -> Iterator[None]:
    """Inside, outside of ranks' threads, what :func:`once` computes is computed in ``around()``."""
    global _around_once
    before, _around_once = _around_once, around
    try:
        yield
    finally:
        _around_once = before


def once(compute: Callable[[], T]) -> T:
    """``compute()``, which gives the same on all ranks: one of a process's ranks computes it for all of them."""
    rank = here()
    if rank is None:
        with _around_once():
            return compute()

    def for_all(computations: list[Callable[[], T]]) -> list[T]:
        return [computations[0]()] * len(computations)

    result: T = rank.meet(for_all, compute)
    return result

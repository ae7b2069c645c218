"""Writing while the training goes on: copies of what is to be written, and a thread that writes them."""

import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


class Background:
    """One job at a time in a thread; its error is raised in the thread that asks next.

    A program that ends without waiting ends the job, too.
    """

    def __init__(self) -> None:
        # not the thread's own state: a join that a signal interrupts takes a living thread for one that has ended
        self._ended = threading.Event()
        self._ended.set()
        self._error: Exception | None = None

    @property
    def is_busy(self) -> bool:
        return not self._ended.is_set()

    def start(self, job: Callable[[], None]) -> None:
        """Begins a job, after the one before."""
        self.wait()
        self._ended.clear()
        threading.Thread(target=self._run, args=(job,), name="checkpoint", daemon=True).start()

    def _run(self, job: Callable[[], None]) -> None:
        try:
            job()
        except Exception as error:
            self._error = error
        finally:
            self._ended.set()

    def check(self) -> None:
        """Raises the error of a job that has ended; never waits."""
        if not self.is_busy:
            self.wait()

    def wait(self) -> None:
        """Waits for the job, if there is one, and raises its error. May be interrupted, and called again."""
        self._ended.wait()
        error, self._error = self._error, None
        if error is not None:
            raise error


class Snapshot:
    """Copies of tensors in the host's memory, in the same room each time.

    From a device the copies are made beside the host, into pinned memory: later work on the device waits for them,
    the host does not.
    """

    def __init__(self) -> None:
        self._room: dict[tuple[Any, ...], Tensor] = {}
        self._streams: dict[torch.device, torch.Stream] = {}
        self._copied: list[tuple[torch.device, torch.Event]] = []

    def take(self, value: Any) -> Any:
        """The same nested dicts, lists and tuples with copies of the tensors, which hold after :meth:`arrive`.

        Whatever else is in them must not change.
        """
        for device, stream in self._streams.items():
            stream.wait_stream(torch.accelerator.current_stream(device))
        copies: dict[tuple[Any, ...], Tensor] = {}
        taken = self._take(value, (), copies)
        in_use = {id(copy) for copy in copies.values()}
        self._room = {place: room for place, room in self._room.items() if id(room) in in_use}
        self._copied = []
        for device, stream in self._streams.items():
            copied = torch.Event(device)
            copied.record(stream)
            torch.accelerator.current_stream(device).wait_event(copied)
            self._copied.append((device, copied))
        return taken

    def arrive(self) -> None:
        """Waits until the copies of the last :meth:`take` are there; for another thread."""
        for device, copied in self._copied:
            if device.index is not None:
                torch.accelerator.set_device_index(device.index)  # a new thread is on the first one
            copied.synchronize()

    def _take(self, value: Any, place: tuple[Any, ...], copies: dict[tuple[Any, ...], Tensor]) -> Any:
        if isinstance(value, Tensor):
            # one tensor under two names is copied, and written, once
            same = (value.data_ptr(), value.shape, value.stride(), value.dtype) if value.data_ptr() else place
            if same not in copies:
                copies[same] = self._copy(value.detach(), place)
            return copies[same]
        if isinstance(value, Mapping):
            return {name: self._take(item, (*place, name), copies) for name, item in value.items()}
        if isinstance(value, (list, tuple)):
            items = [self._take(item, (*place, number), copies) for number, item in enumerate(value)]
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        return value

    def _copy(self, tensor: Tensor, place: tuple[Any, ...]) -> Tensor:
        room, device = self._room.get(place), tensor.device
        if room is None or (room.shape, room.stride(), room.dtype) != (tensor.shape, tensor.stride(), tensor.dtype):
            room = torch.empty_like(tensor, device="cpu", pin_memory=device.type != "cpu")
            self._room[place] = room
        if device.type == "cpu":
            return room.copy_(tensor)
        if device not in self._streams:
            self._streams[device] = torch.Stream(device)
            self._streams[device].wait_stream(torch.accelerator.current_stream(device))
        stream = self._streams[device]
        with stream:
            room.copy_(tensor, non_blocking=True)
        tensor.record_stream(stream)
        return room

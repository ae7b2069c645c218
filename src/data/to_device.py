"""Moves batches to the device, and does there what the workers have left: colours, and the change to numbers around 0."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .augment import apply_to_batch
from .loading import Batch
from .views import runs_of_equal_size


class ToDevice:
    """Moves a batch to the device as uint8, changes the colours there if workers left that to it, and normalises.

    On a GPU this runs on a stream of its own, beside the training step that the host has already queued.

    Args:
        device: the batches'.
        mean, std: of each channel, of levels scaled to [0, 1].
    """

    def __init__(self, device: torch.device, mean: Sequence[float], std: Sequence[float]) -> None:
        self.device = device
        self.mean, self.std = tuple(mean), tuple(std)
        self._scale = torch.tensor([1.0 / (255.0 * s) for s in std]).view(-1, 1, 1).to(device)
        self._shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)]).view(-1, 1, 1).to(device)
        self._stream = torch.Stream(device) if device.type != "cpu" else None

    def __call__(self, batch: Batch) -> Batch:
        if self._stream is None:
            return self._prepare(batch)
        # the host runs ahead of the device: while that is at the step before, this stream readies the next batch
        with self._stream:
            ready = self._prepare(batch)
        current = torch.accelerator.current_stream(self.device)
        current.wait_stream(self._stream)

        def used_here(tensor: Tensor) -> Tensor:
            tensor.record_stream(current)  # its memory is not given to the side stream again before we are done
            return tensor

        return ready.each(used_here)

    def _prepare(self, batch: Batch) -> Batch:
        batch = batch.to(self.device)
        crops: list[Tensor] = []
        for number, run in enumerate(runs_of_equal_size(batch.crops)):
            images = torch.cat(batch.crops[run])
            if batch.draws is not None:
                images = apply_to_batch(images, batch.draws[number])
            crops += self.normalize(images).split(len(batch))
        return replace(batch, crops=crops, draws=None)

    def normalize(self, images: Tensor) -> Tensor:
        """Levels (n, 3, h, w), uint8 or float32 -> float32, scaled to [0, 1] and standardised by channel.

        In the channels-last layout, in which convolutions are faster on GPUs and CPUs alike.
        """
        images = images.to(torch.float32, memory_format=torch.channels_last)
        return torch.addcmul(self._shift, images, self._scale)

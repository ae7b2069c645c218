"""From the host to a device."""

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor's values on ``device``. The host goes on at once: it does not wait for what a GPU has yet to do."""
    if device.type == "cpu":
        return tensor.to(device)
    # from pageable memory the copy would wait; the pinned one is kept by torch until the copy is made
    return tensor.pin_memory().to(device, non_blocking=True)

"""The state of torch's random number generators."""

import torch
from torch import Tensor


def random_state() -> dict[str, Tensor]:
    """Of the CPU and of this process's GPU, if it uses one."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Tensor]) -> None:
    """What :func:`random_state` gave; a GPU's is left out where there is none."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])

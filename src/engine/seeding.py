"""Random state at the start of a run."""

import os

import torch


def seed_everything(seed: int, deterministic: bool = False) -> None:
    """Seeds torch identically on every rank, so that all build the same weights."""
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)  # an operation without such a kernel is named
    torch.backends.cudnn.benchmark = not deterministic

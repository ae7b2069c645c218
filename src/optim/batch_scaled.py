"""Optimisation in INTL's and CW-RGP's programs: SGD with a rate for 256 images, or Adam with the rate as it is."""

from dataclasses import dataclass
from typing import Any

import torch

from ..settings import setting


@dataclass(frozen=True)
class BatchScaledSettings:
    """Optimisation"""

    epochs: int = setting(100, "number of epochs; default: the program's", at_least=1, at_most=1e9)
    bs: int = setting(
        256, "number of images in a batch, over all processes; default: the program's", flags=["--batch_size"],
        at_least=2, at_most=1e7,
    )  # fmt: skip
    optimizer: str = setting("sgd", "optimiser; default: adam for small data without INTL", choices=["sgd", "adam"])
    lr: float = setting(
        0.5, "learning rate: for 256 images with sgd, as it is with adam; default: the program's",
        flags=["--learning_rate"], at_least=0, at_most=1e6,
    )  # fmt: skip
    wd: float = setting(1e-5, "weight decay; default: the program's", flags=["--weight_decay"], at_least=0, at_most=1e3)
    clip_norm: float = setting(0.0, "bound on the gradient norm; 0 = none", at_least=0, at_most=1e9)
    sync_bn: bool = setting(True, "batch norm statistics of all processes together")

    @property
    def base_rate(self) -> float:
        """The learning rate after the warm-up."""
        return self.lr if self.optimizer == "adam" else self.lr * self.bs / 256

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        if self.optimizer == "adam":
            return torch.optim.Adam(groups, lr=self.lr, weight_decay=self.wd)
        return torch.optim.SGD(groups, lr=self.lr, momentum=0.9, weight_decay=self.wd)

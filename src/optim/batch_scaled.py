"""Optimisation in INTL's and CW-RGP's programs: SGD with a rate for 256 images, or Adam with the rate as it is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..cli import whole
from ..settings import Word, setting
from .plain import SGD, adam


def _number(name: str) -> Callable[[list[str]], Mapping[str, Any]]:
    return lambda words: {name: whole(words[0])}


# Flags of the papers' programs that are called otherwise here
PUBLISHED = (
    Word("--imagenet_path", "the same as --data_path", lambda words: {"data_path": words[0]}, nargs=1),
    Word("--eval_every", "the same as --knn_freq", _number("knn_freq"), nargs=1),
    Word("--knn", "the same as --knn_k", _number("knn_k"), nargs=1),
)
# Flags of theirs that are no part of a training here -> what is
ELSEWHERE = {
    "eval_every_drop": "--knn_freq holds to the end",
    "clf": "that is eval_linear.py --protocol small, eval_knn.py --rule majority, or eval_linear.py --optimizer lbfgs",
    "fname": "evaluations are eval_*.py --pretrained FILE",
    "eval_head": "evaluations judge the backbone",
    "bs_eval": "evaluations are eval_linear.py --batch_size",
    "lr_eval": "evaluations are eval_linear.py --lr",
    "learning_rate_eval": "evaluations are eval_linear.py --lr",
    "wd_eval": "evaluations are eval_linear.py --wd",
    "weight_decay_eval": "evaluations are eval_linear.py --wd",
}


@dataclass(frozen=True)
class BatchScaledSettings:
    """Optimisation"""

    epochs: int = setting(100, "number of epochs; default: the program's", at_least=1, at_most=1e9)
    bs: int = setting(
        256, "number of images in a batch, over all processes; default: the program's", flags=["--batch_size"],
        at_least=2, at_most=1e7, words=PUBLISHED,
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
            return adam(groups, lr=self.lr, weight_decay=self.wd)
        return SGD(groups, lr=self.lr, momentum=0.9, weight_decay=self.wd)

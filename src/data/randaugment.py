"""timm's training transform (RandAugment and random erasing) as a view whose draws are keyed like all others."""

import contextlib
import random
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .draws import Draw, no_change
from .views import Picture

# With which the erased rectangles' noise, standard normal in normalised images, is turned into levels
_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
_STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Python's, NumPy's and torch's global generators start from a seed, and are as before afterwards."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class RandAugmentView:
    """Random crop of 8-100 % of the area (bicubic), flip, RandAugment ``rand-m9-mstd0.5-inc1``, and, with probability
    0.25, one rectangle of noise.

    Its pixels are levels as float32: noise has no bounds.

    Args:
        size: side of the output in pixels.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    @cached_property
    def _transform(self) -> Any:
        from timm.data.transforms_factory import create_transform  # slow to import, and few runs need it

        return create_transform(
            self.size,
            is_training=True,
            auto_augment="rand-m9-mstd0.5-inc1",
            interpolation="bicubic",
            re_prob=0.25,
            re_mode="pixel",
            re_count=1,
            mean=tuple(_MEAN.flatten().tolist()),
            std=tuple(_STD.flatten().tolist()),
        )

    def draw(self, generator: np.random.Generator, width: int, height: int) -> Draw:
        return no_change(width, height)._replace(seed=int(generator.integers(2**31)))

    def cut(self, picture: Picture, draw: Draw | None) -> Tensor:
        assert draw is not None
        with seeded(draw.seed):
            normalised = self._transform(picture.image)
        return (normalised * _STD + _MEAN) * 255.0

    def reduction(self, draw: Draw | None) -> int:
        return 1  # timm crops by the image's own size

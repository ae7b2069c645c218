"""What a label means: a class number from 0 on, or none."""

from collections.abc import Sequence

import numpy as np

UNLABELLED = -1
Labels = Sequence[int] | np.ndarray

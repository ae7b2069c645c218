"""What the runs of a method reached."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .statistics import interval


@dataclass
class Method:
    """What the runs of a method reached.

    Attributes:
        judged: seed -> what its run's ``judged.json`` says.
        right: measure -> seed -> (M,), whether its network was right about each test image that all runs could read.
        failed: seed -> why its run failed.
        collapsed: seeds whose features have collapsed.
        curve: records of the evaluations while training, by seed.
    """

    title: str
    judged: dict[int, dict[str, Any]] = field(default_factory=dict)
    right: dict[str, dict[int, np.ndarray]] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    collapsed: list[int] = field(default_factory=list)
    curve: dict[int, list[dict[str, Any]]] = field(default_factory=dict)

    def values(self, name: str) -> list[float]:
        """Of a measure, a score or a cost, over the seeds; without those that have none."""
        found = []
        for one in self.judged.values():
            value = one.get(name, one["scores"].get(name, one["cost"].get(name)))
            if value is not None and not math.isnan(value):
                found.append(float(value))
        return found

    def shown(self, name: str, digits: int = 1) -> str:
        values = self.values(name)
        return interval(values).in_words(digits) if values else "-"

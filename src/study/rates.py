"""Which learning rate a method keeps, after it was tried with several."""

import math
from collections.abc import Mapping
from typing import Any

from .label_free import most_trusted_score


def compared(judged: Mapping[str, Any]) -> float | None:
    """What a try is compared by: kNN, or without labels the score that is most trusted."""
    value: float | None = judged["knn"] if "knn" in judged else judged["scores"][most_trusted_score().name]
    return value


def best_rate(tries: Mapping[float, Mapping[str, Any] | None]) -> float | None:
    """The factor whose run reached most, where it counts half and the two beside it a quarter each.

    One run is a matter of chance, and more so the higher the rate: the luckiest one is often followed by one that
    breaks. At an end, where a neighbour is missing, a run counts two thirds and its other neighbour one. A factor
    beside one that failed, or whose features are not finite, is kept only where there is no other.

    Args:
        tries: factor -> what ``judged.json`` says of its run; None where that failed.

    Returns None where no run reached anything.
    """
    reached = {rate: None if judged is None else _goodness(judged) for rate, judged in sorted(tries.items())}
    values = list(reached.values())
    worth: dict[float, tuple[bool, float]] = {}
    for place, (rate, own) in enumerate(reached.items()):
        if own is not None:
            beside = values[max(0, place - 1) : place + 2]
            known = [value for value in beside if value is not None]
            worth[rate] = len(known) == len(beside), (own + sum(known)) / (1 + len(known))
    return max(worth, key=lambda rate: worth[rate]) if worth else None


def _goodness(judged: Mapping[str, Any]) -> float | None:
    value = compared(judged)
    sign = 1 if "knn" in judged else most_trusted_score().sign
    return None if value is None or math.isnan(value) else sign * float(value)

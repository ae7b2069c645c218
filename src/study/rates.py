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
    breaks. At an end, where a neighbour is missing, a run counts two thirds and its other neighbour one. Runs that
    failed, or whose features are not finite, count as the worst one.

    Args:
        tries: factor -> what ``judged.json`` says of its run; None where that failed.

    Returns None where no run reached anything.
    """
    reached = {rate: None if judged is None else _goodness(judged) for rate, judged in sorted(tries.items())}
    known = [value for value in reached.values() if value is not None]
    if not known:
        return None
    values = [min(known) if value is None else value for value in reached.values()]
    smooth = {}
    for place, rate in enumerate(reached):
        if reached[rate] is not None:
            beside = values[max(0, place - 1) : place + 2]
            smooth[rate] = (values[place] + sum(beside)) / (1 + len(beside))
    return max(smooth, key=lambda rate: smooth[rate])


def _goodness(judged: Mapping[str, Any]) -> float | None:
    value = compared(judged)
    sign = 1 if "knn" in judged else most_trusted_score().sign
    return None if value is None or math.isnan(value) else sign * float(value)

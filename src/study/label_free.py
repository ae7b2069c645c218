"""How far scores without labels tell which network is good, over the runs and checkpoints of a study, and what a study
without labels recommends by them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..engine.monitor import finite_or_none
from ..evaluation.score_trust import BY_LOT, MEASURED, most_trusted
from ..evaluation.scores import SCORES, Score
from .method import Method
from .plan import RANDOM
from .statistics import Interval, interval, rank_correlation

NO_ACCURACIES = (
    "Within a method nothing is known: it takes accuracies of three checkpoints or more, and these are told while "
    "training only where the test images are a folder of their own (`val`)."
)
NOTHING = Interval(math.nan, math.nan, math.nan)


class Agreement(NamedTuple):
    """Spearman's rank correlation of a score with the 10-NN accuracy, counted so that 1 is always right.

    Attributes:
        across: over the ends of all runs; its interval by resampling methods.
        within: the mean over methods of ``by_method``; its interval over methods.
        by_method: over the checkpoints of a method's runs; their intervals by resampling runs.
        chosen: the method with the best mean score.
        regret: how much mean 10-NN accuracy, in percent, that one has less than the best.
    """

    across: Interval
    within: Interval
    by_method: dict[str, Interval]
    chosen: str | None
    regret: float


def most_trusted_score() -> Score:
    """The score that a study without labels goes by."""
    return next(score for score in SCORES if score.name == most_trusted())


def agreement(methods: Mapping[str, Method], score: Score) -> Agreement:
    """Of one score over the trained methods of a study with labels."""
    trained = {name: one for name, one in methods.items() if name != RANDOM}
    ends = [(name, judged["scores"].get(score.name), judged.get("knn"))
            for name, one in trained.items() for judged in one.judged.values()]  # fmt: skip
    by_method = {}
    for name, one in trained.items():
        points = [(seed, record.get(score.name), record.get("knn_top1"))
                  for seed, records in one.curve.items() for record in records]  # fmt: skip
        by_method[name] = _correlation(points, score.sign)
    known = [one.mean for one in by_method.values() if not math.isnan(one.mean)]
    chosen = chosen_by(methods, score)
    return Agreement(
        across=_correlation(ends, score.sign),
        within=interval(known) if known else NOTHING,
        by_method=by_method,
        chosen=chosen,
        regret=math.nan if chosen is None else _regret(methods, chosen),
    )


def _correlation(points: Sequence[tuple[Any, float | None, float | None]], sign: int) -> Interval:
    """Of (cluster, score, accuracy), without those that lack either."""
    kept = [(cluster, sign * a, b) for cluster, a, b in points if a is not None and b is not None]
    pairs = np.array([row[1:] for row in kept], dtype=float).reshape(-1, 2)
    return rank_correlation(pairs, np.array([row[0] for row in kept]))


def chosen_by(methods: Mapping[str, Method], score: Score) -> str | None:
    """The method with the best mean score; None where nothing was trained."""
    found = {name: one.values(score.name) for name, one in methods.items() if name != RANDOM}
    means = {name: score.sign * float(np.mean(values)) for name, values in found.items() if values}
    return max(means, key=lambda name: means[name]) if means else None


def _means(methods: Mapping[str, Method]) -> dict[str, float]:
    """10-NN accuracy of each trained method, in percent."""
    trained = {name: one for name, one in methods.items() if name != RANDOM}
    return {name: float(np.mean(one.values("knn"))) for name, one in trained.items() if one.values("knn")}


def _regret(methods: Mapping[str, Method], chosen: str) -> float:
    means = _means(methods)
    return max(means.values()) - means[chosen] if chosen in means else math.nan


def regret_by_lot(methods: Mapping[str, Method]) -> float:
    """What is lost on average by taking any method: a score that is of use loses less."""
    means = list(_means(methods).values())
    return max(means) - float(np.mean(means)) if means else math.nan


def scores_in_words(methods: Mapping[str, Method], found: Mapping[str, Agreement]) -> list[str]:
    """The page's tables of a study with labels."""
    lines = [
        "## Scores without labels",
        "",
        "Rank correlation with 10-NN, counted so that 1 is always right: over the ends of all runs (interval by "
        "resampling methods), and within a method over its checkpoints (mean and interval over methods). Regret: how "
        "much 10-NN is lost by taking the method with the best mean score.",
        "",
        "| score | across methods | within a method | regret, % |",
        "|---|---|---|---|",
    ]
    for score in SCORES:
        one = found[score.name]
        lost = "-" if one.chosen is None else f"{one.regret:.1f} ({methods[one.chosen].title})"
        cells = [_words(one.across), _words(one.within), lost]
        lines.append(f"| {score.title} ({score.better} is better) | " + " | ".join(cells) + " |")
    by_lot = regret_by_lot(methods)
    lines += ["", "" if math.isnan(by_lot) else f"Any method, taken by lot, loses {by_lot:.1f} % on average.", ""]
    if all(math.isnan(one.mean) for score in SCORES for one in found[score.name].by_method.values()):
        return [*lines, NO_ACCURACIES, ""]
    lines += [
        "The same within each method (interval by resampling its runs):",
        "",
        "| method | " + " | ".join(score.title for score in SCORES) + " |",
        "|---|" + "---|" * len(SCORES),
    ]
    for name in methods:
        if name != RANDOM:
            cells = [_words(found[score.name].by_method[name]) for score in SCORES]
            lines.append(f"| {methods[name].title} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _words(one: Interval) -> str:
    return "-" if math.isnan(one.mean) else one.in_words(2)


def recommendation(methods: Mapping[str, Method]) -> list[str]:
    """The page's last words where there are no labels: the method that the most trusted score names."""
    score = most_trusted_score()
    chosen = chosen_by(methods, score)
    if chosen is None:
        return []
    lost = " and ".join(f"{one[score.name].regret:.1f} % on {data} (any method, taken by lot: {BY_LOT[data]:.1f} %)"
                        for data, one in MEASURED.items())  # fmt: skip
    return [
        "## Recommendation",
        "",
        f"{methods[chosen].title}, by {score.title}: of the scores without labels the one that agrees best with 10-NN "
        f"where there are labels. What it chose there had less 10-NN accuracy than the best method by {lost}. It is a "
        "hint and no proof: look at the networks with embed.py, too.",
        "",
    ]


def numbers(found: Mapping[str, Agreement]) -> dict[str, Any]:
    """The same for programs; None where there is no number."""
    return {
        name: {
            "across": _plain(one.across),
            "within": _plain(one.within),
            "by_method": {method: _plain(value) for method, value in one.by_method.items()},
            "chosen": one.chosen,
            "regret": None if math.isnan(one.regret) else one.regret,
        }
        for name, one in found.items()
    }


def _plain(one: Interval) -> list[float | None]:
    return list(finite_or_none(one._asdict()).values())

"""How far each score without labels can be trusted; written by ``benchmarks/score_trust.py``, from studies."""

from typing import NamedTuple


class Trust(NamedTuple):
    """How far a score agrees with 10-NN accuracy over the methods of a study.

    Rank correlations are Spearman's, counted so that 1 is a score that is always right, with the ends of their 95 %
    intervals.

    Attributes:
        across: over the ends of all runs.
        within: over the checkpoints of a method, the mean over methods.
        regret: how much 10-NN accuracy, in percent, the method that it names has less than the best.
    """

    across: tuple[float, float, float]
    within: tuple[float, float, float]
    regret: float


def in_words(value: tuple[float, float, float]) -> str:
    """``0.61 (0.41 to 0.76)``."""
    return "{:.2f} ({:.2f} to {:.2f})".format(*value)


def most_trusted() -> str:
    """The score with the highest correlation across methods, on average over the data; of equals, with less regret."""

    def trust(name: str) -> tuple[float, float]:
        found = [trusts[name] for trusts in MEASURED.values()]
        return sum(one.across[0] for one in found), -sum(one.regret for one in found)

    return max(next(iter(MEASURED.values())), key=trust)


# MEASURED: data -> score -> its trust; BY_LOT: data -> regret of taking any method
MEASURED = {
    "the photographs of data/": {
        "rankme": Trust((0.51, 0.13, 0.77), (0.51, 0.32, 0.69), 6.9),
        "alpha_req": Trust((0.1, -0.32, 0.56), (0.05, -0.17, 0.27), 6.9),
        "lidar": Trust((-0.43, -0.72, -0.04), (0.2, -0.08, 0.48), 12.9),
        "alignment": Trust((-0.48, -0.68, -0.17), (-0.25, -0.46, -0.04), 5.6),
        "uniformity": Trust((0.51, 0.17, 0.74), (0.42, 0.2, 0.65), 5.5),
        "cluster_stability": Trust((-0.07, -0.39, 0.25), (-0.06, -0.25, 0.13), 11.1),
    },
}
BY_LOT = {
    "the photographs of data/": 5.1,
}

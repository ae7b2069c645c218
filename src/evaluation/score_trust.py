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
        "rankme": Trust((0.48, 0.09, 0.75), (0.46, 0.29, 0.64), 7.4),
        "alpha_req": Trust((0.1, -0.33, 0.53), (-0.16, -0.37, 0.05), 7.4),
        "lidar": Trust((-0.36, -0.63, 0.02), (0.04, -0.17, 0.24), 11.1),
        "alignment": Trust((-0.46, -0.66, -0.18), (-0.33, -0.55, -0.12), 6.7),
        "uniformity": Trust((0.49, 0.15, 0.75), (0.54, 0.39, 0.69), 5.5),
        "cluster_stability": Trust((-0.14, -0.41, 0.17), (-0.01, -0.14, 0.13), 11.1),
    },
    "CIFAR-10": {
        "rankme": Trust((0.59, 0.24, 0.8), (0.31, 0.07, 0.56), 4.0),
        "alpha_req": Trust((0.26, -0.18, 0.64), (0.08, -0.18, 0.34), 4.0),
        "lidar": Trust((0.43, 0.02, 0.73), (-0.21, -0.47, 0.05), 1.5),
        "alignment": Trust((0.48, 0.04, 0.79), (0.32, 0.08, 0.55), 6.5),
        "uniformity": Trust((-0.05, -0.49, 0.39), (0.35, 0.11, 0.59), 7.7),
        "cluster_stability": Trust((-0.8, -0.87, -0.6), (-0.26, -0.48, -0.03), 10.5),
    },
}
BY_LOT = {
    "the photographs of data/": 5.2,
    "CIFAR-10": 8.2,
}

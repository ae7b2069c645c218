"""How far each score without labels can be trusted; written by ``benchmarks/score_trust.py``, which measures it."""

from typing import NamedTuple


class Trust(NamedTuple):
    """Spearman's rank correlation of a score with kNN accuracy, and the ends of its 95 % bootstrap interval.

    Attributes:
        runs: over the last epochs of different runs.
        epochs: over the epochs of one run, the mean over runs.
    """

    runs: tuple[float, float, float]
    epochs: tuple[float, float, float]

    def in_words(self, sign: int) -> str:
        """``across runs 0.61 (0.41 to 0.76), within a run ...``, counted so that 1 is a score that is always right."""
        parts = []
        for name, (value, low, high) in (("across runs", self.runs), ("within a run", self.epochs)):
            ends = sorted((sign * low, sign * high))
            parts.append(f"{name} {sign * value:.2f} ({ends[0]:.2f} to {ends[1]:.2f})")
        return ", ".join(parts)


# MEASURED on 32 runs of 16 recipes, 6 epochs each, on the photographs
TRUST = {
    "rankme": Trust((0.83, 0.64, 0.92), (0.58, 0.42, 0.71)),
    "alpha_req": Trust((-0.65, -0.79, -0.43), (0.12, -0.10, 0.32)),
    "lidar": Trust((0.04, -0.31, 0.42), (0.13, -0.06, 0.31)),
    "alignment": Trust((0.65, 0.40, 0.80), (0.48, 0.29, 0.64)),
    "uniformity": Trust((-0.67, -0.83, -0.41), (-0.57, -0.73, -0.39)),
    "cluster_stability": Trust((-0.52, -0.75, -0.17), (-0.05, -0.21, 0.12)),
}

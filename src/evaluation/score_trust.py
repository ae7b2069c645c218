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


# MEASURED
TRUST = {
    "rankme": Trust((0.0, -1.0, 1.0), (0.0, -1.0, 1.0)),
    "alpha_req": Trust((0.0, -1.0, 1.0), (0.0, -1.0, 1.0)),
    "lidar": Trust((0.0, -1.0, 1.0), (0.0, -1.0, 1.0)),
    "alignment": Trust((0.0, -1.0, 1.0), (0.0, -1.0, 1.0)),
    "uniformity": Trust((0.0, -1.0, 1.0), (0.0, -1.0, 1.0)),
    "cluster_stability": Trust((0.0, -1.0, 1.0), (0.0, -1.0, 1.0)),
}

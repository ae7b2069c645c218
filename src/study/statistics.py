"""What can be said of runs with several seeds: intervals, and differences that are more than noise.

Shape suffixes: S = seeds, M = test images.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

LEVEL = 0.95


class Interval(NamedTuple):
    """A mean and its 95 % interval; the ends are nan where one value alone tells nothing of the spread."""

    mean: float
    low: float
    high: float

    def in_words(self, digits: int = 1) -> str:
        """``57.0 (55.9 to 58.1)``."""
        if math.isnan(self.low):
            return f"{self.mean:.{digits}f}"
        return f"{self.mean:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


class Difference(NamedTuple):
    """One method less another.

    Attributes:
        interval: of the difference, for this pair alone, in percent.
        p: that a difference as large comes by chance, for this pair alone.
        corrected: the same after Holm's correction for all pairs of the study.
    """

    interval: Interval
    p: float
    corrected: float

    @property
    def is_real(self) -> bool:
        return self.corrected < 1 - LEVEL


def interval(values: Sequence[float]) -> Interval:
    """Student's t interval over seeds."""
    from scipy import stats

    x = np.asarray(values, dtype=float)
    mean = float(x.mean())
    if len(x) < 2:
        return Interval(mean, math.nan, math.nan)
    half = float(stats.t.ppf(0.5 + LEVEL / 2, len(x) - 1) * stats.sem(x))
    return Interval(mean, mean - half, mean + half)


def paired(difference_SM: np.ndarray) -> tuple[Interval, float]:
    """The mean of a table whose rows (seeds) and columns (test images) are both drawn by chance: interval, p-value.

    The variance is that of a crossed random-effects table (Cornfield & Tukey 1956; for classifiers Owen 2007,
    "The pigeonhole bootstrap"): seeds count by the spread of their means, and images by what the spread of theirs is
    above the noise of single entries. Degrees of freedom are Satterthwaite's. A plain bootstrap over seeds and images
    is too sure of itself with few seeds: `benchmarks/study_noise.py` measures both.

    Args:
        difference_SM: of each seed and image, such as 1 where one method is right and the other wrong. nan ends with
            one seed, as nothing is known of the spread.
    """
    from scipy import stats

    seeds, images = difference_SM.shape
    mean = float(difference_SM.mean())
    if seeds < 2:
        return Interval(mean, math.nan, math.nan), math.nan
    of_seeds = float(difference_SM.mean(axis=1).var(ddof=1)) / seeds
    of_images = 0.0
    if images > 1:
        rest = difference_SM - difference_SM.mean(axis=0) - difference_SM.mean(axis=1, keepdims=True) + mean
        noise = float((rest**2).sum()) / ((seeds - 1) * (images - 1))
        between = float(difference_SM.mean(axis=0).var(ddof=1)) / images
        of_images = max(0.0, between - noise / (seeds * images))
    variance = of_seeds + of_images
    if variance == 0:
        return Interval(mean, mean, mean), 1.0 if mean == 0 else 0.0
    freedom = variance**2 / (of_seeds**2 / (seeds - 1) + of_images**2 / max(1, images - 1))
    error = math.sqrt(variance)
    half = float(stats.t.ppf(0.5 + LEVEL / 2, freedom)) * error
    return Interval(mean, mean - half, mean + half), float(2 * stats.t.sf(abs(mean) / error, freedom))


def differences(right: Mapping[str, np.ndarray]) -> dict[tuple[str, str], Difference]:
    """All pairs of methods, in percent; Holm's correction over all pairs, so that choosing the best does not matter.

    Args:
        right: method -> (S, M), whether each seed's network is right about each test image; seeds in the same order.
            Of two methods only the first so many seeds are compared that both have.
    """
    from statsmodels.stats.multitest import multipletests

    pairs = list(itertools.combinations(right, 2))
    found = []
    for first, second in pairs:
        seeds = min(len(right[first]), len(right[second]))
        table = right[first][:seeds].astype(np.float64) - right[second][:seeds].astype(np.float64)
        found.append(paired(100 * table))
    known = [number for number, (_, p) in enumerate(found) if not math.isnan(p)]
    corrected = np.full(len(found), math.nan)
    if known:
        corrected[known] = multipletests([found[number][1] for number in known], method="holm")[1]
    return {pair: Difference(one, p, float(q)) for pair, (one, p), q in zip(pairs, found, corrected, strict=True)}


def to_the_best(right: Mapping[str, np.ndarray]) -> tuple[str, dict[str, Difference]]:
    """The method with the highest mean, and every other one less it."""
    best = max(right, key=lambda name: float(right[name].mean()))
    found = {}
    for (first, second), one in differences(right).items():
        if best not in (first, second):
            continue
        other = second if first == best else first
        sign = -1.0 if first == best else 1.0
        ends = sorted((sign * one.interval.low, sign * one.interval.high))
        found[other] = one._replace(interval=Interval(sign * one.interval.mean, *ends))
    return best, found


def rank_correlation(pairs: np.ndarray, clusters: np.ndarray, draws: int = 2000, seed: int = 0) -> Interval:
    """Spearman's, with an interval by resampling clusters of rows that hang together (runs of a method); finite rows
    only. nan for fewer than three rows, and ends of nan for fewer than three clusters.

    Args:
        pairs: (n, 2).
        clusters: (n,), which cluster each row is of.
    """
    from scipy.stats import spearmanr

    def value(rows: np.ndarray) -> float:
        rows = rows[np.isfinite(rows).all(axis=1)]
        if len(rows) < 3 or (np.ptp(rows, axis=0) == 0).any():
            return math.nan
        return float(spearmanr(*rows.T).statistic)

    names = np.unique(clusters)
    whole = value(pairs)
    if len(names) < 3 or math.isnan(whole):
        return Interval(whole, math.nan, math.nan)
    members = [np.flatnonzero(clusters == name) for name in names]
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        drawn = generator.integers(0, len(names), len(names))
        found.append(value(pairs[np.concatenate([members[number] for number in drawn])]))
    low, high = np.nanpercentile(found, [50 - 50 * LEVEL, 50 + 50 * LEVEL])
    return Interval(whole, float(low), float(high))

"""What can be said of runs with several seeds: intervals, and differences that are more than noise.

Shape suffixes: S = seeds, M = test images.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

LEVEL = 0.95
SEEDS = 3  # fewer tell too little of the noise to call a difference real
Right = Mapping[int, np.ndarray]  # seed -> (M,), whether its network was right about each test image


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
    """One method less another, in percent.

    Attributes:
        interval: that holds for all pairs of the study together; nan ends where nothing can be said.
        seeds: that both have.
        statistic: the difference in units of its error, by the root of 2: Tukey's q; nan where nothing can be said.
        methods, freedom: of the study, and of the error.
    """

    interval: Interval
    seeds: int
    statistic: float
    methods: int
    freedom: float

    @property
    def is_real(self) -> bool:
        """Whether the interval leaves out 0."""
        return bool(self.interval.low > 0 or self.interval.high < 0)

    @property
    def p(self) -> float:
        """That any pair of the study differs as much by chance."""
        from scipy import stats

        if not math.isfinite(self.statistic):
            return 0.0 if math.isinf(self.statistic) else math.nan
        return float(stats.studentized_range.sf(self.statistic, self.methods, self.freedom))


@lru_cache(maxsize=4096)
def _critical(methods: int, freedom: float) -> float:
    """Tukey's q that is exceeded by chance in 5 of 100 studies; the numerical integral behind it takes a while."""
    from scipy import stats

    return float(stats.studentized_range.ppf(LEVEL, methods, freedom))


class Table(NamedTuple):
    """The differences of two methods, and what their mean varies by: of seeds, of test images, and at the least."""

    mean: float
    seeds: int
    images: int
    of_seeds: float
    of_images: float
    noise: float


class Spread(NamedTuple):
    """How seeds differ in a study: the number of methods, the variance of a seed's difference over all pairs with its
    degrees of freedom, and the variance of each method's seeds."""

    methods: int
    shared: float
    freedom: float
    own: Mapping[str, float]


def interval(values: Sequence[float]) -> Interval:
    """Student's t interval over seeds."""
    from scipy import stats

    x = np.asarray(values, dtype=float)
    mean = float(x.mean())
    if len(x) < 2:
        return Interval(mean, math.nan, math.nan)
    half = float(stats.t.ppf(0.5 + LEVEL / 2, len(x) - 1) * stats.sem(x))
    return Interval(mean, mean - half, mean + half)


def table_of(difference_SM: np.ndarray) -> Table:
    """Variance components of a table whose rows (seeds) and columns (test images) are both drawn by chance.

    A crossed random-effects table (Cornfield & Tukey 1956; for classifiers Owen 2007, "The pigeonhole bootstrap"):
    seeds count by the spread of their means, and images by what the spread of theirs is above the noise of single
    entries. ``of_seeds`` is the variance of one seed's mean; the other two are variances of the whole mean.
    """
    seeds, images = difference_SM.shape
    mean = float(difference_SM.mean())
    if seeds < 2:
        return Table(mean, seeds, images, math.nan, math.nan, math.nan)
    of_seeds = float(difference_SM.mean(axis=1).var(ddof=1))
    if images < 2:
        return Table(mean, seeds, images, of_seeds, 0.0, 0.0)
    rest = difference_SM - difference_SM.mean(axis=0) - difference_SM.mean(axis=1, keepdims=True) + mean
    noise = float((rest**2).sum()) / ((seeds - 1) * (images - 1)) / (seeds * images)
    between = float(difference_SM.mean(axis=0).var(ddof=1)) / images
    return Table(mean, seeds, images, of_seeds, max(0.0, between - noise), noise)


def differences(right: Mapping[str, Right]) -> dict[tuple[str, str], Difference]:
    """All pairs of methods, paired by seed and test image, by Tukey's range test.

    With few seeds a pair's own spread is known badly, so that some of many pairs would look certain by chance. So all
    pairs share one spread of seeds (the residual of methods by seeds), known by the seeds of all methods. What two
    methods vary more than that is added for their pair, and known by their own seeds alone: degrees of freedom are
    Satterthwaite's (1946) of the two parts. No pair has less than single images alone give; to it comes the spread of
    the images. Tukey's test takes the largest difference between methods that are all alike as its measure, so that
    choosing the best does not matter. ``benchmarks/study_noise.py`` measures how often it calls chance real.

    Args:
        right: rows of all methods over the same test images. Pairs are compared by the seeds that both have, SEEDS
            or more; of others nothing can be said.
    """
    tables = {}
    for first, second in itertools.combinations(right, 2):
        common = sorted(set(right[first]) & set(right[second]))
        if common:
            a, b = (np.stack([right[name][seed] for seed in common]).astype(np.float64) for name in (first, second))
            tables[first, second] = table_of(100 * (a - b))
    spread = spread_of({pair: table for pair, table in tables.items() if table.seeds >= SEEDS})
    return {(a, b): _compared(table, spread, spread.own.get(a, 0.0), spread.own.get(b, 0.0))
            for (a, b), table in tables.items()}  # fmt: skip


def spread_of(tables: Mapping[tuple[str, str], Table]) -> Spread:
    """How seeds differ, over all pairs and of each method, from the variances of pairs.

    A pair's variance is the sum of its methods' own, without what a seed does to all methods. So a method's own is
    found by adding up its pairs (Grubbs 1948), where there are three methods or more; below 0 it is 0.
    """
    names = sorted({name for pair in tables for name in pair})
    if not tables:
        return Spread(0, math.nan, math.nan, {})
    variance = {pair: table.of_seeds for pair, table in tables.items()}
    shared = float(np.mean(list(variance.values())))
    freedom = (len(names) - 1) * (float(np.mean([table.seeds for table in tables.values()])) - 1)
    own = {}
    if len(names) > 2:
        total = shared * len(names) / 2  # of all methods
        for name in names:
            its = np.mean([value for pair, value in variance.items() if name in pair]) * (len(names) - 1)
            own[name] = max(0.0, float(its - total) / (len(names) - 2))
    return Spread(len(names), shared, freedom, own)


def _compared(table: Table, spread: Spread, *own: float) -> Difference:
    """One pair, and the variances over seeds of its methods' ``own``."""
    if table.seeds < SEEDS:
        return Difference(Interval(table.mean, math.nan, math.nan), table.seeds, math.nan, spread.methods, math.nan)
    of_all = max(spread.shared / table.seeds, table.noise)
    more = max(0.0, sum(own) / table.seeds - of_all)
    variance = of_all + more + table.of_images
    if variance == 0:
        statistic = 0.0 if table.mean == 0 else math.inf
        return Difference(Interval(*[table.mean] * 3), table.seeds, statistic, spread.methods, spread.freedom)
    of_both = (table.seeds - 1) * sum(own) ** 2 / sum(one**2 for one in own) if more else 1.0  # Welch's
    parts = (of_all, spread.freedom), (more, of_both), (table.of_images, max(1, table.images - 1))
    freedom = variance**2 / sum(part**2 / its for part, its in parts)
    freedom = float(min(max(1, math.floor(2 * freedom) / 2), 200))  # halves, so that few values are ever looked up
    error = math.sqrt(variance / 2)
    half = _critical(spread.methods, freedom) * error
    ends = table.mean - half, table.mean + half
    return Difference(Interval(table.mean, *ends), table.seeds, abs(table.mean) / error, spread.methods, freedom)


def best_of(right: Mapping[str, Right]) -> str:
    """The method with the highest mean over its seeds.

    One with fewer seeds than SEEDS is the best only where all have fewer, since one lucky run is not.
    """
    known = {name: rows for name, rows in right.items() if len(rows) >= SEEDS} or right
    return max(known, key=lambda name: float(np.mean([row.mean() for row in known[name].values()])))


def less(reference: str, pairs: Mapping[tuple[str, str], Difference]) -> dict[str, Difference]:
    """Every other method less this one, of all pairs of ``differences``."""
    found = {}
    for (first, second), one in pairs.items():
        if reference not in (first, second):
            continue
        other = second if first == reference else first
        sign = -1.0 if first == reference else 1.0
        ends = sorted((sign * one.interval.low, sign * one.interval.high))
        found[other] = one._replace(interval=Interval(sign * one.interval.mean, *ends))
    return found


def rank_correlation(pairs: np.ndarray, clusters: np.ndarray, draws: int = 2000, seed: int = 0) -> Interval:
    """Spearman's, with an interval by resampling clusters of rows that hang together (runs of a method); finite rows
    only. nan for fewer than three rows, and ends of nan for fewer than three clusters.

    Args:
        pairs: (n, 2).
        clusters: (n,), which cluster each row is of.
    """
    is_finite = np.isfinite(pairs).all(axis=1)
    pairs, clusters = pairs[is_finite], clusters[is_finite]
    if len(pairs) < 3:
        return Interval(math.nan, math.nan, math.nan)
    whole = float(_spearman(pairs, np.ones((1, len(pairs))))[0])
    names, member = np.unique(clusters, return_inverse=True)
    if len(names) < 3 or math.isnan(whole):
        return Interval(whole, math.nan, math.nan)
    times = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    found = _spearman(pairs, times[:, member].astype(float))
    low, high = np.nanpercentile(found, [50 - 50 * LEVEL, 50 + 50 * LEVEL])
    return Interval(whole, float(low), float(high))


def _spearman(pairs: np.ndarray, times: np.ndarray) -> np.ndarray:
    """(draws,) Spearman's of the rows of (n, 2), each taken as often as its row of (draws, n) says; nan where either
    column is constant."""
    ranks = []
    for column in pairs.T:
        values, group = np.unique(column, return_inverse=True)
        each = times @ np.eye(len(values))[group]  # how often each value was drawn
        ranks.append((each.cumsum(axis=1) - (each - 1) / 2)[:, group])  # the middle one of equal values' ranks
    total = times.sum(axis=1, keepdims=True)
    x, y = (rank - (times * rank).sum(axis=1, keepdims=True) / total for rank in ranks)
    spread = np.sqrt((times * x**2).sum(axis=1) * (times * y**2).sum(axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(spread > 1e-9, (times * x * y).sum(axis=1) / spread, math.nan)

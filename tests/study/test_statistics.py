"""What a study says of differences: against formulas written out, and against chance that is drawn here."""

import itertools
import math

from src.study.statistics import _spearman, best_of, differences, interval, less, rank_correlation, spread_of, table_of

import numpy as np
import pytest
from scipy import stats


def test_interval_is_students():
    values = [57.0, 58.5, 54.5, 56.0]
    half = stats.t.ppf(0.975, 3) * np.std(values, ddof=1) / 2
    found = interval(values)
    assert found == pytest.approx((56.5, 56.5 - half, 56.5 + half))
    assert math.isnan(interval([1.0]).low)
    assert interval([1.0]).in_words() == "1.0"


def seeds_of(rows):
    return dict(enumerate(rows))


def pair(a, b):
    return differences({"a": seeds_of(a), "b": seeds_of(b)})["a", "b"]


def test_of_two_methods_whose_images_do_not_vary_it_is_the_paired_t_test():
    rng = np.random.default_rng(0)
    of_seeds = rng.normal(0.01, 0.02, size=6)
    found = pair(np.repeat(of_seeds[:, None], 50, axis=1), np.zeros((6, 50)))
    expected = stats.ttest_1samp(100 * of_seeds, 0)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-3)
    low, high = expected.confidence_interval(0.95)
    assert (found.interval.low, found.interval.high) == pytest.approx((low, high), rel=1e-3)


def test_of_more_methods_whose_images_do_not_vary_it_is_tukeys_test_in_blocks():
    """Seeds are the blocks. Two methods that vary more than the residual of all have that on top, by their own seeds;
    how much a method varies is found from its residuals here (Grubbs's estimator), and from pairs there."""
    rng = np.random.default_rng(9)
    noise = rng.normal(0, 0.01, (5, 4)) * [1, 1, 1, 3]
    values = rng.normal(0, 0.02, (5, 1)) + noise + [0, 0.01, 0.02, 0.03]  # seeds, methods
    means = values.mean(axis=0)
    residuals = values - means - values.mean(axis=1, keepdims=True) + values.mean()
    residual = (residuals**2).sum() / (4 * 3)
    each = (residuals**2).sum(axis=0) / 4
    own = np.maximum((each - each.sum() * 4 / 3 / 16) / (1 - 2 / 4), 0)
    found = differences({str(name): seeds_of(np.repeat(values[:, [name]], 50, axis=1)) for name in range(4)})
    plain = 0
    for (first, second), one in found.items():
        both = own[[int(first), int(second)]]
        more = max(0.0, both.sum() - 2 * residual)
        welch = 4 * both.sum() ** 2 / (both**2).sum()
        freedom = (2 * residual + more) ** 2 / ((2 * residual) ** 2 / 12 + more**2 / welch)
        q = abs(means[int(first)] - means[int(second)]) / math.sqrt((2 * residual + more) / 2 / 5)
        assert one.p == pytest.approx(stats.studentized_range.sf(q, 4, math.floor(2 * freedom) / 2), rel=1e-3)
        plain += more == 0
        assert (one.freedom == 12) == (more == 0)
    assert plain == 3  # those without the last method


def test_the_components_are_those_of_a_crossed_table():
    """Whose sums of squares are written out."""
    rng = np.random.default_rng(1)
    x = rng.normal(0, 1, (4, 1)) + rng.normal(0, 2, (1, 30)) + rng.normal(0, 3, (4, 30))
    rows, columns, grand = x.mean(axis=1), x.mean(axis=0), x.mean()
    of_rest = sum((x[i, j] - rows[i] - columns[j] + grand) ** 2 for i in range(4) for j in range(30)) / (3 * 29)
    of_columns = 4 * sum((column - grand) ** 2 for column in columns) / 29
    found = table_of(x)
    assert found.noise == pytest.approx(of_rest / 120)
    assert found.of_images == pytest.approx((of_columns - of_rest) / 4 / 30)
    assert found.of_seeds == pytest.approx(np.var(rows, ddof=1))


def equal_methods(rng, methods, seeds, images, of_seed, of_image):
    """Methods of the same worth: by chance their seeds differ, and which images they find easy."""
    easy = rng.normal(0, 1.2, images)
    right = {}
    for name in range(methods):
        worth = easy + rng.normal(0, of_image, (1, images)) + rng.normal(0, of_seed, (seeds, 1))
        right[str(name)] = seeds_of(rng.uniform(size=(seeds, images)) < 1 / (1 + np.exp(-worth)))
    return right


def test_the_spread_of_a_method_is_found_from_its_pairs():
    rng = np.random.default_rng(10)
    spreads = np.array([0.2, 1.0, 1.0, 1.0, 5.0])
    values = rng.normal(0, 3, (2000, 1)) + rng.normal(0, 1, (2000, 5)) * spreads  # seeds, methods
    tables = {(str(a), str(b)): table_of((values[:, a] - values[:, b])[:, None])
              for a, b in itertools.combinations(range(5), 2)}  # fmt: skip
    found = spread_of(tables)
    assert [found.own[str(name)] for name in range(5)] == pytest.approx(spreads**2, rel=0.1, abs=0.15)
    assert found.shared == pytest.approx(2 * (spreads**2).mean(), rel=0.1)
    assert found.freedom == 4 * 1999


@pytest.mark.parametrize(("methods", "studies"), [(2, 200), (6, 60)])
@pytest.mark.parametrize(("of_seed", "of_image"), [(0.02, 0.0), (0.1, 0.0), (0.1, 1.0)])
@pytest.mark.parametrize("seeds", [3, 5])
def test_of_a_hundred_studies_of_equal_methods_about_five_call_any_real(seeds, of_seed, of_image, methods, studies):
    rng = np.random.default_rng(2)
    wrong = 0
    for _ in range(studies):
        right = equal_methods(rng, methods, seeds, 300, of_seed, of_image)
        wrong += any(one.is_real for one in differences(right).values())
    assert wrong <= stats.binom.ppf(0.999, studies, 0.05)


@pytest.mark.parametrize("times", [[8, 1, 1, 1, 1, 1], [0.4, 0.7, 1, 1.4, 2, 3]], ids=["one", "all"])
@pytest.mark.parametrize("seeds", [3, 5])
def test_methods_whose_seeds_differ_more_than_others_are_seldom_called_real(seeds, times):
    """A spread that is the same for all pairs would call some real in 13 to 18 of 100 of these studies."""
    rng = np.random.default_rng(11)
    wrong = 0
    for _ in range(400):
        values = rng.normal(0, 1, (len(times), seeds, 1)) * np.reshape(times, (-1, 1, 1))
        found = differences({str(name): seeds_of(rows) for name, rows in enumerate(values)})
        wrong += any(one.is_real for one in found.values())
    assert wrong <= stats.binom.ppf(0.999, 400, 0.07)


def test_a_difference_that_there_is_is_found_and_has_its_sign():
    rng = np.random.default_rng(4)
    easy = rng.uniform(size=500)
    right = {
        name: seeds_of(rng.uniform(size=(5, 500)) * 0.5 < easy - worse)
        for name, worse in (("a", 0.2), ("b", 0.0), ("c", 0.4))
    }
    assert best_of(right) == "b"
    others = less("b", differences(right))
    assert others["a"].is_real
    assert others["c"].is_real
    means = {name: np.mean(list(rows.values())) for name, rows in right.items()}
    assert others["c"].interval.mean == pytest.approx(100 * (means["c"] - means["b"]))
    assert others["c"].interval.high < 0
    assert others["c"].p < 0.001
    assert [one.is_real for one in others.values()] == [one.p < 0.05 for one in others.values()]


def test_few_seeds_tell_nothing():
    for seeds in (1, 2):
        found = pair(np.ones((seeds, 50)), np.zeros((seeds, 50)))
        assert (math.isnan(found.p), found.is_real, found.interval.mean) == (True, False, 100)


def test_methods_with_few_seeds_are_neither_the_best_nor_a_measure_of_noise():
    rng = np.random.default_rng(8)
    right = {name: seeds_of(rng.uniform(size=(3, 200)) < worth) for name, worth in (("a", 0.5), ("b", 0.6))}
    more = {**right, **{f"lucky{n}": seeds_of(np.ones((1, 200), dtype=bool)) for n in range(5)}}
    assert differences(more)["a", "b"] == differences(right)["a", "b"]
    assert best_of(more) == "b"
    others = less("b", differences(more))
    assert others["lucky1"].interval.mean > 0
    assert math.isnan(others["lucky1"].p)
    alone = {name: {0: rows[0]} for name, rows in right.items()}
    assert best_of(alone) in alone


def test_pairs_have_the_same_seed():
    rng = np.random.default_rng(5)
    rows = {seed: rng.uniform(size=40) < 0.5 for seed in range(1, 6)}
    others = {seed: rows[seed] for seed in (2, 3, 5)}  # of which two have failed
    found = differences({"a": rows, "b": others})["a", "b"]
    assert (found.interval.mean, found.seeds, found.p) == (0, 3, 1)


def test_an_interval_holds_the_truth_in_95_of_a_hundred_studies():
    rng = np.random.default_rng(6)
    held = 0
    for _ in range(200):
        shift = rng.normal(0, 0.01, (4, 1)) + rng.normal(0, 0.03, (1, 100)) + rng.normal(0, 0.03, (4, 100))
        found = pair(0.017 + shift, np.zeros((4, 100)))
        held += found.interval.low <= 1.7 <= found.interval.high
    assert stats.binom.ppf(0.001, 200, 0.95) <= held <= stats.binom.ppf(0.999, 200, 0.95)


def test_rank_correlation_and_its_clusters():
    x = np.arange(12.0)
    pairs = np.stack([x, x**3], axis=1)
    found = rank_correlation(pairs, np.repeat(["a", "b", "c", "d"], 3))
    assert found.mean == pytest.approx(1)
    assert found.low == pytest.approx(1)
    rng = np.random.default_rng(6)
    noisy = np.stack([x, x + rng.normal(0, 6, 12)], axis=1)
    found = rank_correlation(noisy, np.repeat(["a", "b", "c", "d"], 3))
    assert found.low < found.mean < found.high
    assert math.isnan(rank_correlation(pairs, np.repeat(["a", "b"], 6)).low)
    assert math.isnan(rank_correlation(pairs[:2], np.array(["a", "b"])).mean)


@pytest.mark.filterwarnings("ignore::scipy.stats.ConstantInputWarning")
def test_resampled_rows_are_ranked_as_scipy_ranks_them():
    rng = np.random.default_rng(7)
    pairs = rng.normal(size=(9, 2)).round(1).repeat(2, axis=0)  # with ties
    pairs[:, 1] += pairs[:, 0]
    times = rng.integers(0, 3, (40, len(pairs)))
    times[0] = [2] + [0] * (len(pairs) - 1)  # one row alone is constant
    expected = [stats.spearmanr(*pairs.repeat(row, axis=0).T).statistic for row in times]
    np.testing.assert_allclose(_spearman(pairs, times.astype(float)), expected, atol=1e-12)

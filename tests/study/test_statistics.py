"""What a study says of differences: against formulas written out, and against chance that is drawn here."""

import math

from src.study.statistics import differences, interval, paired, rank_correlation, to_the_best

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


def test_without_a_spread_of_images_it_is_the_paired_t_test():
    rng = np.random.default_rng(0)
    of_seeds = rng.normal(1.0, 2.0, size=6)
    table = np.repeat(of_seeds[:, None], 50, axis=1)
    found, p = paired(table)
    expected = stats.ttest_1samp(of_seeds, 0)
    assert p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))


def drawn(rng, seeds, images, of_seed, of_image, noise):
    """A table of differences whose true mean is 0, with a part of each seed, one of each image, and noise."""
    return (
        rng.normal(0, of_seed, (seeds, 1))
        + rng.normal(0, of_image, (1, images))
        + rng.normal(0, noise, (seeds, images))
    )


@pytest.mark.parametrize(("of_seed", "of_image"), [(1.0, 0.0), (0.2, 2.0), (0.5, 5.0)])
@pytest.mark.parametrize("seeds", [3, 5])
def test_chance_is_called_real_in_five_of_a_hundred_studies(seeds, of_seed, of_image):
    rng = np.random.default_rng(1)
    called = np.mean([paired(drawn(rng, seeds, 200, of_seed, of_image, 3.0))[1] < 0.05 for _ in range(500)])
    assert 0.02 <= called <= 0.085


def test_an_interval_holds_the_truth_in_95_of_a_hundred_studies():
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(400):
        found, _ = paired(1.7 + drawn(rng, 4, 100, 0.5, 3.0, 3.0))
        held += found.low <= 1.7 <= found.high
    assert 0.92 <= held / 400 <= 0.98


def test_equal_methods_are_all_within_noise_whichever_is_best():
    """The best of several equal ones is better than the others by chance: the correction is for all pairs."""
    rng = np.random.default_rng(3)
    wrong = 0
    for _ in range(200):
        easy = rng.uniform(size=150)
        right = {name: rng.uniform(size=(4, 150)) + rng.normal(0, 0.02, (4, 1)) < easy for name in "abcde"}
        wrong += any(one.is_real for one in to_the_best(right)[1].values())
    assert wrong <= 16  # 5 % of 200, and what chance adds


def test_a_difference_that_there_is_is_found_and_has_its_sign():
    rng = np.random.default_rng(4)
    easy = rng.uniform(size=500)
    right = {name: rng.uniform(size=(5, 500)) * 0.5 < easy - worse for name, worse in
             (("a", 0.2), ("b", 0.0), ("c", 0.4))}  # fmt: skip
    best, others = to_the_best(right)
    assert best == "b"
    assert others["a"].is_real
    assert others["c"].is_real
    assert others["c"].interval.mean == pytest.approx(100 * (right["c"].mean() - right["b"].mean()))
    assert others["c"].interval.high < others["a"].interval.low < 0


def test_holms_correction_is_over_all_pairs():
    rng = np.random.default_rng(5)
    right = {name: rng.uniform(size=(4, 80)) < share for name, share in (("a", 0.5), ("b", 0.6), ("c", 0.9))}
    found = differences(right)
    p = sorted(one.p for one in found.values())
    holm = np.maximum.accumulate([min(1, (3 - rank) * value) for rank, value in enumerate(p)])
    assert sorted(one.corrected for one in found.values()) == pytest.approx(holm.tolist())


def test_one_seed_tells_nothing():
    right = {"a": np.ones((1, 50), dtype=bool), "b": np.zeros((1, 50), dtype=bool)}
    best, others = to_the_best(right)
    assert (best, math.isnan(others["b"].corrected), others["b"].is_real) == ("a", True, False)
    assert others["b"].interval.mean == -100


def test_seeds_that_both_have_are_compared():
    right = {"a": np.ones((3, 20), dtype=bool), "b": np.zeros((2, 20), dtype=bool)}
    assert differences(right)["a", "b"].interval.mean == 100


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

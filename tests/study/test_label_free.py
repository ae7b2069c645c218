"""How far scores without labels agree with accuracy, and what is recommended by them."""

import math

from src.evaluation.score_trust import BY_LOT, MEASURED, most_trusted
from src.evaluation.scores import SCORES
from src.study.label_free import agreement, numbers, recommendation, regret_by_lot, scores_in_words
from src.study.method import Method
from src.study.plan import RANDOM

import numpy as np
import pytest
from scipy.stats import spearmanr

MORE, LESS = SCORES[0], SCORES[1]


def method_of(title, ends, curve=()):
    """``ends``: (score, accuracy) of each seed; every score has the same value. ``curve``: the same of checkpoints."""
    one = Method(title)
    for seed, (value, knn) in enumerate(ends):
        one.judged[seed] = {"knn": knn, "scores": {score.name: value for score in SCORES}, "cost": {}}
        one.curve[seed] = [
            {"epoch": epoch, "knn_top1": 10 * seed + b, **{score.name: 10 * seed + a for score in SCORES}}
            for epoch, (a, b) in enumerate(curve)
        ]
    return one


@pytest.fixture
def methods():
    rising = [(1.0, 2.0), (2.0, 3.0), (3.0, 4.0)]
    return {
        RANDOM: method_of("random weights", [(99.0, 70.0), (99.0, 70.0)]),
        "a": method_of("A", [(1.0, 50.0), (2.0, 51.0), (3.0, 52.0)], rising),
        "b": method_of("B", [(6.0, 58.0), (5.0, 59.0), (4.0, 60.0)], rising[::-1]),
        "c": method_of("C", [(7.0, 55.0), (8.0, 56.0), (9.0, 57.0)], [(1.0, 2.0), (2.0, 2.0), (0.5, 2.0)]),
    }


def test_a_score_is_compared_over_the_ends_of_all_trained_runs(methods):
    found = agreement(methods, MORE)
    ends = [(v["scores"][MORE.name], v["knn"]) for name, one in methods.items() if name != RANDOM
            for v in one.judged.values()]  # fmt: skip
    assert found.across.mean == pytest.approx(spearmanr(*np.array(ends).T).statistic)
    assert found.across.low <= found.across.mean <= found.across.high
    turned = agreement(methods, LESS)  # whose sign turns: the same values are as wrong as the others are right
    assert turned.across.mean == pytest.approx(-found.across.mean)


def test_a_score_chooses_a_method_and_the_loss_is_told(methods):
    found = agreement(methods, MORE)  # random weights, with the best score, are no method
    assert found.chosen == "c"
    assert found.regret == pytest.approx(59 - 56)
    assert agreement(methods, LESS).chosen == "a"
    assert agreement(methods, LESS).regret == pytest.approx(59 - 51)
    means = [np.mean(methods[name].values("knn")) for name in "abc"]
    assert regret_by_lot(methods) == pytest.approx(59 - np.mean(means))
    assert math.isnan(regret_by_lot({"b": Method("B")}))


def test_within_a_method_checkpoints_are_compared(methods):
    found = agreement(methods, MORE)
    assert set(found.by_method) == {"a", "b", "c"}
    assert found.by_method["a"].mean == pytest.approx(1)
    assert found.within.mean == pytest.approx(np.mean([one.mean for one in found.by_method.values()]))
    assert found.within.low < found.within.mean < found.within.high


def test_too_little_tells_nothing():
    methods = {"a": method_of("A", [(1.0, 50.0)]), "b": Method("B")}
    found = agreement(methods, MORE)
    assert math.isnan(found.across.mean)
    assert math.isnan(found.within.mean)
    assert (found.chosen, found.regret) == ("a", 0)
    assert agreement({"b": Method("B")}, MORE).chosen is None
    assert numbers({"rankme": found})["rankme"]["across"] == [None, None, None]


def test_the_tables_name_every_score_and_method(methods):
    text = "\n".join(scores_in_words(methods, {score.name: agreement(methods, score) for score in SCORES}))
    for score in SCORES:
        assert f"| {score.title} ({score.better} is better) |" in text
    for name, one in methods.items():
        assert (f"| {one.title} |" in text) == (name != RANDOM)
    assert "3.0 (C)" in text
    assert f"taken by lot, loses {regret_by_lot(methods):.1f} %" in text
    assert "The same within each method" in text
    for one in methods.values():
        one.curve = {}
    text = "\n".join(scores_in_words(methods, {score.name: agreement(methods, score) for score in SCORES}))
    assert "The same within each method" not in text
    assert "Within a method nothing is known: it takes accuracies of three checkpoints or more" in text


def test_without_labels_the_most_trusted_score_recommends(methods):
    sign = next(score.sign for score in SCORES if score.name == most_trusted())
    text = "\n".join(recommendation(methods))
    assert ("C, by" if sign > 0 else "A, by") in text
    for data, one in MEASURED.items():
        assert f"{one[most_trusted()].regret:.1f} % on {data} (any method, taken by lot: {BY_LOT[data]:.1f} %)" in text
    assert recommendation({"b": Method("B")}) == []

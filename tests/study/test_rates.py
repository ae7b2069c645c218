"""Which of several learning rates a method keeps."""

from src.study.label_free import most_trusted_score
from src.study.rates import best_rate

import pytest


def reached(*values):
    """Tries with the factors 0.1, 0.3, 1, ...; None for one that failed."""
    rates = (0.1, 0.3, 1, 3, 10, 30)
    return {rate: None if value is None else {"knn": value} for rate, value in zip(rates, values, strict=False)}


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ((60, 66, 70, 68, 64), 1),
        ((64.6, 68.1, 70.3, 71.7, 74.4, 57.7), 3),  # the luckiest run is beside one that broke
        ((50, 60, 70, 70, 74), 10),  # at an end, the neighbour that is there
        ((60, 80, 70, 74, 70), 1),  # 72.5, 73.5, and 72 for the third
        ((60, None, 70, 69, 68), 3),  # whatever the one beside the failed one reached
        ((70, 70.5, None), 0.1),
        ((50, 40), 0.1),
        ((40, 50), 0.3),
        ((None, 50), 0.3),
        ((50,), 0.1),
        ((None, None), None),
        ((float("nan"), 53, 52), 1),  # features that are not finite
        ((float("nan"),), None),
    ],
)
def test_a_rate_is_judged_by_its_neighbours_too(values, kept):
    assert best_rate(reached(*values)) == kept
    assert best_rate(dict(reversed(reached(*values).items()))) == kept  # whatever the order of --rates


def test_without_labels_the_score_that_is_trusted_most_decides():
    score = most_trusted_score()
    worth = {1: 20, 3: 5, 10: 6, 30: None}
    tries = {rate: {"scores": {score.name: value and score.sign * value}} for rate, value in worth.items()}
    assert best_rate(tries) == 1
    assert best_rate({rate: tries[rate] for rate in (3, 10)}) == 10

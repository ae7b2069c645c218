"""Which of several learning rates a method keeps, whatever fails."""

import study
from src.checkpoints.files import write_json
from src.errors import UserError
from src.study.label_free import most_trusted_score
from src.study.rates import best_rate
from src.study.runs import plan_of

import pytest
import torch


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


def test_kept_rates_and_teachers_when_tries_fail(patches, tmp_path):
    words = [str(patches), *f"--dump_path {tmp_path} --batch_size 32 --rates 1 3 10".split()]
    plan = plan_of(study.SCRIPT.parse(words).settings, ["moco", "disco"], tmp_path, torch.device("cpu"))

    def tried(rate: float, knn: float | None) -> None:
        task = plan.tries["moco"][rate]
        if knn is None:
            task.fail(1, "the disk is full")
        else:
            write_json(task.folder / "judged.json", {"knn": knn})

    assert plan.best_try("moco") is None
    for rate in (1, 3, 10):
        tried(rate, None)
    assert plan.best_try("moco") is None
    with pytest.raises(UserError, match="no try of its learning rate reached anything: the disk is full"):
        plan.keep_rate("moco")  # the first run does not begin with any rate at all
    plan.forget_failures()
    assert not any(task.has_failed for task in plan.tries["moco"].values())
    tried(1, 50)
    tried(3, None)
    tried(10, 60)
    assert (plan.rate_of("moco"), plan.best_try("moco").name) == (10, "moco-rate-10")  # nothing was trained with 1
    plan.keep_rate("moco")
    (tmp_path / "runs" / "moco-1").mkdir(parents=True)
    (tmp_path / "runs" / "moco-1" / "checkpoint.pth.tar").touch()
    plan.forget_failures()
    tried(10, 40)
    assert plan.rate_of("moco") == 10  # as the runs that there are
    (plan.tries["moco"][10].folder / "judged.json").unlink()
    assert plan.best_try("moco").name == "moco-rate-1"

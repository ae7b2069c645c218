"""What a run reached, and at what pace."""

import json

from src.evaluation.features import Features
from src.study.judge import _by_classes_that_occur, cost_of, pace_of

import pytest
import torch


def test_labels_are_counted_from_0_on():
    rows = torch.arange(4.0).repeat(3)[:, None]
    found = [Features(rows, 1000 * rows[:, 0].long(), rows[:, 0].long(), []) for _ in range(2)]
    train, test, count = _by_classes_that_occur(*found)
    assert (train.labels.tolist(), test.labels.tolist(), count) == ([0, 1, 2, 3] * 3, [0, 1, 2, 3] * 3, 4)


def test_the_pace_is_that_of_steps_whose_batches_were_not_ready(tmp_path):
    """Ten workers bring ten batches at once every two seconds, and twenty are ready at the start."""
    (tmp_path / "settings.json").write_text(
        json.dumps({"derived": {"batch_size": 64}, "world_size": 2, "arguments": {"workers": 10}})
    )
    seconds = {3: 40.0, **{step: 0.2 + 1.5 * (step in (23, 31, 43)) for step in range(7, 48, 4)}}
    lines = [{"kind": "train", "step": step, "images_per_second": 4 * 128 / time, "peak_memory_gb": 1.5}
             for step, time in seconds.items()]  # fmt: skip
    (tmp_path / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    late = [step for step in seconds if step >= 23]
    assert pace_of(tmp_path) == pytest.approx(len(late) * 4 * 128 / sum(seconds[step] for step in late))
    cost = cost_of(tmp_path)  # of a long run, in whose log starts after kills may stand
    assert cost["images_per_second"] == pytest.approx(4 * 128 / 0.2)
    assert cost["minutes"] == pytest.approx(48 * 128 / cost["images_per_second"] / 60)
    assert cost["memory_gb"] == 1.5

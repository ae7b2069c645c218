"""Mutual information by binning against loops, and the published program's mistake."""

import json
import math

from src.evaluation.information import information
from tests.helpers import run
from tests.scripts.test_evaluations import checkpoint  # noqa: F401 - a fixture

import numpy as np
import pytest
import torch


def codes_of(outputs, bins):
    e = np.exp(outputs - outputs.max(1, keepdims=True))
    p = e / e.sum(1, keepdims=True)
    edges = np.linspace(0, 1, bins + 1)
    return [tuple(next(i for i, edge in enumerate(edges) if x <= edge) - 1 for x in row) for row in p]


def by_hand(codes, labels):
    """Loops over clusters and labels."""
    n = len(codes)
    clusters = {}
    for i, code in enumerate(codes):
        clusters.setdefault(code if -1 not in code else i, []).append(i)
    of_inputs = sum(len(rows) / n * math.log2(n / len(rows)) for rows in clusters.values())
    of_labels = 0.0
    for rows in clusters.values():
        for label in set(labels):
            joint = sum(labels[i] == label for i in rows) / n
            if joint:
                share = sum(one == label for one in labels) / n
                of_labels += joint * math.log2(joint / (len(rows) / n * share))
    return of_inputs, of_labels


@pytest.mark.parametrize("bins", [3, 30])
@pytest.mark.parametrize("scale", [1.0, 30.0, 3000.0])
def test_against_loops(bins, scale):
    generator = np.random.default_rng(0)
    outputs = scale * generator.normal(size=(60, 3)).round(1)
    outputs[40:] = outputs[:20]
    labels = generator.integers(0, 4, size=60)
    found = information(torch.tensor(outputs), torch.tensor(labels), bins)
    assert found == pytest.approx(by_hand(codes_of(outputs, bins), labels.tolist()), abs=1e-9)
    assert found[0] <= math.log2(60) + 1e-9


def test_distinct_rows_tell_all_about_their_input():
    outputs = torch.randn(1000, 10, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(1000) % 10
    xt, ty = information(outputs, labels, bins=10**6)
    assert xt == pytest.approx(9.9658, abs=1e-4)
    assert ty == pytest.approx(math.log2(10), abs=1e-6)
    assert information(torch.zeros(1000, 10), labels) == pytest.approx((0.0, 0.0), abs=1e-9)


def test_the_published_mistake():
    """A A B B: B's duplicate is compared with row 1, which is an A, so it founds a cluster."""
    a, b = [4.0, 0.0], [0.0, 4.0]
    outputs, labels = torch.tensor([a, a, b, b]), torch.tensor([0, 0, 1, 1])
    assert information(outputs, labels) == pytest.approx((1.0, 1.0))
    assert information(outputs, labels, compatible=True) == pytest.approx((1.5, 1.0))
    assert information(outputs[[0, 2, 1, 3]], labels[[0, 2, 1, 3]], compatible=True) == pytest.approx((1.0, 1.0))


def test_rows_with_a_probability_of_zero_are_alone():
    outputs = torch.tensor([[2000.0, 0.0], [2000.0, 0.0], [1.0, 0.0]])
    for compatible in (False, True):
        assert information(outputs, torch.tensor([0, 0, 1]), compatible=compatible)[0] == pytest.approx(math.log2(3))


@pytest.mark.parametrize("features", ["augmented", "cached"])
def test_it_is_measured_by_step_and_drawn(checkpoint, patches, tmp_path, features):  # noqa: F811
    base = [
        "eval_linear.py", "--data_path", patches, "--dump_path", tmp_path, "--workers", 0, "--pretrained", checkpoint,
        "--features", features, "--epochs", 2, "--batch_size", 32, "--lr", 0.5,
    ]  # fmt: skip
    result = run(*base, "--information_every", 2, "--information_images", 50)
    assert result.returncode == 0, result.stderr
    records = [json.loads(line) for line in (tmp_path / "linear" / "log.jsonl").read_text().splitlines()]
    measured = [r for r in records if "information_xt" in r]
    steps = [r["step"] for r in measured]
    assert steps[:2] == [2, 4]
    assert len(set(steps)) == len(steps)
    assert all(0 <= r["information_ty"] <= r["information_xt"] <= math.log2(50) + 1e-9 for r in measured)
    assert (tmp_path / "linear" / "information.png").stat().st_size > 5000

import importlib
import math

from src.engine.diagnostics import Check, HealthMonitor, feature_std, mean_entropy, rankme, singular_values
from tests.built import built

import numpy as np
import pytest
import torch


def test_feature_std_is_one_on_the_sphere_and_zero_at_a_point():
    torch.manual_seed(0)
    assert feature_std(torch.randn(4000, 64)).item() == pytest.approx(1.0, abs=0.02)
    assert feature_std(torch.ones(10, 64)).item() == pytest.approx(0.0, abs=1e-5)


def test_rankme_counts_directions():
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(32, 5)).Q
    codes = torch.linalg.qr(torch.randn(200, 5)).Q
    assert rankme(codes @ basis.T).item() == pytest.approx(5.0, rel=1e-3)
    assert rankme(torch.ones(200, 32)).item() == pytest.approx(1.0, rel=1e-3)
    s = np.linalg.svd(codes.numpy() @ np.diag([5, 1, 1, 1, 1.0]), compute_uv=False)
    p = s / s.sum()
    expected = math.exp(-(p * np.log(p)).sum())
    assert rankme(codes @ torch.diag(torch.tensor([5, 1, 1, 1, 1.0]))).item() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_has_no_rank_and_raises_nothing(bad):
    rows = torch.randn(8, 4)
    rows[3, 2] = bad
    assert math.isnan(rankme(rows).item())
    assert singular_values(rows).isnan().all()


def test_mean_entropy():
    assert mean_entropy(torch.full((4, 10), 0.1)).item() == pytest.approx(math.log(10), rel=1e-5)
    assert mean_entropy(torch.eye(4)).item() == 0.0


def test_a_verdict_needs_patience_and_comes_after_the_grace():
    check = Check("low", lambda v: v["x"] < 1, lambda v: f"x is {v['x']}.", "Raise it.")
    health = HealthMonitor([check], grace=100, patience=3)
    assert [health.update(step, {"x": 0}) for step in range(0, 100, 10)] == [[]] * 10
    assert health.update(100, {"x": 0}) == []
    assert health.update(110, {"x": 0}) == []
    assert health.update(120, {"x": 0}) == ["x is 0. Raise it."]
    assert health.update(130, {"x": 0}) == []
    assert health.update(140, {"x": 5}) == []  # recovered: counting starts again
    assert [health.update(step, {"x": 0}) for step in (150, 160, 170)] == [[], [], ["x is 0. Raise it."]]


# Each method's remedies, by a word of theirs
ADVICE = {
    "main_swav.py --batch_size 16": "--epsilon",
    "main_swav.py --method deepcluster-v2 --batch_size 16": "softer crops",
    "main_intl.py --bs 16": "more groups",
    "main_cwrgp.py --method cwrgp --bs 512": "more groups",
    "main_cwrgp.py --method contrastive --bs 16": "warm-up",
    "main_cwrgp.py --method byol --bs 16": "--byol_tau",
    "main_disco.py --batch_size 16": "--moco_k",
    "main_w2ssl.py --batch_size 16": "--loss_t",
}


@pytest.mark.parametrize("line", ADVICE)
def test_embeddings_on_a_line_are_a_collapse_and_the_advice_is_the_methods(line):
    script, _, words = line.partition(" ")
    method = built(importlib.import_module(script.removesuffix(".py")), f"--data_path /x {words}").training["method"]
    healthy = {"loss": 2.0, "assignment_entropy": 1.0, "feature_std": 0.9, "rankme": 40.0, "largest_cluster": 0.1}
    (check,) = method.health_checks()
    assert not check.failed(healthy)
    assert check.failed({**healthy, "rankme": 1.8})
    assert ADVICE[line] in check.advice
    assert ("groups" in check.advice) == ("groups" in ADVICE[line])
    assert "1.8" in check.verdict({**healthy, "rankme": 1.8})

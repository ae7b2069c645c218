"""Scores without labels against their formulas in float64, written out pair by pair."""

import itertools
import json
import math

import eval_scores
import main_swav
from src.checkpoints.run_file import read_run
from src.engine.diagnostics import rankme
from src.engine.monitor import read_log
from src.evaluation import scores
from src.evaluation.probe import linear_probe
from src.evaluation.score_trust import MEASURED, in_words, most_trusted
from tests.helpers import run
from tests.scripts.test_splits import METHODS

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.datasets import make_blobs
from sklearn.linear_model import LogisticRegression


@pytest.fixture
def features():
    """(N, V, F) with structure."""
    rng = np.random.default_rng(0)
    means = rng.normal(size=(60, 1, 8)) * np.linspace(2, 0.1, 8)
    return torch.tensor(means + 0.3 * rng.normal(size=(60, 5, 8)))


def test_alignment(features):
    unit = (features / features.norm(dim=2, keepdim=True)).numpy()
    pairs = [((x[i] - x[j]) ** 2).sum() for x in unit for i, j in itertools.combinations(range(5), 2)]
    assert scores.alignment(features) == pytest.approx(np.mean(pairs))


def test_uniformity(features):
    x = features[:, 0].numpy()
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    values = [math.exp(-2 * ((a - b) ** 2).sum()) for a, b in itertools.combinations(unit, 2)]
    assert scores.uniformity(features[:, 0]) == pytest.approx(math.log(np.mean(values)))


def test_lidar(features):
    x = features.numpy()
    means = x.mean(axis=1)
    within = sum(np.cov(views, rowvar=False) for views in x) / len(x)
    within += 1e-4 * np.diag(within).mean() * np.eye(8)
    root = scipy.linalg.inv(scipy.linalg.sqrtm(within)).real
    values = np.linalg.eigvalsh(root @ np.cov(means, rowvar=False) @ root)
    p = values / values.sum() + 1e-7
    assert scores.lidar(features) == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-6)
    assert scores.lidar(features * 1000) == pytest.approx(scores.lidar(features), rel=1e-6)


def test_alpha_req_finds_the_exponent_of_a_power_law():
    rng = np.random.default_rng(0)
    for alpha in (0.5, 1.0, 2.0):
        basis = np.linalg.qr(rng.normal(size=(400, 30)) - 0)[0]
        basis -= basis.mean(axis=0)
        basis = np.linalg.qr(basis)[0]
        x = basis * np.arange(1, 31) ** (-alpha / 2)
        assert scores.alpha_req(torch.tensor(x)) == pytest.approx(alpha, abs=1e-6)


def test_cluster_stability():
    blobs = torch.tensor(make_blobs(400, 16, centers=10, cluster_std=0.1, random_state=0)[0])
    noise = torch.randn(400, 16, generator=torch.Generator().manual_seed(0))
    assert scores.cluster_stability(blobs) > 0.95
    assert scores.cluster_stability(noise) < 0.5
    assert scores.cluster_stability(noise) == scores.cluster_stability(noise)
    assert math.isnan(scores.cluster_stability(torch.ones(400, 16)))  # nothing is the same every time, too


def test_all_together(features):
    found = scores.scores_of(features.repeat(2, 1, 1))
    assert list(found) == [score.name for score in scores.SCORES]
    assert found["rankme"] == pytest.approx(float(rankme(features[:, 0].repeat(2, 1))))
    assert found["alignment"] == pytest.approx(scores.alignment(features[:, 1:]))


@pytest.mark.parametrize("bad", [torch.zeros(60, 5, 8), torch.full((60, 5, 8), math.nan)])
def test_features_that_are_none_have_no_scores(bad):
    found = scores.scores_of(bad)
    assert all(math.isnan(found[name]) for name in ("alpha_req", "lidar", "cluster_stability"))


def test_every_score_has_a_trust_on_all_data():
    for trusts in MEASURED.values():
        assert list(trusts) == [score.name for score in scores.SCORES]
        for one in trusts.values():
            assert all(low <= value <= high for value, low, high in (one.across, one.within))
            assert one.regret >= 0
    assert most_trusted() in {score.name for score in scores.SCORES}
    assert in_words((0.7, -0.9, 0.75)) == "0.70 (-0.90 to 0.75)"


def test_the_probe_is_scikit_learns():
    x, y = make_blobs(300, 6, centers=4, cluster_std=4.0, random_state=1)
    x = x * np.array([1, 10, 0.1, 1, 1, 5])
    train, test = torch.tensor(x[:200]), torch.tensor(x[200:])
    logits = linear_probe(train, torch.tensor(y[:200]), test, 4, decay=1e-2)
    mean, std = x[:200].mean(axis=0), x[:200].std(axis=0)
    known = LogisticRegression(C=1 / (1e-2 * 200), max_iter=5000, tol=1e-8).fit((x[:200] - mean) / std, y[:200])
    ours = logits.softmax(dim=1).numpy()
    np.testing.assert_allclose(ours, known.predict_proba((x[200:] - mean) / std), atol=2e-4)


def test_a_feature_that_never_changes_does_the_probe_no_harm():
    x, y = make_blobs(100, 3, centers=2, random_state=1)
    x = torch.cat([torch.tensor(x), torch.full((100, 1), 7.0)], dim=1)
    logits = linear_probe(x, torch.tensor(y), x, 2)
    assert torch.isfinite(logits).all()
    assert (logits.argmax(dim=1) == torch.tensor(y)).float().mean() > 0.95


JUDGED = ["--knn_freq", 1, "--knn_k", 3, "--probe_freq", 1, "--scores_freq", 2, "--scores_images", 60]


def train(name, patches, folder, *more):
    words = [*METHODS[name][1].format(own=32).split(), "--data_path", patches / "train", "--dump_path", folder, *more]
    return main_swav.main([str(word) for word in words])


def test_judging_touches_nothing_of_the_training(patches, tmp_path):
    for folder, more in (("plain", []), ("judged", JUDGED)):
        assert train("swav-queue", patches, tmp_path / folder, *more) == 0
    ours, theirs = (read_run(tmp_path / folder / "checkpoint.pth.tar") for folder in ("plain", "judged"))
    assert all(torch.equal(tensor, theirs["state_dict"][name]) for name, tensor in ours["state_dict"].items())
    random = [[rank["rng"] for rank in content["per_rank"]] for content in (ours, theirs)]
    assert str(random[0]) == str(random[1])
    records = read_log(tmp_path / "judged" / "log.jsonl", "evaluation")
    assert [{"knn_top1", "probe_top1"} <= set(record) for record in records] == [True, True]
    assert ["rankme" in record for record in records] == [False, True]


def test_scores_need_no_labels(patches, tmp_path, capsys):
    """Neither in the folder that is trained on, nor in the one that is looked at."""
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, path in enumerate(sorted((patches / "train").glob("*/*.png"))):
        (flat / f"{number:03d}.png").symlink_to(path)
    words = METHODS["swav"][1].format(own=32).split()
    more = ["--data_path", flat, "--dump_path", tmp_path / "run", "--scores_freq", 1, "--scores_images", 60]
    assert main_swav.main([str(word) for word in [*words, *more]]) == 0
    assert "lidar" in read_log(tmp_path / "run" / "log.jsonl", "evaluation")[0]
    assert "warning: --scores_freq scores training images" in capsys.readouterr().err


def test_eval_scores(patches, tmp_path, capsys):
    words = ["--arch", "resnet18", "--width", 0.0625, "--stem", "small", "--device", "cpu", "--workers", 0,
             "--crop_size", 16, "--dump_path", tmp_path]  # fmt: skip
    assert eval_scores.main([str(word) for word in [patches / "train", *words]]) == 0
    said = capsys.readouterr().out
    assert "96 images" in said
    assert all(score.title in said for score in scores.SCORES)
    content = json.loads((tmp_path / "scores.json").read_text())
    assert set(content["scores"]) == {score.name for score in scores.SCORES}
    with pytest.raises(eval_scores.UserError, match="has 32 images, and scores need 50"):
        eval_scores.main([str(word) for word in [patches / "test", *words]])


@pytest.mark.slow
def test_two_ranks_score_as_one(patches, tmp_path):
    found = []
    for ranks in (0, 2):
        words = ["eval_scores.py", patches / "train", "--arch", "resnet18", "--width", 0.0625, "--stem", "small",
                 "--device", "cpu", "--workers", 0, "--crop_size", 16]  # fmt: skip
        words += ["--dump_path", tmp_path / str(ranks)]
        result = run(*words, ranks=ranks)
        assert result.returncode == 0, result.stderr
        found.append(json.loads((tmp_path / str(ranks) / "scores.json").read_text())["scores"])
    assert found[0] == pytest.approx(found[1], rel=1e-4)

"""Scores of clusters against brute force and scikit-learn; heads out of checkpoints; the script on real images."""

import itertools
import json

import eval_cluster
from src.checkpoints.state import RunState
from src.checkpoints.store import CheckpointStore
from src.clock import Clock
from src.errors import UserError
from src.evaluation.class_heads import load_class_head
from src.evaluation.clustering import clustering_scores, contingency, match
from src.methods.deepcluster import DeepClusterV2
from src.methods.swav import SwAV
from src.methods.twist import Twist
from src.models.backbones import create_backbone
from src.models.heads import TwistHead
from src.optim.larc import LARC
from tests.helpers import run
from tests.scripts.test_bad_input import fails

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn import metrics
from torch.nn import functional as F


@pytest.mark.parametrize("clusters", [3, 4, 6])
def test_accuracy_is_that_of_the_best_matching(clusters):
    rng = np.random.default_rng(clusters)
    labels = rng.integers(0, 4, 60)
    found = np.where(rng.random(60) < 0.5, labels % clusters, rng.integers(0, clusters, 60))
    best = 0.0
    names = [*range(4), *[-1] * clusters]  # a class each, or none
    for classes in set(itertools.permutations(names, clusters)):
        best = max(best, np.mean(np.array(classes)[found] == labels))
    scores = clustering_scores(torch.tensor(found), torch.tensor(labels))
    assert scores["acc"] == pytest.approx(100 * best)
    assert scores["nmi"] == pytest.approx(100 * metrics.normalized_mutual_info_score(labels, found))
    assert scores["ami"] == pytest.approx(100 * metrics.adjusted_mutual_info_score(labels, found))
    assert scores["ari"] == pytest.approx(100 * metrics.adjusted_rand_score(labels, found))
    assert scores["fmi"] == pytest.approx(100 * metrics.fowlkes_mallows_score(labels, found))
    if clusters > 4:
        majority = sum(np.bincount(labels[found == k]).max() for k in range(clusters) if (found == k).any()) / 60
        assert scores["purity"] == pytest.approx(100 * majority)
    else:
        assert "purity" not in scores


def test_any_names_of_the_same_clusters_score_alike():
    labels = torch.arange(40) % 4
    names = torch.tensor([2, 0, 3, 1])
    scores = clustering_scores(names[labels], labels)
    assert all(value == pytest.approx(100) for value in scores.values())
    assert match(contingency(names[labels], labels))[names].tolist() == [0, 1, 2, 3]


def test_an_image_counts_once_in_the_top_five():
    labels = torch.arange(12) % 2
    probabilities = F.one_hot(labels, 8).float() + 0.01 * torch.rand(12, 8)  # six clusters more than classes
    scores = clustering_scores(probabilities.argmax(1), labels, probabilities=probabilities)
    assert scores["top5"] == 100
    swapped = torch.tensor([0, 1] * 6)
    swapped[0] = 1
    uncertain = F.one_hot(swapped, 2).float()
    assert clustering_scores(swapped, labels, probabilities=uncertain)["top5"] == 100
    assert clustering_scores(swapped, labels, probabilities=uncertain)["acc"] == pytest.approx(100 * 11 / 12)


def test_images_of_no_class_are_in_the_last_column():
    table = torch.tensor([[3, 0], [0, 4], [1, 2]])
    classes = match(table)
    assert classes.tolist() == [0, 1, -1]
    assert eval_cluster.confusion(table, classes).tolist() == [[3, 0, 1], [0, 4, 2]]


# ------------------------------------------------------------------------------------------------ heads in files

SETTINGS = {"arch": "resnet18", "width": 0.125, "stem": "small", "eval_size": 32, "eval_resize": 32}


def backbone():
    torch.manual_seed(0)
    return create_backbone("resnet18", width=0.125, stem="small")


def saved(trained, folder, **settings):
    state = RunState(trained, LARC(trained.parameters()), torch.amp.GradScaler("cpu", enabled=False), Clock(10, 4), 8)
    CheckpointStore(folder, {**SETTINGS, **settings}).save(state)
    return folder / "checkpoint.pth.tar"


def twist(**options):
    return Twist(backbone(), TwistHead(64, 16, 6, activation="gelu"), mme_epochs=1, **options).eval()


def test_twists_head_of_ours_and_of_its_teacher(tmp_path):
    method = twist(momentum=0.9)
    with torch.no_grad():
        method.teacher.projection_heads.last_linear.bias.add_(torch.arange(6.0))
    path = saved(method, tmp_path, method="twist", act="gelu", tau=0.5)
    features = torch.randn(4, 64)
    for key, head in (("auto", method.projection_heads), ("teacher_backbone", method.teacher.projection_heads.eval())):
        found = load_class_head(path, key)
        assert (found.classes, found.temperature) == (6, 0.5)
        torch.testing.assert_close(found.module(features)[1], head(features)[1])


@pytest.mark.parametrize("legacy", [False, True])
def test_twists_published_full_checkpoint(tmp_path, legacy):
    method = twist()
    state = method.state_dict()
    if legacy:
        state = {
            n.replace("projection_heads.last_linear", "projection_heads.cls_heads.0.0").replace(
                "projection_heads.norm", "projection_heads.cls_heads.0.1"
            ): t
            for n, t in state.items()
        }
    content = {"model": state, "backbone": method.backbone.state_dict(), "epoch": 849}
    torch.save(content, tmp_path / "twist.pth")
    found = load_class_head(tmp_path / "twist.pth", activation="gelu")
    features = torch.randn(4, 64)
    torch.testing.assert_close(found.module(features)[1], method.projection_heads(features)[1])
    assert load_class_head(tmp_path / "twist.pth").module.projection_head[2].__class__.__name__ == "ReLU"
    torch.save({"backbone": method.backbone.state_dict()}, tmp_path / "backbone.pth")
    assert load_class_head(tmp_path / "backbone.pth") is None


def test_prototypes_are_classes_too(tmp_path):
    options = {"hidden_mlp": 16, "feat_dim": 8}
    swav = SwAV(backbone(), nmb_prototypes=5, **options).eval()
    clusters = DeepClusterV2(backbone(), nmb_prototypes=[5, 4], num_images=9, bank_rows=8, **options).eval()
    torch.save({f"module.{n.removeprefix('backbone.')}": t for n, t in swav.state_dict().items() if n != "queue"},
               tmp_path / "published.pth")  # fmt: skip
    for method, path, temperature in (
        (swav, saved(swav, tmp_path / "a", method="swav", temperature=0.2), 0.2),
        (swav, tmp_path / "published.pth", 0.1),
        (clusters, saved(clusters, tmp_path / "b", method="deepcluster-v2", temperature=0.1), 0.1),
    ):
        found = load_class_head(path)
        assert (found.classes, found.temperature) == (5, temperature)
        images = torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            expected = method.prototypes.heads()[0](method.embed([images]))
            torch.testing.assert_close(found.module(method.backbone(images)), expected)


# ------------------------------------------------------------------------------------------------ the script


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return saved(twist(), tmp_path_factory.mktemp("run"), method="twist", act="gelu", tau=1.0)


@pytest.mark.parametrize("extra", [[], ["--kmeans", 5]])
def test_eval_cluster(checkpoint, patches, tmp_path, extra):
    result = run("eval_cluster.py", patches, checkpoint, "--dump_path", tmp_path, "--workers", 0, *extra)
    assert result.returncode == 0, result.stderr
    written = json.loads((tmp_path / "cluster.json").read_text())
    assert f"nmi {written['scores']['nmi']:.2f} %" in result.stdout
    assert written["images"] == 32
    lines = (tmp_path / "predictions.csv").read_text().splitlines()
    assert len(lines) == 33
    assert lines[0] == "image,cluster,class,true class"
    assert (tmp_path / "top.png").exists() == ("--kmeans" not in extra)
    for name in ("clusters.png", "confusion.png", *(["top.png"] if "--kmeans" not in extra else [])):
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 100


@pytest.mark.slow
def test_two_ranks_judge_as_one(checkpoint, patches, tmp_path):
    base = ["eval_cluster.py", patches, checkpoint, "--workers", 0, "--batch_size", 5, "--mosaic", 0]
    found = []
    for ranks in (1, 2):
        result = run(*base, "--dump_path", tmp_path / str(ranks), ranks=ranks)
        assert result.returncode == 0, result.stderr
        found.append(json.loads((tmp_path / str(ranks) / "cluster.json").read_text()))
    assert found[0] == found[1]


@pytest.mark.parametrize(("extra", "message"), [
    (["--arch", "resnet18"], "have no head that makes classes"),
    (["--pretrained", "{checkpoint}", "--kmeans", "33"], "there are only 32 images"),
    (["--pretrained", "{checkpoint}", "--tau", "0"], "expected a number above 0"),
    (["--pretrained", "{checkpoint}", "--key", "teacher_backbone"], "has no 'teacher_backbone'"),
    (["--pretrained", "{checkpoint}", "--kmeans", "0"], "expected a whole number from 1"),
])  # fmt: skip
def test_bad_input(checkpoint, patches, tmp_path, capsys, extra, message):
    base = ["--data_path", patches, "--dump_path", tmp_path, "--workers", 0, "--device", "cpu"]
    fails(eval_cluster.main, [*base, *[e.format(checkpoint=checkpoint) for e in extra]], capsys, message)


def test_a_torn_head_is_refused(tmp_path):
    state = twist().state_dict()
    del state["projection_heads.last_linear.bias"]
    torch.save({"model": state}, tmp_path / "torn.pth")
    with pytest.raises(UserError, match="1 missing"):
        load_class_head(tmp_path / "torn.pth")
    del state["projection_heads.last_linear.weight"]
    torch.save({"model": state}, tmp_path / "torn.pth")
    with pytest.raises(UserError, match=r"lacks last_linear\.weight"):
        load_class_head(tmp_path / "torn.pth")

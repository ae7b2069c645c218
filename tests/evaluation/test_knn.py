from functools import partial

from src.data.datasets import FolderImages
from src.data.loading import loader_of
from src.data.to_device import ToDevice
from src.data.views import CentreView, Picture
from src.errors import UserError
from src.evaluation.features import extract_features
from src.evaluation.knn import knn_accuracy, knn_predict, nearest_majority, over_ranks, top_k_accuracy
from src.evaluation.online import LabelledEvaluation
from src.parallel import collectives
from tests.helpers import on_ranks

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

PREPARE = ToDevice(torch.device("cpu"), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
VIEW = CentreView(16, 16)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize("chunk", [7, 1000])
def test_agrees_with_scikit_learn(temperature, chunk):
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(200, 8)), rng.normal(size=(50, 8))
    train, test = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, test))
    labels = rng.integers(0, 5, 200)
    votes = knn_predict(
        torch.tensor(train), torch.tensor(labels), torch.tensor(test), ks=[1, 10, 20], num_classes=5,
        temperature=temperature, chunk=chunk,
    )  # fmt: skip
    for k, scores in votes.items():
        # on the unit sphere cosine is 1 - distance^2 / 2
        reference = KNeighborsClassifier(k, weights=lambda d: np.exp((1 - d**2 / 2 - 1) / temperature))
        expected = reference.fit(train, labels).predict_proba(test)
        np.testing.assert_allclose(scores / scores.sum(1, keepdims=True), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("k", [1, 4, 5])
def test_the_majority_rule_is_scikit_learns_with_ties_to_the_smallest_class(k):
    """INTL's and CW-RGP's rule; coarse labels at random make many ties."""
    rng = np.random.default_rng(0)
    train, test, labels = rng.normal(size=(200, 8)), rng.normal(size=(300, 8)), rng.integers(0, 5, 200)
    votes = nearest_majority(
        torch.tensor(train), torch.tensor(labels), torch.tensor(test), ks=[k, 1], num_classes=5, chunk=7
    )[k]
    expected = KNeighborsClassifier(k).fit(train, labels).predict(test)  # mode of the labels, ties to the smallest
    np.testing.assert_array_equal(votes.argmax(dim=1), expected)
    far = torch.tensor([[10.0, 10.0], [0.1, 0.1]])  # the direction of the test sample, but far from it
    nearest = nearest_majority(far, torch.tensor([0, 1]), torch.tensor([[0.2, 0.0]]), ks=[1], num_classes=2)[1]
    assert nearest.argmax() == 1


@pytest.mark.parametrize("majority", [False, True])
def test_training_judges_by_either_rule(patches, majority):
    backbone = nn.Sequential(nn.AvgPool2d(4), nn.Flatten())
    train, test = FolderImages(patches / "train"), FolderImages(patches / "test")
    judge = partial(knn_accuracy, k=5, majority=majority)
    evaluation = LabelledEvaluation(train, test, VIEW, PREPARE, [judge], batch_size=16, workers=0)
    (x, y, *_), (z, labels, *_) = (
        extract_features(backbone, loader_of(s, VIEW, 16, 0, torch.device("cpu")), PREPARE) for s in (train, test)
    )
    rule = nearest_majority if majority else knn_predict
    scores = rule(x, y, z, ks=[5], num_classes=4)[5]
    assert evaluation(backbone) == {"knn_top1": pytest.approx(top_k_accuracy(scores, labels, 1))}


def _shared_out(train, labels, test):
    predict = partial(knn_predict, torch.tensor(train), torch.tensor(labels), ks=[3], num_classes=5)
    seen = []

    def counted(part):
        seen.append(len(part))
        return predict(part)

    return over_ranks(counted, torch.tensor(test))[3].numpy(), sum(seen)


def test_ranks_share_the_test_samples():
    rng = np.random.default_rng(0)
    arguments = rng.normal(size=(50, 8)), rng.integers(0, 5, 50), rng.normal(size=(31, 8))
    alone, _ = _shared_out(*arguments)
    both = on_ranks(2, _shared_out, *arguments)
    for scores, _ in both:
        np.testing.assert_allclose(scores, alone, rtol=1e-6)
    assert [seen for _, seen in both] == [16, 15]


def test_more_neighbours_than_images_is_refused():
    with pytest.raises(UserError, match="needs as many training images"):
        knn_predict(torch.randn(5, 2), torch.zeros(5).long(), torch.randn(2, 2), ks=[6], num_classes=1)


def test_top_k_accuracy():
    scores = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.4, 0.35, 0.25], [0.2, 0.3, 0.5]])
    labels = torch.tensor([0, 1, 2, 0])
    assert [top_k_accuracy(scores, labels, k) for k in (1, 2, 3, 5)] == [25, 50, 100, 100]
    unvoted = torch.tensor([[0.0, 2.0, 0.0], [0.0, 2.0, 0.0]])  # classes without a vote are no answer
    assert top_k_accuracy(unvoted, torch.tensor([1, 0]), 3) == 50


def _features(root):
    backbone = nn.Sequential(nn.AvgPool2d(4), nn.Flatten())
    source = FolderImages(root)
    features, labels, *_ = extract_features(backbone, loader_of(source, VIEW, 5, 0, torch.device("cpu")), PREPARE)
    return features.numpy(), labels.numpy()


def test_features_come_in_the_order_of_the_images_on_any_number_of_ranks(patches):
    features, labels = _features(patches / "test")
    source = FolderImages(patches / "test")
    assert labels.tolist() == list(source.labels)
    pixels = VIEW.cut(Picture(source.open(9)), None)
    expected = nn.functional.avg_pool2d((pixels[None] / 255 - 0.5) / 0.5, 4).flatten()
    np.testing.assert_allclose(features[9], expected, rtol=1e-4, atol=1e-5)
    for ranks in (2, 3):  # 32 images do not divide by 3
        for rank_features, rank_labels in on_ranks(ranks, _features, patches / "test"):
            np.testing.assert_array_equal(rank_labels, labels)
            np.testing.assert_allclose(rank_features, features, rtol=1e-6)


def test_extraction_uses_eval_mode_and_restores_the_mode(patches):
    backbone = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten())
    backbone.train()
    source = FolderImages(patches / "test")
    extract_features(backbone, loader_of(source, VIEW, 8, 0, torch.device("cpu")), PREPARE)
    assert backbone.training
    assert backbone[0].num_batches_tracked == 0


def test_online_evaluation(patches):
    train, test = FolderImages(patches / "train"), FolderImages(patches / "test")
    evaluation = LabelledEvaluation(train, test, VIEW, PREPARE, [partial(knn_accuracy, k=5)], workers=0)
    values = evaluation(nn.Flatten())
    assert set(values) == {"knn_top1"}
    assert 25 < values["knn_top1"] <= 100  # four classes that differ in colour
    perfect = LabelledEvaluation(train, train, VIEW, PREPARE, [partial(knn_accuracy, k=1)], workers=0)
    assert perfect(nn.Flatten())["knn_top1"] == 100.0
    assert not collectives.is_active()


def test_unreadable_images_are_counted_and_named(tmp_path, patches, capsys):
    for i, path in enumerate(sorted((patches / "test" / "leaf").iterdir())[:4]):
        (tmp_path / f"{i}.png").write_bytes(path.read_bytes() if i != 1 else b"broken")
    features, labels = _features(tmp_path)
    assert len(features) == len(labels) == 3
    err = capsys.readouterr().err
    assert "1 images cannot be read and are left out" in err
    assert str(tmp_path / "1.png") in err
    _features(patches / "test")
    assert capsys.readouterr().err == ""

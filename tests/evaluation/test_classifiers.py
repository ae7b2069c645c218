import copy

from src.clock import Clock
from src.data.loading import Batch, make_loader
from src.data.sampling import SequentialBatches
from src.errors import UserError
from src.evaluation.classifiers import Classifier, LinearProbe, evaluate_classifiers, fit_logistic_regression
from src.evaluation.features import FeatureDataset, Features
from src.models.backbones import create_backbone
from src.parallel import collectives
from tests.helpers import on_ranks

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

CLOCK = Clock(10, 1, logging=True)


def feature_batch(n=20, width=6, classes=3):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, classes, (n,), generator=generator)
    return Batch([torch.randn(n, width, generator=generator)], labels, torch.arange(n))


def test_each_learning_rate_trains_as_if_alone():
    batch = feature_batch()
    torch.manual_seed(0)
    probe = LinearProbe(None, 6, 3, [0.1, 1.0])
    singles = copy.deepcopy(probe.classifiers)
    together = torch.optim.SGD(probe.parameter_groups(), lr=1.0, momentum=0.9, weight_decay=1e-3)
    for group in together.param_groups:
        group["lr"] = group["lr_scale"]
    alone = [
        torch.optim.SGD(single.parameters(), lr=rate, momentum=0.9, weight_decay=1e-3)
        for single, rate in zip(singles, [0.1, 1.0], strict=True)
    ]
    for _ in range(4):
        probe(batch, CLOCK)["loss"].backward()
        together.step()
        together.zero_grad()
        for single, optimizer in zip(singles, alone, strict=True):
            F.cross_entropy(single(batch.crops[0]), batch.labels).backward()
            optimizer.step()
            optimizer.zero_grad()
    for a, b in zip(probe.classifiers.parameters(), singles.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_initial_weights_and_names_are_the_published_ones():
    classifier = Classifier(2048, 1000)
    assert {n: tuple(p.shape) for n, p in classifier.named_parameters()} == {
        "linear.weight": (1000, 2048), "linear.bias": (1000,),
    }  # fmt: skip
    assert classifier.linear.weight.std().item() == pytest.approx(0.01, rel=0.01)
    assert (classifier.linear.bias == 0).all()
    assert Classifier(16, 10, pooled=True, use_bn=True).bn is None  # without effect there, as published
    assert Classifier(16, 10, pooled=False, use_bn=True).linear.in_features == 64


def test_unpooled_features_are_four_positions():
    torch.manual_seed(0)
    backbone = create_backbone("resnet18", width=0.125)
    probe = LinearProbe(backbone, 64, 3, [0.3], pooled=False, use_bn=True)
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        expected = F.avg_pool2d(backbone.feature_map(images), 6, stride=1)
        assert expected.shape == (2, 64, 2, 2)
        probe.classifiers[0].bn.eval()
        logits = probe.classifiers[0].linear(probe.classifiers[0].bn(expected).flatten(1))
        torch.testing.assert_close(probe.logits(images)[0], logits)
    with pytest.raises(UserError, match="feature map"):
        LinearProbe(nn.Identity(), 6, 3, [0.3], pooled=False)


def test_the_backbone_stays_as_it_is():
    backbone = create_backbone("resnet18", width=0.125)
    before = copy.deepcopy(backbone.state_dict())
    probe = LinearProbe(backbone, 64, 3, [0.3]).train()
    batch = Batch([torch.randn(4, 3, 32, 32)], torch.tensor([0, 1, 2, 0]), torch.arange(4))
    probe(batch, CLOCK)["loss"].backward()
    assert all(torch.equal(a, b) for a, b in zip(before.values(), backbone.state_dict().values(), strict=True))
    assert all(p.grad is None for p in backbone.parameters())
    assert not any("backbone" in name for name in probe.state_dict())


def _evaluate(features, labels, batch_size):
    torch.manual_seed(0)
    probe = LinearProbe(None, 4, 8, [0.1, 2.0])
    for i, classifier in enumerate(probe.classifiers):
        nn.init.normal_(classifier.linear.weight, std=1.0 + i)
    dataset = FeatureDataset(Features(torch.tensor(features), torch.tensor(labels), torch.arange(len(labels)), []))
    shares = SequentialBatches(len(dataset), batch_size, rank=collectives.rank(), world_size=collectives.world_size())
    values = evaluate_classifiers(probe, make_loader(dataset, shares, workers=0), lambda batch: batch).values
    logits = probe.logits(torch.tensor(features)).detach().numpy()
    return values, logits, probe.best_top1.numpy()


def test_accuracy_is_counted_exactly_on_any_number_of_ranks():
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(37, 4)).astype(np.float32), rng.integers(0, 8, 37)
    values, logits, best = _evaluate(features, labels, 10)
    for i, rate in enumerate(("0.1", "2")):
        ranking = np.argsort(-logits[i], axis=1)
        top1 = 100 * np.mean(ranking[:, 0] == labels)
        assert values[f"top1_lr_{rate}"] == pytest.approx(top1)
        assert values[f"top5_lr_{rate}"] == pytest.approx(100 * np.mean((ranking[:, :5] == labels[:, None]).any(1)))
        log_p = logits[i] - np.log(np.exp(logits[i]).sum(1, keepdims=True))
        assert values[f"loss_lr_{rate}"] == pytest.approx(-log_p[np.arange(37), labels].mean(), rel=1e-5)
        assert best[i] == pytest.approx(top1, rel=1e-6)
    for rank_values, _, _ in on_ranks(2, _evaluate, features, labels, 10):
        assert rank_values == pytest.approx(values, rel=1e-6)


@pytest.mark.parametrize("present", [[0, 1, 2], [0, 2], [1, 3]])
def test_logistic_regression_is_at_the_optimum(present):
    """The gradient of sum(cross entropy) + ||W||^2 / 2 over the classes that are there is zero."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor(present)[torch.randint(0, len(present), (60,), generator=generator)]
    features = torch.randn(60, 5, generator=generator) + labels[:, None]
    probe = LinearProbe(None, 5, 4, [0.1])
    fit_logistic_regression(probe, FeatureDataset(Features(features, labels, torch.arange(len(labels)), [])))
    linear = probe.classifiers[0].linear
    weight = linear.weight[present].detach().double().requires_grad_()
    bias = linear.bias[present].detach().double().requires_grad_()
    targets = torch.tensor([present.index(label) for label in labels.tolist()])
    scores = features.double() @ weight.T + bias
    # two classes have one vector, the difference, whose norm is penalised
    size = (weight[1] - weight[0]).square().sum() if len(present) == 2 else weight.square().sum()
    (F.cross_entropy(scores, targets, reduction="sum") + size / 2).backward()
    assert weight.grad.abs().max() < 0.01
    assert bias.grad.abs().max() < 0.01
    assert set(probe.logits(features)[0].argmax(dim=1).tolist()) <= set(present)

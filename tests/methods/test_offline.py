"""DeepCluster-v2 and SeLa-v2: bank, assignments, loss, each against its formula in float64."""

from src.clock import Clock
from src.data.loading import Batch
from src.losses.cluster_prediction import IGNORED, cluster_prediction_loss
from src.methods.deepcluster import DeepClusterV2
from src.methods.sela import SeLaV2, transport, transport_codes
from src.optim.larc import LARC
from tests.helpers import on_ranks

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

STEPS, B, N = 3, 4, 14  # two images are in no batch


class Tiny(nn.Module):
    feature_width = 6

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.bn = nn.BatchNorm2d(6)

    def forward(self, x):
        return F.adaptive_avg_pool2d(self.bn(self.conv(x)).relu(), 1).flatten(1)


def make(method=DeepClusterV2, **options):
    torch.manual_seed(0)
    options = {"nmb_prototypes": [5, 4, 3], "num_images": N, "bank_rows": STEPS * B, **options}
    return method(Tiny(), feat_dim=8, hidden_mlp=7, **options)


def batches(epoch=0, sizes=(8, 8, 6)):
    generator = torch.Generator().manual_seed(100 + epoch)
    images = torch.randperm(N, generator=generator)[: STEPS * B]
    for step in range(STEPS):
        indices = images[step * B : (step + 1) * B]
        crops = [torch.randn(B, 3, s, s, generator=generator) for s in sizes]
        yield Batch(crops, torch.zeros(B), indices)


def unit(rows, dim, seed):
    x = np.random.default_rng(seed).normal(size=(rows, dim))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


# ---------------------------------------------------------------------------------------------------- the loss


def test_the_loss_is_cross_entropy_over_all_crops_of_images_with_a_cluster():
    scores = np.random.default_rng(0).normal(size=(3, 4, 5))
    labels = np.array([2, IGNORED, 0, 4])
    logits = scores / 0.1
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -np.mean([log_p[v, b, labels[b]] for v in range(3) for b in (0, 2, 3)])
    ours = cluster_prediction_loss(torch.tensor(scores), torch.tensor(labels), 0.1)
    assert ours.item() == pytest.approx(expected, rel=1e-5)
    assert cluster_prediction_loss(torch.zeros(3, 4, 5), torch.tensor(labels), 0.1).item() == pytest.approx(np.log(5))


def test_a_batch_without_any_cluster_has_loss_and_gradient_zero():
    scores = torch.randn(3, 4, 5, requires_grad=True)
    loss = cluster_prediction_loss(scores, torch.full((4,), IGNORED), 0.1)
    loss.backward()
    assert loss.item() == 0
    assert scores.grad.abs().max() == 0


# ---------------------------------------------------------------------------------------------------- the bank


@pytest.mark.parametrize("method", [DeepClusterV2, SeLaV2])
def test_the_first_pass_fills_the_bank_crop_by_crop_in_train_mode(method):
    model, twin = make(method, crops_for_assign=[0, 2]), make(method, crops_for_assign=[0, 2])
    model.before_training(batches())
    for step, batch in enumerate(batches()):
        rows = slice(step * B, (step + 1) * B)
        for slot, crop in enumerate((0, 2)):
            with torch.no_grad():
                torch.testing.assert_close(model.bank[slot, rows], twin.embed([batch.crops[crop]]))
        assert model.bank_images[rows].tolist() == batch.indices.tolist()
    # batch-norm statistics have seen each assigned crop once, as those of the twin
    assert int(model.backbone.bn.num_batches_tracked) == 2 * STEPS
    torch.testing.assert_close(model.backbone.bn.running_mean, twin.backbone.bn.running_mean)


def test_every_step_overwrites_its_own_rows_also_after_a_resume():
    model = make()
    model.before_training(batches())
    model.before_epoch(Clock(STEPS, 2))
    for step, batch in enumerate(batches(1)):
        if step == 2:
            model.before_epoch(Clock(STEPS, 2, step))  # a resume inside the epoch
        before = model.bank.clone()
        with torch.no_grad():
            embeddings = make_copy(model).embed(batch.crops).view(3, B, -1)
            model(batch, Clock(STEPS, 2, step))
        rows = slice(step * B, (step + 1) * B)
        torch.testing.assert_close(model.bank[:, rows], embeddings[:2])
        assert model.bank_images[rows].tolist() == batch.indices.tolist()
        before[:, rows] = model.bank[:, rows]
        assert torch.equal(before, model.bank)


def make_copy(model):
    import copy

    return copy.deepcopy(model)


# ---------------------------------------------------------------------------------------------------- assignments


def reference_kmeans(x, c, iterations=10):
    for _ in range(iterations):
        labels = (x @ c.T).argmax(1)
        c = np.stack([x[labels == k].mean(0) if (labels == k).any() else c[k] for k in range(len(c))])
        c /= np.linalg.norm(c, axis=1, keepdims=True)
    return c, (x @ c.T).argmax(1)


def test_deepcluster_makes_centroids_the_prototypes_and_cycles_the_banks():
    model = make()
    model.before_training(batches())
    torch.manual_seed(5)
    model.before_epoch(Clock(STEPS, 2))
    torch.manual_seed(5)
    for h, head in enumerate(model.prototypes.heads()):
        x = model.bank[h % 2].double().numpy()
        start = x[torch.randperm(len(x))[: head.out_features].numpy()]
        centroids, labels = reference_kmeans(x, start)
        np.testing.assert_allclose(head.weight.detach().numpy(), centroids, atol=1e-6)
        expected = np.full(N, IGNORED)
        expected[model.bank_images.numpy()] = labels
        assert model.labels[h].tolist() == expected.tolist()
    assert (model.labels == IGNORED).sum() == 3 * (N - STEPS * B)


def test_assignments_are_made_at_the_start_of_an_epoch_only():
    model = make()
    model.before_training(batches())
    model.before_epoch(Clock(STEPS, 2))
    labels, weights = model.labels.clone(), model.prototypes.heads()[0].weight.detach().clone()
    model.bank.normal_()
    model.before_epoch(Clock(STEPS, 2, 1))
    assert torch.equal(model.labels, labels)
    model.before_epoch(Clock(STEPS, 2, STEPS))
    assert not torch.equal(model.prototypes.heads()[0].weight, weights)


def test_deepclusters_prototypes_are_never_trained_and_selas_are_after_the_freeze():
    for method, freeze, moves in ((DeepClusterV2, int(1e10), False), (SeLaV2, 1, True)):
        model = make(method, freeze_prototypes_niters=freeze)
        optimizer = LARC(model.parameters(), lr=1.0, weight_decay=0.1)
        model.before_training(batches())
        for step, batch in enumerate(batches(1)):
            clock = Clock(STEPS, 1, step)
            if step == 0:
                model.before_epoch(clock)
            model.before_step(clock)
            before = [head.weight.detach().clone() for head in model.prototypes.heads()]
            model(batch, clock)["loss"].backward()
            model.after_backward(clock)
            optimizer.step()
            optimizer.zero_grad()
            same = [torch.equal(a, head.weight) for a, head in zip(before, model.prototypes.heads(), strict=True)]
            assert same == [not (moves and step >= 1)] * 3


def test_the_loss_of_a_step_is_the_mean_over_heads():
    model = make()
    model.before_training(batches())
    model.before_epoch(Clock(STEPS, 2))
    batch = next(iter(batches(1)))
    twin = make_copy(model)
    z = twin.embed(batch.crops).detach().double()
    losses = []
    for head, labels in zip(twin.prototypes.heads(), twin.labels, strict=True):
        log_p = F.log_softmax(z @ head.weight.double().T / 0.1, dim=1)
        targets = labels[batch.indices].repeat(3)
        losses.append(-np.mean([log_p[i, t].item() for i, t in enumerate(targets.tolist()) if t != IGNORED]))
    assert model(batch, Clock(STEPS, 2))["loss"].item() == pytest.approx(np.mean(losses), rel=1e-4)


def reference_balanced_labels(x, c, epsilon, iterations, tolerance):
    m = np.exp((x @ c.T - 1) / epsilon)
    samples, clusters = m.shape
    per_sample = np.ones(samples)
    for i in range(iterations):
        r = 1 / (clusters * (m.T @ per_sample))
        updated = 1 / (samples * (m @ r))
        change = np.abs(per_sample / updated - 1).sum()
        per_sample = updated
        if i % 10 == 9 and change <= tolerance:
            break
    return (m * r).argmax(1), m * r * per_sample[:, None]


@pytest.mark.parametrize("epsilon", [0.05, 0.004])
@pytest.mark.parametrize("chunk_bytes", [1, 1 << 20])
def test_selas_labels_are_those_of_the_transport_plan(epsilon, chunk_bytes):
    x, c = unit(240, 8, 0) + 0.8, unit(6, 8, 1)  # crowded in one direction, so that balancing has work to do
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    expected, plan = reference_balanced_labels(x, c, epsilon, 200, 1e-3)
    told = []
    ours, log_scaling = transport(
        torch.tensor(x), torch.tensor(c), epsilon, 200, 1e-3, chunk_bytes=chunk_bytes, progress=lambda: told.append(1)
    )
    assert ours.tolist() == expected.tolist()
    assert 10 <= len(told) <= 200
    codes = transport_codes(torch.tensor(x), torch.tensor(c), epsilon, log_scaling)
    np.testing.assert_allclose(codes, plan / plan.sum(1, keepdims=True), rtol=1e-9, atol=1e-300)
    np.testing.assert_allclose(plan.sum(1), 1 / 240, rtol=1e-6)
    sizes, greedy = np.bincount(ours, minlength=6), np.bincount((x @ c.T).argmax(1), minlength=6)
    assert sizes.max() - sizes.min() < 0.5 * (greedy.max() - greedy.min())


def test_soft_codes_are_rows_of_the_plan_made_before_the_epoch():
    model = make(SeLaV2, nmb_prototypes=[5, 5, 5], hard=False, epsilon=0.1)
    model.before_training(batches())
    clock = Clock(STEPS, 2)
    model.before_epoch(clock)
    bank, images = model.bank.numpy().copy(), model.bank_images.tolist()
    prototypes = [head.weight.detach().numpy().astype(float).copy() for head in model.prototypes.heads()]
    model.train()
    for batch in batches():
        outputs = model(batch, clock)  # overwrites the bank, and prototypes move
        for head in model.prototypes.heads():
            head.weight.data.mul_(-1)
    for h in range(3):
        _, plan = reference_balanced_labels(bank[h % 2].astype(float), prototypes[h], 0.1, 100, 0.1)
        codes = model.targets(h, torch.tensor(images)).numpy()
        np.testing.assert_allclose(codes, plan / plan.sum(1, keepdims=True), rtol=1e-4)
        missing = sorted(set(range(N)) - set(images))
        assert (model.targets(h, torch.tensor(missing)) == 0).all()
    assert torch.isfinite(outputs["loss"])


def test_the_loss_of_soft_codes_is_their_cross_entropy():
    rng = np.random.default_rng(0)
    scores, codes = rng.normal(size=(3, 4, 5)), rng.dirichlet(np.ones(5), size=4)
    codes[1] = 0  # an image without a cluster
    logits = scores / 0.1
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -np.mean([(codes[b] * log_p[v, b]).sum() for v in range(3) for b in (0, 2, 3)])
    loss = cluster_prediction_loss(torch.tensor(scores), torch.tensor(codes).float(), 0.1)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


# ---------------------------------------------------------------------------------------------------- over ranks


def _assignments_of_a_rank(kind):
    from src.parallel import collectives

    rank, size = collectives.rank(), collectives.world_size()
    kinds = {
        "deepcluster": (DeepClusterV2, {}),
        "sela": (SeLaV2, {}),
        "sela, soft": (SeLaV2, {"hard": False, "nmb_prototypes": [4, 4]}),
    }
    method, options = kinds[kind]
    model = make(method, bank_rows=STEPS * B // size, **options)
    x = torch.tensor(np.stack([unit(STEPS * B, 8, 3), unit(STEPS * B, 8, 4)])).float()
    images = torch.arange(STEPS * B) + 1
    # rank 0 holds the first rows, so that the centroids it draws are those that one process draws
    share = slice(rank * STEPS * B // size, (rank + 1) * STEPS * B // size)
    model.bank.copy_(x[:, share])
    model.bank_images.copy_(images[share])
    for head in model.prototypes.heads():
        head.weight.data.copy_(torch.tensor(unit(head.out_features, 8, 9)))
    if kind == "deepcluster":  # the same centroids, whatever the number of rows they are drawn from
        torch.randperm = lambda n: torch.arange(n)
    model.before_epoch(Clock(STEPS, 2))
    targets = [model.targets(h, images).numpy() for h in range(len(model.prototypes.heads()))]
    return targets, [head.weight.detach().numpy() for head in model.prototypes.heads()]


@pytest.mark.parametrize("kind", ["deepcluster", "sela", "sela, soft"])
def test_two_ranks_assign_as_one_process(kind):
    ((targets, weights),) = on_ranks(1, _assignments_of_a_rank, kind)
    assert all((target != 0).any() for target in targets)
    for rank_targets, rank_weights in on_ranks(2, _assignments_of_a_rank, kind):
        for ours, theirs in zip([*rank_targets, *rank_weights], [*targets, *weights], strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_empty_rows_of_the_bank_are_no_images():
    """They are left when a run goes on with another number of processes."""
    model = make()
    model.before_training(batches())
    model.bank[:, -3:] = 0
    model.bank_images[-3:] = 0
    kept = set(model.bank_images[:-3].tolist())
    model.before_epoch(Clock(STEPS, 2))
    assert {i for i in range(N) if model.labels[0, i] != IGNORED} == kept


def test_collapse_is_seen():
    (check,) = make().health_checks()
    healthy = {"feature_std": 0.8, "largest_cluster": 0.1}
    assert not check.failed(healthy)
    assert check.failed({**healthy, "largest_cluster": 0.9})
    assert check.failed({**healthy, "feature_std": 0.01})
    assert "90 %" in check.verdict({**healthy, "largest_cluster": 0.9})

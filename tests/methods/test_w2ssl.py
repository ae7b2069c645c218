"""W2SSL: patches, montages, losses and the step, each by hand; two ranks against one process."""

import copy
import math

from src.clock import Clock
from src.data.draws import keyed_generator
from src.data.loading import Batch
from src.data.view_sets import w2ssl as w2ssl_views
from src.data.views import PartView
from src.losses.supervised_contrastive import supervised_contrastive
from src.methods.w2ssl import W2SSL, loss_of_equal_features
from src.models.backbones import create_backbone
from src.ops.montage import assemble, deal_out, decouple, pool_quarters
from src.optim.lars import LARS, split_by_adaptation
from src.optim.schedules import fractional_cosine
from src.parallel import collectives, sync_bn
from tests.helpers import on_ranks

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

KAPPA = 0.3 / 0.07


def clock(step=0, logging=False):
    return Clock(3, 4, step=step, logging=logging)


# ------------------------------------------------------------------------------------------------ patches


@pytest.mark.parametrize(("grid", "boxes"), [
    ("1x2", [(0, 0, 80, 60), (20, 0, 100, 60)]),
    ("2x1", [(0, 0, 100, 48), (0, 12, 100, 60)]),
    ("2x2", [(0, 0, 80, 48), (0, 12, 80, 60), (20, 0, 100, 48), (20, 12, 100, 60)]),
])  # fmt: skip
def test_parts_of_an_image(grid, boxes):
    views = w2ssl_views(grid)
    assert [view.box(100, 60) for view in views] == boxes * 2


def test_windows_round_as_pillow_does():
    left, right = w2ssl_views("1x2")[:2]
    for width in (1, 2, 3, 5, 99, 333, 499, 500, 1023):
        a, b = width // 2 + 0.3 * width, width // 2 - 0.3 * width
        assert left.box(width, 7) == (0, 0, max(round(a), 1), 7)
        assert right.box(width, 7) == (min(max(round(b), 0), width - 1), 0, width, 7)
    assert PartView(4, (1, 1), window=((0, 0), (0, 0), (1, 0.1), (2, 0))).box(1, 5) == (0, 0, 1, 5)


def test_crops_stay_inside_their_part():
    for number, view in enumerate(w2ssl_views("2x2", 8, least_area=0.05)):
        left, top, right, bottom = view.box(90, 70)
        for index in range(50):
            draw = view.draw(keyed_generator(0, 0, index, number), 90, 70)
            assert left <= draw.left
            assert top <= draw.top
            assert draw.left + draw.width <= right
            assert draw.top + draw.height <= bottom


def test_the_two_pipelines():
    first, _, second, _ = w2ssl_views()
    assert (first.size, first.scale, first.flip, first.jitter) == (112, (0.2, 1.0), 0.5, (0.4, 0.4, 0.2, 0.1))
    assert (first.jitter_probability, first.grayscale, first.blur, first.solarize) == (0.8, 0.2, 1.0, 0.0)
    assert (second.blur, second.solarize, second.blur_sigma, second.bicubic) == (0.1, 0.2, (0.1, 2.0), False)
    quarter = w2ssl_views("2x2", blur=(0.5, 0.1))
    assert (quarter[0].jitter, quarter[0].blur, quarter[0].solarize) == ((0.4, 0.4, 0.4, 0.1), 0.5, 0.5)
    assert (len(quarter), quarter[4].blur, quarter[4].solarize) == (8, 0.1, 0.2)


# ------------------------------------------------------------------------------------------------ montages


@pytest.mark.parametrize(("parts", "images"), [(2, 6), (4, 3)])
def test_every_patch_is_where_the_permutation_puts_it(parts, images):
    """Patch i holds i; montage m reads slots m, M + m, 2M + m, 3M + m, and decoupling gives them back in order."""
    order = torch.from_numpy(np.random.default_rng(0).permutation(parts * images))
    numbers = torch.arange(float(parts * images)).view(parts, images, 1, 1, 1).expand(-1, -1, 3, 4, 4)
    montages = deal_out(list(numbers), order)
    m_total = parts * images // 4
    assert montages.shape == (m_total, 3, 8, 8)
    for m in range(m_total):
        slots = [order[cell * m_total + m].item() for cell in range(4)]
        for slot, rows, columns in zip(slots, (0, 0, 4, 4), (0, 4, 0, 4), strict=True):
            assert (montages[m, :, rows : rows + 4, columns : columns + 4] == slot).all()
    means = F.avg_pool2d(montages, 4)
    assert decouple(means)[:, 0].tolist() == order.tolist()


def test_real_patches_can_be_rebuilt_from_montages():
    patches = [torch.randint(0, 256, (4, 3, 6, 6), generator=torch.Generator().manual_seed(part)) for part in (0, 1)]
    order = torch.from_numpy(np.random.default_rng(1).permutation(8))
    montages = deal_out(patches, order)
    cells = torch.stack([montages[:, :, r : r + 6, c : c + 6] for r, c in ((0, 0), (0, 6), (6, 0), (6, 6))])
    assert torch.equal(assemble(cells), montages)
    rebuilt = cells.flatten(0, 1)[order.argsort()]
    assert torch.equal(rebuilt, torch.cat(patches))


def _montages_of_a_rank(parts):
    rank, ranks = collectives.rank(), collectives.world_size()
    images = 12 // ranks
    numbers = [part * 12 + rank * images + torch.arange(float(images)) for part in range(parts)]
    patches = [row.view(-1, 1, 1, 1).expand(-1, 3, 2, 2) for row in numbers]
    order = torch.from_numpy(np.random.default_rng(5).permutation(12 * parts))
    return deal_out(patches, order)[:, 0].tolist()


@pytest.mark.parametrize("parts", [2, 4])
def test_ranks_hold_slices_of_the_same_montages(parts):
    (whole,) = on_ranks(1, _montages_of_a_rank, parts)
    for ranks in (2, 3):
        assert [montage for share in on_ranks(ranks, _montages_of_a_rank, parts) for montage in share] == whole


POOLS = {
    7: [0.296875, 0.28125, 0.28125, 0.140625, 0, 0, 0], 8: [0.25] * 4 + [0] * 4,
    6: [0.34375, 0.3125, 0.3125, 0.03125, 0, 0], 5: [0.390625, 0.421875, 0.1875, 0, 0],
    4: [0.5, 0.4375, 0.0625, 0], 3: [0.671875, 0.328125, 0], 2: [0.875, 0.125], 1: [1],
}  # fmt: skip


@pytest.mark.parametrize("side", POOLS)
def test_pooling_is_a_matrix_from_both_sides(side):
    top = torch.tensor(POOLS[side], dtype=torch.float64)
    matrix = torch.stack([top, top.flip(0)])
    maps = torch.randn(2, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(pool_quarters(maps), matrix @ maps @ matrix.T)


# ------------------------------------------------------------------------------------------------ the loss


def test_supervised_contrastive_against_loops():
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(12, 5))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    labels = [0, 1, 2, 0, 1, 2, 2, 1, 0, 0, 1, 2]
    total = 0.0
    for i in range(12):
        others = [k for k in range(12) if k != i]
        bottom = math.log(sum(math.exp(rows[i] @ rows[k] / 0.3) for k in others))
        positives = [j for j in others if labels[j] == labels[i]]
        total += np.mean([rows[i] @ rows[j] / 0.3 - bottom for j in positives])
    found = supervised_contrastive(torch.tensor(rows), torch.tensor(labels))
    assert found.item() == pytest.approx(-KAPPA * total / 12, rel=1e-12)
    mixed = np.random.default_rng(1).permutation(12)
    again = supervised_contrastive(torch.tensor(rows[mixed]), torch.tensor(labels)[mixed])
    assert again.item() == pytest.approx(found.item(), rel=1e-12)
    plain = supervised_contrastive(torch.tensor(rows), torch.tensor(labels), 0.3, 0.3)
    assert found.item() == pytest.approx(plain.item() * 30 / 7, rel=1e-12)


def test_closed_forms():
    n = 512
    labels = torch.arange(4 * n) % n
    equal = torch.zeros(4 * n, 4, dtype=torch.float64)
    equal[:, 0] = 1
    assert supervised_contrastive(equal, labels).item() == pytest.approx(KAPPA * math.log(4 * n - 1), rel=1e-9)
    assert loss_of_equal_features(n, 2) == pytest.approx(65.35, abs=0.01)
    assert loss_of_equal_features(2048, 2) == pytest.approx(77.24, abs=0.01)
    apart = torch.eye(n, dtype=torch.float64)[labels]
    expected = KAPPA * (math.log(3 * math.exp(1 / 0.3) + 4 * n - 4) - 1 / 0.3)
    assert supervised_contrastive(apart, labels).item() == pytest.approx(expected, rel=1e-9)
    assert 2 * expected == pytest.approx(37.11, abs=0.01)


# ------------------------------------------------------------------------------------------------ the step


class Maps(nn.Module):
    """A backbone that gives maps, without batch norm and in float64, so that ranks agree exactly."""

    feature_width = 5

    def __init__(self, batch_norm=False):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1)
        self.bn = nn.BatchNorm2d(5) if batch_norm else nn.Identity()

    def forward_features(self, x):
        return F.avg_pool2d(self.bn(self.conv(x)).tanh(), 2)

    def forward_head(self, x, pre_logits=True):
        return x.mean((2, 3))


def make(parts=2, batch_norm=False, **options):
    torch.manual_seed(0)
    return W2SSL(Maps(batch_norm), parts=parts, dim=4, hidden=6, **options).double()


def batch(images=8, parts=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    crops = [torch.randn(images, 3, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2 * parts)]
    return Batch(crops, torch.zeros(images).long(), torch.arange(images))


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("shared", [True, False])
def test_a_step_by_hand(parts, shared):
    model, data, n = make(parts, shared_order=shared, what_weight=0.5, where_weight=2.0), batch(parts=parts), 8
    with torch.no_grad():  # a copy that differs
        for parameter in [*model.momentum_backbone.parameters(), *model.momentum_fc_crop.parameters()]:
            parameter.mul_(1.1)
    theirs = copy.deepcopy(model)
    outputs = model(data, clock(logging=True))
    orders = [model.order(view, parts * n, clock()) for view in (0, 1)]
    assert torch.equal(orders[0], orders[1]) == shared
    q, k, f = [], [], []
    for view, order in enumerate(orders):
        patches = torch.cat(data.crops[view * parts : (view + 1) * parts])[order]
        m = parts * n // 4
        rows = [
            torch.cat([patches[:m], patches[m : 2 * m]], 3),
            torch.cat([patches[2 * m : 3 * m], patches[3 * m :]], 3),
        ]
        montage = torch.cat(rows, 2)
        of = {}
        for name, net in (("base", theirs.backbone), ("momentum", theirs.momentum_backbone)):
            cells = pool_quarters(net.forward_features(montage))
            of[name] = torch.cat([cells[:, :, i, j] for i, j in ((0, 0), (0, 1), (1, 0), (1, 1))])
        f.append(of["base"])
        q.append(theirs.predictor(theirs.fc_crop(of["base"])))
        k.append(theirs.momentum_fc_crop(of["momentum"]).detach())
    labels = [order % n for order in orders]

    def what(a, b, first, second):
        return supervised_contrastive(F.normalize(torch.cat([a, b]), dim=1), torch.cat([first, second]))

    where = F.cross_entropy(theirs.fc_loc(f[0]), orders[0] // n)
    expected = what(q[0], k[1], labels[0], labels[1]) + what(q[1], k[0], labels[1], labels[0])
    assert outputs["what"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert outputs["where"].item() == pytest.approx(where.item(), rel=1e-6)
    total = 2.0 * where + 0.5 * expected
    assert outputs["loss"].item() == pytest.approx(total.item(), rel=1e-6)
    outputs["loss"].backward()
    total.backward()
    for (name, ours), reference in zip(model.named_parameters(), theirs.parameters(), strict=True):
        if name.startswith("momentum"):
            assert ours.grad is None
        else:
            torch.testing.assert_close(ours.grad, reference.grad, rtol=1e-4, atol=1e-6)
    assert {"where_top1", "feature_std", "rankme"} <= outputs.keys()


def test_the_copy_moves_before_the_keys_are_made():
    model = make(momentum=0.9, momentum_cosine=True)
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.add_(1.0)
    before = [parameter.clone() for parameter in model.momentum_backbone.parameters()]
    model.before_step(clock(6))  # half of 12 steps
    for ours, old in zip(model.momentum_backbone.parameters(), before, strict=True):
        torch.testing.assert_close(ours, old + 0.05)
    found = [make(momentum=0.99).momentum_at(clock(step)) for step in (0, 6, 12)]
    assert found == pytest.approx([0.99, 0.995, 1.0])
    assert make(momentum=0.99, momentum_cosine=False).momentum_at(clock(6)) == 0.99


def _step_of_a_rank(parts, batch_norm):
    rank, ranks = collectives.rank(), collectives.world_size()
    model = make(parts, batch_norm)
    if batch_norm:
        model = model.float()  # as our synchronised batch norm computes
        sync_bn.convert(model.backbone)
        sync_bn.convert(model.momentum_backbone)
    whole, rows = batch(parts=parts), slice(rank * 8 // ranks, (rank + 1) * 8 // ranks)
    crops = [crop[rows].to(model.fc_loc.weight.dtype) for crop in whole.crops]
    share = Batch(crops, whole.labels[rows], whole.indices[rows])
    loss = model(share, clock())["loss"]
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    return loss.item(), [(collectives.all_reduce_(gradient) / ranks).numpy() for gradient in gradients]


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_two_ranks_equal_one(parts, batch_norm):
    """The gather's backward sums over the ranks; without that the backbone's gradients would be half."""
    ((loss, gradients),) = on_ranks(1, _step_of_a_rank, parts, batch_norm)
    tolerance = {"rtol": 1e-3, "atol": 3e-5} if batch_norm else {"rtol": 1e-5, "atol": 1e-9}
    for found_loss, found in on_ranks(2, _step_of_a_rank, parts, batch_norm):
        assert found_loss == pytest.approx(loss, rel=1e-6)
        for ours, theirs in zip(found, gradients, strict=True):
            np.testing.assert_allclose(ours, theirs, **tolerance)


# ------------------------------------------------------------------------------------------------ sizes, schedules


def test_published_sizes_and_what_decays():
    with torch.device("meta"):
        model = W2SSL(create_backbone("resnet50"))
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == 35_062_850
    assert (len(trained), sum(p.ndim > 1 for p in trained)) == (169, 58)
    # without the momentum copy of fc_loc, which nothing reads
    assert sum(p.numel() for p in model.parameters()) == 68_020_356 - 4_098
    assert len(model.state_dict()) == 667 - 2
    assert sum(p.numel() for p in model.fc_crop.parameters()) == 9_445_376
    assert sum(p.numel() for p in model.predictor.parameters()) == 2_105_344
    assert set(model.fc_crop.state_dict()) == {
        "0.weight", *(f"1.{n}" for n in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
        "3.weight", "4.running_mean", "4.running_var", "4.num_batches_tracked",
    }  # fmt: skip
    groups = split_by_adaptation(model.named_parameters())
    assert [len(group["params"]) for group in groups] == [58, 169 - 58]
    assert groups[1]["weight_decay"] == 0
    assert LARS(groups, lr=1.0).param_groups[1]["adapt"] is False


def test_learning_rates():
    rates = [fractional_cosine(epoch, epochs=200, warmup=10, base=1.2) for epoch in (0, 1, 10, 105, 199)]
    assert rates == pytest.approx([0, 0.12, 1.2, 0.6, 8.2017e-5], rel=1e-4)

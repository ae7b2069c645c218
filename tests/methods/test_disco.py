"""MoCo-v2, DisCo, SEED and DisCo on SwAV: each step by hand in plain torch, two ranks against one process."""

import copy

from src.checkpoints.state import RunState
from src.checkpoints.store import CheckpointStore
from src.clock import Clock
from src.data.loading import Batch
from src.errors import UserError
from src.methods.baselines.seed import SEED
from src.methods.disco import DisCo, mse_factor
from src.methods.moco import MoCo
from src.methods.swav import SwAV
from src.methods.swav_disco import SwAVDisCo
from src.models.backbones import create_backbone
from src.models.heads import head_of, projector
from src.models.teacher import Teacher
from src.parallel import collectives
from tests.helpers import on_ranks
from tests.methods.test_offline import Tiny

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

N, C, K = 8, 5, 32
SMALL = {"width": 0.0625, "stem": "small"}


def batch(size=N, views=2, seed=0, side=8):
    generator = torch.Generator().manual_seed(seed)
    crops = [torch.randn(size, 3, side, side, generator=generator) for _ in range(views)]
    return Batch(crops, torch.zeros(size).long(), torch.arange(size))


def clock(step=0, logging=False):
    return Clock(3, 4, step=step, logging=logging)


def head(width=6):
    return projector(width, 7, C, batch_norm=False)


def moco(**options):
    torch.manual_seed(0)
    return MoCo(Tiny(), head(), dim=C, queue_columns=K, **options).train()


class Still(Teacher):
    """A teacher without a file."""

    def __init__(self, seed=5, training=True, normalise=True, parts=1, width=C):
        torch.manual_seed(seed)
        self.backbone, self.head = Tiny(), projector(6, 9, width, batch_norm=False)
        self.networks = nn.ModuleList([self.backbone, self.head]).requires_grad_(False).train(training)
        self.normalise, self.parts, self.queue, self._path = normalise, parts, None, "still"


def disco(**options):
    torch.manual_seed(0)
    return DisCo(Tiny(), head(), Still(parts=options.get("bn_parts", 1)), dim=C, queue_columns=K, **options).train()


def unit(network, images):
    return F.normalize(network(images), dim=1)


# ------------------------------------------------------------------------------------------------ MoCo


def test_a_step_of_moco_by_hand():
    model, data = moco(temperature=0.2, momentum=0.9), batch()
    q_net = nn.Sequential(copy.deepcopy(model.backbone), copy.deepcopy(model.head))
    k_net = copy.deepcopy(q_net)
    with torch.no_grad():  # the copy has drifted, so that the average shows
        for parameter in [*model.momentum_backbone.parameters(), *model.momentum_head.parameters()]:
            parameter.add_(0.1)
        for k, q in zip(k_net.parameters(), q_net.parameters(), strict=True):
            k.copy_(0.9 * (k + 0.1) + 0.1 * q)
    before = model.queue.clone()
    model.before_step(clock())
    outputs = model(data, clock(logging=True))
    outputs["loss"].backward()
    assert torch.equal(model.queue, before)  # the gradients needed it
    model.after_backward(clock())
    q, k = unit(q_net, data.crops[0]), unit(k_net, data.crops[1]).detach()
    total = 0.0
    for i in range(N):
        scores = [q[i] @ k[i]] + [q[i] @ before[:, j] for j in range(K)]
        total = total - (scores[0] / 0.2 - torch.logsumexp(torch.stack(scores) / 0.2, 0)) / N
    assert outputs["loss"].item() == pytest.approx(total.item(), rel=1e-5)
    total.backward()
    ours = [*model.backbone.parameters(), *model.head.parameters()]
    for mine, theirs in zip(ours, q_net.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-6)
    assert all(p.grad is None for p in [*model.momentum_backbone.parameters(), *model.momentum_head.parameters()])
    torch.testing.assert_close(model.queue[:, :N], k.T)
    assert torch.equal(model.queue[:, N:], before[:, N:])
    assert model.queue_ptr.tolist() == [N]
    assert {"own_key_first", "feature_std", "rankme"} <= outputs.keys()


def test_the_queue_starts_with_unit_columns_and_goes_round():
    model = moco()
    torch.testing.assert_close(model.queue.norm(dim=0), torch.ones(K))
    shapes = {name: tuple(buffer.shape) for name, buffer in model.named_buffers() if "queue" in name}
    assert shapes == {"queue": (C, K), "queue_ptr": (1,)}
    for turn in range(K // N):
        assert model.queue_ptr.item() == turn * N
        model.enqueue(torch.full((N, C), float(turn)))
    assert model.queue_ptr.item() == 0
    assert model.queue[0].tolist() == [float(column // N) for column in range(K)]
    model.enqueue(torch.full((5, C), 9.0))  # the rest is no multiple of a batch
    model.enqueue(torch.full((N, C), 8.0))
    assert model.queue[0, :13].tolist() == [9.0] * 5 + [8.0] * 8


def test_the_loss_of_random_embeddings():
    """ln(65537) + 1 / (2 T^2 C)."""
    torch.manual_seed(0)
    model = MoCo(Tiny(), head(), dim=128, queue_columns=65536, temperature=0.2)
    rows = F.normalize(torch.randn(2, 256, 128), dim=2)
    assert model.contrast(rows[0], rows[1], clock())["contrastive"].item() == pytest.approx(11.09 + 0.098, abs=0.05)


def test_parts_are_batches_of_their_own_and_keys_are_made_in_other_company():
    model, data = moco(bn_parts=2), batch()
    first, second = data.crops
    expected = torch.cat(
        [unit(nn.Sequential(copy.deepcopy(model.backbone), model.head), part) for part in first.chunk(2)]
    )
    torch.testing.assert_close(model.encode(first), expected)
    order = torch.from_numpy(np.random.default_rng([0x5B, 0, 4]).permutation(N))
    network = nn.Sequential(copy.deepcopy(model.momentum_backbone), model.momentum_head)
    shuffled = torch.cat([unit(network, part) for part in second[order].chunk(2)])
    keys = model.keys(second, clock(4))
    for place, image in enumerate(order.tolist()):
        torch.testing.assert_close(keys[image], shuffled[place])
    assert not torch.allclose(keys, model.keys(second, clock(5)), atol=1e-4)


# ------------------------------------------------------------------------------------------------ DisCo


@pytest.mark.parametrize(("options", "weights"), [
    ({}, (1, 1, 1)),
    ({"contrastive_weight": 0.0}, (0, 1, 1)),
    ({"distill_weight": 0.5}, (1, 0.5, 0.5)),
    ({"norm": "ref32"}, (1, 32 / N, 32 / N)),
    ({"norm": "mean", "distill_weight": 32.0}, (1, 32 / N, 32 / N)),
])  # fmt: skip
def test_a_step_of_disco_by_hand(options, weights):
    model, data = disco(**options), batch()
    student = nn.Sequential(copy.deepcopy(model.backbone), copy.deepcopy(model.head))
    key_net = nn.Sequential(copy.deepcopy(model.momentum_backbone), model.momentum_head)
    teacher = Still()
    queue = model.queue.clone()
    outputs = model(data, clock())
    s_q, s_k = (unit(student, crop) for crop in data.crops)
    t_q, t_k = (unit(nn.Sequential(teacher.backbone, teacher.head), crop) for crop in data.crops)
    k = unit(key_net, data.crops[1]).detach()
    logits = torch.cat([(s_q * k).sum(1, keepdim=True), s_q @ queue], dim=1) / 0.2
    contrastive = -logits.log_softmax(1)[:, 0].mean()
    d_q, d_k = ((t - s).pow(2).sum() for t, s in ((t_q, s_q), (t_k, s_k)))
    total = weights[0] * contrastive + weights[1] * d_q + weights[2] * d_k
    assert outputs["loss"].item() == pytest.approx(total.item(), rel=1e-5)
    outputs["loss"].backward()
    total.backward()
    for ours, theirs in zip(
        [*model.backbone.parameters(), *model.head.parameters()], student.parameters(), strict=True
    ):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5)
    model.after_backward(clock())
    torch.testing.assert_close(model.queue[:, :N], k.T)  # the mean student's keys, not the teacher's


def test_batch_norms_are_in_train_mode_and_counted_as_published():
    model = disco()
    for step in range(3):
        model.before_step(clock(step))
        model(batch(seed=step), clock(step))
    assert model.backbone.bn.num_batches_tracked == 6
    assert model.momentum_backbone.bn.num_batches_tracked == 3
    assert model._teacher.backbone.bn.num_batches_tracked == 6
    assert all(not name.startswith(("teacher", "_teacher")) for name in model.state_dict())
    quiet = Still(training=False)
    before = quiet(batch().crops[0])
    assert torch.equal(quiet(batch().crops[0]), before)
    assert quiet.backbone.bn.num_batches_tracked == 0
    assert not torch.allclose(before, Still()(batch().crops[0]), atol=1e-3)


@pytest.mark.parametrize("term", ["rkd_distance", "rkd_angle", "darkrank"])
def test_relations_are_of_the_first_view(term):
    from src.methods.disco import RELATIONS

    model, data = disco(terms=[term, "mse"]), batch()
    outputs = model(data, clock())
    student = nn.Sequential(disco().backbone, disco().head)
    s, t = unit(student, data.crops[0]), Still()(data.crops[0])
    assert outputs[term].item() == pytest.approx(RELATIONS[term](s, t).item(), rel=1e-4)
    parts = sum(outputs[name].item() for name in ("contrastive", "mse", term))
    assert outputs["loss"].item() == pytest.approx(parts, rel=1e-5)


def test_terms_on_feature_maps():
    torch.manual_seed(0)
    student, big = create_backbone("resnet18", **SMALL), create_backbone("resnet18", width=0.125, stem="small")
    teacher = Still()
    teacher.backbone, teacher.head = big, None
    model = DisCo(
        student, projector(32, 7, C, batch_norm=False), teacher, dim=C, queue_columns=K, terms=["attention", "fitnet"]
    )
    assert tuple(model.regressor.weight.shape) == (64, 32, 1, 1)
    assert model.regressor.weight.abs().max() <= 0.005
    outputs = model(batch(), clock())
    s, t = (net.feature_map(batch().crops[0]) for net in (student, big))
    assert outputs["fitnet"].item() == pytest.approx(F.mse_loss(model.regressor(s), t).item(), rel=1e-3)
    outputs["loss"].backward()
    assert model.regressor.weight.grad.abs().sum() > 0
    narrow = create_backbone("resnet18", width=0.125)  # another stem, other positions
    teacher.backbone = narrow
    with pytest.raises(UserError, match="needs equal ones"):
        model(batch(side=16), clock())


def test_students_and_teachers_must_fit():
    with pytest.raises(UserError, match=r"have 9 dimensions and the student's 5.*--moco_dim 9"):
        DisCo(Tiny(), head(), Still(width=9), dim=C, queue_columns=K)
    DisCo(Tiny(), head(), Still(width=9), dim=C, queue_columns=K, terms=["rkd_angle"])
    with pytest.raises(UserError, match="--moco_dim 9"):
        SEED(Tiny(), head(), Still(width=9), dim=C, queue_columns=K)
    with pytest.raises(UserError, match="--feat_dim 9"):
        SwAVDisCo(Tiny(), Still(width=9), feat_dim=C, hidden_mlp=7, nmb_prototypes=6)


def test_mse_factors():
    assert [mse_factor(norm, 8) for norm in ("sum", "ref32", "mean")] == [1.0, 4.0, 0.125]
    assert mse_factor("ref32", 32) == 1.0


# ------------------------------------------------------------------------------------------------ ranks


def _step_of_a_rank(kind, norm):
    """Loss, averaged gradients, queue and pointer after two steps; one process works in two parts."""
    rank, ranks = collectives.rank(), collectives.world_size()
    parts = 2 // ranks
    if kind == "seed":
        torch.manual_seed(0)
        model = SEED(
            Tiny(), head(), Still(parts=parts), dim=C, queue_columns=K, bn_parts=parts, teacher_temperature=0.1
        )
    elif kind == "moco":
        model = moco(bn_parts=parts)
    else:
        model = disco(bn_parts=parts, norm=norm, terms=["mse"])
    model.train()
    losses = []
    for step in range(2):
        whole = batch(2 * N, views=1 if kind == "seed" else 2, seed=step)
        rows = slice(rank * len(whole) // ranks, (rank + 1) * len(whole) // ranks)
        share = Batch([crop[rows] for crop in whole.crops], whole.labels[rows], whole.indices[rows])
        model.before_step(clock(step))
        model.zero_grad()
        loss = model(share, clock(step))["loss"]
        loss.backward()
        model.after_backward(clock(step))
        losses.append(collectives.all_reduce_(loss.detach()).item() / ranks)
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    gradients = [(collectives.all_reduce_(gradient) / ranks).numpy() for gradient in gradients]
    return losses, gradients, model.queue.numpy(), model.queue_ptr.tolist()


@pytest.mark.parametrize(("kind", "norm"), [("moco", ""), ("disco", "ref32"), ("disco", "mean"), ("seed", "")])
def test_two_ranks_equal_one_process_in_two_parts(kind, norm):
    ((losses, gradients, queue, pointer),) = on_ranks(1, _step_of_a_rank, kind, norm)
    for found_losses, found, found_queue, found_pointer in on_ranks(2, _step_of_a_rank, kind, norm):
        assert found_losses == pytest.approx(losses, rel=1e-5)
        assert found_pointer == pointer == [4 * N % K]
        np.testing.assert_allclose(found_queue, queue, rtol=1e-4, atol=1e-6)
        for ours, theirs in zip(found, gradients, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=5e-3, atol=1e-5)


def test_the_published_sum_weighs_half_on_two_ranks():
    """D's gradient after averaging is that of the sum over a rank; the contrastive part is the same (weights 3.5)."""
    (one,) = on_ranks(1, _step_of_a_rank, "disco", "sum")
    two = on_ranks(2, _step_of_a_rank, "disco", "sum")[0]
    moco_only = on_ranks(1, _step_of_a_rank, "disco", "mean")[0]
    # loss = L + f D with f = 1, and f = 1 / 16 for the mean over 16 images: solve for both
    d = (one[0][0] - moco_only[0][0]) / (1 - 1 / (2 * N))
    contrastive = one[0][0] - d
    assert two[0][0] == pytest.approx(contrastive + d / 2, rel=1e-4)


def _permuted():
    rank, ranks = collectives.rank(), collectives.world_size()
    rows = torch.arange(4.0)[:, None, None].expand(4, 2, 3) + 4 * rank
    order = torch.from_numpy(np.random.default_rng(3).permutation(4 * ranks))
    dealt = collectives.permute_rows(rows, order)
    back = collectives.permute_rows(dealt, order.argsort())
    return dealt[:, 0, 0].tolist(), order.tolist(), torch.equal(back, rows)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_rows_are_dealt_out_by_a_permutation(ranks):
    results = on_ranks(ranks, _permuted)
    assert [row for rows, _, _ in results for row in rows] == results[0][1]
    assert all(back for _, _, back in results)


# ------------------------------------------------------------------------------------------------ SEED, SwAV


def test_a_step_of_seed_by_hand():
    torch.manual_seed(0)
    model = SEED(Tiny(), head(), Still(), dim=C, queue_columns=K, teacher_temperature=0.07).train()
    data, queue = batch(views=1), model.queue.clone()
    student = nn.Sequential(copy.deepcopy(model.backbone), copy.deepcopy(model.head))
    s, t = unit(student, data.crops[0]), Still()(data.crops[0])
    outputs = model(data, clock(logging=True))
    total = 0.0
    for i in range(N):
        ours = torch.cat([(s[i] @ t[i])[None], s[i] @ queue]) / 0.2
        theirs = torch.cat([(t[i] @ t[i])[None], t[i] @ queue]) / 0.07
        total -= (theirs.softmax(0) * ours.log_softmax(0)).sum().item() / N
    assert outputs["loss"].item() == pytest.approx(total, rel=1e-5)
    model.after_backward(clock())
    torch.testing.assert_close(model.queue[:, :N], t.T)


def test_swav_and_half_the_squared_error():
    options = {"feat_dim": C, "hidden_mlp": 7, "nmb_prototypes": 6}
    crops = [torch.randn(4, 3, s, s, generator=torch.Generator().manual_seed(s)) for s in (9, 9, 7)]
    data = Batch([*crops], torch.zeros(4).long(), torch.arange(4))
    torch.manual_seed(0)
    plain = SwAV(Tiny(), **options)
    torch.manual_seed(0)
    model = SwAVDisCo(Tiny(), Still(training=False, normalise=False), **options)
    model.load_state_dict(plain.state_dict())
    swav = plain(data, clock())["loss"]
    outputs = model(data, clock())
    teacher = Still(training=False, normalise=False)
    rows = torch.cat([teacher.head(teacher.backbone(crop)) for crop in crops])
    embeddings = copy.deepcopy(plain).embed(crops)
    error = sum((a - b) ** 2 for a, b in zip(embeddings.flatten().tolist(), rows.flatten().tolist(), strict=True))
    error /= embeddings.numel()
    # the published program: (sum over the assigned crops + mse) / 2; ours has the mean over the two already
    assert outputs["mse"].item() == pytest.approx(error, rel=1e-4)
    assert outputs["loss"].item() == pytest.approx((2 * swav.item() + error) / 2, rel=1e-5)
    outputs["loss"].backward()
    assert all(p.grad is not None for n, p in model.named_parameters())


# ------------------------------------------------------------------------------------------------ teachers


def published(tmp_path, kind):
    """A small file as the papers' programs write it."""
    torch.manual_seed(1)
    backbone = create_backbone("resnet18", **SMALL)
    plain = backbone.state_dict()
    fc = projector(32, 9, C, batch_norm=kind == "swav")
    if kind == "swav":
        state = {f"module.{n}": t for n, t in plain.items()}
        state |= {f"module.projection_head.{n}": t for n, t in fc.state_dict().items()}
        content = state | {"module.prototypes.weight": torch.zeros(6, C)}
    else:
        state = {f"module.encoder_q.{n}": t for n, t in plain.items()}
        state |= {f"module.encoder_q.fc.{n}": t for n, t in fc.state_dict().items()}
        state |= {"module.queue": F.normalize(torch.randn(C, K), dim=0), "module.queue_ptr": torch.tensor([8])}
        if kind == "disco":
            state |= {f"module.teacher_encoder_q.{n}": t + 1 for n, t in plain.items()}
        content = {"epoch": 3, "arch": "resnet18", "state_dict": state}
    torch.save(content, tmp_path / f"{kind}.pth.tar")
    return tmp_path / f"{kind}.pth.tar", nn.Sequential(backbone, fc)


@pytest.mark.parametrize("kind", ["moco", "disco", "swav"])
def test_published_files_teach(tmp_path, kind):
    path, network = published(tmp_path, kind)
    teacher = Teacher(path, stem="small")
    images = batch(views=1).crops[0]
    torch.testing.assert_close(teacher(images), unit(network.train(), images))
    assert teacher.width == C
    assert (teacher.queue is not None) == (kind != "swav")
    again = Teacher(path, stem="small", training=False, normalise=False)
    assert again.sha256 == teacher.sha256
    network.eval()
    network.load_state_dict(nn.Sequential(again.backbone, again.head).state_dict())
    torch.testing.assert_close(again(images), network(images))


def test_own_runs_teach(tmp_path):
    torch.manual_seed(0)
    model = MoCo(create_backbone("resnet18", **SMALL), projector(32, 9, C, batch_norm=False), dim=C, queue_columns=K)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    settings = {"method": "moco", "arch": "resnet18", **SMALL}
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    CheckpointStore(tmp_path, settings).save(RunState(model, optimizer, scaler, Clock(3, 4), 8))
    teacher = Teacher(tmp_path / "checkpoint.pth.tar")
    images = batch(views=1).crops[0]
    torch.testing.assert_close(teacher(images), model.train().encode(images))
    assert torch.equal(teacher.queue, model.queue)


def test_files_that_cannot_teach(tmp_path):
    torch.save(create_backbone("resnet18", **SMALL).state_dict(), tmp_path / "backbone.pth")
    with pytest.raises(UserError, match="without its head"):
        _ = Teacher(tmp_path / "backbone.pth", stem="small").width
    path, _ = published(tmp_path, "moco")
    content = torch.load(path)
    content["state_dict"]["module.encoder_q.fc.conv.weight"] = torch.zeros(1)
    torch.save(content, path)
    with pytest.raises(UserError, match="cannot teach: its head is not a chain"):
        Teacher(path, stem="small")
    with pytest.raises(UserError, match="does not exist"):
        Teacher(tmp_path / "none.pth")


@pytest.mark.parametrize("head", [
    nn.Linear(4, 3), nn.Linear(4, 3, bias=False), projector(4, 5, 3), projector(4, 5, 3, batch_norm=False),
    nn.Sequential(nn.Linear(4, 5, bias=False), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3), nn.BatchNorm1d(3, 1e-5)),
    nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, affine=False)),
])  # fmt: skip
def test_heads_are_rebuilt_from_their_entries(head):
    rows = torch.randn(6, 4)
    torch.testing.assert_close(head_of(head.state_dict())(rows), head(rows))


@pytest.mark.parametrize("state", [
    {}, {"0.weight": torch.zeros(3)}, {"0.weight": torch.zeros(3, 2), "0.scale": torch.zeros(3)},
    {"last_linear.weight": torch.zeros(3, 2)},
])  # fmt: skip
def test_other_heads_are_refused(state):
    with pytest.raises(UserError, match="its head"):
        head_of(state)


def test_sizes_of_the_published_networks():
    """Parameters of heads and backbones (specification 1.1); the student's head is 2048 wide whatever its backbone."""
    counts = {"efficientb0": 4_007_548, "efficientb1": 6_513_184, "mobilenetv3": 4_202_032,
              "resnet18": 11_176_512, "resnet34": 21_284_672}  # fmt: skip
    with torch.device("meta"):
        for name, count in counts.items():
            backbone = create_backbone(name)
            assert sum(p.numel() for p in backbone.parameters()) == count
            assert backbone.feature_width == (512 if name.startswith("resnet") else 1280)
        for width, count in ((1280, 2_885_760), (512, 1_312_896)):
            assert sum(p.numel() for p in projector(width, 2048, 128, batch_norm=False).parameters()) == count

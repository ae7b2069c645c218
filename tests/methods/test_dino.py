"""DINO: its loss and centre against float64 loops, its schedules, two ranks against one, resume, collapse."""

import math
from dataclasses import replace

import main_dino
from src.clock import Clock
from src.data.loading import Batch
from src.losses.dino import dino_loss, update_centre
from src.methods.dino import Dino, DinoHead, DinoSettings
from src.models.backbones import create_backbone
from src.parallel import sync_bn
from tests.built import built
from tests.helpers import on_ranks, run
from tests.runs import assert_same_end

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

OWN = DinoSettings(out_dim=12, hidden_dim=16, bottleneck_dim=8, freeze_last_layer=0, clip_grad=0.0)
VIEWS, IMAGES = 4, 6


def softmax(row, temperature):
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def reference_loss(student, teacher, centre, student_temperature, teacher_temperature):
    """Equations 1 and 3 and the centring of the paper, one number at a time."""
    terms = []
    for g, view in enumerate(teacher):
        for v, other in enumerate(student):
            if v == g:
                continue
            for t_row, s_row in zip(view, other, strict=True):
                target = softmax([t - c for t, c in zip(t_row, centre, strict=True)], teacher_temperature)
                prediction = softmax(s_row, student_temperature)
                terms.append(-sum(t * math.log(p) for t, p in zip(target, prediction, strict=True)))
    return sum(terms) / len(terms)


def test_the_loss_is_the_papers():
    generator = torch.Generator().manual_seed(0)
    student = torch.rand(VIEWS, IMAGES, 12, generator=generator, dtype=torch.float64)
    teacher = torch.rand(2, IMAGES, 12, generator=generator, dtype=torch.float64)
    centre = torch.rand(12, generator=generator, dtype=torch.float64)
    for temperatures in ((0.1, 0.04), (0.3, 0.07)):
        expected = reference_loss(student.tolist(), teacher.tolist(), centre.tolist(), *temperatures)
        assert dino_loss(student, teacher, centre, *temperatures).item() == pytest.approx(expected, rel=1e-10)


def test_the_centre_follows_the_mean_of_all_images():
    teacher = torch.randn(2, IMAGES, 12, dtype=torch.float64)
    centre = torch.randn(12, dtype=torch.float64)
    expected = 0.7 * centre + 0.3 * teacher.reshape(-1, 12).mean(dim=0)
    update_centre(centre, teacher, 0.7)
    torch.testing.assert_close(centre, expected)


def test_the_last_layer_has_rows_of_unit_length_or_learns_them():
    head = DinoHead(8, OWN)
    weight = head.last_layer.weight
    torch.testing.assert_close(weight.norm(dim=1), torch.ones(12))
    x = torch.randn(5, 8)
    between = head.mlp(x)
    cosines = between @ weight.T / between.norm(dim=1, keepdim=True) / weight.norm(dim=1)
    torch.testing.assert_close(head(x), cosines)
    assert not head.last_layer.parametrizations.weight.original0.requires_grad
    learnt = DinoHead(8, DinoSettings(out_dim=12, hidden_dim=16, bottleneck_dim=8, norm_last_layer=False))
    assert learnt.last_layer.parametrizations.weight.original0.requires_grad
    kinds = [type(module) for module in head.mlp]
    assert kinds == [nn.Linear, nn.GELU, nn.Linear, nn.GELU, nn.Linear]


def method(seed=0, own=OWN):
    torch.manual_seed(seed)
    return Dino(create_backbone("resnet18", width=0.0625, stem="small"), own)


def batch_of(images, seed=1):
    generator = torch.Generator().manual_seed(seed)
    crops = [torch.randn(images, 3, size, size, generator=generator) for size in (16, 16, 8, 8)]
    return Batch(crops, torch.zeros(images, dtype=torch.long), torch.arange(images))


def test_a_step_is_the_papers():
    """The student sees all views, the teacher the two global ones; the centre moves after the loss."""
    dino, batch, clock = method(), batch_of(IMAGES), Clock(10, 2)
    dino.centre.copy_(torch.linspace(-0.1, 0.1, 12))
    centre = dino.centre.clone()
    twin = method()
    twin.train()
    joined = [torch.cat(batch.crops[:2]), torch.cat(batch.crops[2:])]
    student = torch.cat([twin.backbone(images) for images in joined])
    student = twin.head(student).view(VIEWS, IMAGES, 12)
    teacher = twin.teacher_head(twin.teacher_backbone(joined[0])).view(2, IMAGES, 12)
    loss = dino.train()(batch, clock)["loss"]
    expected = reference_loss(student.tolist(), teacher.tolist(), centre.tolist(), 0.1, 0.04)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(dino.centre, 0.9 * centre + 0.1 * teacher.mean(dim=(0, 1)))
    loss.backward()
    assert all(parameter.grad is None for parameter in dino.teacher_backbone.parameters())


def test_schedules_of_temperature_momentum_freezing_and_clipping():
    own = DinoSettings(out_dim=12, hidden_dim=16, bottleneck_dim=8, warmup_teacher_temp=0.02, teacher_temp=0.06,
                       warmup_teacher_temp_epochs=5, momentum_teacher=0.5)  # fmt: skip
    dino = method(own=own)
    at = [dino.teacher_temperature(Clock(4, 10, step=4 * epoch)) for epoch in range(7)]
    assert at == pytest.approx([0.02, 0.03, 0.04, 0.05, 0.06, 0.06, 0.06])
    dino.train()(batch_of(IMAGES), Clock(4, 10))["loss"].backward()
    before = {name: p.grad.clone() for name, p in dino.named_parameters() if p.grad is not None}
    bound = float(np.median([gradient.norm() for gradient in before.values()]))  # half of them are clipped
    dino.own = replace(own, clip_grad=bound)
    dino.after_backward(Clock(4, 10, step=3))  # the first epoch
    assert all(parameter.grad is None for parameter in dino.head.last_layer.parameters())
    for name, parameter in dino.named_parameters():
        if parameter.grad is not None:
            old = before[name]
            expected = old * min(1.0, bound / (old.norm().item() + 1e-6))
            torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-10)
    dino.train()(batch_of(IMAGES), Clock(4, 10))["loss"].backward()
    dino.after_backward(Clock(4, 10, step=4))  # the second
    assert any(parameter.grad is not None for parameter in dino.head.last_layer.parameters())
    teacher, student = dino.teacher_head.mlp[0].weight.clone(), dino.head.mlp[0].weight
    student.data.add_(1.0)
    dino.after_step(Clock(4, 10, step=20))
    momentum = 1.0 - 0.5 * (1 + math.cos(math.pi / 2)) / 2
    torch.testing.assert_close(dino.teacher_head.mlp[0].weight, momentum * teacher + (1 - momentum) * student)


def _on_a_rank():
    rank, size = dist.get_rank(), dist.get_world_size()
    whole, mine = batch_of(8), method()
    sync_bn.convert(mine)
    rows = slice(rank * 8 // size, (rank + 1) * 8 // size)
    part = Batch([crop[rows] for crop in whole.crops], whole.labels[rows], whole.indices[rows])
    loss = mine.train()(part, Clock(10, 2))["loss"]
    loss.backward()
    gradients = {}
    for name, parameter in mine.named_parameters():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            gradients[name] = (parameter.grad / size).numpy()
    return gradients, mine.centre.numpy()


def test_two_ranks_equal_one_process():
    one = method()
    one.train()(batch_of(8), Clock(10, 2))["loss"].backward()
    expected = {name: p.grad.numpy() for name, p in one.named_parameters() if p.grad is not None}
    for gradients, centre in on_ranks(2, _on_a_rank):
        assert gradients.keys() == expected.keys()
        np.testing.assert_allclose(centre, one.centre.numpy(), rtol=1e-4, atol=1e-6)
        for name, gradient in gradients.items():
            scale = np.abs(expected[name]).max()
            np.testing.assert_allclose(gradient, expected[name], rtol=1e-3, atol=1e-4 * scale + 1e-7)


def test_collapse_is_told():
    (check,) = method().health_checks()
    assert not check.failed({"loss": 2.0})
    assert not check.failed({"entropy_of_mean": 2.4, "teacher_entropy": 0.5})
    for collapsed in (
        {"entropy_of_mean": 2.4, "teacher_entropy": 2.4},
        {"entropy_of_mean": 0.0, "teacher_entropy": 0.0},
    ):
        assert check.failed(collapsed)
        assert "COLLAPSE" in check.verdict(collapsed)


def test_the_published_settings():
    dino = built(main_dino, "--data_path /x", processes=8)
    assert [view.size for view in dino.views] == [224] * 2 + [96] * 8
    assert [view.scale for view in dino.views][1:3] == [(0.4, 1.0), (0.05, 0.4)]
    assert dino.rate(0) == 0
    assert dino.rate(10) == pytest.approx(0.0005 * 512 / 256)
    assert dino.rate(100) == pytest.approx(1e-6)
    assert [dino.rate(epoch, "weight_decay") for epoch in (0, 50, 100)] == pytest.approx([0.04, 0.22, 0.4], rel=1e-3)
    assert dino.method.head.last_layer.out_features == 65536
    assert dino.method.own == DinoSettings()
    decays, plain = dino.groups
    assert (plain["weight_decay"], plain["weight_decay_fixed"]) == (0.0, True)
    assert all(parameter.ndim > 1 for parameter in decays["params"])


SMALL = [
    "--arch", "resnet18", "--width", "0.125", "--stem", "small", "--size_crops", "16", "12", "--out_dim", "16",
    "--hidden_dim", "16", "--bottleneck_dim", "8", "--local_crops_number", "2", "--batch_size", "16", "--epochs", "3",
    "--warmup_epochs", "1", "--log_every", "1", "--device", "cpu", "--tensorboard", "false", "--workers", "0",
]  # fmt: skip


def test_resume_is_exact(patches, tmp_path):
    line = ["main_dino.py", "--data_path", patches, *SMALL]
    assert run(*line, "--dump_path", tmp_path / "a").returncode == 0
    for extra in (["--max_steps", 5], ["--max_steps", 11], []):
        result = run(*line, "--dump_path", tmp_path / "b", *extra)
        assert result.returncode == 0, result.stderr
    assert "continuing from" in result.stdout
    assert_same_end(tmp_path / "a", tmp_path / "b")
    judged = run("eval_knn.py", "--data_path", patches, "--pretrained", tmp_path / "a" / "checkpoint.pth.tar", "--key",
                 "teacher_backbone", "--k", 5, "--workers", 0, "--dump_path", tmp_path)  # fmt: skip
    assert judged.returncode == 0, judged.stderr

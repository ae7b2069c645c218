"""What only a GPU can show; skipped without one (`benchmarks/gpu.sh` runs this file)."""

import pytest
import torch

from src.checkpoints.store import read_run
from src.clock import Clock
from src.data.datasets import FolderImages
from src.data.loading import Batch, ToDevice, ViewDataset, collate
from src.data.sampling import Position
from src.data.view_sets import multi_crop
from src.methods.swav import SwAV
from src.models.backbones import checkpoint_activations, create_backbone
from src.optim.larc import LARC
from src.parallel import launch
from tests.helpers import run
from tests.runs import assert_same_end
from tests.scripts.test_main_swav import command

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def on_gpu(patches, folder, *extra):
    arguments = command(patches, folder, *extra)
    arguments[arguments.index("cpu")] = "cuda"
    return arguments


@pytest.mark.parametrize(
    "extra", [["--precision", "bf16"], ["--precision", "fp16"], ["--precision", "fp32"], ["--compile"]]
)
def test_a_short_run_trains(patches, tmp_path, extra):
    result = run(*on_gpu(patches, tmp_path, "--epochs", 2, "--batch_size", 16, "--workers", 2, *extra))
    assert result.returncode == 0, result.stderr
    assert read_run(tmp_path / "checkpoint.pth.tar")["epoch"] == 2


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_deterministic_run_in_two_parts_equals_one_in_one_go(patches, tmp_path, precision):
    extra = ("--epochs", 4, "--batch_size", 8, "--workers", 2, "--deterministic", "--precision", precision,
             "--queue_length", 16, "--epoch_queue_starts", 1, "--freeze_prototypes_niters", 5)  # fmt: skip
    assert run(*on_gpu(patches, tmp_path / "a", *extra)).returncode == 0
    assert run(*on_gpu(patches, tmp_path / "b", *extra, "--max_steps", 29)).returncode == 0
    assert run(*on_gpu(patches, tmp_path / "b", *extra)).returncode == 0
    assert_same_end(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_step_never_waits_for_the_device(dtype):
    """Forward, loss, queue, backward, loss scaling, LARC: torch itself reports any synchronisation."""
    device = launch.choose_device("cuda", 0)
    method = SwAV(create_backbone("resnet18"), nmb_prototypes=50, queue_rows=32, epoch_queue_starts=0).to(device)
    optimizer = LARC(method.parameters(), lr=0.1, weight_decay=1e-6)
    scaler = torch.amp.GradScaler("cuda", enabled=dtype is torch.float16)
    crops = [torch.randn(16, 3, s, s, device=device) for s in (64, 64, 32)]
    batch = Batch(crops, torch.zeros(16, device=device), torch.arange(16, device=device))
    method.before_epoch(Clock(10, 1))
    for step in range(6):
        if step == 3:  # the first steps allocate and tune
            torch.cuda.set_sync_debug_mode("error")
        try:
            method.before_step(Clock(10, 1, step))
            with torch.autocast("cuda", dtype=dtype):
                loss = method(batch, Clock(10, 1, step))["loss"]
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            method.after_backward(Clock(10, 1, step))
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(loss)


def test_colours_on_the_gpu_are_those_of_the_cpu(patches):
    """The same draws: equal but for a level here and there, where a fused multiplication rounds otherwise."""
    dataset = ViewDataset(FolderImages(patches / "train"), multi_crop([32, 16], [2, 3], [0.14, 0.05], [1.0, 0.14]),
                          31, colours_on_device=True)  # fmt: skip
    batch = collate([dataset[Position(0, i)] for i in range(96)])
    on_cpu, on_gpu = (ToDevice(torch.device(d), (0.0,) * 3, (1.0,) * 3)(batch) for d in ("cpu", "cuda"))
    for expected, found in zip(on_cpu.crops, on_gpu.crops, strict=True):
        levels = (expected - found.cpu()).abs() * 255
        assert levels.max() <= 8
        assert (levels > 0.5).float().mean() < 0.001


def test_colours_are_changed_without_waiting_for_the_gpu(patches):
    dataset = ViewDataset(FolderImages(patches / "train"), multi_crop([32], [2], [0.14], [1.0]), 31,
                          colours_on_device=True)  # fmt: skip
    prepare = ToDevice(torch.device("cuda"), (0.0,) * 3, (1.0,) * 3)
    batches = [collate([dataset[Position(e, i)] for i in range(96)]).pin_memory() for e in range(3)]
    prepare(batches[0])  # the table of hues is made on first use
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches[1:]:
            prepare(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_recomputed_activations_save_memory():
    held = {}
    for recompute in (False, True):
        backbone = create_backbone("resnet50").cuda()
        if recompute:
            checkpoint_activations(backbone)
        torch.cuda.reset_peak_memory_stats()
        backbone(torch.randn(16, 3, 224, 224, device="cuda")).sum().backward()
        held[recompute] = torch.cuda.max_memory_allocated()
    assert held[True] < 0.6 * held[False]

"""What only a GPU can show; skipped without one (`benchmarks/gpu.sh` runs this file)."""

import importlib
import itertools
import os

from src.checkpoints.store import read_run
from src.data.datasets import FolderImages
from src.data.loading import ViewDataset, collate
from src.data.sampling import Position
from src.data.to_device import ToDevice
from src.data.view_sets import multi_crop
from src.engine.finite import tensors_in
from src.models.backbones import checkpoint_activations, create_backbone
from src.parallel import launch
from tests.helpers import run, torchrun
from tests.runs import assert_same_end
from tests.same_runs import EVALUATIONS
from tests.scripts.test_main_swav import command
from tests.steps import LINES, steps, training_of, waits_named, waits_of

import pytest
import torch

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


# Their whitening takes torch's eigenvectors, which read from the GPU whether there are any
DECOMPOSE = ("cwrgp", "cwrgp-four-views", "pca", "zero_icl")

# read when cuBLAS starts, so before the first test
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture(autouse=True)
def _as_at_the_start():
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False


@pytest.fixture(scope="module")
def runs(patches, tmp_path_factory):
    """Checkpoints of a MoCo run, the teacher of others, and of a SwAV run, which is evaluated; made on the GPU."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("moco", "swav"):
        finish(LINES[name], patches, folder, folder / name)
    return folder


def finish(line, patches, runs, folder, *extra):
    """Runs a command line of a script to its end, in this process, on the GPU."""
    script, *words = line.format(data=patches, runs=runs).replace("--device cpu", "--device cuda").split()
    words += ["--dump_path", str(folder)] if "--dump_path" not in words else []
    words += ["--workers", "0"] if "--workers" not in words else []
    assert not importlib.import_module(script.removesuffix(".py")).main([*words, *map(str, extra)])


@pytest.mark.parametrize("name", LINES)
def test_a_step_never_waits_for_the_device(patches, runs, name):
    """From the batch in pinned memory to the optimiser: torch itself reports any synchronisation."""
    extra = [] if "--precision" in LINES[name] else ["--precision", "bf16"]
    training = training_of(name, patches, runs, launch.choose_device("cuda", 0), *extra)
    waits = waits_of(training)
    if name in DECOMPOSE:
        waits = [line for line in waits if "torch.linalg.eigh" not in line]
    assert "\n".join(waits) == ""


@pytest.mark.parametrize("name", ["swav", "twist", "intl", "moco", "w2ssl", "disco-maps"])
def test_a_step_with_scaled_loss_and_bounded_gradients_never_waits(patches, runs, name):
    extra = ["--precision", "fp16", "--clip_norm", "1", *([] if name in ("intl", "twist") else ["--accumulate", "2"])]
    training = training_of(name, patches, runs, launch.choose_device("cuda", 0), *extra)
    assert "\n".join(waits_of(training)) == ""


def test_a_wait_is_noticed():
    waits: set[str] = set()
    with waits_named(waits):
        torch.ones(3, device="cuda")[[0, 2]].add_(1).sum().item()
    assert len(waits) == 1


@pytest.mark.parametrize("name", LINES)
def test_the_first_steps_are_those_of_the_cpu(patches, runs, name, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    losses = {}
    extra = ["--precision", "fp32", "--augment_on", "worker"]
    if "main_twist.py" in LINES[name]:  # what is dropped is drawn on the device
        extra += ["--drop", "0", "--drop_path", "0"]
    for device in (torch.device("cpu"), launch.choose_device("cuda", 0)):
        training = training_of(name, patches, runs, device, *extra)
        losses[device.type] = [outputs["loss"].item() for outputs in itertools.islice(steps(training), 3)]
    assert losses["cuda"][0] == pytest.approx(losses["cpu"][0], rel=1e-3, abs=1e-3)
    # steps of so small networks spread whatever rounds otherwise
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=0.03, abs=0.01)


@pytest.mark.parametrize(
    "name",
    ["swav-queue", "deepcluster-v2", "sela-v2", "twist-teacher", "twist-moco", "intl_m", "cwrgp", "byol", "moco",
     "disco", "seed", "w2ssl", "dino"],
)  # fmt: skip
def test_every_method_resumes_exactly(patches, runs, tmp_path, name):
    """twist-moco drops activations, by the random numbers of the GPU."""
    line = f"{LINES[name]} --deterministic"
    finish(line, patches, runs, tmp_path / "a")
    finish(line, patches, runs, tmp_path / "b", "--max_steps", 7)
    finish(line, patches, runs, tmp_path / "b")
    assert_same_end(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("name", ["swav-queue", "moco", "deepcluster-v2"])
def test_a_checkpoint_is_of_its_step_though_the_training_goes_on(patches, runs, tmp_path, name):
    """It is copied on a stream of its own, and written by a thread."""
    line = f"{LINES[name]} --deterministic --save_every 1 --keep_last 99"
    finish(line, patches, runs, tmp_path / "a")
    finish(line, patches, runs, tmp_path / "b", "--max_steps", 7)
    saved = [read_run(tmp_path / folder / "checkpoints" / "step-000000007.pth") for folder in "ab"]
    for entry in ("state_dict", "optimizer", "per_rank"):
        ours, theirs = (list(tensors_in(run[entry])) for run in saved)
        assert len(ours) == len(theirs) > 0
        assert all(map(torch.equal, ours, theirs)), entry


@pytest.mark.parametrize("name", ["swav", "moco", "twist", "twist-barlow"])
def test_an_overflow_changes_no_weight(patches, runs, name):
    """LARC, SGD, LARS and AdamW, whose kernels read from the scaler whether a step is to be left out."""
    training = training_of(name, patches, runs, launch.choose_device("cuda", 0), "--precision", "fp16")
    training.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**60)
    # SwAV's prototypes are made unit rows before each step
    trained = [p for n, p in training.method.named_parameters() if p.requires_grad and n.startswith("backbone.")]
    before = [p.detach().clone() for p in trained]
    next(steps(training))
    assert all(map(torch.equal, before, trained))
    assert training.scaler.get_scale() == 2.0**59
    momenta = [value for state in training.optimizer.state.values() for value in state.values()]
    assert not any(value.count_nonzero() for value in momenta if torch.is_tensor(value) and value.ndim)
    training.scaler = torch.amp.GradScaler("cuda", init_scale=1.0)
    next(itertools.islice(steps(training), 1, None))  # the first step of a warm-up may have a rate of 0
    assert not all(map(torch.equal, before, trained))
    assert all(p.isfinite().all() for p in trained)


@pytest.mark.parametrize("name", ["swav", "moco", "twist"])
def test_weights_and_momenta_stay_channels_last(patches, runs, name):
    training = training_of(name, patches, runs, launch.choose_device("cuda", 0))
    list(itertools.islice(steps(training), 2))
    kernels = [p for p in training.optimizer.state if p.ndim == 4 and p.shape[2] > 1]
    assert kernels
    for kernel in kernels:
        assert kernel.is_contiguous(memory_format=torch.channels_last)
        momentum = training.optimizer.state[kernel]["momentum_buffer"]
        assert momentum.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", EVALUATIONS)
def test_evaluations_run(patches, runs, tmp_path, name):
    finish(EVALUATIONS[name].replace("{runs}/judged", str(tmp_path)), patches, runs, "")


@pytest.mark.parametrize(
    "line",
    [LINES["swav"], f"{LINES['swav']} --sync_bn apex", f"{LINES['swav']} --sync_bn apex --syncbn_process_group_size 1",
     f"{LINES['swav']} --shard", LINES["twist"], LINES["intl_m"],
     LINES["moco"], LINES["w2ssl"], LINES["deepcluster-v2"],
     *(f"{LINES[name]} --shard" for name in ("deepcluster-v2", "twist-teacher", "moco", "w2ssl"))],
)  # fmt: skip
def test_a_process_group_of_one(patches, runs, tmp_path, line):
    """NCCL, DDP, sharding, with the one GPU that is sure to be there."""
    words = line.format(data=patches, runs=runs).replace("--device cpu", "--device cuda").split()
    result = run(*words, "--dump_path", tmp_path, "--workers", 1, launcher=torchrun(1))
    assert result.returncode == 0, result.stderr
    assert read_run(tmp_path / "checkpoint.pth.tar")["epoch"] == 3


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize(
    "line",
    [f"{LINES['swav']} --sync_bn apex --syncbn_process_group_size {size} --batch_size 8" for size in (1, 2)]
    + [f"{LINES['swav']} --shard", LINES["moco"], f"{LINES['twist'].replace('--bunch-size 16', '--bunch-size 32')}"],
)
def test_two_gpus(patches, runs, tmp_path, line):
    """Groups of batch norms, gathered and shuffled rows, and shards over NCCL."""
    words = line.format(data=patches, runs=runs).replace("--device cpu", "--device cuda").split()
    result = run(*words, "--dump_path", tmp_path, "--workers", 1, launcher=torchrun(2))
    assert result.returncode == 0, result.stderr
    assert read_run(tmp_path / "checkpoint.pth.tar")["epoch"] == 3


def test_memory_in_growing_segments(patches, runs, tmp_path, monkeypatch):
    """What the docs recommend against fragmented memory, with checkpoints, resume, and another stream."""
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    words = LINES["swav"].format(data=patches, runs=runs).replace("--device cpu", "--device cuda").split()
    for more in (["--max_steps", "7"], []):
        result = run(*words, "--dump_path", tmp_path, *more, launcher=torchrun(1))
        assert result.returncode == 0, result.stderr
    assert read_run(tmp_path / "checkpoint.pth.tar")["epoch"] == 3


def test_a_batch_is_ready_when_it_is_used_and_stays_so(patches):
    """The GPU is far behind the host, and the memory of one batch is given to the next."""
    dataset = ViewDataset(FolderImages(patches / "train"), multi_crop([32, 16], [2, 3], [0.14, 0.05], [1.0, 0.14]),
                          31, colours_on_device=True)  # fmt: skip
    batches = [collate([dataset[Position(e, i)] for i in range(96)]).pin_memory() for e in range(4)]
    prepare, alone = (ToDevice(torch.device("cuda"), (0.0,) * 3, (1.0,) * 3) for _ in range(2))
    expected = []
    for batch in batches:
        expected.append([crop.clone() for crop in alone(batch).crops])
        torch.cuda.synchronize()
    work, found = torch.randn(4096, 4096, device="cuda"), []
    for batch in batches * 5:
        ready = prepare(batch)
        for _ in range(8):
            work = (work @ work).clamp_(-1, 1)
        found.append([crop.clone() for crop in ready.crops])
        del ready
    for i, crops in enumerate(found):
        assert all(map(torch.equal, crops, expected[i % len(batches)])), i


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

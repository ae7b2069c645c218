"""main_swav.py as users run it: the commands, what it writes, kills and resumes."""

import json
import os
import re
import shlex
import signal

from src.checkpoints.store import read_run
from tests.helpers import run, torchrun
from tests.runs import (
    assert_same_end,
    children_of,
    final_state,
    kill_until_done,
    start,
    wait_for_steps,
)

import pytest
import torch

SMALL = [
    "--arch", "resnet18", "--width", "0.125", "--stem", "small", "--size_crops", "16", "12", "--nmb_crops", "2", "1",
    "--min_scale_crops", "0.3", "0.1", "--max_scale_crops", "1", "0.3", "--hidden_mlp", "32", "--feat_dim", "16",
    "--nmb_prototypes", "12", "--warmup_epochs", "0", "--base_lr", "0.5", "--tensorboard", "false", "--device", "cpu",
]  # fmt: skip


def command(patches, folder, *extra):
    return ["main_swav.py", "--data_path", patches / "train", "--dump_path", folder, *SMALL, *map(str, extra)]


def test_a_short_run_writes_what_it_promises(patches, tmp_path):
    arguments = command(patches, tmp_path / "run", "--epochs", 2, "--batch_size", 16, "--workers", 1, "--knn_freq", 1,
                        "--knn_k", 5, "--log_every", 3, "--tensorboard", "true")  # fmt: skip
    result = run(*arguments)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("main_swav.py --data_path")
    assert "96 images" in lines[1]
    assert any(re.match(r"epoch 1/2  step 4/6  loss \d\.\d+  lr 0\.\d+  \d+ img/s", line) for line in lines)
    assert any("assignment entropy" in line and "rankme" in line for line in lines)
    assert sum("knn top1" in line for line in lines) == 2
    assert "COLLAPSE" not in result.stderr
    assert "Traceback" not in result.stderr
    folder = tmp_path / "run"
    settings = json.loads((folder / "settings.json").read_text())
    assert settings["arguments"]["epsilon"] == 0.05
    assert {p.name for p in folder.iterdir()} == {
        "checkpoint.pth.tar", "checkpoints", "log.jsonl", "settings.json", "tensorboard", "train.log",
    }  # fmt: skip
    assert list((folder / "tensorboard").iterdir())
    assert read_run(folder / "checkpoint.pth.tar")["epoch"] == 2
    # started again, it sees that nothing is left to do
    again = run(*arguments)
    assert again.returncode == 0
    assert "continuing from" in again.stdout


LONG = ("--epochs", 8, "--batch_size", 8, "--log_every", 1, "--save_every", 2, "--queue_length", 16,
        "--epoch_queue_starts", 1, "--freeze_prototypes_niters", 5)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("augment_on", ["worker", "device"])
def test_killed_at_random_points_it_ends_in_the_same_weights(patches, tmp_path, augment_on):
    long = (*LONG, "--augment_on", augment_on)
    undisturbed = run(*command(patches, tmp_path / "a", *long, "--workers", 1))
    assert undisturbed.returncode == 0, undisturbed.stderr
    kill_until_done(command(patches, tmp_path / "b", *long), tmp_path / "b", kills=2)
    assert_same_end(tmp_path / "a", tmp_path / "b")


OFFLINE = ("--epochs", 5, "--batch_size", 8, "--log_every", 1, "--save_every", 5, "--nmb_prototypes", 6, 5, 4)


@pytest.mark.parametrize("method", [
    ["deepcluster-v2"],
    pytest.param(["sela-v2"], marks=pytest.mark.slow),
    pytest.param(["sela-v2", "--sela_hard", "false", "--nmb_prototypes", 6, 6], marks=pytest.mark.slow),
], ids=["deepcluster-v2", "sela-v2", "sela-v2 with soft codes"])  # fmt: skip
def test_clustering_runs_end_in_the_same_weights_and_assignments(patches, tmp_path, method):
    """Killed inside epochs and between them: bank, assignments and the draw of centroids are in the checkpoint."""
    extra = (*OFFLINE, "--method", *method, "--freeze_prototypes_niters", 10)
    undisturbed = run(*command(patches, tmp_path / "a", *extra, "--workers", 1))
    assert undisturbed.returncode == 0, undisturbed.stderr
    assert run(*command(patches, tmp_path / "b", *extra, "--workers", 0, "--max_steps", 24)).returncode == 0  # epoch 3
    kill_until_done(command(patches, tmp_path / "b", *extra), tmp_path / "b", kills=1)
    assert_same_end(tmp_path / "a", tmp_path / "b")
    names = final_state(tmp_path / "a")[1]
    assert {"state_dict.labels", "per_rank.0.buffers.bank", "per_rank.0.buffers.bank_images"} <= names.keys()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["deepcluster-v2", "sela-v2"])
def test_clustering_runs_on_two_ranks_resume_exactly(patches, tmp_path, method):
    extra = (*OFFLINE, "--method", method, "--workers", 1)
    assert run(*command(patches, tmp_path / "a", *extra), ranks=2).returncode == 0
    for stop in (9, 18):
        parts = command(patches, tmp_path / "b", *extra, "--max_steps", stop)
        assert run(*parts, ranks=2).returncode == 0
    assert run(*command(patches, tmp_path / "b", *extra), ranks=2).returncode == 0
    assert_same_end(tmp_path / "a", tmp_path / "b")
    # on one process it goes on as well
    assert run(*command(patches, tmp_path / "c", *extra, "--max_steps", 9), ranks=2).returncode == 0
    result = run(*command(patches, tmp_path / "c", *extra))
    assert result.returncode == 0, result.stderr
    assert "resuming on 1 ranks" in result.stderr


def test_the_old_name_starts_deepcluster(patches, tmp_path):
    arguments = command(patches, tmp_path, "--epochs", 1, "--batch_size", 16, "--workers", 0, "--nmb_prototypes", 6, 5,
                        "--freeze_prototypes_niters", 300000)  # fmt: skip
    arguments[0] = "main_deepclusterv2.py"
    result = run(*arguments)
    assert result.returncode == 0, result.stderr
    assert "deepcluster-v2" in result.stdout
    settings = json.loads((tmp_path / "settings.json").read_text())["arguments"]
    assert settings["method"] == "deepcluster-v2"
    assert settings["precision"] == "fp32"


@pytest.mark.slow
def test_colours_changed_in_workers_and_on_the_device_train_alike(patches, tmp_path):
    """The same loss curve, within a spread that another seed exceeds by far."""
    losses = {}
    for name, extra in (("worker", []), ("device", []), ("seed", ["--seed", 32])):
        augment_on = "worker" if name == "seed" else name
        arguments = command(patches, tmp_path / name, "--epochs", 6, "--batch_size", 16, "--log_every", 1, "--workers",
                            1, "--augment_on", augment_on, *extra)  # fmt: skip
        assert run(*arguments).returncode == 0
        lines = map(json.loads, (tmp_path / name / "log.jsonl").read_text().splitlines())
        losses[name] = torch.tensor([line["loss"] for line in lines if line["kind"] == "train"])
    assert len(losses["worker"]) == 36
    between_ways = (losses["worker"] - losses["device"]).abs()
    between_seeds = (losses["worker"] - losses["seed"]).abs()
    assert between_ways[0] < 1e-3
    assert between_ways.mean() < 0.2 * between_seeds.mean()
    assert (losses["worker"].mean() - losses["device"].mean()).abs() < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("sync_bn", ["pytorch", "no"])
def test_two_ranks_killed_at_random_points_end_in_the_same_weights(patches, tmp_path, sync_bn):
    extra = ("--epochs", 3, "--batch_size", 4, *LONG[4:], "--sync_bn", sync_bn)
    undisturbed = run(*command(patches, tmp_path / "a", *extra, "--workers", 1), ranks=2)
    assert undisturbed.returncode == 0, undisturbed.stderr
    kill_until_done(
        command(patches, tmp_path / "b", *extra), tmp_path / "b", kills=2, launcher=lambda: torchrun(2), seed=1
    )
    assert_same_end(tmp_path / "a", tmp_path / "b")
    assert len(read_run(tmp_path / "a" / "checkpoint.pth.tar")["per_rank"]) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)])
def test_a_signal_saves_and_leaves_with_its_code(patches, tmp_path, number):
    undisturbed = run(*command(patches, tmp_path / "a", *LONG, "--save_every", 0, "--workers", 0))
    assert undisturbed.returncode == 0, undisturbed.stderr
    arguments = command(patches, tmp_path / "b", *LONG, "--save_every", 0, "--workers", 1)
    process = start(arguments)
    wait_for_steps(process, tmp_path / "b", 5)
    os.killpg(process.pid, number)  # the workers get it too, and go on until the step is done
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, output
    assert "stopped by a signal after step" in output
    assert "Traceback" not in output
    second = run(*arguments)
    assert second.returncode == 0, second.stderr
    assert_same_end(tmp_path / "a", tmp_path / "b")


@pytest.mark.slow
def test_a_signal_to_one_of_two_ranks_stops_both_at_one_step(patches, tmp_path):
    extra = ("--epochs", 40, "--batch_size", 4, "--log_every", 1, "--workers", 0)
    process = start(command(patches, tmp_path, *extra), launcher=torchrun(2))
    wait_for_steps(process, tmp_path, 5)
    os.kill(children_of(process.pid)[-1], signal.SIGUSR1)
    output, _ = process.communicate(timeout=60)
    assert "stopped by a signal after step" in output
    content = read_run(tmp_path / "checkpoint.pth.tar")
    assert content["step"] == int(re.search(r"after step (\d+)", output)[1])
    assert len(content["per_rank"]) == 2


@pytest.mark.slow
def test_two_ranks_resume_on_one_and_say_what_changes(patches, tmp_path):
    extra = ("--epochs", 2, "--log_every", 2, "--workers", 0, "--queue_length", 16, "--epoch_queue_starts", 0)
    first = run(*command(patches, tmp_path, *extra, "--batch_size", 4, "--max_steps", 7), ranks=2)
    assert first.returncode == 0, first.stderr
    second = run(*command(patches, tmp_path, *extra, "--batch_size", 8))
    assert second.returncode == 0, second.stderr
    assert "not bit-exact" in second.stderr
    assert "epoch 0, step 7 of it" in second.stdout
    assert read_run(tmp_path / "checkpoint.pth.tar")["step"] == 24


@pytest.mark.slow
def test_a_run_that_collapses_says_so_and_a_healthy_one_does_not(patches, tmp_path):
    """Noise-free collapse on purpose: one linear layer as head, a huge learning rate, prototypes free at once."""
    extra = ("--epochs", 30, "--batch_size", 8, "--log_every", 5, "--workers", 0, "--max_steps", 300)
    collapse = run(*command(patches, tmp_path / "a", *extra, "--base_lr", 500, "--freeze_prototypes_niters", 0,
                            "--epsilon", 1.0))  # fmt: skip
    assert "COLLAPSE: all images have nearly the same embeddings" in collapse.stderr, collapse.stdout[-2000:]
    assert "--epsilon" in collapse.stderr
    healthy = run(*command(patches, tmp_path / "b", *extra))
    assert healthy.returncode == 0
    assert "COLLAPSE" not in healthy.stderr


def seed_command() -> list[str]:
    """The single-node command of the paper's own README."""
    return shlex.split(
        """main_swav.py --data_path DATA --epochs 400 --base_lr 0.6 --final_lr 0.0006 --warmup_epochs 0
        --batch_size 32 --size_crops 224 96 --nmb_crops 2 6 --min_scale_crops 0.14 0.05 --max_scale_crops 1. 0.14
        --use_fp16 true --freeze_prototypes_niters 5005 --queue_length 3840 --epoch_queue_starts 15"""
    )


@pytest.mark.slow
def test_the_published_command_starts_as_it_stands(patches, tmp_path):
    """ResNet-50 at 2x224 + 6x96; only the paths, the device and the number of steps are ours."""
    arguments = [str(patches / "train") if a == "DATA" else a for a in seed_command()]
    result = run(*arguments, "--device", "cpu", "--dump_path", tmp_path, "--max_steps", 1, "--workers", 1)
    assert result.returncode == 0, result.stderr
    assert "28.4 M parameters" in result.stdout
    assert "queue      3840 embeddings" in result.stdout
    assert "loss 8." in result.stdout or "loss 7." in result.stdout


@pytest.mark.slow
def test_the_old_launcher_starts_two_ranks(patches, tmp_path):
    launcher = torchrun(2)
    launcher[2] = "torch.distributed.launch"
    result = run(*command(patches, tmp_path, "--batch_size", 8, "--max_steps", 2, "--workers", 0), launcher=launcher)
    assert result.returncode == 0, result.stderr
    assert "8 x 2 processes" in result.stdout


def test_both_spellings_and_retired_flags_are_understood(patches, tmp_path):
    arguments = [str(a).replace("_", "-") if str(a).startswith("--") else a for a in command(patches, tmp_path)]
    result = run(*arguments, "--batch-size=16", "--max-steps", 1, "--workers", 0, "--local_rank=0", "--use_env",
                 "--world-size", "1", "--sync_bn", "apex", "--use_pil_blur", "true")  # fmt: skip
    assert result.returncode == 0, result.stderr
    for flag in ("local_rank", "use_env", "world_size", "use_pil_blur"):
        assert f"warning: --{flag} has no effect any more" in result.stderr


def test_unreadable_images_do_not_stop_a_run(patches, tmp_path):
    for i, path in enumerate(sorted((patches / "train" / "leaf").iterdir())):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / f"{i}.png").write_bytes(path.read_bytes() if i != 4 else b"broken")
    arguments = command(patches, tmp_path / "run", "--batch_size", 8, "--epochs", 1, "--workers", 1)
    arguments[2] = tmp_path / "data"
    result = run(*arguments)
    assert result.returncode == 0, result.stderr
    assert f"unreadable image skipped: {tmp_path / 'data' / '4.png'}" in result.stderr
    assert result.stderr.count("unreadable image skipped") == 1


@pytest.mark.slow
def test_compiled_and_accumulated_runs_train(patches, tmp_path):
    for name, extra in (
        ("compile", ["--compile"]),
        ("accumulate", ["--accumulate", 2]),
        ("bf16", ["--precision", "bf16"]),
    ):
        result = run(*command(patches, tmp_path / name, "--batch_size", 16, "--epochs", 1, "--workers", 0, *extra))
        assert result.returncode == 0, result.stderr
        assert read_run(tmp_path / name / "checkpoint.pth.tar")["epoch"] == 1
        if name == "accumulate":
            assert "--accumulate 2 is --virtual_ranks 2 now" in result.stderr


@pytest.mark.slow
def test_a_queue_that_raises_the_loss_is_named_with_the_authors_advice(patches, tmp_path):
    """Small batches have an easy assignment until the queue joins them."""
    result = run(*command(
        patches, tmp_path, "--batch_size", 4, "--workers", 0, "--queue_length", 96, "--epochs", 12,
        "--epoch_queue_starts", 8, "--base_lr", 0.1, "--epsilon", 0.02, "--nmb_prototypes", 6, "--log_every", 3,
    ))  # fmt: skip
    assert result.returncode == 0, result.stderr
    said = result.stdout + result.stderr
    assert re.search(
        r"QUEUE: the loss is [\d.]+ with the queue, and was [\d.]+ without it\. The authors advise a smaller", said
    )
    first = min(json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()
                if json.loads(line).get("queue_in_use"))  # fmt: skip
    assert first > 8 * 24  # 24 steps an epoch: it is filled first

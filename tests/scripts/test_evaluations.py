"""eval_knn.py, eval_linear.py and eval_semisup.py from the command line."""

import json

from src.checkpoints.state import RunState
from src.checkpoints.store import CheckpointStore, read_run
from src.clock import Clock
from src.engine.monitor import read_log
from src.errors import UserError
from src.methods.swav import SwAV
from src.models.backbones import create_backbone
from src.models.pretrained import BackboneSpec, load_backbone
from src.optim.larc import LARC
from tests.helpers import run

import numpy as np
import pytest
import torch

SETTINGS = {"method": "swav", "arch": "resnet18", "width": 0.125, "stem": "small", "eval_size": 32, "eval_resize": 32,
            "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    backbone = create_backbone("resnet18", width=0.125, stem="small")
    method = SwAV(backbone, hidden_mlp=8, feat_dim=8, nmb_prototypes=6, queue_rows=4)
    state = RunState(method, LARC(method.parameters()), torch.amp.GradScaler("cpu", enabled=False), Clock(10, 4), 8)
    CheckpointStore(folder, SETTINGS).save(state)
    return folder / "checkpoint.pth.tar"


def test_a_checkpoint_of_ours_knows_its_backbone(checkpoint):
    loaded = load_backbone(checkpoint)
    assert loaded.spec == BackboneSpec("resnet18", 0.125, "small")
    weights = read_run(checkpoint)["state_dict"]
    for name, tensor in loaded.backbone.state_dict().items():
        assert torch.equal(tensor, weights[f"backbone.{name}"])
    assert not loaded.backbone.training


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_published_layout_is_read_too(tmp_path, wrapped):
    torch.manual_seed(0)
    method = SwAV(create_backbone("resnet50", width=0.125), hidden_mlp=8, feat_dim=8, nmb_prototypes=6)
    state = {f"module.{n.removeprefix('backbone.')}": t for n, t in method.state_dict().items() if n != "queue"}
    torch.save({"epoch": 5, "state_dict": state} if wrapped else state, tmp_path / "swav.pth.tar")
    loaded = load_backbone(tmp_path / "swav.pth.tar", BackboneSpec("resnet50", 0.125))
    for name, tensor in loaded.backbone.state_dict().items():
        assert torch.equal(tensor, method.state_dict()[f"backbone.{name}"])
    assert load_backbone(tmp_path / "swav.pth.tar").spec == BackboneSpec("resnet50", 0.125)  # told by the shapes
    with pytest.raises(UserError, match=r"of another shape.*is --arch right"):
        load_backbone(tmp_path / "swav.pth.tar", BackboneSpec("resnet50"))


def test_eval_knn(checkpoint, patches, tmp_path):
    base = ["eval_knn.py", "--data_path", patches, "--dump_path", tmp_path, "--workers", 0, "--k", 5, 10]
    result = run(*base, "--pretrained", checkpoint)
    assert result.returncode == 0, result.stderr
    written = json.loads((tmp_path / "knn.json").read_text())
    assert "step 0 of a swav run" in written["what"]
    assert set(written["knn"]) == {"5", "10"}
    assert f"5 nearest neighbours: top-1 {written['knn']['5']['top1']:.2f} %" in result.stdout
    assert written["knn"]["5"]["top1"] <= written["knn"]["5"]["top5"]
    pixels = run(*base, "--raw_pixels", "--crop_size", 32)
    assert "raw pixels" in pixels.stdout
    assert json.loads((tmp_path / "knn.json").read_text())["knn"]["5"]["top1"] > 25


@pytest.mark.slow
def test_eval_knn_on_two_ranks_is_the_same(checkpoint, patches, tmp_path):
    base = ["eval_knn.py", "--data_path", patches, "--workers", 0, "--k", 5, "--pretrained", checkpoint]
    results = []
    for ranks in (1, 2):
        result = run(*base, "--dump_path", tmp_path / str(ranks), ranks=ranks)
        assert result.returncode == 0, result.stderr
        results.append(json.loads((tmp_path / str(ranks) / "knn.json").read_text())["knn"])
    assert results[0] == results[1]


@pytest.mark.parametrize("features", ["cached", "augmented"])
def test_eval_linear_learns_resumes_and_reports(checkpoint, patches, tmp_path, features):
    base = ["eval_linear.py", "--data_path", patches, "--workers", 0, "--pretrained", checkpoint, "--lr", 0.03, 0.3,
            "--batch_size", 32, "--epochs", 4, "--features", features]  # fmt: skip
    whole = run(*base, "--dump_path", tmp_path / "a")
    assert whole.returncode == 0, whole.stderr
    written = json.loads((tmp_path / "a" / "linear.json").read_text())
    assert set(written["lr"]) == {"0.03", "0.3"}
    best = max(result["best_top1"] for result in written["lr"].values())
    assert best > 40  # chance is 25
    assert "lr 0.3: top-1" in whole.stdout
    if features == "cached":
        return
    assert run(*base, "--dump_path", tmp_path / "b", "--max_steps", 5).returncode == 0
    rest = run(*base, "--dump_path", tmp_path / "b")
    assert "epoch 1, step 2 of it" in rest.stdout
    first, second = (read_run(tmp_path / name / "linear" / "checkpoint.pth.tar")["state_dict"] for name in "ab")
    assert all(torch.equal(first[name], second[name]) for name in first if name != "best_top1")


@pytest.mark.parametrize(("schedule", "expected"), [
    (["--schedule", "1", "3", "--gamma", 0.5], [0.4, 0.2, 0.2, 0.1]),
    (["--schedule", "cos", "--final_lr", 0.1], [0.1 + 0.15 * (1 + np.cos(np.pi * e / 4)) for e in range(4)]),
])  # fmt: skip
def test_learning_rates_change_between_epochs_only(checkpoint, patches, tmp_path, schedule, expected):
    """INTL's rule on top: 0.2 for 256 images is 0.4 for 512."""
    result = run("eval_linear.py", patches, checkpoint, "--dump_path", tmp_path, "--protocol", "intl", "--epochs", 4,
                 "--features", "cached", "--batch-size", 512, "--log_every", 1, "--workers", 0, *schedule)  # fmt: skip
    assert result.returncode == 0, result.stderr
    records = read_log(tmp_path / "linear" / "log.jsonl", "train")
    assert [record["lr"] for record in records] == pytest.approx(expected)
    assert list(json.loads((tmp_path / "linear.json").read_text())["lr"]) == ["0.2"]


def test_random_weights_are_judged_when_no_checkpoint_is_given(patches, tmp_path):
    model = ["--arch", "resnet18", "--width", 0.125, "--stem", "small", "--crop_size", 32]
    result = run("eval_linear.py", "--data_path", patches, "--dump_path", tmp_path, "--workers", 0, "--features",
                 "cached", "--epochs", 1, *model)  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "random weights" in result.stdout


@pytest.fixture(scope="module")
def backbone_only(tmp_path_factory):
    """``resnet50.pth`` as INTL's README calls it: torchvision's names and nothing else."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "resnet50.pth"
    torch.save(create_backbone("resnet18", width=0.125).state_dict(), path)
    return path


def test_the_positional_style_of_barlow_twist_and_intl(backbone_only, patches, tmp_path):
    result = run("eval_linear.py", patches, backbone_only, "--lr-classifier", 0.3, "--checkpoint-dir", tmp_path,
                 "--batch-size", 32, "--epochs", 1, "--crop_size", 32, "--workers", 0)  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "protocol   barlow" in result.stdout
    assert "inferred from the flags" in result.stdout
    assert "paper: no number to compare with (4 classes" in result.stdout
    written = json.loads((tmp_path / "linear.json").read_text())
    assert (written["protocol"], written["batch_size"], written["training_images"]) == ("barlow", 32, 96)


def test_eval_semisup_resumes_exactly_and_refuses_another_task(checkpoint, patches, tmp_path):
    base = ["eval_semisup.py", "--data_path", patches, "--pretrained", checkpoint, "--labels_perc", 50, "--workers", 0,
            "--batch_size", 8, "--epochs", 3, "--lr", 0.02, "--lr_last_layer", 0.2]  # fmt: skip
    whole = run(*base, "--dump_path", tmp_path / "a")
    assert whole.returncode == 0, whole.stderr
    assert "no --subset_file: 50 % of the labels are drawn" in whole.stderr
    assert "everything is trained" in whole.stdout
    written = json.loads((tmp_path / "a" / "semisup.json").read_text())
    assert (written["weights"], written["training_images"], written["labels_percent"]) == ("finetune", 48, 50)
    assert run(*base, "--dump_path", tmp_path / "b", "--max_steps", 8).returncode == 0
    rest = run(*base, "--dump_path", tmp_path / "b")
    assert "epoch 1, step 2 of it" in rest.stdout, rest.stderr
    first, second = (read_run(tmp_path / name / "semisup" / "checkpoint.pth.tar")["state_dict"] for name in "ab")
    assert all(torch.equal(first[name], second[name]) for name in first if name != "best_top1")
    start = read_run(checkpoint)["state_dict"]
    assert not torch.equal(first["backbone.conv1.weight"], start["backbone.conv1.weight"])

    again = run(*base, "--dump_path", tmp_path / "a", "--evaluate")  # as it was, without training
    assert json.loads((tmp_path / "a" / "semisup.json").read_text())["lr"] == written["lr"], again.stderr
    other = run(*base, "--dump_path", tmp_path / "a", "--labels_perc", 25)
    assert other.returncode == 2
    assert "was made with other settings: labels_perc" in other.stderr
    none = run(*base, "--dump_path", tmp_path / "c", "--evaluate")
    assert (none.returncode, "there is no checkpoint" in none.stderr) == (2, True)


def test_other_weights_under_the_same_name_are_another_evaluation(patches, tmp_path):
    path = tmp_path / "resnet50.pth"
    base = ["eval_linear.py", patches, path, "--dump_path", tmp_path, "--features", "cached", "--epochs", 1,
            "--crop_size", 32, "--workers", 0]  # fmt: skip
    for seed, code in ((0, 0), (0, 0), (1, 2)):
        torch.manual_seed(seed)
        torch.save(create_backbone("resnet18", width=0.125).state_dict(), path)
        result = run(*base)
        assert result.returncode == code, result.stderr
    assert "other settings: backbone_sha256" in result.stderr


def test_a_list_of_files_chooses_the_images(checkpoint, patches, tmp_path):
    folders = (patches / "train" / name for name in ("leaf", "dogs"))
    names = [f"{folder.name}/{path.name}" for folder in folders for path in sorted(folder.iterdir())[:5]]
    (tmp_path / "list.txt").write_text("\n".join(names))
    base = ["eval_semisup.py", "--data_path", patches, "--pretrained", checkpoint, "--subset_file",
            tmp_path / "list.txt", "--workers", 0, "--batch_size", 8, "--epochs", 1]  # fmt: skip
    result = run(*base, "--dump_path", tmp_path / "a", "--parity_drop_first")
    assert result.returncode == 0, result.stderr
    assert "; 9 training and 32 test images" in result.stdout


@pytest.mark.slow
def test_eval_semisup_on_two_ranks_equals_one_process(checkpoint, patches, tmp_path):
    """Synchronised batch norm and averaged gradients: two halves of a batch are the batch."""
    base = ["eval_semisup.py", "--data_path", patches, "--pretrained", checkpoint, "--labels_perc", 100, "--workers", 0,
            "--epochs", 1, "--lr", 0.001, "--lr_last_layer", 0.02, "--max_steps", 3]  # fmt: skip
    losses = []
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        result = run(
            *base, "--batch_size", 16 // ranks, "--log_every", 1, "--dump_path", folder,
            ranks=ranks if ranks > 1 else 0,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        losses.append([record["loss"] for record in read_log(folder / "semisup" / "log.jsonl", "train")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_logistic_regression_from_the_command_line(checkpoint, patches, tmp_path):
    base = [
        "eval_linear.py",
        "--data_path",
        patches,
        "--dump_path",
        tmp_path,
        "--workers",
        0,
        "--pretrained",
        checkpoint,
    ]
    result = run(*base, "--optimizer", "lbfgs")
    assert result.returncode == 0, result.stderr
    assert "logistic regression by scikit-learn" in result.stdout
    content = json.loads((tmp_path / "linear.json").read_text())
    assert content["features"] == "cached"
    assert list(content["lr"]) == ["lbfgs"]
    assert f"lbfgs: top-1 {content['lr']['lbfgs']['top1']:.2f} %" in result.stdout
    result = run(*base, "--optimizer", "lbfgs", "--features", "augmented")
    assert result.returncode == 2
    assert "needs --features cached" in result.stderr


def test_a_classifier_teaches_another(checkpoint, patches, tmp_path):
    """--classifier_file writes a network with its classifier; --teacher reads it."""
    base = ["eval_linear.py", "--data_path", patches, "--workers", 0, "--pretrained", checkpoint, "--batch_size", 32]
    first = run(*base, "--dump_path", tmp_path / "a", "--features", "cached", "--epochs", 3, "--lr", 0.1, 1,
                "--classifier_file", tmp_path / "full.pth")  # fmt: skip
    assert first.returncode == 0, first.stderr
    state = torch.load(tmp_path / "full.pth")
    backbone = load_backbone(checkpoint).backbone
    classes = len(list((patches / "train").iterdir()))
    assert set(state) == {*backbone.state_dict(), "fc.weight", "fc.bias"}
    assert state["fc.weight"].shape == (classes, 64)
    result = run(*base, "--dump_path", tmp_path / "b", "--epochs", 1, "--max_steps", 2, "--lr", 0.1, "--log_every", 1,
                 "--teacher", tmp_path / "full.pth", "--alpha", 1, "--T", 4)  # fmt: skip
    assert result.returncode == 0, result.stderr
    # the same without labels: a fresh classifier's divergence from the teacher, 16 times the mean over the classes
    start = next(r for r in read_log(tmp_path / "b" / "linear" / "log.jsonl", "train"))
    assert 0 < start["loss"] < 16 * np.log(classes) / classes
    for extra, message in (
        (["--teacher", tmp_path / "full.pth", "--features", "cached"], "--features augmented"),
        (["--teacher", checkpoint], "classes apart"),
        (["--teacher", tmp_path / "full.pth", "--alpha", 2], "--alpha 2: expected a number from 0 to 1"),
    ):
        bad = run(*base, "--dump_path", tmp_path / "c", "--epochs", 1, *extra)
        assert (bad.returncode, message in bad.stderr) == (2, True), bad.stderr

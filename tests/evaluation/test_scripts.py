"""eval_knn.py and eval_linear.py on a checkpoint of ours, from the command line."""

import json

import pytest
import torch

from src.backbones import create_backbone
from src.checkpoint import CheckpointStore, RunState, read_run
from src.clock import Clock
from src.errors import UserError
from src.methods.swav import SwAV
from src.optim.larc import LARC
from src.pretrained import BackboneSpec, load_backbone
from tests.helpers import run, torchrun

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
        result = run(*base, "--dump_path", tmp_path / str(ranks), launcher=torchrun(ranks))
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


def test_random_weights_are_judged_when_no_checkpoint_is_given(patches, tmp_path):
    model = ["--arch", "resnet18", "--width", 0.125, "--stem", "small", "--crop_size", 32]
    result = run("eval_linear.py", "--data_path", patches, "--dump_path", tmp_path, "--workers", 0, "--features",
                 "cached", "--epochs", 1, *model)  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "random weights" in result.stdout

"""Files that these programs write are read by them again, as the same network."""

import itertools
import json

import eval_knn
from detection import convert_to_detectron2
from src.checkpoints.store import read_run
from src.models.pretrained import load_backbone
from tests.helpers import run
from tests.scripts.test_right_numbers import SMALL, save_run

import pytest
import torch


@pytest.mark.parametrize("names", [["x.pth"], ["x.pkl", "x.pth"]], ids=["torchvision", "detectron2 and back"])
def test_a_converted_network_is_the_same_network(patches, tmp_path, names):
    """``--to torchvision``, straight from a checkpoint and from detectron2's names."""
    weights = [save_run(tmp_path, {**SMALL, "width": 1.0, "stem": "imagenet"}), *(tmp_path / name for name in names)]
    for source, target in itertools.pairwise(weights):
        names_of = "torchvision" if target.suffix == ".pth" else "detectron2"
        assert convert_to_detectron2.main([str(source), str(target), "--to", names_of]) == 0
    knn = []
    size = ["--crop_size", 32, "--resize", 36, "--mean", 0.4, 0.5, 0.6, "--std", 0.2, 0.25, 0.3]
    for path in (weights[0], weights[-1]):
        words = ["--data_path", patches, "--dump_path", tmp_path, "--workers", 0, "--device", "cpu", "--k", 3, *size]
        assert eval_knn.main([str(word) for word in [*words, "--pretrained", path]]) == 0
        knn.append(json.loads((tmp_path / "knn.json").read_text())["knn"])
    assert knn[0] == knn[1]


def test_a_fine_tuned_network_is_saved_so_that_evaluations_load_it(patches, tmp_path):
    """Without ``--arch``; 96 images in batches of 19, whose last would be of one image."""
    checkpoint = save_run(tmp_path / "run", SMALL)
    base = ["--data_path", patches, "--workers", 0, "--device", "cpu"]
    small = ["--epochs", 1, "--batch_size", 19, "--labels_perc", 100, "--dump_path", tmp_path]
    saved = tmp_path / "tuned.pth"
    result = run("eval_semisup.py", *base, *small, "--pretrained", checkpoint, "--classifier_file", saved)
    assert result.returncode == 0, result.stderr
    assert "of 5 steps" in result.stdout
    before, after = load_backbone(checkpoint), load_backbone(saved)
    assert after.spec == before.spec
    tuned = after.backbone.state_dict()
    changed = [not torch.equal(a, tuned[name]) for name, a in before.backbone.state_dict().items()]
    assert all(changed[:10])
    assert run("eval_knn.py", *base, "--k", 3, "--pretrained", saved, "--dump_path", tmp_path).returncode == 0
    refused = run("eval_semisup.py", *base, *small, "--pretrained", checkpoint, "--classifier_file", checkpoint)
    assert (refused.returncode, "is the file to read" in refused.stderr) == (2, True)


@pytest.mark.parametrize(
    "line",
    [
        "main_intl.py --method intl_m --bs 16 --crops_size 16 16 --emb 64 --head_size 32",
        "main_cwrgp.py --method byol --bs 16 --crop_size 16 --warmup_iters 0",
        "main_disco.py --batch_size 16 --crop_size 16 --moco_k 32",
        "main_w2ssl.py --batch_size 16 --crop_size 32",
    ],
)
def test_the_momentum_copy_of_every_method_is_found(patches, tmp_path, line):
    plan = f"{line} --arch resnet18 --width 0.0625 --stem small --epochs 1 --max_steps 2 --workers 0 --device cpu"
    result = run(*plan.split(), "--data_path", patches, "--dump_path", tmp_path)
    assert result.returncode == 0, result.stderr
    file = tmp_path / "checkpoint.pth.tar"
    entries = {n: t for n, t in read_run(file)["state_dict"].items() if n.endswith("backbone.conv1.weight")}
    (copy,) = set(entries) - {"backbone.conv1.weight"}
    for key, name in (("auto", "backbone.conv1.weight"), ("teacher_backbone", copy)):
        assert torch.equal(load_backbone(file, key=key).backbone.conv1.weight, entries[name])
    assert not torch.equal(entries[copy], entries["backbone.conv1.weight"])

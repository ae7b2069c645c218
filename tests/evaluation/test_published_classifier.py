"""Classifiers of others are judged as they are, in each published layout."""

import json
import subprocess
import sys

import eval_linear
from src.errors import UserError
from src.models.backbones import create_backbone
from tests.checkpoints.test_layouts import prefixed

import pytest
import torch

ALONE = {"SwAV": ("state_dict", "module.linear."), "TWIST's of transformers": ("state_dict", "module.linear.")}

NETWORKS = {"INTL or MoCo": ("state_dict", "module."), "TWIST": ("model", "module."), "torchvision": (None, "")}


@pytest.fixture(scope="module")
def trained(patches, tmp_path_factory):
    """A backbone, a classifier on it, and what eval_linear.py says of both."""
    folder = tmp_path_factory.mktemp("trained")
    torch.manual_seed(0)
    torch.save(create_backbone("resnet18", width=0.125).state_dict(), folder / "backbone.pth")
    judge(
        patches, folder / "out", "--pretrained", folder / "backbone.pth", "--classifier_file", folder / "network.pth",
        "--epochs", 3, "--features", "cached",
    )  # fmt: skip
    network = torch.load(folder / "network.pth")
    network = network.get("state_dict", network)
    state = {name: tensor for name, tensor in network.items() if isinstance(tensor, torch.Tensor)}
    return folder, state, result(folder / "out")


def judge(patches, out, *words):
    words = ["--data_path", patches, "--dump_path", out, "--workers", 0, "--device", "cpu", "--crop_size", 32, *words]
    assert eval_linear.main([str(word) for word in words]) == 0


def result(out):
    (line,) = json.loads((out / "linear.json").read_text())["lr"].values()
    return line["top1"], line["top5"]


def linear_of(state):
    return {name.removeprefix("fc."): tensor for name, tensor in state.items() if name.startswith("fc.")}


@pytest.mark.parametrize("layout", ALONE)
def test_a_classifier_alone_goes_with_its_network(trained, patches, tmp_path, layout):
    folder, state, expected = trained
    container, prefix = ALONE[layout]
    content = {container: prefixed(linear_of(state), prefix), "epoch": 100, "best_acc": 70.0}
    torch.save(content, tmp_path / "linear.pth.tar")
    backbone = ("--pretrained", folder / "backbone.pth")
    judge(patches, tmp_path / "a", *backbone, "--published_classifier", tmp_path / "linear.pth.tar")
    judge(patches, tmp_path / "b", *backbone, "-e", "--resume", tmp_path / "linear.pth.tar")
    assert result(tmp_path / "a") == result(tmp_path / "b") == expected
    assert not (tmp_path / "a" / "linear" / "checkpoint.pth.tar").exists()  # nothing was trained


@pytest.mark.parametrize("layout", NETWORKS)
def test_a_network_with_its_classifier_needs_nothing_else(trained, patches, tmp_path, layout):
    folder, state, expected = trained
    container, prefix = NETWORKS[layout]
    named = prefixed(state, prefix)
    content = {container: named, "epoch": 100, "best_acc1": torch.tensor([70.0])} if container else named
    torch.save(content, tmp_path / "network.pth.tar")
    judge(patches, tmp_path / "a", "--published_classifier", tmp_path / "network.pth.tar")
    judge(patches, tmp_path / "b", "--pretrained", folder / "backbone.pth", "-e", "--resume",
          tmp_path / "network.pth.tar")  # fmt: skip
    assert result(tmp_path / "a") == result(tmp_path / "b") == expected


def test_the_files_of_classifiers_are_judged_from_the_command_line(trained, patches, tmp_path):
    folder, _, expected = trained
    words = ["--data_path", patches, "--dump_path", tmp_path, "--workers", "0", "--crop_size", "32"]
    command = [sys.executable, "eval_linear.py", *words, "--published_classifier", folder / "network.pth"]
    answer = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert "training   none" in answer.stdout
    assert f"published classifier: top-1 {expected[0]:.2f} %" in answer.stdout


def test_results_lie_under_the_classifiers_name(trained):
    """Not in the folder of random weights, nor in that of classifiers trained on the same network."""
    folder, _, _ = trained
    names = []
    for words in (
        ["--published_classifier", "intl_800ep_eval_linear"],
        ["--published_classifier", folder / "network.pth"],
        ["--pretrained", folder / "backbone.pth", "-e", "--resume", "swav_800ep_eval_linear"],
        ["--pretrained", folder / "network.pth"],
    ):
        settings = eval_linear.SCRIPT.parse(["--data_path", "/x/data", *map(str, words)]).settings
        names.append(settings.judged.dump_path.partition("-on-")[0].removeprefix("evaluations/"))
    assert names == [
        "intl_800ep_eval_linear-as-published", "network-as-published", f"{folder.name}-backbone-swav_800ep_eval_linear",
        "network",
    ]  # fmt: skip


def test_what_does_not_fit_is_refused(trained, patches, tmp_path):
    folder, state, _ = trained
    classifier = linear_of(state)
    torch.save({"state_dict": prefixed(classifier, "module.linear.")}, tmp_path / "alone.pth")
    torch.save({"state_dict": {"module.linear.weight": torch.zeros(10, 64), "module.linear.bias": torch.zeros(10)}},
               tmp_path / "ten.pth")  # fmt: skip
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "none.pth")
    other = {name: tensor + 1 if name == "conv1.weight" else tensor for name, tensor in state.items()}
    torch.save(other, tmp_path / "other.pth")
    backbone = ("--pretrained", folder / "backbone.pth")
    for words, message in (
        (("--published_classifier", tmp_path / "alone.pth"), "give its network with --pretrained"),
        ((*backbone, "--published_classifier", tmp_path / "ten.pth"), "tells 10 classes apart by 64 features"),
        ((*backbone, "--published_classifier", tmp_path / "none.pth"), "holds no linear classifier"),
        ((*backbone, "--published_classifier", tmp_path / "other.pth"), "another network than --pretrained"),
        ((*backbone, "--published_classifier", tmp_path / "missing.pth"), "does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            judge(patches, tmp_path / "out", *words)

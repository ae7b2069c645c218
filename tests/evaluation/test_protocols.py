"""The published commands of each paper's evaluation, against the values that its specification gives them."""

import eval_linear
import eval_semisup
from src.data.loading import Batch
from src.data.subset import class_balanced, listed, read_list
from src.errors import UserError
from src.evaluation import protocols
from src.evaluation.classifiers import FineTuning, LastBlocks, is_transformer
from src.evaluation.protocols import LINEAR, SEMISUP
from src.evaluation.reported import REPORTED, reported_detection, reported_line
from src.models.backbones import create_backbone
from src.optim.schedules import multistep
from tests.built import judged
from tests.evaluation.test_classifiers import CLOCK

import numpy as np
import pytest
import torch
from torch.nn import functional as F

DISCO_STEPS = [5, 10, 15, 20, 25, 30, 35, 40, 45, 60, 80]
MOCO_LAUNCH = "--dist-url 'tcp://localhost:10001' --multiprocessing-distributed --world-size 1 --rank 0"

# script, command line, family of the weights, processes -> what is trained
COMMANDS = [
    (
        "linear", "--data_path /imagenet --pretrained swav_800ep_pretrain.pth.tar", "swav", 8,
        {"protocol": "swav", "lr": [0.3], "batch_size": 32, "epochs": 100, "wd": 1e-6, "scheduler_type": "cosine",
         "final_lr": 0.0, "lr_factor": 1, "bicubic": False},
    ),
    (
        "linear", "/imagenet out/checkpoint.pth --weight-decay 0 --checkpoint-dir out/linear_multihead/ "
        "--batch-size 1024 --val_epoch 1 --lr-classifier 0.2", "twist", 8,
        {"protocol": "barlow", "data_path": "/imagenet", "pretrained": "out/checkpoint.pth", "wd": 0, "batch_size": 128,
         "dump_path": "out/linear_multihead/", "lr": [0.2], "lr_factor": 1, "scheduler_type": "cosine", "epochs": 100},
    ),
    (
        "linear",
        "--arch vit_s --pretrained_weights out/checkpoint.pth --lr 0.02 --data_path /imagenet --output_dir out",
        "twist", 8,
        {"protocol": "vit", "lr": [0.02], "lr_factor": 4, "batch_size": 128, "wd": 0, "n_last_blocks": 4,
         "avgpool_patchtokens": False, "bicubic": True, "scheduler_type": "cosine", "dump_path": "out"},
    ),
    (
        "linear", "/imagenet resnet50.pth --lr-classifier 0.3", "", 8,
        {"protocol": "barlow", "lr": [0.3], "batch_size": 32, "epochs": 100},
    ),
    (
        "linear", "--pretrained c.pth.tar --data_path /imagenet --epochs 100 --lr-classifier 0.4 --bs 512", "intl", 4,
        {"protocol": "intl", "lr": [0.4], "lr_factor": 2, "batch_size": 128, "scheduler_type": "step", "gamma": 0.1,
         "decay_epochs": [60, 80], "wd": 0},
    ),
    (
        "linear", "--pretrained ckpt.pth.tar --data_path /imagenet --lr-classifier 0.4 --schedule cos", "intl", 4,
        {"scheduler_type": "cosine"},
    ),
    (
        "linear", "-a efficientb0 --dataset cifar10 --lr 3 --epochs 200 --pretrained c.pth.tar /dev/shm", "disco", 1,
        {"protocol": "cifar", "arch": "efficientb0", "lr": [3.0], "epochs": 200, "bicubic": True, "decay_epochs": [],
         "wd": 0, "batch_size": 256, "data_path": "/dev/shm", "scheduler_type": "step"},
    ),
    (
        "linear", f"-a resnet18 --dataset cifar100 --lr 3 --epochs 200 {MOCO_LAUNCH} --pretrained c.pth.tar /dev/shm",
        "disco", 8, {"protocol": "cifar", "lr": [3.0], "batch_size": 32},
    ),
    (
        "linear", f"-a mobilenetv3 --learning-rate 3.0 --batch-size 256 {MOCO_LAUNCH} --pretrained c.pth.tar /dev/shm/",
        "moco-v2", 8, {"protocol": "moco", "arch": "mobilenetv3", "lr": [3.0], "decay_epochs": DISCO_STEPS},
    ),
    (
        "linear", f"-a resnet18 --learning-rate 30.0 --batch-size 256 {MOCO_LAUNCH} --pretrained c.pth.tar  /dev/shm",
        "disco", 8, {"protocol": "moco", "lr": [30.0], "decay_epochs": DISCO_STEPS},
    ),
    (
        "linear", f"-a resnet18 --learning-rate 3.0 --batch-size 256 {MOCO_LAUNCH} --pretrained c.pth.tar /dev/shm/",
        "moco-v2", 8,
        {"protocol": "moco", "arch": "resnet18", "lr": [3.0], "lr_factor": 1, "batch_size": 32, "gamma": 0.5,
         "decay_epochs": DISCO_STEPS, "epochs": 100, "wd": 0, "data_path": "/dev/shm/", "pretrained": "c.pth.tar"},
    ),
    (
        "linear", "-a resnet50 --lr 30 --schedule 60 80 --gamma 0.1 --pretrained c.pth.tar -j 4 /data", "disco", 1,
        {"protocol": "moco", "lr": [30.0], "decay_epochs": [60, 80], "gamma": 0.1, "batch_size": 256,
         "data_path": "/data"},
    ),
    (
        "linear", f"-a resnet50 --batch-size 256 --epochs 100 {MOCO_LAUNCH} --print-freq 100 --pretrained c.pth /data",
        "w2ssl", 8,
        {"protocol": "w2ssl", "lr": [0.1], "lr_factor": 1, "scheduler_type": "cosine", "log_every": 100},
    ),
    ("linear", "/imagenet ckpt.pth --lars", "cw-rgp", 8,
     {"protocol": "cwrgp", "lr": [0.1], "lr_factor": 4, "batch_size": 128, "optimizer": "larc", "wd": 0}),
    ("linear", "--data_path /data --dataset cifar10 --pretrained ckpt.pth", "cwrgp", 1,
     {"protocol": "small", "lr": [0.01], "final_lr": 1e-6, "batch_size": 1000, "optimizer": "adam", "epochs": 500,
      "wd": 5e-6, "features": "cached", "scheduler_type": "exponential"}),
    ("linear", "--data_path /data --dataset stl10 --pretrained ckpt.pth", "swav", 1, {"protocol": "swav"}),
    (
        "semisup", '--data_path /imagenet --pretrained swav.pth.tar --labels_perc "10" --lr 0.01 --lr_last_layer 0.2',
        "swav", 8,
        {"protocol": "swav", "weights": "finetune", "lr": [0.2], "lr_backbone": 0.01, "batch_size": 32, "epochs": 20,
         "decay_epochs": [12, 16], "gamma": 0.2, "wd": 0, "labels_perc": 10},
    ),
    (
        "semisup", '--data_path /imagenet --pretrained swav.pth.tar --labels_perc "1" --lr 0.02 --lr_last_layer 5',
        "swav", 8, {"lr": [5.0], "lr_backbone": 0.02, "labels_perc": 1},
    ),
    ("semisup", "--data_path /imagenet --pretrained swav.pth.tar --labels_perc 1", "swav", 8,
     {"lr": [5.0], "lr_backbone": 0.02}),
    ("semisup", "--data_path /imagenet --pretrained swav.pth.tar", "swav", 8,
     {"lr": [0.2], "lr_backbone": 0.01, "labels_perc": 10}),
    (
        "semisup", "/imagenet model.pth --weights finetune --lr-backbone 0.04 --lr-classifier 0.2 --train-percent 1 "
        "--weight-decay 0 --epochs 20 --backbone 'resnet50'", "twist", 8,
        {"protocol": "barlow", "lr": [0.2], "lr_backbone": 0.04, "labels_perc": 1, "epochs": 20, "batch_size": 32,
         "scheduler_type": "cosine", "arch": "resnet50"},
    ),
    ("semisup", "/imagenet model.pth --train-percent 100", "twist", 8,
     {"lr_backbone": 0.01, "epochs": 30, "lr": [0.2], "wd": 0}),
    (
        "semisup", "/imagenet resnet50.pth --weights finetune --train-perc 1 --epochs 20 --lr-backbone 0.005 "
        "--lr-classifier 0.5 --weight-decay 0 --checkpoint-dir ./checkpoint/semisup/", "", 8,
        {"protocol": "barlow", "lr": [0.5], "lr_backbone": 0.005, "labels_perc": 1,
         "dump_path": "./checkpoint/semisup/"},
    ),
    ("semisup", "--pretrained ckpt.pth.tar --data_path /imagenet --train-percent 10", "intl", 8,
     {"protocol": "intl", "lr": [0.2], "lr_backbone": 0.004, "epochs": 20, "weights": "finetune", "labels_perc": 10}),
    (
        "semisup", f"-a resnet18 --learning-rate 3.0 --batch-size 256 {MOCO_LAUNCH} --pretrained c.pth.tar /dev/shm",
        "disco", 8,
        {"protocol": "moco", "weights": "freeze", "lr": [3.0], "decay_epochs": [60, 80], "gamma": 0.5, "epochs": 100,
         "labels_perc": 100},  # the data folder is the share
    ),
]  # fmt: skip


@pytest.mark.parametrize(("script", "command", "family", "processes", "expected"), COMMANDS)
def test_published_commands_train_what_they_did(script, command, family, processes, expected):
    module, table = {"linear": (eval_linear, LINEAR), "semisup": (eval_semisup, SEMISUP)}[script]
    args = judged(module, table, command, family, processes, is_transformer="vit_s" in command)
    assert {name: getattr(args, name) for name in expected} == expected


def test_protocols_can_be_asked_for_and_weights_that_do_not_tell_are_swavs():
    assert protocols.choose(LINEAR, "moco", "swav", False, set())[0] == "moco"
    assert protocols.choose(LINEAR, "auto", "", False, {"data_path"})[0] == "swav"
    assert protocols.choose(LINEAR, "auto", "", True, set())[0] == "vit"
    assert protocols.choose(SEMISUP, "auto", "", True, set())[0] == "swav"
    assert protocols.choose(SEMISUP, "auto", "w2ssl", False, set())[0] == "swav"  # its paper has no such table


def test_moco_ends_at_the_published_rate():
    p = LINEAR["moco"]
    rates = [multistep(epoch, base=3.0, milestones=p.decay_epochs, gamma=p.gamma) for epoch in range(100)]
    assert rates[4] == 3.0
    assert rates[5] == 1.5
    assert rates[-1] == pytest.approx(0.00146484375)


def test_a_batch_that_processes_cannot_share_is_refused():
    with pytest.raises(UserError, match="cannot be shared out over 8"):
        judged(eval_linear, LINEAR, "/data --batch-size 100 --protocol moco", "", processes=8)


# ------------------------------------------------------------------------------------------------ transformers


@pytest.mark.parametrize("patch_mean", [False, True])
def test_last_blocks_are_class_tokens_through_the_final_norm(patch_mean):
    torch.manual_seed(0)
    vit = create_backbone("vit_tiny_patch16_224").eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        tokens = vit._pos_embed(vit.patch_embed(images))
        outputs = []
        for block in vit.blocks:
            tokens = block(tokens)
            outputs.append(vit.norm(tokens))
        expected = [output[:, 0] for output in outputs[-4:]] + [outputs[-1][:, 1:].mean(dim=1)] * patch_mean
        probe = LastBlocks(vit, 4, patch_mean)
        torch.testing.assert_close(probe(images), torch.cat(expected, dim=1))
    assert probe.feature_width == (5 if patch_mean else 4) * 192
    assert is_transformer(vit)
    with pytest.raises(UserError, match="vision transformer"):
        LastBlocks(create_backbone("resnet18", width=0.125), 4)


# ------------------------------------------------------------------------------------------------ fine-tuning


def test_finetuning_moves_both_groups_at_their_own_rates():
    torch.manual_seed(0)
    backbone = create_backbone("resnet18", width=0.125, stem="small")
    method = FineTuning(backbone, 64, 3, 0.5, 0.01, lr_factor=2.0).train()
    groups = method.parameter_groups()
    assert [group["lr_scale"] for group in groups] == [1.0, 0.02]
    assert sum(len(group["params"]) for group in groups) == len(list(method.parameters()))
    assert len(groups[0]["params"]) == 2
    batch = Batch([torch.randn(4, 3, 32, 32)], torch.tensor([0, 1, 2, 0]), torch.arange(4))
    running = backbone.bn1.running_mean.clone()
    loss = method(batch, CLOCK)["loss"]
    assert not torch.equal(backbone.bn1.running_mean, running)  # train mode, statistics adapt
    loss.backward()
    assert all(parameter.grad is not None for parameter in method.parameters())
    method.eval()
    with torch.no_grad():
        logits = F.linear(backbone(batch.crops[0]), method.classifier.linear.weight, method.classifier.linear.bias)
        torch.testing.assert_close(method.logits(batch.crops[0])[0], logits)


# ------------------------------------------------------------------------------------------------ few labels


class Named:
    def __init__(self, paths):
        self.paths = paths

    def __len__(self):
        return len(self.paths)

    def name(self, index):
        return self.paths[index]


def test_simclrs_lists_name_files(tmp_path):
    (tmp_path / "1percent.txt").write_text("n02_7.JPEG\nn01_3.JPEG\n\n")
    names = read_list(tmp_path / "1percent.txt")
    assert names == ["n02_7.JPEG", "n01_3.JPEG"]
    source = Named(["/d/n01/n01_3.JPEG", "/d/n01/n01_4.JPEG", "/d/n02/n02_7.JPEG"])
    assert listed(source, names, "list") == [0, 2]
    with pytest.raises(UserError, match=r"1 of the 2 images in list are not among .* n09_1.JPEG"):
        listed(source, ["n01_3.JPEG", "n09_1.JPEG"], "list")
    with pytest.raises(UserError, match="1 images twice"):
        listed(source, ["n01_3.JPEG", "n01_3.JPEG"], "list")
    with pytest.raises(UserError, match="cannot read the list"):
        read_list(tmp_path / "none.txt")
    twice = Named(["/d/a/0.png", "/d/b/0.png", "/d/b/1.png"])
    assert listed(twice, ["b/0.png", "b/1.png"], "list") == [1, 2]
    with pytest.raises(UserError, match=r"several training images are called 0.png; list them as CLASS/FILE"):
        listed(twice, ["0.png"], "list")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(UserError, match="is empty"):
        read_list(tmp_path / "empty.txt")


@pytest.mark.parametrize(("sizes", "percent", "expected"), [
    ([100, 100, 100], 10, [10, 10, 10]),
    ([100, 60, 140], 10, [10, 10, 10]),  # balanced, whatever the sizes
    ([200, 100, 2], 10, [14, 14, 2]),  # a class that is smaller gives all
    ([50, 50, 50], 100, [50, 50, 50]),
    ([30, 30, 30], 1, [1, 1, 1]),  # every class keeps one
])  # fmt: skip
def test_drawn_shares_are_balanced(sizes, percent, expected):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    chosen = class_balanced(labels.tolist(), percent, seed=3)
    assert np.bincount(labels[chosen]).tolist() == expected
    assert len(set(chosen)) == len(chosen)
    assert chosen == class_balanced(labels.tolist(), percent, seed=3)
    if percent < 100:
        assert chosen != class_balanced(labels.tolist(), percent, seed=4)


def test_a_share_like_imagenets_one_percent_has_equal_classes_within_one():
    sizes = np.random.default_rng(0).integers(732, 1301, 1000)
    labels = np.repeat(np.arange(1000), sizes)
    counts = np.bincount(labels[class_balanced(labels.tolist(), 1, seed=0)])
    assert counts.sum() == round(sizes.sum() / 100)
    assert counts.max() - counts.min() == 1


def test_images_without_a_label_are_never_drawn():
    assert set(class_balanced([-1, 0, -1, 1], 100, seed=0)) == {1, 3}


# ------------------------------------------------------------------------------------------------ the papers' numbers


def test_the_papers_number_of_the_same_run_is_found():
    settings = {"epochs": 400, "batch": 4096, "nmb_crops": [2]}
    assert "70.1 % after 400 epochs" in reported_line("swav", "linear", "resnet50", settings, 1000)
    assert reported_line("swav", "linear", "resnet50", settings, 1000).count(" after ") == 1
    everything = reported_line("swav", "linear", "resnet50", {}, 1000)
    assert everything.count(" after ") == 7
    assert "53.9 % (top-5 78.5 %)" in reported_line("swav", "semisup 1", "resnet50", {}, 1000)
    assert "no number to compare with (4 classes" in reported_line("swav", "linear", "resnet50", {}, 4)
    assert "no number is known" in reported_line("", "linear", "resnet18", {}, 1000)


@pytest.mark.parametrize(("asked", "line"), [
    (("twist", "linear", "vit_s", {"epochs": 300, "batch": 2048}, 1000), "75.6 % after 300 epochs, batch 2048 (first"),
    (("twist", "linear", "vit_b", {"epochs": 300, "batch": 2048}, 1000), "77.3 % after 300 epochs, batch 2048"),
    (("twist", "clusters", "resnet50", {}, 1000), "NMI 74.4  AMI 57.7  ARI 30.1  ACC 40.5 after 800 epochs"),
    (("cwrgp", "linear", "resnet50", {"epochs": 200}, 1000), "71 % after 200 epochs, 4 views"),
    (("cw-rgp", "linear", "resnet50", {"epochs": 100}, 1000), "69.7 % after 100 epochs"),
    (("cwrgp", "linear", "resnet18", {"num_samples": 4}, 10, "cifar10"), "cifar10: 92.47 % after the paper's run wi"),
    (("cwrgp", "5-nn", "resnet18", {"num_samples": 2}, 200, "tiny_in"), "34.04 % after"),
    (("byol", "5-nn", "resnet18", {}, 10, "stl10"), "88.64 %"),
    (("intl", "linear", "resnet18", {}, 100, "folder"), "imagenet100: 81.68 %"),
])  # fmt: skip
def test_what_else_the_papers_report(asked, line):
    assert line in reported_line(*asked)


@pytest.mark.parametrize(("asked", "line"), [
    (("twist", "boxes", "resnet50", "voc"), "AP 58.1  AP50 84.2  AP75 65.4"),
    (("twist", "masks", "resnet50", "coco"), "AP 37.9  AP50 59.7  AP75 40.6"),
    (("cw-rgp", "boxes", "resnet50", "coco"), "AP 40.7  AP50 60.5  AP75 44.1"),
    (("disco", "boxes", "resnet18", "voc"), "no number is known"),
])  # fmt: skip
def test_what_they_report_of_detection(asked, line):
    assert line in reported_detection(*asked)


def test_every_run_is_told_from_the_others():
    for row in REPORTED:
        same = [
            other
            for other in REPORTED
            if (other.method, other.evaluation, other.arch, other.data)
            == (row.method, row.evaluation, row.arch, row.data)
            and all(row.settings.get(name, value) == value for name, value in other.settings.items())
        ]
        assert same == [row]

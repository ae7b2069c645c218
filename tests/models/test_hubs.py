"""Weights of timm and torchvision by name, from files that stand in for the downloaded ones."""

import json

from src.errors import UserError
from src.models import hubs, zoo
from src.models.pretrained import Hints, load_backbone, name_of_weights

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from timm.layers.pos_embed import resample_abs_pos_embed


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))


def local_model(folder, name, **options):
    """A folder as timm's own models have on the hub; returns the network whose weights are in it."""
    folder.mkdir()
    model = timm.create_model(name, **options).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    save_file(model.state_dict(), folder / "model.safetensors")
    given = {"input_size": [3, 64, 64], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "crop_pct": 0.8}
    given |= {name: model.pretrained_cfg[name] for name in ("classifier", "first_conv")}
    config = {"architecture": name, "num_classes": 1000, "pretrained_cfg": given, "model_args": options}
    (folder / "config.json").write_text(json.dumps(config))
    return model


def test_a_model_of_timm(tmp_path):
    model = local_model(tmp_path / "x", "resnet18")
    loaded = load_backbone(f"timm:local-dir:{tmp_path / 'x'}")
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(loaded.backbone(images), model.forward_head(model.forward_features(images), True))
    assert loaded.spec.arch == "resnet18"
    assert loaded.told["mean"] == [0.1, 0.2, 0.3]
    assert (loaded.told["eval_size"], loaded.told["eval_resize"]) == (64, 80)
    assert not loaded.head
    assert not loaded.others


def test_a_transformer_of_another_image_size_has_its_positions_resampled(tmp_path):
    model = local_model(tmp_path / "x", "vit_tiny_patch16_224", img_size=96)
    loaded = load_backbone(f"timm:local-dir:{tmp_path / 'x'}")
    table = loaded.backbone.state_dict()["pos_embed"]
    assert table.shape == (1, 1 + 14 * 14, 192)
    torch.testing.assert_close(table, resample_abs_pos_embed(model.pos_embed, [14, 14], num_prefix_tokens=1))
    torch.testing.assert_close(loaded.backbone.blocks[3].mlp.fc1.weight, model.blocks[3].mlp.fc1.weight)


def test_a_model_of_torchvision(tmp_path, monkeypatch):
    model = torchvision.models.resnet18().eval()
    kind = type(torchvision.models.ResNet18_Weights.DEFAULT)
    monkeypatch.setattr(kind, "get_state_dict", lambda *_, **__: model.state_dict())
    for name in ("torchvision:resnet18", "torchvision:resnet18.IMAGENET1K_V1"):
        loaded = load_backbone(name, Hints("resnet18"))
        images = torch.randn(2, 3, 64, 64)
        model.fc = torch.nn.Identity()
        torch.testing.assert_close(loaded.backbone(images), model(images))
        assert loaded.told["eval_size"] == 224
        model.fc = torch.nn.Linear(512, 1000)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("timm:", "expected the name of a model"),
        ("timm:resnetx", "timm has no such model"),
        ("timm:vit_small_patch16_18x2_224", "timm has no weights of it"),
        ("timm:local-dir:/nowhere", "cannot be had"),
        ("torchvision:", "expected the name"),
        ("torchvision:x", "torchvision has no such model"),
        ("torchvision:resnet18.X", "expected one of IMAGENET1K_V1"),
    ],
)
def test_names_that_there_are_not(word, said):
    with pytest.raises(UserError, match=said) as found:
        hubs.read(word)
    assert "\n" not in str(found.value)


def test_a_network_that_cannot_be_reached(monkeypatch):
    def fail(*_, **__):
        raise OSError("no route\nto host")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(UserError, match=r"timm:resnet18 cannot be had: no route$"):
        hubs.read("timm:resnet18")


def test_names_of_folders():
    assert name_of_weights("timm:hf-hub:me/net.x") == "timm-hf-hub-me-net.x"
    assert zoo.folder().name == "checkpoints"

"""Backbones written for others are read by others, and by us, with the same values."""

import export
import hubconf
from src.errors import UserError
from src.models.backbones import create_backbone
from src.models.pretrained import BackboneSpec, load_backbone
from tests.checkpoints.test_layouts import MOCO_HEAD, prefixed, weights
from tests.helpers import run
from tests.scripts.test_main_swav import command

import pytest
import safetensors.torch
import timm
import torch
import torchvision

ONE = torch.ones(1)
LAYOUTS = {
    "SwAV": lambda state: prefixed({**state, "prototypes.weight": ONE, "projection_head.0.bias": ONE},
                                   "module."),
    "MoCo-v2": lambda state: {"state_dict": {**prefixed({**state, **MOCO_HEAD}, "module.encoder_q."),
                                             "module.queue": ONE}},
    "TWIST": lambda state: {"model": {**prefixed(state, "backbone."), "projection_heads.norm.running_var": ONE},
                            "backbone": state, "epoch": 3},
    "INTL": lambda state: {"state_dict": {**prefixed(state, "module.backbone."),
                                          "module.projection.0.weight": ONE}, "epoch": 3},
    "W2SSL": lambda state: {"state_dict": prefixed({**state, "fc_crop.0.weight": ONE}, "module.base_encoder.")},
    "torchvision": lambda state: {**state, "fc.weight": ONE, "fc.bias": ONE},
}  # fmt: skip


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_round_trip_keeps_every_value(layout, ending, tmp_path):
    state = weights()
    torch.save(LAYOUTS[layout](state), tmp_path / "in.pth")
    assert export.main([str(tmp_path / "in.pth"), str(tmp_path / f"out.{ending}")]) == 0
    read = safetensors.torch.load_file if ending == "safetensors" else torch.load
    written = read(tmp_path / f"out.{ending}")
    assert written.keys() == state.keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in state.items())
    if ending == "pth":
        again = load_backbone(tmp_path / "out.pth").backbone.state_dict()
        assert all(torch.equal(again[name], tensor) for name, tensor in state.items())


def test_torchvision_and_timm_read_what_is_written(tmp_path):
    backbone = create_backbone("resnet50").eval()
    torch.save(backbone.state_dict(), tmp_path / "in.pth")
    export.main([str(tmp_path / "in.pth"), str(tmp_path / "out.pth")])
    state = torch.load(tmp_path / "out.pth")
    x = torch.randn(2, 3, 64, 64)
    for model in (torchvision.models.resnet50(), timm.create_model("resnet50")):
        result = model.load_state_dict(state, strict=False)
        assert set(result.missing_keys) == {"fc.weight", "fc.bias"}
        assert result.unexpected_keys == []
        model.fc = torch.nn.Identity()
        with torch.no_grad():
            torch.testing.assert_close(model.eval()(x), backbone(x), rtol=1e-4, atol=1e-5)


def test_transformers_keep_timms_names(tmp_path):
    vit = create_backbone("vit_tiny_patch16_224")
    torch.save({"model": prefixed(vit.state_dict(), "backbone."), "x": 1}, tmp_path / "in.pth")
    export.main([str(tmp_path / "in.pth"), str(tmp_path / "out.safetensors"), "--arch", "vit_tiny_patch16_224"])
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    model.load_state_dict(safetensors.torch.load_file(tmp_path / "out.safetensors"))


def test_our_checkpoints_are_exported_and_loaded_by_the_hub(patches, tmp_path):
    assert run(*command(patches, tmp_path, "--epochs", 1, "--batch_size", 16, "--workers", 0)).returncode == 0
    path = str(tmp_path / "checkpoint.pth.tar")
    result = run("export.py", path, tmp_path / "out.pth")
    assert result.returncode == 0, result.stderr
    assert "wrote 120 entries" in result.stdout
    root = str(export.__file__).rsplit("/", 1)[0]
    backbone = torch.hub.load(root, "checkpoint", path, source="local")
    assert all(torch.equal(t, torch.load(tmp_path / "out.pth")[n]) for n, t in backbone.state_dict().items())


def test_the_hub_fills_torchvisions_resnet_and_the_wide_ones(tmp_path, monkeypatch):
    """The files are there already, in the published layout; tests/models/test_zoo.py downloads some."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    for file, arch in (
        ("swav_800ep_pretrain", "resnet50"),
        ("swav_RN50w2_400ep_pretrain", "resnet50w2"),
        ("swav_RN50w4_400ep_pretrain", "resnet50"),
    ):
        content = LAYOUTS["SwAV"](create_backbone(arch).state_dict())
        torch.save(content, tmp_path / "checkpoints" / f"{file}.pth.tar")
    model = hubconf.resnet50()
    assert model.fc.out_features == 1000
    assert torch.equal(model.conv1.weight, content["module.conv1.weight"]) is False  # another file
    assert hubconf.resnet50w2().feature_width == 4096
    assert hubconf.resnet50(pretrained=False).fc.out_features == 1000
    with pytest.raises(hubconf.UserError, match="is a resnet50w4"):
        hubconf.resnet50w4()  # the file is another network


def test_bad_input_gets_one_line(tmp_path):
    torch.save(weights(), tmp_path / "in.pth")
    for arguments, message in (
        ([tmp_path / "in.pth", tmp_path / "out.onnx"], "ends in .pth"),
        ([tmp_path / "missing.pth", tmp_path / "out.pth"], "does not exist"),
        ([tmp_path / "in.pth", tmp_path / "out.pth", "--arch", "resnet50"], "is --arch right"),
        ([tmp_path / "in.pth", tmp_path / "out.pth", "--key", "ema"], "no entry"),
    ):
        with pytest.raises(UserError, match=message):
            export.main([str(a) for a in arguments])
    assert BackboneSpec().arch == "resnet50"

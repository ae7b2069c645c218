"""detection/convert_to_detectron2.py, which needs no detectron2."""

import os
import pickle

from detection import convert_to_detectron2
from detection.names import read_pickle, to_detectron2, to_torchvision
from src.errors import UserError
from src.models.backbones import create_backbone
from tests.detection.families import FAMILIES, network, save
from tests.helpers import run
from tests.scripts.test_bad_input import fails

import numpy as np
import pytest
import torch

# examples of the specifications
NAMES = {
    "conv1.weight": "stem.conv1.weight",
    "bn1.running_var": "stem.conv1.norm.running_var",
    "layer1.0.downsample.1.bias": "res2.0.shortcut.norm.bias",
    "layer3.0.bn2.weight": "res4.0.conv2.norm.weight",
    "layer4.2.bn3.weight": "res5.2.conv3.norm.weight",
    "layer2.0.downsample.0.weight": "res3.0.shortcut.weight",
}


def test_names():
    state = {name: torch.full((2,), float(i)) for i, name in enumerate(NAMES)}
    model = to_detectron2(state | {"bn1.num_batches_tracked": torch.tensor(3)})
    assert list(model) == list(NAMES.values())
    assert [array[0] for array in model.values()] == list(range(len(NAMES)))
    assert list(to_torchvision(model)) == list(NAMES)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_converted_and_comes_back(family, tmp_path, capsys):
    backbone = save(family, tmp_path / "checkpoint.pth.tar")
    assert convert_to_detectron2.main([str(tmp_path / "checkpoint.pth.tar"), str(tmp_path / "out.pkl")]) == 0
    said = capsys.readouterr().out
    assert "wrote 265 entries" in said
    assert "53 counters" in said
    assert "a C4 model finds 215 in its backbone and 50 in its head's res5" in said
    with open(tmp_path / "out.pkl", "rb") as file:
        content = pickle.load(file)
    assert content["matching_heuristics"] is True
    state = backbone.state_dict()
    for name, array in content["model"].items():
        (original,) = to_torchvision({name: array})
        assert np.array_equal(array, state[original].numpy())
    assert (
        convert_to_detectron2.main([str(tmp_path / "out.pkl"), str(tmp_path / "back.pth"), "--to", "torchvision"]) == 0
    )
    back = torch.load(tmp_path / "back.pth")
    assert back.keys() == {name for name in state if not name.endswith("num_batches_tracked")}
    assert all(torch.equal(back[name], state[name]) for name in back)


@pytest.mark.parametrize("script", ["convert-pretrain-to-detectron2.py", "convert.py"])
def test_old_names_start_it(script, tmp_path):
    save("swav", tmp_path / "swav.pth.tar", "resnet18")
    result = run(f"detection/{script}", tmp_path / "swav.pth.tar", tmp_path / "out.pkl")
    assert result.returncode == 0, result.stderr
    assert "MODEL.RESNETS.DEPTH 18 MODEL.RESNETS.RES2_OUT_CHANNELS 64" in result.stdout
    assert "mostly at random: prefer an FPN" in result.stdout


def test_a_wide_network_names_its_options():
    with torch.device("meta"):
        wide = create_backbone("resnet50w2").state_dict()
    options = convert_to_detectron2.config_overrides(wide, "w2")
    assert options == (
        "MODEL.RESNETS.STEM_OUT_CHANNELS 128 MODEL.RESNETS.WIDTH_PER_GROUP 128 MODEL.RESNETS.RES2_OUT_CHANNELS 512"
    )
    assert convert_to_detectron2.config_overrides(network().state_dict(), "r50") == ""


def test_torchvisions_names_from_a_checkpoint(tmp_path):
    backbone = save("twist", tmp_path / "twist.pth")
    assert (
        convert_to_detectron2.main([str(tmp_path / "twist.pth"), str(tmp_path / "r.pth"), "--to", "torchvision"]) == 0
    )
    from torchvision.models import resnet50

    result = resnet50().load_state_dict(torch.load(tmp_path / "r.pth"), strict=False)
    assert (set(result.missing_keys), result.unexpected_keys) == ({"fc.weight", "fc.bias"}, [])
    assert len(torch.load(tmp_path / "r.pth")) == len(backbone.state_dict())


def files(tmp_path):
    torch.save(create_backbone("resnet18", width=0.25, stem="small").state_dict(), tmp_path / "small.pth")
    torch.save(create_backbone("resnet18", width=0.5).state_dict(), tmp_path / "narrow.pth")
    with torch.device("meta"):
        vit = create_backbone("vit_t")
    torch.save({n: torch.zeros(t.shape) for n, t in vit.state_dict().items()}, tmp_path / "vit.pth")
    partial = dict(list(network("resnet18").state_dict().items())[:-4])
    torch.save(partial, tmp_path / "partial.pth")
    (tmp_path / "code.pkl").write_bytes(pickle.dumps({"model": {"x": os.getcwd}}))
    (tmp_path / "other.pkl").write_bytes(pickle.dumps({"weights": 1}))


@pytest.mark.parametrize(("source", "out", "message"), [
    ("small.pth", "a.pkl", "3x3 stem"),
    ("narrow.pth", "a.pkl", "of width 1 only"),
    ("vit.pth", "a.pkl", "is not a ResNet"),
    ("partial.pth", "a.pkl", "missing"),
    ("nowhere.pth", "a.pkl", "does not exist"),
    ("small.pth", "a.pth", "ends in .pkl"),
    ("code.pkl", "a.pkl", "it holds a posix.getcwd"),
    ("other.pkl", "a.pkl", "no model of arrays"),
])  # fmt: skip
def test_bad_input(tmp_path, capsys, source, out, message):
    files(tmp_path)
    fails(convert_to_detectron2.main, [tmp_path / source, tmp_path / out], capsys, message)
    assert not (tmp_path / out).exists()


def test_pickles_cannot_run_code(tmp_path):
    (tmp_path / "code.pkl").write_bytes(pickle.dumps({"model": {"x": print}}))
    with pytest.raises(UserError, match="it holds a"):
        read_pickle(tmp_path / "code.pkl")

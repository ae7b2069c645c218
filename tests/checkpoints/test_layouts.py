"""Every published layout gives a whole backbone, with every key accounted for, and nothing else."""

import argparse
import json
import pickle

from src.checkpoints.files import read_file
from src.checkpoints.layouts import backbone_in, resnet_in, weights_in
from src.errors import UserError
from src.models.backbones import create_backbone
from src.models.pretrained import BackboneSpec, load_backbone
from tests.helpers import ROOT

import numpy as np
import pytest
import timm
import torch
import torchvision

LAYOUTS = ROOT / "tests" / "layouts"


def published(name):
    """The entries of a published file by name and shape, without memory behind them."""
    keys = json.loads((LAYOUTS / f"{name}.json").read_text())["keys"]
    return {key: torch.empty(shape, device="meta") for key, shape in keys}


def shapes(state):
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def on_meta(name, **options):
    with torch.device("meta"):
        return create_backbone(name, **options)


def prefixed(state, prefix):
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("file", "layout", "arch", "width"),
    [
        ("swav_resnet50", "SwAV", "resnet50", 1),
        ("swav_resnet50w2", "SwAV", "resnet50", 2),
        ("swav_resnet50w4", "SwAV", "resnet50", 4),
        ("swav_resnet50w5", "SwAV", "resnet50", 5),
        ("deepclusterv2_resnet50", "SwAV", "resnet50", 1),
        ("twist_resnet50", "TWIST", "resnet50", 1),
        ("twist_resnet50w2", "TWIST", "resnet50", 2),
        ("intl_resnet50", "INTL", "resnet50", 1),
        ("intl_m_resnet50", "INTL", "resnet50", 1),
        ("w2ssl_resnet50", "W2SSL", "resnet50", 1),
    ],
)
@pytest.mark.parametrize("module", ["", "module."])
def test_published_resnets_are_recognised_by_their_keys(file, layout, arch, width, module):
    state = published(file)
    if module and not next(iter(state)).startswith("module."):
        state = prefixed(state, module)
    content = {"state_dict": state, "epoch": 200, "arch": "resnet50"}
    for container in (state, content):
        backbone, found = backbone_in(weights_in(container, "x"), "x")
        assert found.name.startswith(layout)
        assert resnet_in(backbone) == (arch, width, "imagenet", 3)
        assert shapes(backbone) == shapes(on_meta(arch, width=width).state_dict())


@pytest.mark.parametrize(
    ("file", "arch"), [("twist_vit_s", "vit_small_patch16_224"), ("twist_vit_b", "vit_base_patch16_224")]
)
def test_published_vits_are_timms(file, arch):
    backbone, layout = backbone_in(weights_in({"model": published(file)}, "x"), "x")
    assert layout.name == "TWIST"
    assert resnet_in(backbone) is None
    assert shapes(backbone) == shapes(timm.create_model(arch, num_classes=0).state_dict())


def resnet(depth, **options):
    return {
        name: torch.empty(t.shape, device="meta")
        for name, t in on_meta(f"resnet{depth}", **options).state_dict().items()
    }


MOCO_HEAD = {name: torch.empty(3) for name in ("fc.0.weight", "fc.0.bias", "fc.2.weight", "fc.2.bias")}


def described_in_words():
    """Layouts without a published list of keys: as they are described."""
    r18, r50 = resnet(18), resnet(50)
    moco = {
        **prefixed({**r50, **MOCO_HEAD}, "module.encoder_q."),
        **prefixed({**r50, **MOCO_HEAD}, "module.encoder_k."),
        "module.queue": torch.empty(3),
        "module.queue_ptr": torch.empty(1),
    }
    student = prefixed({**r18, **MOCO_HEAD}, "module.encoder_q.")
    teachers = {
        **prefixed({**r50, **MOCO_HEAD}, "module.teacher_encoder_q."),
        **prefixed({**r50, **MOCO_HEAD}, "module.teacher_encoder_k."),
    }
    momentum = prefixed({**r18, **MOCO_HEAD}, "module.encoder_k.")
    bias = torch.empty(3)
    v3 = {
        **prefixed({**r50, "fc.0.weight": torch.empty(3)}, "module.base_encoder."),
        **prefixed({**r50, "fc.0.weight": torch.empty(3)}, "module.momentum_encoder."),
        "module.predictor.0.weight": torch.empty(3),
    }
    return [
        ("MoCo-v2", {"state_dict": moco, "epoch": 200, "arch": "resnet50"}, "resnet50"),
        ("MoCo-v2", {"state_dict": prefixed({**r50, **MOCO_HEAD}, "module.encoder_q.")}, "resnet50"),
        ("MoCo-v2", {"state_dict": prefixed({**r50, **MOCO_HEAD}, "encoder_q.")}, "resnet50"),
        ("DisCo", {"state_dict": {**student, **momentum, **teachers, "module.queue": torch.empty(3)}}, "resnet18"),
        ("MoCo-v3", {"state_dict": v3}, "resnet50"),
        ("INTL", {"state_dict": {**prefixed(r50, "module.backbone."), "module.projection.0.bias": bias}}, "resnet50"),
        ("backbone with", {"state_dict": prefixed(r50, "module.backbone."), "epoch": 100}, "resnet50"),
        ("CW-RGP", {"state_dict": {**prefixed(r18, "model.module."), "head.0.weight": torch.empty(3)}}, "resnet18"),
        ("torchvision", {**r50, "fc.weight": torch.empty(3), "fc.bias": torch.empty(3)}, "resnet50"),
        ("torchvision", resnet(18, stem="small"), "resnet18"),
    ]  # fmt: skip


@pytest.mark.parametrize("number", range(10))
def test_layouts_described_in_words_are_recognised(number):
    layout, content, arch = described_in_words()[number]
    backbone, found = backbone_in(weights_in(content, "x"), "x")
    assert found.name.startswith(layout)
    name, width, stem, _ = resnet_in(backbone)
    assert (name, width) == (arch, 1)
    assert shapes(backbone) == shapes(on_meta(arch, stem=stem or "small").state_dict())


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_resnets_of_torchvision_tell_their_depth(depth):
    with torch.device("meta"):
        state = getattr(torchvision.models, f"resnet{depth}")().state_dict()
    backbone, _ = backbone_in(state, "x")
    assert resnet_in(backbone) == (f"resnet{depth}", 1, "imagenet", 3)
    assert shapes(backbone) == shapes(on_meta(f"resnet{depth}").state_dict())


# ---------------------------------------------------------------------------------------------------- whole files


def weights(width=0.125):
    torch.manual_seed(0)
    return create_backbone("resnet18", width=width).state_dict()


def test_values_arrive_and_the_architecture_is_told_by_the_file(tmp_path):
    state = weights()
    torch.save({"state_dict": prefixed({**state, **MOCO_HEAD}, "module.encoder_q.")}, tmp_path / "moco.pth")
    loaded = load_backbone(tmp_path / "moco.pth")
    assert loaded.spec == BackboneSpec("resnet18", 0.125, "imagenet")
    assert all(torch.equal(t, state[n]) for n, t in loaded.backbone.state_dict().items())
    assert "4 entries of heads and others left out" in loaded.description


def test_the_entry_can_be_chosen(tmp_path):
    state, teacher = weights(), {n: t + 1 for n, t in weights().items()}
    torch.save(
        {"model": prefixed(state, "backbone."), "backbone": state, "teacher_backbone": teacher}, tmp_path / "t.pth"
    )
    for key, expected in (("auto", state), ("backbone", state), ("teacher_backbone", teacher), ("model", state)):
        found = load_backbone(tmp_path / "t.pth", key=key).backbone.state_dict()
        assert all(torch.equal(found[n], t) for n, t in expected.items()), key
    with pytest.raises(UserError, match="no entry 'ema'"):
        load_backbone(tmp_path / "t.pth", key="ema")


def test_a_vit_needs_its_name(tmp_path):
    vit = create_backbone("vit_tiny_patch16_224")
    torch.save({**vit.state_dict(), "head.weight": torch.empty(3)}, tmp_path / "vit.pth")
    with pytest.raises(UserError, match="pass its --arch"):
        load_backbone(tmp_path / "vit.pth")
    loaded = load_backbone(tmp_path / "vit.pth", BackboneSpec("vit_tiny_patch16_224"))
    assert all(torch.equal(t, vit.state_dict()[n]) for n, t in loaded.backbone.state_dict().items())


def test_partial_and_foreign_files_are_refused_with_counts(tmp_path):
    state = weights()
    del state["layer3.0.conv1.weight"]
    torch.save(state, tmp_path / "partial.pth")
    with pytest.raises(UserError, match=r"119 of 120 entries match, 1 missing \(such as layer3.0.conv1.weight\)"):
        load_backbone(tmp_path / "partial.pth")
    torch.save({**prefixed(weights(), "module.encoder_q."), "module.surprise": torch.empty(1)}, tmp_path / "odd.pth")
    with pytest.raises(UserError, match=r"looks like a MoCo-v2 file, but holds 1 entries .*surprise"):
        load_backbone(tmp_path / "odd.pth")
    torch.save({"a": 1}, tmp_path / "none.pth")
    with pytest.raises(UserError, match="holds no weights"):
        load_backbone(tmp_path / "none.pth")


class Evil:
    def __reduce__(self):
        return (print, ("this must never run",))


def test_old_files_with_namespaces_and_numpy_numbers_load_and_others_do_not(tmp_path, capsys):
    state = weights()
    content = {
        "state_dict": state,
        "args": argparse.Namespace(lr=np.float64(0.3), epochs=np.int64(5), name="x", crops=[2, 6]),
        "best": np.float32(7.0),
        "optimizer": {"param_groups": [{"lr": np.float64(0.1)}]},
    }
    torch.save(content, tmp_path / "new.pth")
    torch.save(content, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    # as numpy 1 wrote it
    old = pickle.dumps(content["args"], protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert b"numpy.core.multiarray" in old
    for name in ("new.pth", "legacy.pth"):
        assert load_backbone(tmp_path / name).spec.arch == "resnet18"
        assert read_file(tmp_path / name)["args"].lr == 0.3
    torch.save({"state_dict": state, "args": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="could run code"):
        read_file(tmp_path / "evil.pth")
    assert "must never run" not in capsys.readouterr().out

import json

from src.errors import UserError
from src.methods.swav import SwAV
from src.models.backbones import (
    checkpoint_activations,
    create_backbone,
    feature_width,
    forward_by_size,
    initialize,
    residual_blocks,
)
from src.models.backbones.resnet import RESNETS
from src.models.heads import MultiPrototypes, projector
from tests.helpers import ROOT

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"])
def test_equals_torchvision_with_the_same_weights(name):
    ours = create_backbone(name).eval()
    theirs = getattr(torchvision.models, name)().eval()
    theirs.fc = nn.Identity()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(ours(x), theirs(x))
    assert feature_width(ours) == ours(x).shape[1]


@pytest.mark.parametrize(
    ("name", "width", "parameters"),
    [
        ("resnet50", 2048, 23_508_032),
        ("resnet50w2", 4096, 93_907_072),
        ("resnet50w4", 8192, 375_378_176),
        ("resnet50w5", 10240, 586_450_240),
    ],
)
def test_published_widths_and_sizes(name, width, parameters):
    with torch.device("meta"):
        backbone = create_backbone(name)
    assert feature_width(backbone) == width
    assert sum(p.numel() for p in backbone.parameters()) == parameters


@pytest.mark.parametrize(
    ("layout", "arch", "hidden", "prototypes", "batch_norm"),
    [
        ("swav_resnet50", "resnet50", 2048, 3000, True),
        ("deepclusterv2_resnet50", "resnet50", 2048, [3000, 3000, 3000], True),
        ("swav_resnet50w2", "resnet50w2", 8192, 3000, True),
        ("swav_resnet50w4", "resnet50w4", 8192, 3000, True),
        ("swav_resnet50w5", "resnet50w5", 10240, 3000, True),  # as the code builds it; the published file has no norm
    ],
)
def test_names_and_shapes_are_the_published_ones(layout, arch, hidden, prototypes, batch_norm):
    published = json.loads((ROOT / "tests" / "layouts" / f"{layout}.json").read_text())["keys"]
    with torch.device("meta"):
        method = SwAV(create_backbone(arch), hidden_mlp=hidden, nmb_prototypes=prototypes, head_batch_norm=batch_norm)
    ours = [(n.removeprefix("backbone."), list(t.shape)) for n, t in method.state_dict().items() if n != "queue"]
    assert sorted(ours) == sorted((name, shape) for name, shape in published)


def test_published_totals():
    for prototypes, total in ((3000, 28_354_752), ([3000] * 3, 29_122_752)):
        with torch.device("meta"):
            method = SwAV(create_backbone("resnet50"), nmb_prototypes=prototypes)
        assert sum(p.numel() for p in method.parameters()) == total


def test_the_padding_of_the_published_stem_is_the_same_function():
    """SwAV's code pads the image by 1 and its stem by 2; ours pads the stem by 3."""
    backbone = create_backbone("resnet18")
    x = torch.randn(2, 3, 65, 64)
    theirs = F.conv2d(F.pad(x, (1, 1, 1, 1)), backbone.conv1.weight, stride=2, padding=2)
    assert torch.equal(backbone.conv1(x), theirs)


def test_seeded_weights_are_the_published_codes():
    """Spec section 2.4: default draws in order of construction, then one pass of Kaiming over all modules."""
    torch.manual_seed(31)
    ours = SwAV(create_backbone("resnet18"), hidden_mlp=64, nmb_prototypes=[30, 20], feat_dim=16)
    torch.manual_seed(31)
    # torchvision builds stem and layers with default draws and has its own final pass, which is left out here
    trunk = torchvision.models.ResNet.__new__(torchvision.models.ResNet)
    original = nn.init.kaiming_normal_
    nn.init.kaiming_normal_ = lambda *_, **__: None
    try:
        trunk.__init__(torchvision.models.resnet.BasicBlock, [2, 2, 2, 2], num_classes=1)
    finally:
        nn.init.kaiming_normal_ = original
    torch.manual_seed(31)
    skip = nn.ModuleList()  # the same default draws, without torchvision's classifier at the end
    for module in trunk.modules():
        if isinstance(module, nn.Conv2d):
            skip.append(nn.Conv2d(module.in_channels, module.out_channels, module.kernel_size, bias=False))
    head = nn.Sequential(nn.Linear(512, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 16))
    prototypes = [nn.Linear(16, 30, bias=False), nn.Linear(16, 20, bias=False)]
    for module in trunk.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    for name, tensor in trunk.state_dict().items():
        if not name.startswith("fc."):
            assert torch.equal(ours.backbone.state_dict()[name], tensor), name
    assert torch.equal(ours.projection_head[0].weight, head[0].weight)
    assert torch.equal(ours.projection_head[3].bias, head[3].bias)
    assert isinstance(ours.prototypes, MultiPrototypes)
    for ours_head, theirs_head in zip(ours.prototypes.heads(), prototypes, strict=True):
        assert torch.equal(ours_head.weight, theirs_head.weight)


def test_zero_init_residual_makes_every_block_the_identity_at_first():
    for name, norm in (("resnet18", "bn2"), ("resnet50", "bn3")):
        backbone = create_backbone(name)
        initialize(backbone, zero_init_residual=True)
        last = [m.weight for n, m in backbone.named_modules() if n.endswith(f".{norm}") and "layer" in n]
        assert len(last) == sum(RESNETS[name][1])
        assert all((weight == 0).all() for weight in last)
        initialize(backbone, zero_init_residual=False)
        assert all((weight == 1).all() for weight in last)


def test_small_stem_keeps_the_resolution():
    backbone = create_backbone("resnet18", width=0.25, stem="small")
    assert backbone.feature_map(torch.randn(2, 3, 32, 32)).shape == (2, 128, 4, 4)
    assert feature_width(backbone) == 128


@pytest.mark.parametrize("name", ["mobilenetv3_large_100", "efficientnet_b0", "vit_tiny_patch16_224", "regnety_002"])
def test_timm_models_know_their_width_and_take_other_sizes(name):
    backbone = create_backbone(name).eval()
    assert backbone(torch.randn(1, 3, 96, 96)).shape == (1, feature_width(backbone))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "resnet5O"}, "did you mean resnet50"),
        ({"name": "resnet18", "stem": "tiny"}, "unknown stem"),
        ({"name": "resnet18", "width": 0.0}, "must be positive"),
        ({"name": "resnet18", "drop_path": 0.1}, "no stochastic depth"),
        ({"name": "efficientnet_b0", "stem": "small"}, "options of our ResNets"),
    ],
)
def test_wrong_names_and_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        create_backbone(**options)


class CountingBackbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(3)
        self.calls = []

    def forward(self, x):
        self.calls.append(tuple(x.shape))
        return self.bn(x).mean(dim=(2, 3))


def test_neighbouring_crops_of_one_size_share_a_forward_pass():
    backbone = CountingBackbone()
    crops = [torch.full((2, 3, s, s), float(i)) for i, s in enumerate([8, 8, 4, 4, 4, 8])]
    backbone.eval()
    features = forward_by_size(backbone, crops)
    assert backbone.calls == [(4, 3, 8, 8), (6, 3, 4, 4), (2, 3, 8, 8)]  # runs, not a global sort
    torch.testing.assert_close(features[::2, 0], torch.arange(6.0), rtol=1e-4, atol=1e-4)  # crop-major


def test_batch_counters_advance_by_resolution_and_the_heads_by_one():
    method = SwAV(create_backbone("resnet18", width=0.25), hidden_mlp=16, nmb_prototypes=10)
    method.embed([torch.randn(4, 3, s, s) for s in (64, 64, 32, 32)])
    assert method.backbone.bn1.num_batches_tracked == 2
    assert method.projection_head[1].num_batches_tracked == 1


def test_head_layouts():
    assert set(projector(8, 0, 4).state_dict()) == {"weight", "bias"}
    assert {name.split(".")[0] for name in projector(8, 16, 4).state_dict()} == {"0", "1", "3"}
    assert {name.split(".")[0] for name in projector(8, 16, 4, batch_norm=False).state_dict()} == {"0", "2"}


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vit_tiny_patch16_224"])
def test_recomputing_activations_changes_nothing_but_memory(name):
    """Outputs, gradients and batch-norm statistics, which a second forward pass would count twice."""
    results = []
    for recompute in (False, True):
        torch.manual_seed(0)
        backbone = create_backbone(name, **({"width": 0.125} if name.startswith("resnet") else {})).train()
        if recompute:
            checkpoint_activations(backbone)
        features = backbone(torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1)))
        features.square().mean().backward()
        results.append((features.detach(), [p.grad for p in backbone.parameters()], list(backbone.buffers())))
    for plain, recomputed in zip(*results, strict=True):
        pairs = [(plain, recomputed)] if torch.is_tensor(plain) else zip(plain, recomputed, strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert len(residual_blocks(backbone)) == {"resnet18": 8, "resnet50": 16, "vit_tiny_patch16_224": 12}[name]


def test_recomputation_keeps_only_the_inputs_of_blocks():
    """Counted in bytes that autograd holds between forward and backward."""
    held = {}
    for recompute in (False, True):
        backbone = create_backbone("resnet50", width=0.25)
        if recompute:
            checkpoint_activations(backbone)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: (s.append(t.nbytes), t)[1], lambda t: t):
            backbone(torch.randn(4, 3, 64, 64))
        held[recompute] = sum(sizes)
    assert held[True] < 0.3 * held[False]


def test_recomputation_is_refused_where_it_would_count_statistics_twice():
    with pytest.raises(UserError, match="checkpoint_activations"):
        checkpoint_activations(create_backbone("mobilenetv3_small_050"))


@pytest.mark.parametrize(("stem", "side"), [("imagenet", 1), ("small", 4), ("small_pool", 2), ("small_padded", 5)])
def test_stems_make_maps_of_their_sizes(stem, side):
    backbone = create_backbone("resnet18", width=0.125, stem=stem)
    assert backbone.feature_map(torch.randn(2, 3, 32, 32)).shape[-2:] == (side, side)
    assert backbone.conv1.stride == ((2, 2) if stem == "imagenet" else (1, 1))


def test_gradients_of_narrow_networks_on_large_images_are_right():
    """In channels-last layout, with fewer than 16 channels before a strided 1x1 convolution; ten times as a guard."""
    torch.manual_seed(0)
    network = create_backbone("resnet18", width=0.125, stem="small").to(memory_format=torch.channels_last)
    convolution = network.layer2[0].downsample[0]
    assert convolution.weight.shape[:2] == (16, 8)
    images = torch.randn(4, 8, 56, 56).contiguous(memory_format=torch.channels_last).requires_grad_()
    direction = torch.randn(4, 16, 28, 28)
    for _ in range(10):
        found = torch.autograd.grad(convolution(images), [images, convolution.weight], direction)
    exact = [t.detach().double().contiguous().requires_grad_() for t in (images, convolution.weight)]
    expected = torch.autograd.grad(torch.nn.functional.conv2d(*exact, stride=2), exact, direction.double())
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)

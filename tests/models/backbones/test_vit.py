"""TWIST's transformers: timm's numbers at 224 pixels, DINO's position table elsewhere, the published keys."""

from src.errors import UserError
from src.models.backbones import create_backbone, feature_width
from src.models.backbones.vit import interpolate_positions

import numpy as np
import pytest
import timm
import torch
from torch.nn import functional as F


def test_at_224_pixels_it_is_timms():
    torch.manual_seed(0)
    ours = create_backbone("vit_t").eval()
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=0).eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images))
        assert ours(torch.randn(1, 3, 96, 96)).shape == (1, 192)
    assert feature_width(ours) == 192


@pytest.mark.parametrize(("name", "width", "parameters"), [("vit_s", 384, 21_665_664), ("vit_b", 768, 85_798_656)])
def test_published_sizes_and_keys(name, width, parameters):
    with torch.device("meta"):
        state = create_backbone(name).state_dict()
    assert sum(tensor.numel() for tensor in state.values()) == parameters
    assert len(state) == 150
    assert state["pos_embed"].shape == (1, 197, width)
    assert {
        "cls_token",
        "patch_embed.proj.weight",
        "blocks.11.attn.qkv.bias",
        "blocks.0.mlp.fc2.weight",
        "norm.bias",
    } <= set(state)


def test_it_starts_as_published():
    torch.manual_seed(0)
    state = create_backbone("vit_s").state_dict()
    for name in ("cls_token", "pos_embed", "blocks.3.attn.qkv.weight", "blocks.7.mlp.fc1.weight"):
        assert state[name].std().item() == pytest.approx(0.02, rel=0.1), name
    assert (state["blocks.3.attn.qkv.bias"] == 0).all()
    bound = (3 * 16 * 16) ** -0.5  # torch's default for the patches' convolution
    assert state["patch_embed.proj.weight"].abs().max().item() == pytest.approx(bound, rel=1e-2)
    assert state["patch_embed.proj.bias"].abs().max() > 0


def cubic(x, a=-0.75):
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def reference_rows(values, side):
    """Bicubic interpolation of 14 values at (i + 0.5) / scale - 0.5 with scale (side + 0.1) / 14; edges repeat."""
    scale = (side + 0.1) / 14
    out = []
    for i in range(side):
        x = (i + 0.5) / scale - 0.5
        first = int(np.floor(x)) - 1
        out.append(sum(cubic(x - n) * values[min(max(n, 0), 13)] for n in range(first, first + 4)))
    return np.stack(out)


@pytest.mark.parametrize(("rows", "columns"), [(6, 6), (2, 2), (16, 16), (14, 6)])
def test_other_sizes_are_interpolated_by_the_scale(rows, columns):
    table = torch.randn(1, 197, 3, dtype=torch.float64)
    grid = table[0, 1:].numpy().reshape(14, 14, 3)
    expected = np.swapaxes(reference_rows(np.swapaxes(reference_rows(grid, rows), 0, 1), columns), 0, 1)
    ours = interpolate_positions(table, rows, columns)
    np.testing.assert_allclose(ours[0, 1:], expected.reshape(-1, 3), rtol=1e-9, atol=1e-12)
    assert torch.equal(ours[:, 0], table[:, 0])
    by_size = F.interpolate(
        torch.tensor(grid).permute(2, 0, 1)[None], size=(rows, columns), mode="bicubic", align_corners=False
    )
    assert not np.allclose(by_size[0].permute(1, 2, 0), expected, atol=1e-3)  # the 0.1 matters


def test_the_table_is_untouched_at_its_own_size():
    table = torch.randn(1, 197, 3)
    assert interpolate_positions(table, 14, 14) is table


def test_options():
    vit = create_backbone("vit_t", drop_path=0.1)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in vit.blocks]
    np.testing.assert_allclose(rates, np.linspace(0, 0.1, 12), atol=1e-9)
    vit.freeze_embedding()
    frozen = {name for name, parameter in vit.named_parameters() if not parameter.requires_grad}
    assert frozen == {"patch_embed.proj.weight", "patch_embed.proj.bias"}
    with pytest.raises(UserError, match="options of our ResNets"):
        create_backbone("vit_t", width=0.5)

from src.models.backbones import create_backbone
from src.models.backbones.convolution import Conv2d, as_product
from src.models.backbones.resnet import BasicBlock

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 1), (4, 5), (7, 7)])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_a_product_is_a_convolution_with_its_gradients(kernel, stride, size, layout):
    torch.manual_seed(0)
    images = torch.randn(3, 4, *size, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    weight = torch.randn(5, 4, kernel, kernel, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    expected = F.conv2d(images, weight, stride=stride, padding=kernel // 2)
    found = as_product(images, weight, stride)
    assert found.is_contiguous(memory_format=torch.channels_last) or 1 in found.shape[2:]
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(expected)
    for a, b in zip(*(torch.autograd.grad(out, (images, weight), upstream) for out in (found, expected)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("kernel", "stride", "side"), [(1, 1, 7), (1, 2, 13), (1, 1, 8), (3, 1, 2), (3, 2, 4), (3, 1, 3)]
)
def test_trainings_and_evaluations_compute_the_same(kernel, stride, side):
    """Maps that are multiplied, and maps that are not."""
    torch.manual_seed(0)
    layer = Conv2d(128, 128, kernel, stride)
    images = torch.randn(2, 128, side, side)
    trained = layer(images)
    assert trained.requires_grad
    torch.testing.assert_close(trained, layer.eval()(images), rtol=1e-4, atol=1e-5)


def test_only_small_maps_of_trainings_in_float32_are_multiplied():
    layer, images = Conv2d(128, 128, 3), torch.randn(1, 128, 2, 2)
    assert layer._multiplies(images, 1)
    assert not layer._multiplies(torch.randn(1, 128, 3, 2), 1)
    assert not layer._multiplies(images.double(), 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not layer._multiplies(images, 1)
    assert not layer.eval()._multiplies(images, 1)
    assert not Conv2d(64, 64, 3)._multiplies(torch.randn(1, 64, 2, 2), 1)


def test_one_that_was_changed_computes_what_it_says():
    torch.manual_seed(0)
    images = torch.randn(2, 128, 2, 2)
    layer, norm = Conv2d(128, 128, 3).eval(), nn.BatchNorm2d(128).eval()
    norm.running_mean.normal_()
    fused = fuse_conv_bn_eval(layer, norm)
    torch.testing.assert_close(fused(images), norm(layer(images)))
    torch.testing.assert_close(fused.train()(images), norm(layer(images)), rtol=1e-4, atol=1e-5)
    layer.train()
    layer.dilation = layer.padding = (2, 2)
    torch.testing.assert_close(layer(images), F.conv2d(images, layer.weight, padding=2, dilation=2))


@pytest.mark.parametrize("shape", [(0, 128, 2, 2), (128, 2, 2)])
@pytest.mark.parametrize(("kernel", "channels"), [(1, 128), (3, 128), (1, 8)])
def test_takes_what_torchs_takes(shape, kernel, channels):
    layer = Conv2d(channels, 128, kernel, 2)
    shape = tuple(channels if size == 128 else size for size in shape)
    assert layer(torch.zeros(shape)).shape == F.conv2d(torch.zeros(shape), layer.weight, None, 2, kernel // 2).shape


def test_exports_take_images_of_any_size():
    network = create_backbone("resnet50", width=0.125).eval()
    sizes = {2: torch.export.Dim("h", min=64, max=1024), 3: torch.export.Dim("w", min=64, max=1024)}
    program = torch.export.export(network, (torch.randn(1, 3, 224, 224),), dynamic_shapes=(sizes,))
    images = torch.randn(1, 3, 320, 288)
    torch.testing.assert_close(program.module()(images), network(images))


def test_an_evaluated_block_is_exported_as_convolutions():
    block = BasicBlock(128, 128, 1, None).eval()
    program = torch.export.export(block, (torch.randn(1, 128, 2, 2),))
    assert sum("conv2d" in str(node.target) for node in program.graph.nodes) == 2

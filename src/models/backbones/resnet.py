"""Residual networks (He et al. 2016, arXiv 1512.03385; v1.5, stride on the 3x3 convolution) of any width.

Parameter names are torchvision's, which are also those of the published self-supervised weights. torchvision's own
class fixes the stage widths at 64, 128, 256, 512, where the published w2/w4/w5 networks multiply all of them; that,
and the small-image stem, is why the network is written out here. Width 1 computes exactly what torchvision's does.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .convolution import Conv2d
from .recomputation import recomputed


class BasicBlock(nn.Module):
    """Two 3x3 convolutions."""

    expansion = 1

    def __init__(self, channels_in: int, planes: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = Conv2d(channels_in, planes, 3, stride)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = Conv2d(planes, planes, 3)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        return F.relu(out + identity, inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions; the last widens four times."""

    expansion = 4

    def __init__(self, channels_in: int, planes: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = Conv2d(channels_in, planes, 1)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = Conv2d(planes, planes, 3, stride)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = Conv2d(planes, planes * self.expansion, 1)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        return F.relu(out + identity, inplace=True)


class ResNet(nn.Module):
    """A residual network without classifier: (n, 3, h, w) -> (n, feature_width).

    Args:
        block: BasicBlock or Bottleneck.
        depths: blocks in each of the four stages.
        width: factor on every convolution's channels (published: 1, 2, 4, 5). Fractions give networks small enough
            for a CPU; channels are rounded to whole numbers.
        stem: ``imagenet``; for images of some 32 to 96 pixels, with a 3x3 stride-1 first convolution, ``small``
            without max pooling, or ``small_pool`` with it. ``small_padded`` is ``small`` on the image padded by one
            pixel, which makes maps of 34, 17, 9 and 5 positions of 32 pixels: the last state of INTL's program.

    The published SwAV code pads the image by 1 and its 7x7 stem by 2 where this one pads the stem by 3; the two are
    the same function, bit for bit. Weights are torch's defaults until :func:`initialize` is applied.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        width: float = 1.0,
        stem: str = "imagenet",
        channels: int = 3,
    ) -> None:
        super().__init__()
        planes = [max(1, round(64 * width * 2**stage)) for stage in range(4)]
        self.feature_width = planes[3] * block.expansion
        self.checkpoint_activations = False  # keep the blocks' inputs only, and compute the rest again for backward
        self.pools = stem in ("imagenet", "small_pool")
        self.pads = stem == "small_padded"
        self.conv1: nn.Conv2d
        if stem != "imagenet":
            self.conv1 = Conv2d(channels, planes[0], 3)
        else:
            self.conv1 = nn.Conv2d(channels, planes[0], kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(planes[0])
        self._channels = planes[0]
        self.layer1 = self._stage(block, planes[0], depths[0], stride=1)
        self.layer2 = self._stage(block, planes[1], depths[1], stride=2)
        self.layer3 = self._stage(block, planes[2], depths[2], stride=2)
        self.layer4 = self._stage(block, planes[3], depths[3], stride=2)

    def _stage(self, block: type[BasicBlock] | type[Bottleneck], planes: int, depth: int, stride: int) -> nn.Sequential:
        out = planes * block.expansion
        downsample = None
        if stride != 1 or self._channels != out:
            downsample = nn.Sequential(Conv2d(self._channels, out, 1, stride), nn.BatchNorm2d(out))
        blocks = [block(self._channels, planes, stride, downsample)]
        blocks += [block(out, planes, 1, None) for _ in range(depth - 1)]
        self._channels = out
        return nn.Sequential(*blocks)

    def feature_map(self, x: Tensor) -> Tensor:
        """(n, 3, h, w) -> (n, feature_width, h/32, w/32), the last stage's output; h/8 with ``small``, h/16 with
        ``small_pool``."""
        if self.pads:
            x = F.pad(x, (1, 1, 1, 1))
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        if self.pools:
            x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
        recompute = self.checkpoint_activations and torch.is_grad_enabled()
        for block in self.blocks():
            x = recomputed(block, x) if recompute else block(x)
        return x

    def blocks(self) -> list[nn.Module]:
        return [*self.layer1, *self.layer2, *self.layer3, *self.layer4]

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(F.adaptive_avg_pool2d(self.feature_map(x), 1), 1)


def initialize(network: nn.Module, zero_init_residual: bool = False) -> None:
    """Kaiming normal (fan out, ReLU) for convolutions, 1 and 0 for 2-D batch and group norms; the rest is left alone.

    One pass over all modules in the order of registration. With a seeded generator, a network built as backbone,
    projector, prototypes and passed here gets bit for bit the weights of the published SwAV code.

    Args:
        network: a ResNet, or a network that contains one.
        zero_init_residual: start every residual branch at zero by its last batch norm (Goyal et al. 2017); the
            published runs do not.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    if zero_init_residual:
        for module in network.modules():
            if isinstance(module, Bottleneck):
                nn.init.zeros_(module.bn3.weight)
            elif isinstance(module, BasicBlock):
                nn.init.zeros_(module.bn2.weight)


RESNETS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int], float]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2), 1.0),
    "resnet34": (BasicBlock, (3, 4, 6, 3), 1.0),
    "resnet50": (Bottleneck, (3, 4, 6, 3), 1.0),
    "resnet101": (Bottleneck, (3, 4, 23, 3), 1.0),
    "resnet152": (Bottleneck, (3, 8, 36, 3), 1.0),
    "resnet200": (Bottleneck, (3, 24, 36, 3), 1.0),
    "resnet200w2": (Bottleneck, (3, 24, 36, 3), 2.0),
    "resnet50w2": (Bottleneck, (3, 4, 6, 3), 2.0),
    "resnet50w4": (Bottleneck, (3, 4, 6, 3), 4.0),
    "resnet50w5": (Bottleneck, (3, 4, 6, 3), 5.0),
}

"""Convolutions of residual networks, on CPUs as matrix products where that is faster."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Positions of the largest map that is multiplied, by the kernel's side, and the fewest weights that make it worth while
# (benchmarks/README.md has the measurements)
_POSITIONS = {1: 49, 3: 4}
_WEIGHTS = 128 * 128


class Conv2d(nn.Conv2d):
    """Kernels of 1x1, and of 3x3 with a border of one, without bias; in either case of one group.

    On CPUs trainings in float32 compute small maps as matrix products: the same sums in another order, and up to eight
    times as fast as torch 2.15's (oneDNN's) gradients of convolutions on maps of a few positions.

    On CPUs a strided kernel of 1x1 is not given the pixels that it passes over: with fewer than 16 channels in
    channels-last layout and maps of some 50 pixels or more, torch 2.15's gradient writes beyond its buffer: wrong
    numbers, or a crash.
    """

    def __init__(self, channels_in: int, channels_out: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__(channels_in, channels_out, kernel_size, stride=stride, padding=kernel_size // 2, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        if input.device.type != "cpu" or not self._is_as_made(input):
            return super().forward(input)
        (side, _), (stride, _) = self.kernel_size, self.stride
        if self._multiplies(input, stride):
            return as_product(input, self.weight, stride)
        if side == 1 and stride > 1 and self.in_channels < 16:
            return F.conv2d(input[:, :, ::stride, ::stride], self.weight)
        return super().forward(input)

    def _is_as_made(self, images: Tensor) -> bool:
        """Whether nobody has given it a bias, say, or another stride for each direction."""
        border = (self.kernel_size[0] // 2,) * 2
        plain = self.bias is None and self.groups == 1 and self.dilation == (1, 1) and self.padding_mode == "zeros"
        return plain and self.padding == border and len(set(self.stride)) == 1 and images.ndim == 4

    def _multiplies(self, images: Tensor, stride: int) -> bool:
        # sizes come last: exported programs would be bound to those that were compared
        if not self.training or torch.compiler.is_compiling():
            return False
        if images.dtype is not torch.float32 or torch.is_autocast_enabled("cpu"):
            return False
        if self.weight.shape[0] * self.weight.shape[1] < _WEIGHTS:
            return False
        height, width = (-(-size // stride) for size in images.shape[2:])
        return len(images) > 0 and height * width <= _POSITIONS.get(self.kernel_size[0], 0)


def as_product(images: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """A convolution with a border of half the kernel, by one matrix product.

    Args:
        images: (n, c, h, w); the channels-last layout saves a copy.
        weight: (d, c, k, k) with odd k; the same holds.
        stride: of both directions.

    Returns:
        (n, d, ceil(h / stride), ceil(w / stride)), channels last.
    """
    kernel, border = weight.shape[-1], weight.shape[-1] // 2
    sizes = images.shape[2:]
    height, width = (-(-size // stride) for size in sizes)
    # rows and columns of the kernel that meet a pixel; the others see the border only
    rows, columns = (
        [k for k in range(kernel) if any(0 <= out * stride + k - border < size for out in range(count))]
        for size, count in zip(sizes, (height, width), strict=True)
    )
    pixels_nhwc = images.permute(0, 2, 3, 1)
    if border:
        pixels_nhwc = F.pad(pixels_nhwc, (0, 0, border, border, border, border))
    met = [
        pixels_nhwc[:, i : i + stride * (height - 1) + 1 : stride, j : j + stride * (width - 1) + 1 : stride]
        for i in rows
        for j in columns
    ]
    seen = torch.stack(met, dim=3) if len(met) > 1 else met[0]
    if len(met) < kernel**2:  # not else: the gradient of a part is put into zeros
        weight = weight[:, :, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    met_weight = weight.permute(0, 2, 3, 1).reshape(len(weight), -1)
    product = seen.reshape(len(images) * height * width, -1) @ met_weight.T
    return product.view(len(images), height, width, -1).permute(0, 3, 1, 2)

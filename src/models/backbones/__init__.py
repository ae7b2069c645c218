"""Backbones by name: our ResNets, and every model of timm.

A backbone maps (n, 3, h, w) to (n, F) and knows F as its attribute ``feature_width``.
"""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...data.views import runs_of_equal_size
from ...errors import UserError, first_line
from ...parallel.virtual import led_through
from ...settings import setting
from .resnet import RESNETS, ResNet, initialize

__all__ = [
    "BackboneSpec",
    "ResidualStart",
    "checkpoint_activations",
    "create_backbone",
    "feature_width",
    "features_and_map",
    "forward_by_size",
    "in_parts",
    "initialize",
    "initialize_mobile",
    "is_mobile",
    "is_ours",
    "require_size",
    "residual_blocks",
    "takes",
    "takes_sizes",
]


STEMS = ("imagenet", "small", "small_pool", "small_padded")

# Names of the published programs -> ours and timm's
ALIASES = {
    **{f"resnet50x{n}": f"resnet50w{n}" for n in (2, 4, 5)},  # INTL's, of ours
    "resnet200x2": "resnet200w2",
    "efficientb0": "efficientnet_b0",
    "efficientb1": "efficientnet_b1",
    "efficientb5": "efficientnet_b5",
    "mobilenetv3": "mobilenetv3_large_100",
}


@dataclass(frozen=True)
class BackboneSpec:
    """Backbone"""

    arch: str = setting(
        "resnet50",
        "resnet18, 34, 50, 101, 152 or 200, resnet50w2, w4 or w5, vit_t, vit_s or vit_b, or any model name of timm",
        flags=["--backbone", "-a"],
    )
    width: float = setting(1.0, "factor on the number of channels of our ResNets", above=0, at_most=64)
    stem: str = setting(
        "imagenet",
        "first layers of our ResNets. small: 3x3 convolution without pooling, for images of some 32 to 96 pixels; "
        "small_pool: the same with pooling; small_padded: the image padded by a pixel",
        choices=STEMS,
    )
    channels: int = setting(
        3,
        "channels of the images: 3 for RGB, 1 for grey, or as many as the files have (.npy arrays, TIFF pages, bands)",
        at_least=1,
        at_most=4096,
    )

    @property
    def name(self) -> str:
        """What papers call it: ``resnet50w2``."""
        return self.arch if self.width == 1 else f"{self.arch}w{self.width:g}"

    def build(self, drop_path: float = 0.0) -> nn.Module:
        return create_backbone(self.arch, width=self.width, stem=self.stem, drop_path=drop_path, channels=self.channels)


@dataclass(frozen=True)
class ResidualStart:
    """Backbone"""

    zero_init_residual: bool = setting(False, "residual branches of ResNets start at zero")


def create_backbone(
    name: str, *, width: float = 1.0, stem: str = "imagenet", drop_path: float = 0.0, channels: int = 3
) -> nn.Module:
    """Builds a backbone with fresh weights; call :func:`initialize` on the finished network.

    Args:
        name: ``resnet18/34/50/101/152/200``, ``resnet50w2/w4/w5``, ``resnet200w2``, TWIST's ``vit_t/s/b``, any model
            name of timm, or one of ALIASES.
        width: further factor on the channels of our ResNets (0.25: a network a CPU can train).
        stem: one of STEMS: 7x7 stride 2 and max pool, 3x3 without pool, 3x3 with pool; our ResNets only.
        drop_path: stochastic depth, for transformers and timm models that know it.
        channels: of the images.

    Raises UserError for an unknown name or an option that the model does not have.
    """
    name = ALIASES.get(name, name)
    if stem not in STEMS:
        raise UserError(f"unknown stem {stem!r}: expected {', '.join(STEMS)}")
    if name in RESNETS:
        if width <= 0:
            raise UserError(f"the width of a network must be positive, got {width}")
        if drop_path:
            raise UserError(f"{name} has no stochastic depth; use a timm model, or drop_path 0")
        block, depths, own_width = RESNETS[name]
        return ResNet(block, depths, own_width * width, stem=stem, channels=channels)
    if width != 1.0 or stem != "imagenet":
        raise UserError(f"width and stem are options of our ResNets, not of {name!r}")
    if name in ("vit_t", "vit_s", "vit_b"):
        from .vit import VisionTransformer  # imports timm

        return _with_whole_patches(VisionTransformer(name, drop_path, channels))
    return _with_whole_patches(_timm_backbone(name, drop_path, channels))


def _with_whole_patches(model: nn.Module) -> nn.Module:
    """The same; images that transformers cannot cut into patches are refused in one line."""
    if hasattr(getattr(model, "patch_embed", None), "patch_size"):
        model.register_forward_pre_hook(_check_patches)
    return model


def _check_patches(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    side: Any = model.patch_embed.patch_size  # type: ignore[union-attr]
    rows, columns = side if isinstance(side, (tuple, list)) else (side, side)
    height, width = inputs[0].shape[-2:]
    if height % rows or width % columns:
        raise UserError(
            f"crops of {height}x{width} pixels cannot be cut into the network's patches of {rows}x{columns}"
        )


def _timm_backbone(name: str, drop_path: float, channels: int) -> nn.Module:
    import timm  # takes a second to import, and most runs do not need it

    if not timm.is_model(name):
        known = [*RESNETS, *timm.list_models()]
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        raise UserError(f"unknown backbone {name!r}{hint} (ours: {', '.join(RESNETS)}; or any timm name)")
    options: dict[str, Any] = {"in_chans": channels} | ({"drop_path_rate": drop_path} if drop_path else {})
    if takes_sizes(name):
        options["dynamic_img_size"] = True
    model = timm.create_model(name, num_classes=0, **options)
    # MobileNetV3 has a layer after pooling whose width `num_features` does not tell
    model.feature_width = getattr(model, "head_hidden_size", None) or model.num_features
    return model


@lru_cache(maxsize=64)
def takes_sizes(name: str) -> bool:
    """Whether a model of timm takes other image sizes by an option, as transformers do; convolutions always do."""
    import timm

    make = partial(timm.create_model, name, num_classes=0, dynamic_img_size=True)
    with torch.random.fork_rng(devices=[]):  # asking leaves the weights that are drawn next as they would be
        try:
            with torch.device("meta"):
                make()
        except TypeError:
            return False
        except (RuntimeError, NotImplementedError):  # some networks cannot be made without memory
            try:
                make()
            except TypeError:
                return False
    return True


@torch.no_grad()
def takes(backbone: nn.Module, size: int, channels: int) -> bool:
    """Whether a backbone in eval mode computes images of so many pixels a side."""
    try:
        require_size(backbone, size, channels)
    except UserError:
        return False
    return True


@torch.no_grad()
def require_size(backbone: nn.Module, size: int, channels: int) -> None:
    """Shows a backbone one image of zeros; raises UserError where it was not made for this size."""
    was_training = backbone.training
    device = next(backbone.parameters()).device
    try:
        backbone.eval()(torch.zeros(1, channels, size, size, device=device))
    except (UserError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(
            f"the network cannot compute images of {size} x {size} pixels ({first_line(error)}): choose another size"
        ) from None
    finally:
        backbone.train(was_training)


def is_ours(name: str) -> bool:
    """Whether it is one of our ResNets, which have widths and stems; timm has others whose names begin alike."""
    return ALIASES.get(name, name) in RESNETS


def is_mobile(backbone: nn.Module) -> bool:
    """Whether it is one of timm's EfficientNets or MobileNets."""
    return type(backbone).__name__ in ("EfficientNet", "MobileNetV3")


def initialize_mobile(network: nn.Module) -> None:
    """The start of those networks (TensorFlow's), for everything in ``network``: normal convolutions with variance
    2 / fan-out of a group, uniform linear layers of +- 1 / sqrt(outputs), batch norms 1 and 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            height, width = module.kernel_size
            fan_out = height * width * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=(2.0 / fan_out) ** 0.5)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
        elif isinstance(module, nn.Linear):
            bound = module.out_features**-0.5
            nn.init.uniform_(module.weight, -bound, bound)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def residual_blocks(backbone: nn.Module) -> list[nn.Module]:
    """The units in which a backbone can be sharded or recomputed; none where its structure is not known."""
    if isinstance(backbone, ResNet):
        return backbone.blocks()
    blocks = getattr(backbone, "blocks", None)  # timm's transformers
    return list(blocks) if isinstance(blocks, nn.Sequential) else []


def checkpoint_activations(backbone: nn.Module) -> None:
    """Trades time for memory: each block's inner activations are computed again in the backward pass.

    Raises UserError for backbones in which that would count batch-norm statistics twice.
    """
    if isinstance(backbone, ResNet):
        backbone.checkpoint_activations = True
        return
    has_batch_norm = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in backbone.modules())
    switch: Any = getattr(backbone, "set_grad_checkpointing", None)
    if has_batch_norm or switch is None:
        raise UserError("--checkpoint_activations works for our ResNets and for timm's transformers")
    switch(True)


def feature_width(backbone: nn.Module) -> int:
    """Number of features F of a backbone's output."""
    width = backbone.feature_width
    assert isinstance(width, int)
    return width


def features_and_map(backbone: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """What the backbone gives, (n, F), and the last feature map it is made of, (n, C, h, w).

    Raises UserError for networks without such a map.
    """
    found: tuple[Tensor, Tensor] = led_through(backbone, partial(_features_and_map, backbone), images)
    return found


def _features_and_map(backbone: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    if isinstance(backbone, ResNet):
        feature_map = backbone.feature_map(images)
        return torch.flatten(F.adaptive_avg_pool2d(feature_map, 1), 1), feature_map
    model: Any = backbone
    feature_map = model.forward_features(images)
    if feature_map.ndim != 4:
        raise UserError(f"{type(backbone).__name__} has no feature map")
    return model.forward_head(feature_map, pre_logits=True), feature_map


def in_parts(network: Callable[[Tensor], Tensor], images: Tensor, parts: int) -> Tensor:
    """A batch cut into ``parts``, each through the network by itself: batch norms see one part, as one of so many
    GPUs would."""
    return torch.cat([network(part) for part in images.chunk(parts)])


def forward_by_size(backbone: nn.Module, crops: Sequence[Tensor]) -> Tensor:
    """One forward pass for each run of equally large crops (Caron et al. 2020, section 3.3).

    Batch-norm statistics are therefore those of one resolution, and running statistics are updated once for each.

    Args:
        backbone: (n, 3, s, s) -> (n, F).
        crops: V tensors (B, 3, s_v, s_v). Neighbours of equal size are joined; order is kept.

    Returns:
        (V*B, F), crop-major: crop v of image b is row v*B + b.
    """
    return torch.cat([backbone(torch.cat(list(crops[run]))) for run in runs_of_equal_size(crops)])

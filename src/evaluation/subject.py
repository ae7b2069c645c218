"""What an evaluation judges: a backbone, and labelled images to train on and to test on."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from ..checkpoints.files import require_writable
from ..data.datasets import (
    IMAGENET_MEAN,
    SWAV_STD,
    EvaluationDataSettings,
    check_channels,
    open_train_and_test,
    usual,
)
from ..data.decoding import Decoding
from ..data.small_sets import bicubic_evaluation
from ..data.source import ImageSource
from ..data.splits import name_of_data
from ..data.to_device import ToDevice
from ..data.views import CentreView
from ..models.backbones import STEMS, BackboneSpec, feature_width, require_size
from ..models.pretrained import Hints, Pretrained, load_backbone, name_of_weights, random_backbone
from ..parallel import collectives
from ..parallel.launch import DeviceSettings
from ..settings import replaced, setting


@dataclass(frozen=True)
class JudgedBackboneSettings:
    """Backbone"""

    arch: str | None = setting(
        None,
        "architecture, where it cannot be inferred from the file (it can for our checkpoints and for ResNets): "
        "resnet18, 34, 50, 101, 152 or 200, resnet50w2, w4 or w5, vit_t, vit_s or vit_b, or any model name of timm",
        flags=["--backbone", "-a"],
    )
    width: float | None = setting(
        None, "factor on the number of channels of our ResNets; default: the file's, else 1", above=0, at_most=64
    )
    stem: str | None = setting(
        None,
        "first layers of our ResNets, see main_swav.py --help; asked for where the file does not tell",
        choices=STEMS,
    )
    channels: int | None = setting(
        None, "channels of the images; default: the file's, else 3", at_least=1, at_most=4096
    )

    @property
    def hints(self) -> Hints:
        return Hints(self.arch, self.width, self.stem, self.channels)


@dataclass(frozen=True)
class JudgedSettings:
    """What is judged"""

    pretrained: str = setting(
        "", "checkpoint of the backbone; without one it has random weights", flags=["--pretrained_weights"]
    )
    key: str = setting(
        "auto", "entry of the file that holds the weights, such as teacher_backbone; auto (or none) finds it"
    )
    seed: int = setting(31, "seed of random weights and of every draw", at_least=0, at_most=2**32 - 1)
    dump_path: str = setting(
        "",
        "folder of the results; default: evaluations/WEIGHTS-on-DATA",
        flags=["--output_dir", "--checkpoint_dir", "--save_dir"],
    )
    crop_size: int | None = setting(
        None, "side of the evaluated crop in pixels; default: that of the run, else 224", at_least=1, at_most=4096
    )
    resize: int | None = setting(
        None, "images are resized to this short side before the crop; default: that of the run, else 256",
        at_least=1, at_most=8192,
    )  # fmt: skip


@dataclass(frozen=True)
class EvaluationSettings:
    """What every evaluation has."""

    data: EvaluationDataSettings = EvaluationDataSettings()
    backbone: JudgedBackboneSettings = JudgedBackboneSettings()
    judged: JudgedSettings = JudgedSettings()
    device: DeviceSettings = DeviceSettings()

    def adapted(self, given: Mapping[str, Any]) -> tuple["EvaluationSettings", list[str]]:
        """The same with the folder of its results."""
        return replaced(self, {} if self.judged.dump_path else {"dump_path": self.default_folder()}), []

    def default_folder(self) -> str:
        """Where results go that were given no ``--dump_path``: a folder with the names of what is judged."""
        return f"evaluations/{self.judged_name()}-on-{name_of_data(self.data.data_path)}"

    def judged_name(self) -> str:
        """What to call what is judged."""
        pretrained, key = self.judged.pretrained, self.judged.key
        weights = name_of_weights(pretrained) if pretrained else f"random-{self.backbone.arch or 'resnet50'}"
        return weights if key in ("auto", "none") else f"{weights}-{key}"


@dataclass(frozen=True)
class Subject:
    """A backbone on its device, the two splits, and how images are shown to it.

    Attributes:
        view: the deterministic view of test images.
        description: one line that says which weights these are.
    """

    backbone: nn.Module
    train: ImageSource
    test: ImageSource
    view: CentreView
    prepare: ToDevice
    description: str

    @property
    def num_classes(self) -> int:
        return len(self.train.classes)

    @property
    def width(self) -> int:
        return feature_width(self.backbone)


def open_weights(settings: EvaluationSettings) -> Pretrained:
    """The backbone that ``--pretrained`` and ``--arch`` name, or one with random weights."""
    judged, hints = settings.judged, settings.backbone.hints
    if judged.pretrained:
        return load_backbone(judged.pretrained, hints, judged.key)
    spec = BackboneSpec(**{name: value for name, value in vars(hints).items() if value is not None})
    description = f"{spec.arch} with random weights (no --pretrained)"
    return Pretrained(random_backbone(spec, judged.seed), spec, {}, description)


class Shown(NamedTuple):
    """How images are shown to a backbone: the crop, the short side before it, normalising, decoding."""

    size: int
    resize: int
    mean: Sequence[float]
    std: Sequence[float]
    decoding: Decoding


def how_shown(
    settings: EvaluationSettings, weights: Pretrained, std: Sequence[float] = SWAV_STD, whole_image: bool = False
) -> Shown:
    """By the flags where given, else by the run that made the checkpoint, else as ImageNet's, with ``std``."""
    of_run, data, judged = weights.settings, settings.data, settings.judged
    size = judged.crop_size or of_run.get("eval_size", 224)
    resize = (
        judged.resize
        or (size if whole_image else None)
        or (of_run.get("eval_resize") if not judged.crop_size else None)
        or round(size * 256 / 224)
    )
    channels = weights.spec.channels
    mean = data.mean or of_run.get("mean") or usual(channels, IMAGENET_MEAN, 0.5)
    std = data.std or of_run.get("std") or usual(channels, std, 0.25)
    check_channels(mean, std, channels)
    exif, levels = data.exif_orientation, data.value_range or of_run.get("value_range")
    turned = of_run.get("exif_orientation", True) if exif is None else exif
    return Shown(size, resize, mean, std, Decoding(turned, tuple(levels) if levels else None, channels))


def open_subject(
    settings: EvaluationSettings,
    weights: Pretrained,
    device: torch.device,
    std: Sequence[float] = SWAV_STD,
    bicubic: bool | None = None,
    whole_image: bool = False,
) -> Subject:
    """Opens the images and brings the backbone to its device.

    They are shown as :func:`how_shown` says. ``bicubic`` None is as the papers do it with the data set. With
    ``whole_image`` test images are resized to the crop.
    """
    data, judged = settings.data, settings.judged
    shown = how_shown(settings, weights, std, whole_image)
    if collectives.is_main():
        require_writable(judged.dump_path)
    train, test = open_train_and_test(data.dataset, data.data_path, data.how(shown.decoding, judged.dump_path))
    for which, source in (("training", train), ("test", test)):
        if source.left_out and collectives.is_main():
            print(f"warning: left out beside the {which} images: {'; '.join(source.left_out)}", file=sys.stderr)
    backbone = weights.backbone.to(device).to(memory_format=torch.channels_last)
    require_size(backbone, shown.size, weights.spec.channels)
    prepare = ToDevice(device, shown.mean, shown.std)
    return Subject(
        backbone,
        train,
        test,
        CentreView(shown.size, shown.resize, bicubic_evaluation(data.dataset) if bicubic is None else bicubic),
        prepare,
        weights.description,
    )

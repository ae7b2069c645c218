"""What an evaluation judges: a backbone, and labelled images to train on and to test on."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..data.datasets import (
    IMAGENET_MEAN,
    SWAV_STD,
    EvaluationDataSettings,
    ImageSource,
    name_of_data,
    open_train_and_test,
)
from ..data.loading import ToDevice
from ..data.views import CentreView
from ..errors import UserError
from ..models.backbones import STEMS, BackboneSpec, feature_width
from ..models.pretrained import Pretrained, load_backbone, name_of_weights, random_backbone
from ..parallel.launch import DeviceSettings
from ..settings import setting


@dataclass(frozen=True)
class JudgedBackboneSettings:
    """Backbone"""

    arch: str | None = setting(
        None,
        "architecture, where it cannot be inferred from the file (it can for our checkpoints and for ResNets): "
        "resnet18, 34, 50, 101, 152 or 200, resnet50w2, w4 or w5, vit_t, vit_s or vit_b, or any model name of timm",
        flags=["--backbone", "-a"],
    )
    width: float = setting(1.0, "factor on the number of channels of our ResNets", above=0, at_most=64)
    stem: str = setting("imagenet", "first layers of our ResNets, see main_swav.py --help", choices=STEMS)

    @property
    def spec(self) -> BackboneSpec | None:
        return BackboneSpec(self.arch, self.width, self.stem) if self.arch else None


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

    def default_folder(self) -> str:
        """Where results go that were given no ``--dump_path``: a folder with the names of what is judged."""
        pretrained, key = self.judged.pretrained, self.judged.key
        weights = name_of_weights(pretrained) if pretrained else f"random-{self.backbone.arch or 'resnet50'}"
        if key not in ("auto", "none"):
            weights += f"-{key}"
        return f"evaluations/{weights}-on-{name_of_data(self.data.data_path)}"


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
    judged, spec = settings.judged, settings.backbone.spec
    if judged.pretrained:
        return load_backbone(judged.pretrained, spec, judged.key)
    spec = spec or BackboneSpec("resnet50", settings.backbone.width, settings.backbone.stem)
    description = f"{spec.arch} with random weights (no --pretrained)"
    return Pretrained(random_backbone(spec, judged.seed), spec, {}, description)


def open_subject(
    settings: EvaluationSettings,
    weights: Pretrained,
    device: torch.device,
    std: Sequence[float] = SWAV_STD,
    bicubic: bool = False,
    whole_image: bool = False,
) -> Subject:
    """Opens the images and brings the backbone to its device.

    Crop size, mean and standard deviation come from the flags where given, else from the run that made the
    checkpoint, else they are ImageNet's, with ``std``. With ``whole_image`` test images are resized to the crop.
    """
    of_run, data, judged = weights.settings, settings.data, settings.judged
    size = judged.crop_size or of_run.get("eval_size", 224)
    resize = (
        judged.resize
        or (size if whole_image else None)
        or (of_run.get("eval_resize") if not judged.crop_size else None)
        or round(size * 256 / 224)
    )
    mean = data.mean or of_run.get("mean", IMAGENET_MEAN)
    std = data.std or of_run.get("std", std)
    train, test = open_train_and_test(data.dataset, data.data_path, data.download)
    if list(train.classes) != list(test.classes):
        raise UserError(
            f"training and test images have different classes ({len(train.classes)} and {len(test.classes)})"
        )
    backbone = weights.backbone.to(device).to(memory_format=torch.channels_last)
    prepare = ToDevice(device, mean, std)
    return Subject(backbone, train, test, CentreView(size, resize, bicubic), prepare, weights.description)

"""What an evaluation judges: a backbone, and labelled images to train on and to test on."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from .. import cli
from ..data.datasets import ImageSource, open_train_and_test
from ..data.loading import ToDevice
from ..data.views import CentreView
from ..errors import UserError
from ..models.backbones import feature_width
from ..models.pretrained import BackboneSpec, Pretrained, load_backbone, random_backbone


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


def open_weights(args: argparse.Namespace) -> Pretrained:
    """The backbone that ``--pretrained`` and ``--arch`` name, or one with random weights."""
    spec = BackboneSpec(args.arch, args.width, args.stem) if args.arch else None
    if args.pretrained:
        return load_backbone(args.pretrained, spec, args.key)
    spec = spec or BackboneSpec("resnet50", args.width, args.stem)
    description = f"{spec.arch} with random weights (no --pretrained)"
    return Pretrained(random_backbone(spec, args.seed), spec, {}, description)


def open_subject(
    args: argparse.Namespace,
    weights: Pretrained,
    device: torch.device,
    std: Sequence[float] = cli.SWAV_STD,
    bicubic: bool = False,
    whole_image: bool = False,
) -> Subject:
    """Reads the rest of the flags of :func:`src.cli.add_evaluation_arguments`.

    Crop size, mean and standard deviation come from the flags where given, else from the run that made the
    checkpoint, else they are ImageNet's, with ``std``. With ``whole_image`` test images are resized to the crop.
    """
    settings = weights.settings
    size = args.crop_size or settings.get("eval_size", 224)
    resize = (
        args.resize
        or (size if whole_image else None)
        or (settings.get("eval_resize") if not args.crop_size else None)
        or round(size * 256 / 224)
    )
    mean = args.mean or settings.get("mean", cli.IMAGENET_MEAN)
    std = args.std or settings.get("std", std)
    train, test = open_train_and_test(args.dataset, args.data_path, args.download)
    if list(train.classes) != list(test.classes):
        raise UserError(
            f"training and test images have different classes ({len(train.classes)} and {len(test.classes)})"
        )
    backbone = weights.backbone.to(device).to(memory_format=torch.channels_last)
    prepare = ToDevice(device, mean, std)
    return Subject(backbone, train, test, CentreView(size, resize, bicubic), prepare, weights.description)

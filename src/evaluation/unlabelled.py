"""What a look without labels is made of: a backbone, and any images."""

import sys
from dataclasses import dataclass

import torch
from torch import nn

from ..checkpoints.files import require_writable
from ..data.datasets import EvaluationDataSettings, open_images
from ..data.small_sets import bicubic_evaluation
from ..data.source import ImageSource
from ..data.splits import find_training, require_apart
from ..data.to_device import ToDevice
from ..data.views import CentreView
from ..errors import UserError
from ..models.backbones import BackboneSpec, require_size
from ..models.pretrained import Pretrained
from ..parallel import collectives, launch
from ..settings import setting
from .subject import EvaluationSettings, how_shown


@dataclass(frozen=True)
class LookedDataSettings(EvaluationDataSettings):
    """Data"""

    data_path: str = setting(
        "",
        "any folder of images, with or without class folders, or the folder that holds them as train; a list, array, "
        "file or shards; or the root of a torchvision set",
        required=True,
    )


@dataclass(frozen=True)
class Looked:
    """A backbone on its device, the images, and how they are shown to it.

    Attributes:
        spec: how the backbone is built.
        path: where the images are.
        view: the deterministic view of them.
        description: one line that says which weights these are.
    """

    backbone: nn.Module
    spec: BackboneSpec
    images: ImageSource
    path: str
    view: CentreView
    prepare: ToDevice
    description: str


def open_looked(settings: EvaluationSettings, weights: Pretrained, world: launch.World) -> Looked:
    """Opens the images, labelled or not, of the path itself or of its ``train``; brings the backbone to its device.

    Raises UserError where there are no images.
    """
    data, judged = settings.data, settings.judged
    how = how_shown(settings, weights)
    path = find_training(data.dataset, data.data_path)
    images = open_images(data.dataset, path, "train", data.how(how.decoding, judged.dump_path))
    if not len(images):
        raise UserError(f"there are no images at {path}")
    if images.left_out and collectives.is_main():
        print(f"warning: left out: {'; '.join(images.left_out)}", file=sys.stderr)
    require_apart(judged.dump_path, path)
    if world.is_main:
        require_writable(judged.dump_path)
    backbone = weights.backbone.to(world.device).to(memory_format=torch.channels_last)
    require_size(backbone, how.size, weights.spec.channels)
    return Looked(
        backbone,
        weights.spec,
        images,
        str(path),
        CentreView(how.size, how.resize, bicubic_evaluation(data.dataset)),
        ToDevice(world.device, how.mean, how.std),
        weights.description,
    )

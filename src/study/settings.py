"""What a study can be told."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..data.datasets import EvaluationDataSettings
from ..data.splits import name_of_data
from ..data.views import CentreView
from ..errors import UserError
from ..models.backbones import STEMS, BackboneSpec, is_ours
from ..parallel.launch import DeviceSettings
from ..settings import replaced, setting
from .recipes import RECIPES


@dataclass(frozen=True)
class StudyDataSettings(EvaluationDataSettings):
    """Data"""

    data_path: str = setting(
        "",
        "your images: a folder that holds train and val (or test), or only images, with or without class folders; a "
        "list, array, file or shards",
        required=True,
    )
    labels: bool = setting(
        True, "judge by the classes of the images where there are any; false: by scores that need none"
    )
    mean: tuple[float, ...] | None = setting(
        None, "means of the channels; default: ImageNet's, or 0.5 where --channels is not 3", at_least=-10, at_most=10
    )
    std: tuple[float, ...] | None = setting(
        None, "standard deviations of the channels; default: ImageNet's, or 0.25 where --channels is not 3",
        above=0, at_most=10,
    )  # fmt: skip
    exif_orientation: bool | None = setting(None, "turn images as their EXIF entry says; default: true")
    value_range: tuple[float, float] | None = setting(
        None,
        "black and white of images with more than 8 bits; default: 0 65535 for whole numbers, 0 1 for others",
        at_least=-1e12,
        at_most=1e12,
    )
    workers: int = setting(
        1, "loader processes of each run; default: its part of the cores, less one, from 1 to 10",
        flags=["--num_workers", "-j"], at_least=0, at_most=1024,
    )  # fmt: skip


@dataclass(frozen=True)
class Network:
    """Network of every method"""

    arch: str = setting("resnet18", "as --arch of the training scripts", flags=["--backbone", "-a"])
    width: float = setting(1.0, "factor on the number of channels of our ResNets", above=0, at_most=64)
    stem: str = setting("imagenet", "first layers of our ResNets; default: small up to --size 64", choices=STEMS)
    channels: int = setting(3, "channels of the images", at_least=1, at_most=4096)

    @property
    def spec(self) -> BackboneSpec:
        return BackboneSpec(self.arch, self.width, self.stem, self.channels)


@dataclass(frozen=True)
class Views:
    """Views of every method"""

    size: int = setting(64, "side of the crops in pixels, at which networks are judged, too", at_least=8, at_most=2048)
    area: tuple[float, float] = setting((0.2, 1.0), "smallest and largest share of the image area", above=0, at_most=1)
    jitter: float = setting(
        1.0, "strength of the colour jitter; 0.5 where colours tell images apart", at_least=0, at_most=1.25
    )
    grayscale: float = setting(0.2, "probability of grayscale", at_least=0, at_most=1)
    blur: float = setting(0.0, "probability of a blur; default: 0.5 above --size 64, else 0", at_least=0, at_most=1)
    clusters: int = setting(
        0,
        "number of clusters or prototypes; 0: one for 42 images, 10 to 3000 (SwAV, SeLa-v2, TWIST: at most the batch)",
        at_least=0,
        at_most=1e6,
    )

    @property
    def shown(self) -> CentreView:
        """How images are judged: the middle, at the size of the crops."""
        return CentreView(self.size, round(self.size * 8 / 7))


@dataclass(frozen=True)
class StudySettings:
    """Study"""

    methods: tuple[str, ...] = setting((), f"methods to train; default: all ({', '.join(RECIPES)})", empty=True)
    seeds: int = setting(3, "runs of each method; with fewer than 3 no difference is tested", at_least=1, at_most=1000)
    first_seed: int = setting(1, "seed of the first; the others count up", at_least=0, at_most=2**31)
    epochs: int = setting(100, "epochs of each run", at_least=1, at_most=1e6)
    minutes: float = setting(
        0.0,
        "instead of --epochs: minutes of training steps for each run, made epochs by a short run of each method",
        at_least=0,
        at_most=1e6,
    )
    rates: tuple[float, ...] = setting(
        (1.0,),
        "factors on the learning rates; of several, each method is tried with each, in one more run, and keeps the "
        "best (by kNN among the training images, or by the score that is most trusted without labels)",
        above=0,
        at_most=1e4,
    )
    batch_size: int = setting(128, "images of a step, of every method; a multiple of 4", at_least=8, at_most=1e6)
    judged_images: int = setting(
        50_000, "training images that kNN and linear classifiers learn from, evenly spread", at_least=10, at_most=1e9
    )
    scored_images: int = setting(1000, "images for the scores without labels", at_least=50, at_most=1e6)
    dump_path: str = setting("", "folder of the study; default: studies/DATA")
    at_once: int = setting(
        1, "runs at a time, each on the next GPU; default: as many as there are GPUs", at_least=1, at_most=1024
    )
    retry: bool = setting(False, "try failed runs once more", switch=True)
    dry_run: bool = setting(False, "only say which runs there are, with their command lines", switch=True)
    helper: bool = setting(
        False,
        "share the runs and leave when none is left to begin, without a page, as --at_once starts it",
        switch=True,
    )


@dataclass(frozen=True)
class Settings:
    """What study.py has."""

    data: StudyDataSettings = StudyDataSettings()
    study: StudySettings = StudySettings()
    network: Network = Network()
    views: Views = Views()
    device: DeviceSettings = DeviceSettings()

    def adapted(self, given: Mapping[str, Any]) -> tuple["Settings", list[str]]:
        """The same with the folder of the study, and what the machine and the size of the images decide."""
        if "epochs" in given and self.study.minutes:
            raise UserError("--epochs and --minutes: a run has one length; give one of them")
        if self.views.area[0] > self.views.area[1]:
            raise UserError("--area: the smallest share is above the largest")
        if self.views.clusters == 1:
            raise UserError("--clusters 1: expected 2 or more, or 0 for one for 42 images")
        changes: dict[str, Any] = {}
        gpus = torch.cuda.device_count() if self.device.device in ("auto", "cuda") else 0
        at_once = changes["at_once"] = self.study.at_once if "at_once" in given else max(1, gpus)
        if "workers" not in given:
            changes["workers"] = max(1, min(10, torch.get_num_threads() // at_once - 1))
        if not self.study.dump_path:
            changes["dump_path"] = f"studies/{name_of_data(self.data.data_path)}"
        small = self.views.size <= 64
        if "stem" not in given:
            changes["stem"] = "small" if small and is_ours(self.network.arch) else "imagenet"
        if "blur" not in given:
            changes["blur"] = 0.0 if small else 0.5
        return replaced(self, changes), []

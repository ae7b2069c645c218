"""Where images come from: all sources give an image and a label by index.

Of a set of one's own (a folder, an LMDB file, shards) a path is one split; a named set knows its splits itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from .arrays import ArrayImages
from .decoding import Decoding, check_range
from .folder import FolderImages
from .hugging_face import HuggingFaceImages
from .index_cache import LARGE, IndexCache
from .lists import ListImages, is_list
from .lmdb_file import LMDBImages
from .order import MANY
from .own_class import EXPECTED, OwnImages
from .named import TORCHVISION_SETS, TorchvisionImages
from .shards import ShardImages
from .source import ImageSource, as_classes_of, labelled, require_labels
from .splits import OWN_KINDS, find_classifier_images, find_split, is_own, refuse_splits
from .tiny_imagenet import TinyImageNetImages
from ..errors import UserError
from ..settings import Word, setting


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SWAV_STD = (0.228, 0.224, 0.225)  # the red channel with which SwAV was published


@dataclass(frozen=True)
class How:
    """How images are opened.

    Attributes:
        decoding: how they become levels.
        extensions: further endings of image files in folders.
        download: fetch a named set that is missing.
        cache: where lists of large sources are kept.
        path_column, label_column: of tables; "" looks for the usual names.
        run_pipes: whether the commands of shards with ``pipe:`` are run.
        shard_cache_gb: of shards on servers; see :class:`ShardImages`.
    """

    decoding: Decoding = Decoding()
    extensions: tuple[str, ...] = ()
    download: bool = False
    cache: IndexCache = IndexCache()
    path_column: str = ""
    label_column: str = ""
    run_pipes: bool = False
    shard_cache_gb: float | None = None


def _open_folder(path: str, how: How) -> ImageSource:
    return FolderImages(path, how.extensions, how.cache)


OWN_SETS: dict[str, Callable[[str, How], ImageSource]] = {
    "folder": _open_folder,
    "list": lambda path, how: ListImages(path, how.path_column, how.label_column, how.cache),
    "lmdb": lambda path, how: LMDBImages(path),
    "array": lambda path, how: ArrayImages(path, how.path_column, how.label_column),
    "hf": lambda path, how: HuggingFaceImages(path, how.path_column, how.label_column),
    "webdataset": lambda path, how: ShardImages(
        path, index_cache=how.cache, run_pipes=how.run_pipes, cache_gb=how.shard_cache_gb
    ),
    "in100": _open_folder,  # ImageNet-100, for which CW-RGP has settings of its own
}
WITH_COLUMNS = ("list", "array", "hf")
assert set(OWN_SETS) == set(OWN_KINDS)
DATASETS = (*OWN_SETS, *TORCHVISION_SETS, "tiny_in")


def _use_lmdb(words: list[str]) -> dict[str, str]:
    """A switch in TWIST's training, 0 or 1 in its evaluations."""
    return {"dataset": "lmdb"} if not words or words[0].lower() in ("1", "true", "on") else {}


@dataclass(frozen=True)
class SourceSettings:
    """Data"""

    data_path: str = setting(
        "",
        "folder that holds train and val (or test); for pre-training also the training images themselves; or the root "
        "of a torchvision set",
        required=True,
    )
    dataset: str = setting(
        "folder",
        "kind of data: a folder of images (class sub-folders are optional where no label is needed), a list (.txt, "
        ".csv, .tsv, .parquet; known by its ending too), a file made by scripts/make_lmdb.py, WebDataset shards (a "
        "folder of .tar files, a pattern, or URLs), an array (.npy, .h5, .zarr), a folder that Hugging Face's "
        "save_to_disk has written (hf), a torchvision set, or a class of your own (docs/large_data.md)",
        choices=DATASETS,
        like=EXPECTED,
        spellings={"imagenet": "folder"},
        words=[Word("--use_lmdb", "the same as --dataset lmdb", _use_lmdb, nargs="?")],
    )
    download: bool = setting(False, "download a torchvision set that is not there yet", switch=True)
    extensions: tuple[str, ...] = setting(
        (), "further endings of image files in folders, such as .gif, .jp2 or .npy", empty=True
    )
    path_column: str = setting(
        "", "column of a list, or array of a file, that holds the paths or images; default: path, file, image, url, ..."
    )
    label_column: str = setting(
        "", "column or array that holds the labels; default: label, class, target, ..., or none"
    )
    run_pipes: bool = setting(
        False, "run the commands of shards that are named pipe:COMMAND; without it they are refused", switch=True
    )
    shard_cache_gb: float | None = setting(
        None,
        "read shards on servers image by image, and keep copies of so many GB of them; 0 keeps none; default: copy all "
        "shards whole before the start",
        at_least=0, at_most=1e9,
    )  # fmt: skip
    index_cache: str = setting(
        "",
        "folder where the list of the images is kept and found again, so that only the first start has to look through "
        f"them; default: index in --dump_path, for {LARGE:,} images or more",
    )
    workers: int = setting(
        10, "loader processes of each rank; 0 loads in the training process", flags=["--num_workers", "-j"],
        at_least=0, at_most=1024,
    )  # fmt: skip

    def how(self, decoding: Decoding, dump_path: str | Path) -> How:
        """How a run or an evaluation with this folder opens its images."""
        given = self.index_cache
        cache = IndexCache(given, at_least=0) if given else IndexCache(str(Path(dump_path) / "index"))
        columns = self.path_column, self.label_column
        return How(decoding, self.extensions, self.download, cache, *columns, self.run_pipes, self.shard_cache_gb)


@dataclass(frozen=True)
class TrainingDataSettings(SourceSettings):
    """Data"""

    data_path: str = setting(
        "",
        "the training images, or (not for main_swav.py) the folder that holds train and val; a list; or the root of a "
        "torchvision set. Several are trained on together",
        required=True,
        more="more_data",
    )
    more_data: tuple[str, ...] = setting(
        (), "further training images, the same as further words after --data_path", empty=True
    )
    weights: tuple[float, ...] = setting(
        (), "how often images of each --data_path are drawn, in proportion; default: each image equally often",
        above=0, at_most=1e9, empty=True,
    )  # fmt: skip
    balanced: bool = setting(False, "draw all classes equally often; an epoch keeps its length", switch=True)
    mean: tuple[float, ...] = setting(
        IMAGENET_MEAN, "means of the channels, to normalise images; default: 0.5 where --channels is not 3",
        at_least=-10, at_most=10,
    )  # fmt: skip
    std: tuple[float, ...] = setting(
        IMAGENET_STD, "standard deviations of the channels; default: 0.25 where --channels is not 3", above=0, at_most=10
    )
    exif_orientation: bool = setting(
        True, "turn images as their EXIF entry says; false: take them as they are stored, like the published programs"
    )
    value_range: tuple[float, float] | None = setting(
        None,
        "black and white of images with more than 8 bits; default: 0 65535 for whole numbers, 0 1 for others",
        at_least=-1e12,
        at_most=1e12,
    )
    size_dataset: int = setting(-1, "use only the first images, this many; -1 = all", at_least=-1, at_most=1e12)
    shuffle: str = setting(
        "auto",
        "the order of an epoch: torch, that of the published programs, takes 8 bytes an image in each process; keyed "
        f"needs no memory; auto: torch up to {MANY:,} images; shards: some shards at a time, in random order, so that "
        "those on servers are fetched whole",
        choices=["auto", "torch", "keyed", "shards"],
    )
    shuffle_window: int = setting(
        16, "how many shards --shuffle shards mixes; twice as many are kept at hand", at_least=1, at_most=1e6
    )
    cache_images: str = setting(
        "none",
        "ram: keep the decoded images in memory, which all processes of a machine share, for data that fits; the results "
        "are the same",
        choices=["none", "ram"],
    )
    augment_on: str = setting(
        "auto",
        "where colours are changed: image by image in the loader's workers, or a batch at a time on the device (the "
        "same draws, the same pictures); auto: on the device if it is a GPU",
        choices=["auto", "worker", "device"],
    )

    def order(self, images: int) -> str:
        """What ``--shuffle`` comes to for so many images."""
        if self.weights or self.balanced:
            return "keyed"
        if self.shuffle == "auto":
            return "torch" if images <= MANY else "keyed"
        return f"shards {self.shuffle_window}" if self.shuffle == "shards" else self.shuffle

    def colours_on(self, device: torch.device) -> bool:
        """Whether colours are changed on this device, and not in the workers."""
        return self.augment_on == "device" or (self.augment_on == "auto" and device.type != "cpu")


@dataclass(frozen=True)
class EvaluationDataSettings(SourceSettings):
    """Data"""

    mean: tuple[float, ...] | None = setting(
        None, "means of the channels; default: those of the run that made the checkpoint", at_least=-10, at_most=10
    )
    std: tuple[float, ...] | None = setting(
        None, "standard deviations of the channels; default: likewise", above=0, at_most=10
    )
    exif_orientation: bool | None = setting(
        None, "turn images as their EXIF entry says; default: as the run that made the checkpoint did, else true"
    )
    value_range: tuple[float, float] | None = setting(
        None,
        "black and white of images with more than 8 bits; default: those of the run, else 0 65535 for whole numbers, "
        "0 1 for others",
        at_least=-1e12,
        at_most=1e12,
    )


def usual(channels: int, of_rgb: Sequence[float], otherwise: float) -> tuple[float, ...]:
    """Means or standard deviations: those of RGB, or the same number for each channel."""
    return tuple(of_rgb) if channels == 3 else (otherwise,) * channels


def check_channels(mean: Sequence[float], std: Sequence[float], channels: int) -> None:
    """Raises UserError where there is not one mean and standard deviation for each channel."""
    for flag, values in (("--mean", mean), ("--std", std)):
        if len(values) != channels:
            raise UserError(f"{flag} {' '.join(f'{v:g}' for v in values)}: expected one for each of {channels} channels")


def open_images(dataset: str, path: str | Path, split: str = "pretrain", how: How = How()) -> ImageSource:
    """The images of one split.

    Args:
        dataset: one of DATASETS.
        path: the folder, file or shards of the images themselves, or the root of the named set.
        split: ``pretrain``, ``train`` or ``test``; the path to a set of one's own is a split already.
        how: the options. With several processes, all must call.
    """
    source: ImageSource
    if dataset == "folder" and is_list(path):
        dataset = "list"
    column = how.path_column or how.label_column
    if column and dataset not in WITH_COLUMNS:
        flag = "path_column" if how.path_column else "label_column"
        raise UserError(f"--{flag} {column} belongs to lists (.txt, .csv, .tsv, .parquet), array and hf: {path} is none")
    if how.shard_cache_gb is not None and dataset != "webdataset":
        raise UserError(f"--shard_cache_gb belongs to --dataset webdataset, and this is {dataset}")
    if dataset in OWN_SETS:
        source = OWN_SETS[dataset](str(path), how)
        refuse_splits(source, path)
    elif dataset == "tiny_in":
        source = TinyImageNetImages(path, split)
    elif ":" in dataset:
        source = OwnImages(dataset, str(path))
    elif dataset not in TORCHVISION_SETS:
        raise UserError(f"unknown --dataset {dataset!r}: expected {', '.join(DATASETS)}")
    else:
        source = TorchvisionImages(dataset, path, split, how.download)
    source.decoding = how.decoding
    check_range(source.decoding.value_range)
    return source


def open_train_and_test(
    dataset: str, root: str | Path, how: How = How()
) -> tuple[ImageSource, ImageSource]:
    """The two labelled splits that evaluations need, below the root that holds both."""
    if is_own(dataset):
        paths = find_classifier_images(dataset, root), find_split(dataset, root, "test")
        train, test = (open_labelled(dataset, path, how) for path in paths)
    else:
        train, test = (labelled(open_images(dataset, root, split, how)) for split in ("train", "test"))
    return train, as_classes_of(train, test)


def open_labelled(dataset: str, path: str | Path, how: How = How()) -> ImageSource:
    """The labelled images of a split of a set of one's own; raises UserError where there are none."""
    source = open_images(dataset, path, how=how)
    require_labels(source, path)
    return labelled(source)

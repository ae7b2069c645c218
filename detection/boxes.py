"""COCO's and VOC's images with their boxes, in the published layouts, read without further packages."""

import hashlib
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from detection.average_precision import Truth
from src.errors import UserError

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as TF

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


class Boxes(Dataset[tuple[Tensor, dict[str, Tensor], int]]):
    """Images as (3, h, w) in 0..1, targets as torchvision's detectors take them, and their numbers.

    Addressed by number, or by number and whether to mirror the image.

    Args:
        files, truths: of each image; labels from 1 on, as 0 is the background.
        classes: how many.
    """

    def __init__(self, files: list[Path], truths: list[Truth], classes: int) -> None:
        self.files, self.truths, self.classes = files, truths, classes

    def __len__(self) -> int:
        return len(self.files)

    def fingerprint(self) -> dict[str, Any]:
        """Number of images, and a digest of their names and boxes."""
        digest = hashlib.sha256()
        for file, truth in zip(self.files, self.truths, strict=True):
            digest.update(file.name.encode(errors="surrogateescape"))
            digest.update(truth.boxes.tobytes() + truth.labels.tobytes())
        return {"images": len(self), "classes": self.classes, "list": digest.hexdigest()[:16]}

    def __getitem__(self, place: int | tuple[int, bool]) -> tuple[Tensor, dict[str, Tensor], int]:
        index, mirrored = place if isinstance(place, tuple) else (place, False)
        with Image.open(self.files[index]) as opened:
            image = TF.to_dtype(TF.pil_to_tensor(opened.convert("RGB")), torch.float32, scale=True)
        truth = self.truths[index]
        boxes = torch.as_tensor(truth.boxes[~truth.ignored], dtype=torch.float32).reshape(-1, 4)
        if mirrored:
            width = image.shape[2]
            image = image.flip(2)
            boxes = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], dim=1)
        labels = torch.as_tensor(truth.labels[~truth.ignored], dtype=torch.int64)
        return image, {"boxes": boxes, "labels": labels}, index


def open_coco(root: Path, split: str, training: bool) -> Boxes:
    """``root/coco/{train2017,val2017}`` with ``annotations/instances_*.json``."""
    path = root / "coco" / "annotations" / f"instances_{split}.json"
    try:
        content = json.loads(path.read_text())
        numbers = {category["id"]: i + 1 for i, category in enumerate(content["categories"])}
        of_image: dict[Any, list[Any]] = {image["id"]: [] for image in content["images"]}
        for item in content["annotations"]:
            of_image[item["image_id"]].append(item)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; --data_path is the folder that holds coco") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no list of COCO's instances ({type(error).__name__}: {error})") from None
    files, truths = [], []
    for image in content["images"]:
        truth = _truth(
            [
                ([x, y, x + w, y + h], numbers[item["category_id"]], bool(item.get("iscrowd")))
                for item in of_image[image["id"]]
                for x, y, w, h in [item["bbox"]]
                if w > 0 and h > 0
            ]
        )
        if not training or (~truth.ignored).any():
            files.append(root / "coco" / split / image["file_name"])
            truths.append(truth)
    return _checked(Boxes(files, truths, len(numbers)), path)


def open_voc(root: Path, splits: list[tuple[str, str]], training: bool) -> Boxes:
    """``root/VOC{year}`` for pairs of year and split, such as ("2007", "trainval")."""
    files, truths = [], []
    for year, split in splits:
        folder = root / f"VOC{year}"
        listing = folder / "ImageSets" / "Main" / f"{split}.txt"
        try:
            for name in listing.read_text().split():
                items = ElementTree.parse(folder / "Annotations" / f"{name}.xml").findall("object")
                truths.append(_truth([_voc_object(item) for item in items]))
                files.append(folder / "JPEGImages" / f"{name}.jpg")
        except OSError as error:
            raise UserError(
                f"{error.filename}: {error.strerror}; --data_path is the folder that holds VOC2007"
            ) from None
        except (ElementTree.ParseError, ValueError, AttributeError) as error:
            raise UserError(f"{listing} lists an annotation that is not VOC's ({error})") from None
    return _checked(Boxes(files, truths, len(VOC_CLASSES)), root)


def _voc_object(item: ElementTree.Element) -> tuple[list[float], int, bool]:
    """Box, class and whether it is difficult; VOC's pixels start at 1."""
    bounds = item.find("bndbox")
    assert bounds is not None
    box = [float(bounds.findtext(tag, "nan")) for tag in ("xmin", "ymin", "xmax", "ymax")]
    return (
        [box[0] - 1, box[1] - 1, box[2], box[3]],
        VOC_CLASSES.index(item.findtext("name", "")) + 1,
        (item.findtext("difficult") == "1"),
    )


def _truth(objects: list[tuple[list[float], int, bool]]) -> Truth:
    return Truth(
        np.array([box for box, _, _ in objects], dtype=np.float64).reshape(-1, 4),
        np.array([label for _, label, _ in objects], dtype=np.int64),
        np.array([ignored for _, _, ignored in objects], dtype=bool),
    )


def _checked(data: Boxes, where: Path) -> Boxes:
    if not len(data):
        raise UserError(f"{where} has no image with boxes")
    if not data.files[0].exists():
        raise UserError(f"{data.files[0]} does not exist, though {where} lists it")
    return data

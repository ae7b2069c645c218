"""Small COCO and VOC data sets in their published layouts: coloured boxes on photographs."""

import json
from pathlib import Path
from xml.etree import ElementTree

from tests.helpers import ROOT

import numpy as np
from PIL import Image, ImageDraw
from torchvision.models._meta import _COCO_CATEGORIES

VOC_NAMES = ("cat", "dog")
COLOURS = ((255, 40, 40), (40, 40, 255))


def pictures(count: int, seed: int) -> list[tuple[Image.Image, list[tuple[int, tuple[int, int, int, int]]]]]:
    """Images of 160 x 120 pixels with one or two boxes each: (class, (left, top, right, bottom))."""
    rng = np.random.default_rng(seed)
    photographs = sorted((ROOT / "data" / "photographs").glob("*.jpg"))
    found = []
    for i in range(count):
        image = Image.open(photographs[i % len(photographs)]).convert("L").convert("RGB").resize((160, 120))
        draw, boxes = ImageDraw.Draw(image), []
        for label in range(int(rng.integers(1, 3))):
            left, top = int(rng.integers(5, 80)), int(rng.integers(5, 50))
            box = (left, top, left + int(rng.integers(25, 70)), top + int(rng.integers(25, 60)))
            draw.rectangle(box, fill=COLOURS[label])
            boxes.append((label, box))
        found.append((image, boxes))
    return found


def make_coco(root: Path, train: int = 8, val: int = 4) -> None:
    """``root/coco`` as detectron2 and others expect COCO 2017; categories 17 (cat) and 18 (dog)."""
    for number, (split, count) in enumerate((("train2017", train), ("val2017", val))):
        images, annotations = [], []
        (root / "coco" / split).mkdir(parents=True)
        for i, (image, boxes) in enumerate(pictures(count, number)):
            image.save(root / "coco" / split / f"{i:012d}.jpg")
            images.append({"id": i, "file_name": f"{i:012d}.jpg", "width": 160, "height": 120})
            for label, (left, top, right, bottom) in boxes:
                annotations.append({
                    "id": len(annotations) + 1, "image_id": i, "category_id": 17 + label, "iscrowd": 0,
                    "bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top),
                    "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
                })  # fmt: skip
        (root / "coco" / "annotations").mkdir(exist_ok=True)
        names = categories()
        content = {"images": images, "annotations": annotations, "categories": names}
        (root / "coco" / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def categories() -> list[dict[str, object]]:
    """COCO's 80 categories under their numbers, of which there are 90."""
    return [{"id": i, "name": name} for i, name in enumerate(_COCO_CATEGORIES) if name not in ("__background__", "N/A")]


def make_voc(root: Path, train: int = 8, test: int = 4) -> None:
    """``root/VOC2007`` and ``root/VOC2012``."""
    for number, (year, splits) in enumerate(
        (("2007", {"trainval": train, "test": test}), ("2012", {"trainval": train}))
    ):
        folder = root / f"VOC{year}"
        for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (folder / name).mkdir(parents=True)
        for split, count in splits.items():
            ids = []
            for i, (image, boxes) in enumerate(pictures(count, 10 + number + 2 * (split == "test"))):
                name = f"{split}_{i:04d}"
                ids.append(name)
                image.save(folder / "JPEGImages" / f"{name}.jpg")
                annotation = ElementTree.Element("annotation")
                size = ElementTree.SubElement(annotation, "size")
                for tag, value in (("width", 160), ("height", 120), ("depth", 3)):
                    ElementTree.SubElement(size, tag).text = str(value)
                for label, box in boxes:
                    item = ElementTree.SubElement(annotation, "object")
                    for tag, value in (("name", VOC_NAMES[label]), ("pose", "x"), ("truncated", 0), ("difficult", 0)):
                        ElementTree.SubElement(item, tag).text = str(value)
                    bounds = ElementTree.SubElement(item, "bndbox")
                    for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True):
                        ElementTree.SubElement(bounds, tag).text = str(value)
                ElementTree.ElementTree(annotation).write(folder / "Annotations" / f"{name}.xml")
            (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(ids) + "\n")

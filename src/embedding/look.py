"""What a person sees of an embedding: pictures, and the page that ties them together.

Shape suffixes: C = images that are compared, P = images on the page, F = features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..data.labels import UNLABELLED
from ..data.loading import loader_of
from ..data.source import ImageSource, Subset
from ..engine.diagnostics import rankme
from ..errors import UserError
from ..evaluation.unlabelled import Looked
from ..parallel import collectives
from ..plots import PLANES, in_plane, shown
from ..settings import setting
from .chunks import PAGE
from .files import Embedding, as_utf8
from .inside import as_colours, as_heat, attention_of_heads, last_map
from .neighbours import NEIGHBOURS, Clusters, cluster, most_unusual, near_duplicates, nearest, unit_rows
from .page import data_uri, write_page
from .sheets import THUMBNAIL, Row, scatter, sheet, thumbnail

QUERIES, UNUSUAL, PER_CLUSTER, GROUPS, PER_GROUP, HEADS = 8, 24, 16, 24, 8, 12
_PLANES = {"tsne": "t-SNE", "umap": "UMAP", "pca": "PCA"}
LEAST = 5  # images: fewer have no neighbours to speak of


@dataclass(frozen=True)
class PageSettings:
    """Page"""

    page: bool = setting(True, "draw the pictures and index.html; false: features only")
    projection: str = setting("tsne", "how the map is made; umap needs umap-learn", choices=tuple(PLANES))
    clusters: int = setting(12, "number of k-means clusters that are shown", at_least=2, at_most=1000)
    queries: tuple[str, ...] = setting(
        (), "images whose neighbours are shown first, by their path in the folder; default: one of each large cluster",
        empty=True,
    )  # fmt: skip
    page_images: int = setting(
        1500,
        "images on the map, evenly spread over the folder, beside those that the rows show",
        at_least=5,
        at_most=20000,
    )
    compared_images: int = setting(
        20000,
        "images among which neighbours, clusters, near-duplicates and unusual ones are looked for, evenly spread",
        at_least=5,
        at_most=1e6,
    )


@dataclass(frozen=True)
class Found:
    """What was computed of the compared images; numbers are among these."""

    rows: np.ndarray
    features: np.ndarray
    similarities: np.ndarray
    neighbours: np.ndarray
    clusters: Clusters
    duplicates: list[list[int]]
    unusual: list[int]
    queries: list[int]

    @cached_property
    def on_rows(self) -> list[int]:
        """Whatever stands in a row of pictures."""
        found = [*self.queries, *self.unusual]
        found += [int(number) for query in self.queries for number in self.neighbours[query]]
        found += [int(number) for order in self.clusters.order for number in order[:PER_CLUSTER]]
        found += [number for group in self.duplicates[:GROUPS] for number in group[:PER_GROUP]]
        return list(dict.fromkeys(found))


def find(embedding: Embedding, images: ImageSource, wanted: PageSettings, seed: int, device: torch.device) -> Found:
    """Compares; raises UserError for too few images, features that are not finite, and queries that are not there."""
    rows = np.arange(len(embedding))
    if len(rows) < LEAST:
        raise UserError(f"a page needs {LEAST} images, and there are {len(rows)}: --page false goes without one")
    if len(rows) > wanted.compared_images:
        rows = np.arange(wanted.compared_images) * len(rows) // wanted.compared_images
    asked = [_row_of(name, embedding, images) for name in wanted.queries]
    rows = np.union1d(rows, np.array(asked, dtype=np.int64)) if asked else rows
    features = np.asarray(embedding.features[rows], dtype=np.float32)
    if not np.isfinite(features).all():
        raise UserError("the network gives features that are not finite")
    similarities, neighbours = nearest(torch.from_numpy(features).to(device), NEIGHBOURS)
    clusters = cluster(features, wanted.clusters, seed)
    told = neighbours.cpu().numpy()
    return Found(
        rows,
        features,
        similarities.cpu().numpy(),
        told,
        clusters,
        near_duplicates(told, np.asarray(embedding.pixels[rows])),
        most_unusual(similarities, UNUSUAL).tolist(),
        [int(np.searchsorted(rows, row)) for row in asked] or [int(order[0]) for order in clusters.order[:QUERIES]],
    )


def require_page(images: ImageSource, queries: Sequence[str]) -> None:
    """Raises UserError where there are too few images for a page, or a query is not among them."""
    if len(images) < LEAST:
        raise UserError(f"a page needs {LEAST} images, and there are {len(images)}: --page false goes without one")
    missing = set(queries)
    for index in range(len(images) if missing else 0):
        missing -= {images.relative_name(index), images.name(index)}
    if missing:
        raise UserError(f"--queries {min(missing)}: there is no image of this name")


def _row_of(name: str, embedding: Embedding, images: ImageSource) -> int:
    """The row of the image of this name, with or without what lies above the folder."""
    for row, index in enumerate(embedding.rows):
        if name in (images.relative_name(int(index)), images.name(int(index))):
            return row
    raise UserError(f"--queries {name}: this image cannot be read")


@dataclass(frozen=True)
class Pictures:
    """Thumbnails (P, s, s, 3) uint8 of the page's images, and the queries' crops (q, C, h, w) uint8."""

    thumbnails: np.ndarray
    crops: torch.Tensor


def read_pictures(
    looked: Looked, indices: np.ndarray, queries: Sequence[int], batch_size: int, workers: int
) -> Pictures:
    """Reads images of the list once more, in this process alone; grey ones stand for those that no longer can be.

    Args:
        indices: (P,) in the list.
        queries: which of these are kept as they are shown to the network.
    """
    thumbnails = np.full((len(indices), THUMBNAIL, THUMBNAIL, 3), 128, dtype=np.uint8)
    crops: dict[int, torch.Tensor] = {}
    with collectives.alone():
        for batch in loader_of(Subset(looked.images, indices), looked.view, batch_size, workers, torch.device("cpu")):
            for crop, number in zip(batch.crops[0] if len(batch) else [], batch.indices.tolist(), strict=True):
                thumbnails[number] = thumbnail(shown(crop))
                if number in queries:
                    crops[number] = crop
    kept = [crops[number] for number in queries if number in crops]
    return Pictures(thumbnails, torch.stack(kept) if kept else torch.empty(0))


def look(
    looked: Looked,
    embedding: Embedding,
    wanted: PageSettings,
    folder: Path,
    *,
    title: str,
    seed: int,
    batch_size: int,
    workers: int,
) -> dict[str, Any]:
    """Writes the pictures and ``index.html``; returns what it says of the images, by name."""
    found = find(embedding, looked.images, wanted, seed, looked.prepare.device)
    count = len(found.rows)
    spread = np.arange(min(wanted.page_images, count)) * count // min(wanted.page_images, count)
    on_page = np.union1d(spread, np.array(found.on_rows))
    at = {int(number): place for place, number in enumerate(on_page)}
    indices = embedding.rows[found.rows[on_page]]
    pictures = read_pictures(looked, indices, [at[query] for query in found.queries], batch_size, workers)
    similarity, beside = nearest(torch.from_numpy(found.features[on_page]), NEIGHBOURS)
    points = in_plane(unit_rows(found.features[on_page]), wanted.projection, seed)
    low, high = points.min(axis=0), points.max(axis=0)
    places = (points - low) / np.maximum(high - low, 1e-12)
    groups = found.clusters.labels[on_page]
    thumbnails = pictures.thumbnails
    scatter(places, thumbnails, groups, folder / "map.png")
    sections = _sections(found, at)
    for name, content in sections.items():
        rows = [Row(r["title"], thumbnails[r["images"]], r["captions"]) for r in content["rows"]]
        _write_or_remove(folder / f"{name}.png", lambda path, rows=rows: sheet(rows, path), bool(rows))
    inside = _inside(looked, pictures.crops, folder)
    facts = _facts(looked, embedding, found)
    compared = f"all {count:,}" if count == len(embedding) else f"{count:,} of {len(embedding):,}, evenly spread"
    content = {
        "title": title,
        "facts": [[name, str(value)] for name, value in facts.items()],
        "names": [as_utf8(looked.images.relative_name(int(index))) for index in indices],
        "neighbours": [
            [[int(n), round(float(s), 4)] for n, s in zip(numbers, values, strict=True)]
            for numbers, values in zip(beside, similarity, strict=True)
        ],
        "colours": _colours(looked.images, indices, groups),
        "map": {
            "points": places.round(4).tolist(),
            "words": f"{len(on_page):,} images by {_PLANES[wanted.projection]}: the nearer, the more alike to the "
            "network. "
            f"What follows compares {compared}.",
        },
        **sections,
        "inside": inside,
    }
    write_page(folder / PAGE, content, thumbnails)
    return facts


def _write_or_remove(path: Path, write: Any, wanted: bool) -> None:
    """So that no picture of an earlier look stays beside the page."""
    if wanted:
        write(path)
    else:
        path.unlink(missing_ok=True)


def _images(count: int) -> str:
    return f"{count:,} image{'' if count == 1 else 's'}"


def _sections(found: Found, at: dict[int, int]) -> dict[str, dict[str, Any]]:
    """The rows of pictures: titles, and images by their number on the page."""
    similarity = [[f"{value:.3f}" for value in row] for row in found.similarities]
    queries = [
        {
            "title": "",
            "images": [at[query], *(at[int(number)] for number in found.neighbours[query])],
            "captions": ["", *similarity[query]],
        }
        for query in found.queries
    ]
    clusters = [
        {
            "title": f"cluster {number + 1}: {_images(len(order))}",
            "images": [at[int(image)] for image in order[:PER_CLUSTER]],
            "captions": [],
        }
        for number, order in enumerate(found.clusters.order)
    ]
    duplicates = [
        {"title": f"{_images(len(group))}", "images": [at[number] for number in group[:PER_GROUP]], "captions": []}
        for group in found.duplicates[:GROUPS]
    ]
    unusual = [
        {
            "title": "",
            "images": [at[number] for number in found.unusual],
            "captions": [f"{found.similarities[number][:10].mean():.3f}" for number in found.unusual],
        }
    ]
    in_groups = sum(len(group) for group in found.duplicates)
    groups = len(found.duplicates)
    more = f"; the {GROUPS} largest of {groups:,} groups are shown" if groups > GROUPS else ""
    return {
        "queries": {
            "words": "The first image of each row, and those that the network finds most like it, with the cosine of "
            "their features. Are they like it in what matters to you?",
            "rows": queries,
            "kind": "first",
        },
        "clusters": {
            "words": f"k-means with {len(clusters)} clusters, the largest first; those nearest the centre of each.",
            "rows": clusters,
        },
        "duplicates": {
            "words": f"{in_groups:,} images, in groups that are all but the same, some perhaps mirrored{more}."
            if found.duplicates
            else "None were found.",
            "rows": duplicates,
            "kind": "beside",
        },
        "unusual": {
            "words": "The images that are least like their ten nearest, with the mean cosine: odd ones, broken ones, "
            "or things of which there are few.",
            "rows": unusual,
        },
    }


def _colours(images: ImageSource, indices: np.ndarray, groups: np.ndarray) -> list[dict[str, Any]]:
    """What the map can be coloured by: cluster, and class where there are any."""
    names = [f"{number + 1}" for number in range(int(groups.max()) + 1)]
    found = [{"name": "cluster", "groups": names, "of": groups.tolist()}]
    labels = np.asarray(images.labels)[indices]
    if (labels != UNLABELLED).any():
        classes = [*(as_utf8(name) for name in images.classes), "none"]
        numbers = np.where(labels == UNLABELLED, len(classes) - 1, labels)
        found.append({"name": "class", "groups": classes, "of": numbers.tolist()})
    return found


def _facts(looked: Looked, embedding: Embedding, found: Found) -> dict[str, Any]:
    unreadable = embedding.num_images - len(embedding)
    facts: dict[str, Any] = {
        "weights": looked.description,
        "images": f"{len(embedding):,}" + (f" ({unreadable:,} more cannot be read)" if unreadable else ""),
        "at": looked.path,
        "shown to the network at": f"{looked.view.size} x {looked.view.size} pixels",
        "values of a feature vector": found.features.shape[1],
        "directions in use (RankMe)": f"{float(rankme(torch.from_numpy(found.features).double())):.1f}",
    }
    labels = np.asarray(looked.images.labels)[embedding.rows[found.rows]]
    known = labels != UNLABELLED
    if known.any():
        theirs = labels[found.neighbours[:, :10]]
        share = (theirs == labels[:, None])[known].mean()
        facts[f"of the {theirs.shape[1]} nearest, of the same class"] = f"{100 * share:.1f} %"
    return facts


def _inside(looked: Looked, crops: torch.Tensor, folder: Path) -> dict[str, Any]:
    """Attention and colours of the queries."""
    path = folder / "inside.png"
    maps = attention = None
    if len(crops):
        images = looked.prepare.normalize(crops.to(looked.prepare.device))
        maps, attention = last_map(looked.backbone, images), attention_of_heads(looked.backbone, images)
    if maps is None:
        path.unlink(missing_ok=True)
        return {"words": "This network's last layer has no places that could be drawn.", "pictures": []}
    colours = as_colours(maps)
    h, w = colours.shape[1:3]
    rows = []
    for number, crop in enumerate(crops):
        heads = [] if attention is None else [as_heat(head) for head in attention[number][:HEADS]]
        captions = ["image", f"{h} x {w}", *(f"head {n + 1}" for n in range(len(heads)))]
        rows.append(Row("", [thumbnail(shown(crop)), colours[number], *heads], captions))
    sheet(rows, path)
    places = "last map" if attention is None else "patches"
    words = (
        f"Of the first images above: the three main directions of the {places} as "
        "red, green and blue, for all of these images together, so that the same colour means the same thing"
    )
    words += "; and how much each head of the last block looks where." if attention is not None else "."
    with Image.open(path) as picture:
        return {"words": words, "pictures": [{"source": data_uri(picture.convert("RGB")), "alt": words}]}

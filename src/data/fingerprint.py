"""Which images a number was computed on, in a few words that a checkpoint can hold and a later start can compare."""

import hashlib
from typing import Any

from ..errors import UserError
from ..parallel import collectives
from .source import ImageSource, evenly_spread

# So many images are compared by what is in them: enough to tell one rendition of a data set from another.
SAMPLED = 16


def fingerprint(source: ImageSource) -> dict[str, Any]:
    """``images`` and ``classes`` (numbers), and short digests of ``class_names``, ``list`` and ``content``.

    ``list`` covers every image's name below its root and its label; ``content`` the bytes of a few images, evenly
    spread. A folder that was moved, or packed by ``scripts/make_lmdb.py``, keeps its fingerprint.
    """
    content = hashlib.sha256()
    few = evenly_spread(source, SAMPLED)
    for index in range(len(few)):
        content.update(_bytes_of(few, index))
    return {
        "images": len(source),
        "classes": len(source.classes),
        "class_names": _short(hashlib.sha256("\n".join(source.classes).encode(errors="surrogateescape"))),
        "list": list_digest_of(source),
        "content": _short(content),
    }


def agreed_fingerprint(source: ImageSource, where: object) -> dict[str, Any]:
    """The same, on all processes; raises UserError on one that sees other images than the first."""
    mine = fingerprint(source)
    first = collectives.broadcast_object(mine)
    if mine != first:
        other = ", ".join(f"{key} {mine[key]} instead of {first[key]}" for key in mine if mine[key] != first[key])
        raise UserError(f"this process sees other images at {where} than the first one: {other}")
    return mine


def list_digest_of(source: ImageSource) -> str:
    """Of all names below the root and labels, in order. Sources that keep a list know it already."""
    known: str | None = getattr(source, "list_digest", None)
    if known is not None:
        return known
    names = hashlib.sha256()
    for index in range(len(source)):
        names.update(f"{source.relative_name(index)}\0{source.labels[index]}\n".encode(errors="surrogateescape"))
    return _short(names)


def _bytes_of(source: ImageSource, index: int) -> bytes:
    try:
        with source.open(index) as image:
            file = getattr(image, "fp", None)
            if file is None:  # never was a file
                return image.tobytes()
            file.seek(0)
            return bytes(file.read())
    except Exception:  # whatever a decoder raises: the image is unreadable, today as it was then
        return b"unreadable"


def _short(digest: "hashlib._Hash") -> str:
    return digest.hexdigest()[:16]

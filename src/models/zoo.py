"""Published weights by name: what there is, where it is, and how it comes here."""

import difflib
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from filelock import FileLock
from tqdm import tqdm

from ..checkpoints.files import read_file, write_json
from ..checkpoints.layouts import weights_in
from ..checkpoints.run_file import FORMAT
from ..data import remote
from ..errors import UserError
from ..parallel import collectives

PIECE = 8 << 20  # bytes that are asked for at once


class Published(NamedTuple):
    """A published file.

    Attributes:
        name: what ``--pretrained``, ``--teacher`` and ``torch.hub.load`` take.
        method: as in src/checkpoints/layouts.py.
        arch: of the backbone.
        run: the pre-training, in words.
        top1: of a linear classifier on ImageNet, percent, as published; None where it is not stated.
        address: of the file, or of a page that a person downloads it from.
        is_page: whether it is such a page.
        file: what it is called here.
        layout: what the file holds.
        licence: of the program that it was published with.
        sha256: where it is published.
    """

    name: str
    method: str
    arch: str
    run: str
    top1: float | None
    address: str
    is_page: bool
    file: str
    layout: str
    licence: str
    sha256: str = ""


DEEPCLUSTER = "https://dl.fbaipublicfiles.com/deepcluster/"
SHARED = "https://drive.google.com/file/d/{}/view"
SIX, FOUR, TWO = "2x224 + 6x96", "2x160 + 4x96", "2x224"

# name of the file, method, architecture, what the pre-training was, top-1
_SWAV = (
    ("swav_800ep_pretrain", "swav", "resnet50", f"800 epochs, batch 4096, {SIX}", 75.3),
    ("swav_400ep_pretrain", "swav", "resnet50", f"400 epochs, batch 4096, {SIX}", 74.6),
    ("swav_200ep_pretrain", "swav", "resnet50", f"200 epochs, batch 4096, {SIX}", 73.9),
    ("swav_100ep_pretrain", "swav", "resnet50", f"100 epochs, batch 4096, {SIX}", 72.1),
    ("swav_200ep_bs256_pretrain", "swav", "resnet50", f"200 epochs, batch 256, {SIX}", 72.7),
    ("swav_400ep_bs256_pretrain", "swav", "resnet50", f"400 epochs, batch 256, {SIX}", 74.3),
    ("swav_400ep_2x224_pretrain", "swav", "resnet50", f"400 epochs, batch 4096, {TWO}", 70.1),
    ("deepclusterv2_800ep_pretrain", "deepcluster-v2", "resnet50", f"800 epochs, batch 4096, {SIX}", 75.2),
    ("deepclusterv2_400ep_pretrain", "deepcluster-v2", "resnet50", f"400 epochs, batch 4096, {FOUR}", 74.3),
    ("deepclusterv2_400ep_2x224_pretrain", "deepcluster-v2", "resnet50", f"400 epochs, batch 4096, {TWO}", 70.2),
    ("selav2_400ep_pretrain", "sela-v2", "resnet50", f"400 epochs, batch 4096, {FOUR}", 71.8),
    ("selav2_400ep_2x224_pretrain", "sela-v2", "resnet50", f"400 epochs, batch 4096, {TWO}", 67.2),
    ("swav_RN50w2_400ep_pretrain", "swav", "resnet50w2", "400 epochs", 77.3),
    ("swav_RN50w4_400ep_pretrain", "swav", "resnet50w4", "400 epochs", 77.9),
    ("swav_RN50w5_400ep_pretrain", "swav", "resnet50w5", "400 epochs", 78.5),
)
# name, architecture, what the pre-training was, top-1, pages of the backbone and of the full checkpoint
_TWIST = (
    ("twist_resnet50_850ep", "resnet50", "850 epochs, multi-crop and self-labelling", 75.5,
     "1tiLZmsTPJWZ_Et25WRYPYC9f-BDYceNC", "1vD4Nm87eH9Fj9ac95X0auqokWZnep3dZ"),
    ("twist_resnet50w2_250ep", "resnet50w2", "250 epochs, multi-crop and self-labelling", 77.7,
     "1abIQMzRZCi3kAqygEQuX3f4_e8pATWhY", "1Xrue2j_Jeh0u5gAGycxGXhBBK2C4P4C3"),
    ("twist_deit_s_300ep", "vit_s", "300 epochs, multi-crop, momentum encoder", 75.6,
     "1jfOciZQwNjqZOpqy7iedbzrI08W3L05r", "1EQKFRyO8iQ0Ibb-jaVcqRynwzam5jyhg"),
    ("twist_vit_b_300ep", "vit_b", "300 epochs, multi-crop, momentum encoder", 77.3,
     "1FCe7TZ2P0f-hOwzL_PbegVQX6PYyaaFn", "1OlvWDBkoHgWyza3OcKxo6JdPVrEf3j9w"),
    ("twist_resnet50_800ep_2views", "resnet50", "800 epochs, 2 views, no self-labelling", 72.6,
     "17D4gXszqiUqcY4HUOtQLXUiXN5WijOaw", "1KnWH2HJCP9oFYIGZN-XAHtYquevYQlo5"),
    ("twist_resnet50_800ep_clusters", "resnet50", "800 epochs, for unsupervised classification", None,
     "1JowSAen3ldpJv9bHsCko_bsCKuXP4ban", "1jJLJRnIn_cwT2aekMiPeyMD98HHrsVJ-"),
)  # fmt: skip
# epochs, top-1, pages of the backbone, of the full checkpoint and of the linear classifier's
_INTL = (
    (100, 73.5, "1DZVKlqWaRJ7Xkq9g4rDoVOfClRtIa0Uk", "1zemhf-UbzcmpteAB5nKEv7r4dWbYINLP",
     "1khGuJ37B6yEl1ME4Bc9WYikO3Hh8a7vK"),
    (200, 75.2, "1H6i__9IYkX4VYcMILY-8JgHQY1m_aUlP", "1MQlwD1Ep6oMCpDrz3T7Ih4DCRe9fwGg3",
     "1WmtWxULXPiTPq_NWTv_ceXGouUCoVAX-"),
    (400, 76.1, "1CsowRCBNL6zTvjXe2PKhVOiDIGP-2to1", "1PUoGL0fr-WbtWkbk9gopSr7vO_kA2S9z",
     "1M40oIQFvMYXZCeOMba23fqIUxmYDCQTg"),
    (800, 76.6, "1zHZPpHjMKnzwHyOD93cuRO0o8QMbWnxV", "1wLN1I4kXJtbmuRH1HKHE5snp6S-MtNLR",
     "1wKeEKcGojfHYhdLh24f8VhmY6ZXuD8Fw"),
)  # fmt: skip
_W2SSL_PAGE = "https://github.com/WilyZhao8/W2SSL/blob/main/README.md"
NOT_STATED = "none stated"


def _entries() -> Iterator[Published]:
    for name, method, arch, run, top1 in _SWAV:
        file = f"{name}.pth.tar"
        yield Published(name, method, arch, run, top1, DEEPCLUSTER + file, False, file, "run", "CC-BY-NC 4.0")
    name, run = "swav_800ep_eval_linear", f"linear classifier on 800 epochs, batch 4096, {SIX}"
    file = f"{name}.pth.tar"
    yield Published(name, "swav", "resnet50", run, 75.3, DEEPCLUSTER + file, False, file, "classifier", "CC-BY-NC 4.0")
    for name, arch, run, percent, backbone, full in _TWIST:
        for suffix, layout, page in (("", "backbone", backbone), ("_full", "run", full)):
            address, file = SHARED.format(page), f"{name}{suffix}.pth"
            yield Published(f"{name}{suffix}", "twist", arch, run, percent, address, True, file, layout, "Apache 2.0")
    for epochs, top1, *pages in _INTL:
        kinds = (("", "backbone"), ("_full", "run"), ("_eval_linear", "classifier"))
        for (suffix, layout), page in zip(kinds, pages, strict=True):
            name, run = f"intl_{epochs}ep{suffix}", f"{epochs} epochs, batch 256, multi-crop and EMA"
            address, file = SHARED.format(page), f"{name}.pth.tar"
            yield Published(name, "intl", "resnet50", run, top1, address, True, file, layout, NOT_STATED)
    for batch, top1 in ((256, 70.8), (1024, 72.8)):
        name, run = f"w2ssl_200ep_bs{batch}", f"200 epochs, batch {batch}"
        yield Published(
            name, "w2ssl", "resnet50", run, top1, _W2SSL_PAGE, True, f"{name}.pth.tar", "run", "CC-BY-NC 4.0"
        )


ZOO = {entry.name: entry for entry in _entries()}


def folder() -> Path:
    """Where files are kept: torch.hub's."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def located(word: str | Path) -> Path:
    """The file that a path or a name of :data:`ZOO` stands for, which is downloaded the first time.

    A file of that path comes first. Raises UserError where neither is there, and for files that only a person can
    download, with what to do.
    """
    path = Path(word)
    if path.exists():
        return path
    entry = ZOO.get(str(word))
    if entry is not None:
        return _kept(entry)
    near = difflib.get_close_matches(str(word), ZOO, n=1, cutoff=0.8) if path.name == str(word) else []
    if near:
        raise UserError(f"there is no file {word}; did you mean the published {near[0]}?")
    return path


def is_published(where: str) -> bool:
    """Whether a word is a name of the zoo, or a file that is no checkpoint of ours."""
    path = Path(where)
    if where in ZOO and not path.exists():
        return True
    if not path.is_file():
        return False
    content = read_file(path)
    return not (isinstance(content, dict) and content.get("format") == FORMAT)


def _kept(entry: Published) -> Path:
    target = folder() / entry.file
    if target.exists():  # perhaps where nothing can be written
        _check(entry, target)
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):  # processes of a machine, and of machines that share the folder
            if not target.exists():
                _fetch(entry, target)
            _check(entry, target)
    except OSError as error:
        raise UserError(f"{entry.name} cannot be kept in {target.parent}: {error}") from None
    return target


def _fetch(entry: Published, target: Path) -> None:
    if entry.is_page:
        raise UserError(f"{entry.name} has to be downloaded by hand: from {entry.address}, saved as {target}")
    try:
        state = remote.state(entry.address)
        part = target.with_name(f"{target.name}.{state.version:x}.part")  # another version is another file
        for old in set(target.parent.glob(f"{target.name}.*.part")) - {part}:
            old.unlink()
        _copy(entry, part, state.size)
    except FileNotFoundError:
        raise UserError(f"{entry.name} is not at {entry.address} any more") from None
    digest = digest_of(part)
    if entry.sha256 and digest != entry.sha256:
        part.unlink()
        raise UserError(f"{entry.address} is not what was published: its SHA-256 is {digest}, not {entry.sha256}")
    try:
        weights_in(read_file(part), entry.address)
    except UserError as error:
        part.unlink()
        raise UserError(f"{entry.address} sends no checkpoint, it may have moved ({error})") from None
    write_json(_note_of(target), {"address": entry.address, "sha256": digest})
    part.replace(target)


def _copy(entry: Published, part: Path, size: int) -> None:
    """Asks for what is not there yet."""
    with part.open("ab") as file:
        if file.tell() > size:
            file.truncate(0)
        silent = not collectives.is_main()
        with tqdm(total=size, initial=file.tell(), desc=entry.name, unit="B", unit_scale=True, disable=silent) as bar:
            while (start := file.tell()) < size:
                try:
                    piece = remote.read(entry.address, start, min(PIECE, size - start))
                except remote.WholeFilesOnly:
                    file.truncate(0)
                    remote.copy_whole(entry.address, file)
                    break
                file.write(piece)
                bar.update(len(piece))
    if part.stat().st_size != size:
        raise UserError(f"{entry.address} has {size} bytes, and {part.stat().st_size} came")


def _check(entry: Published, target: Path) -> None:
    """Raises UserError for a file that is not what was downloaded."""
    expected = entry.sha256
    note = _note_of(target)
    if not expected and note.exists():
        expected = json.loads(note.read_text())["sha256"]
    if expected and digest_of(target) != expected:
        raise UserError(
            f"{target} is damaged, or another file than {entry.name}: delete it, and it is downloaded again"
        )


def _note_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.json")


def digest_of(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def markdown() -> str:
    """The table of ``docs/zoo.md``."""
    lines = ["| name | method | network | pre-training | top-1 | holds | licence |", "|---|---|---|---|---|---|---|"]
    for entry in ZOO.values():
        where = "page" if entry.is_page else "file"
        top1 = "" if entry.top1 is None else f"{entry.top1:g}"
        lines.append(
            f"| `{entry.name}` ([{where}]({entry.address})) | {entry.method} | {entry.arch} | {entry.run} | {top1} "
            f"| {entry.layout} | {entry.licence} |"
        )
    return re.sub(r" +", " ", "\n".join(lines)) + "\n"

"""Writes the backbone of any checkpoint as others read it: torchvision, timm, ONNX, the Hugging Face Hub.

    python export.py runs/swav/checkpoint.pth.tar resnet50.pth
    python export.py swav_800ep_pretrain.pth.tar resnet50.safetensors
    python export.py runs/swav/checkpoint.pth.tar resnet50.onnx
    python export.py runs/swav/checkpoint.pth.tar my-model/ --license cc-by-4.0 --push USER/my-model

Takes checkpoints of ours and every published layout (SwAV, DeepCluster-v2, SeLa-v2, TWIST, INTL, MoCo-v2, DisCo,
MoCo-v3, W2SSL, torchvision, timm). ResNets get torchvision's names, which are timm's, too, without `fc`; other networks
get timm's. The ending of the file says what it is; a folder is what timm loads from the disk (`local-dir:`) or the Hub
(`hf-hub:`), with a model card. What is written for other programs is run by them, and compared.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from src import cli
from src.checkpoints.files import refuse_overwriting, write_atomically
from src.checkpoints.published import in_published_layout
from src.checkpoints.run_file import read_run
from src.checkpoints.weights import require_finite, write_weights
from src.data.datasets import IMAGENET_MEAN, IMAGENET_STD, SWAV_STD, usual
from src.errors import UserError
from src.exporting.model_card import write_card
from src.exporting.onnx_file import require_onnx, write_onnx
from src.exporting.push import push, require_name
from src.exporting.timm_folder import CARD, CONFIG, WEIGHTS, timm_name, write_folder
from src.models.backbones import STEMS
from src.models.pretrained import Hints, Pretrained, load_backbone
from src.settings import setting

import torch

FOLDER = (WEIGHTS, CONFIG, CARD)
FILES = (".pth", ".pt", ".safetensors", ".onnx")
KEPT = ("arch", "mean", "std", "eval_size", "eval_resize")  # in an ONNX file's metadata
SWAV_FAMILY = ("swav", "deepcluster-v2", "sela-v2")


@dataclass(frozen=True)
class Settings:
    """Export"""

    checkpoint: str = setting("", "file to read, or a name (docs/zoo.md)", required=True)
    out: str = setting(
        "", "what to write: a file (.pth, .pt, .safetensors or .onnx), or a folder with a model card", required=True
    )
    arch: str | None = setting(None, "timm's name, for a published file that is no ResNet")
    stem: str | None = setting(
        None, "first layers of a ResNet with a 3x3 first convolution, for a published file", choices=STEMS
    )
    layout: str = setting(
        "backbone",
        "backbone: the network alone; published: everything, as the method's own program saves it (W2SSL)",
        choices=["backbone", "published"],
    )
    key: str = setting("auto", "entry of the file that holds the weights; auto finds it")
    size: int | None = setting(
        None,
        "side of the images in pixels, for .onnx and folders: the only one that a transformer then takes; default: "
        "that of the run's evaluation, else 224",
        at_least=1,
        at_most=4096,
    )
    license: str = setting("", "licence of the weights, for the model card, such as cc-by-4.0")
    push: str = setting("", "also upload the folder to the Hugging Face Hub as USER/NAME")
    private: bool = setting(False, "keep a model that --push makes private", switch=True)
    overwrite: bool = setting(False, "replace a file that exists, or those of a model in a folder", switch=True)


SCRIPT = cli.Script(
    "Writes the backbone of any checkpoint as torchvision, timm, ONNX and the Hugging Face Hub take it.",
    Settings(),
    positionals=("checkpoint", "out"),
)


def write_published(args: Settings, out: Path) -> None:
    """Everything of a checkpoint of ours, under the names of the method's own program."""
    if out.suffix not in (".pth", ".pt"):
        raise UserError("--layout published is a PyTorch file: expected a name that ends in .pth or .pt")
    content = in_published_layout(read_run(args.checkpoint), args.checkpoint)
    require_finite(content["state_dict"], args.checkpoint)
    write_atomically(out, lambda file: torch.save(content, file))
    print(f"wrote {len(content['state_dict'])} entries to {out}")


def write_plain(args: Settings, out: Path, loaded: Pretrained) -> None:
    """The network's entries, in PyTorch's format or safetensors."""
    write_weights(out, loaded.backbone.state_dict(), loaded.told)
    print(loaded.description)
    print(f"wrote {len(loaded.backbone.state_dict())} entries to {out}")


def how_shown(loaded: Pretrained, size: int | None) -> Pretrained:
    """The same, with what other programs must know of the images; where the file does not tell, as papers have it."""
    channels = loaded.spec.channels
    std = SWAV_STD if loaded.family in SWAV_FAMILY else IMAGENET_STD
    known = {name: value for name, value in loaded.settings.items() if value is not None}
    shown = {"mean": usual(channels, IMAGENET_MEAN, 0.5), "std": usual(channels, std, 0.25), "eval_size": 224, **known}
    if size is not None and size != shown["eval_size"]:
        shown |= {"eval_size": size, "eval_resize": round(size * 256 / 224)}
    return replace(loaded, settings=shown)


def write_program(args: Settings, out: Path, loaded: Pretrained) -> None:
    """An ONNX file."""
    loaded = how_shown(loaded, args.size)
    known = loaded.told
    told: dict[str, Any] = {name: known[name] for name in KEPT if name in known}
    print("exporting: this takes a minute, with some networks several", flush=True)
    images = write_onnx(out, loaded.backbone, told, loaded.told["eval_size"], loaded.spec.channels)
    print(loaded.description)
    print(f"wrote {out}, which onnxruntime computes alike; {images}")


def write_model(args: Settings, out: Path, loaded: Pretrained) -> None:
    """A folder for timm and the Hub; pushed if that was asked for."""
    timm_name(loaded)
    loaded = how_shown(loaded, args.size)
    size = loaded.told["eval_size"]
    write_folder(out, loaded, size)
    write_card(out / CARD, loaded, args.checkpoint, args.license, size, args.push or out.absolute().name)
    print(loaded.description)
    print(f'wrote {out}, which timm.create_model("local-dir:{out}", pretrained=True) loads and computes alike')
    if args.push:
        print(f"pushed to {push(out, FOLDER, args.push, args.private)}")


def main(argv: Sequence[str] | None = None) -> int:
    call = SCRIPT.parse(argv)
    args = call.settings
    out = Path(args.out)
    is_folder = out.is_dir() or args.out.endswith("/") or bool(args.push)
    if not is_folder and out.suffix not in FILES:
        raise UserError(f"{out}: expected a name that ends in {', '.join(FILES)}, or a folder (ending in /)")
    if args.push:
        require_name(args.push)
        if out.suffix in FILES:
            raise UserError(f"--push uploads a folder, and {out} is to be a file: give the name of a folder")
    for file in [out / name for name in FOLDER] if is_folder else [out]:
        refuse_overwriting(file, args.checkpoint, args.overwrite)
    if args.layout == "published":
        write_published(args, out)
    else:
        write: Callable[[Settings, Path, Pretrained], None] = write_model if is_folder else write_plain
        if out.suffix == ".onnx" and not is_folder:
            require_onnx()
            write = write_program
        write(args, out, load_backbone(args.checkpoint, Hints(args.arch, stem=args.stem), args.key))
    call.tell_unread()
    return 0


if __name__ == "__main__":
    cli.run(main)

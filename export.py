"""Writes the backbone of any checkpoint as a plain file that torchvision, timm and others read.

    python export.py runs/swav/checkpoint.pth.tar resnet50.pth
    python export.py swav_800ep_pretrain.pth.tar resnet50.safetensors

Takes checkpoints of ours and every published layout (SwAV, DeepCluster-v2, SeLa-v2, TWIST, INTL, MoCo-v2, DisCo,
MoCo-v3, W2SSL, torchvision, timm). ResNets get torchvision's names, which are timm's, too, without `fc`; other networks
get timm's. The ending of the file says whether it is PyTorch's format or safetensors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from src import cli
from src.checkpoints.files import refuse_overwriting, write_atomically
from src.checkpoints.published import in_published_layout
from src.checkpoints.run_file import read_run
from src.checkpoints.weights import require_finite, write_weights
from src.errors import UserError
from src.models.backbones import STEMS
from src.models.pretrained import Hints, load_backbone
from src.settings import setting

import torch


@dataclass(frozen=True)
class Settings:
    """Export"""

    checkpoint: str = setting("", "file to read", required=True)
    out: str = setting("", "file to write: .pth, .pt or .safetensors", required=True)
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
    overwrite: bool = setting(False, "replace a file that exists", switch=True)


SCRIPT = cli.Script(
    "Writes the backbone of any checkpoint as a plain file that torchvision, timm and others read.",
    Settings(),
    positionals=("checkpoint", "out"),
)


def main(argv: Sequence[str] | None = None) -> int:
    args = SCRIPT.parse(argv).settings
    out = Path(args.out)
    if out.suffix not in (".pth", ".pt", ".safetensors"):
        raise UserError(f"{out}: expected a name that ends in .pth, .pt or .safetensors")
    refuse_overwriting(out, args.checkpoint, args.overwrite)
    if args.layout == "published":
        if out.suffix == ".safetensors":
            raise UserError("--layout published is a PyTorch file: expected a name that ends in .pth or .pt")
        content = in_published_layout(read_run(args.checkpoint), args.checkpoint)
        require_finite(content["state_dict"], args.checkpoint)
        write_atomically(out, lambda file: torch.save(content, file))
        print(f"wrote {len(content['state_dict'])} entries to {out}")
        return 0
    loaded = load_backbone(args.checkpoint, Hints(args.arch, stem=args.stem), args.key)
    state = loaded.backbone.state_dict()
    write_weights(out, state, loaded.told)
    print(loaded.description)
    print(f"wrote {len(state)} entries to {out}")
    return 0


if __name__ == "__main__":
    cli.run(main)

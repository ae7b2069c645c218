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

import torch
from safetensors.torch import save

from src import cli
from src.checkpoints.files import write_atomically
from src.errors import UserError
from src.models.backbones import BackboneSpec
from src.models.pretrained import load_backbone
from src.settings import setting


@dataclass(frozen=True)
class Settings:
    """Export"""

    checkpoint: str = setting("", "file to read", required=True)
    out: str = setting("", "file to write: .pth, .pt or .safetensors", required=True)
    arch: str | None = setting(None, "timm's name, for a published file that is no ResNet")
    key: str = setting("auto", "entry of the file that holds the weights; auto finds it")


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
    loaded = load_backbone(args.checkpoint, BackboneSpec(args.arch) if args.arch else None, args.key)
    state = {name: tensor.contiguous() for name, tensor in loaded.backbone.state_dict().items()}
    if out.suffix == ".safetensors":
        content = save(state, metadata={"format": "pt", "architecture": loaded.spec.arch})
        write_atomically(out, lambda file: file.write(content))
    else:
        write_atomically(out, lambda file: torch.save(state, file))
    print(loaded.description)
    print(f"wrote {len(state)} entries to {out}")
    return 0


if __name__ == "__main__":
    cli.run(main)

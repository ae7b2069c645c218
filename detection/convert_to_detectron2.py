"""Writes a ResNet of any checkpoint, ours or published, as the pickle that detectron2's MODEL.WEIGHTS takes.

    python detection/convert_to_detectron2.py runs/swav/checkpoint.pth.tar swav.pkl
    python detection/convert_to_detectron2.py twist.pth twist.pkl --key teacher_backbone
    python detection/convert_to_detectron2.py swav.pkl resnet50.pth --to torchvision        # also from checkpoints

detectron2 is not needed. torchvision's names are what DETR and torchvision's own detectors load. Pixels are to be RGB,
with ImageNet's mean and deviation (the configurations' PIXEL_MEAN, PIXEL_STD, FORMAT) and STRIDE_IN_1X1 False.
"""

import pickle
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from detection.names import read_pickle, to_detectron2, to_torchvision
from src import cli
from src.checkpoints.files import refuse_overwriting, write_atomically
from src.checkpoints.layouts import resnet_in
from src.checkpoints.weights import require_finite, write_weights
from src.errors import UserError
from src.models.pretrained import Hints, load_backbone
from src.settings import setting

from torch import Tensor


@dataclass(frozen=True)
class Settings:
    """Conversion"""

    checkpoint: str = setting("", "file to read", required=True)
    out: str = setting("", "file to write: a .pkl for detectron2, a .pth with torchvision's names", required=True)
    to: str = setting("detectron2", "whose names to use", choices=["detectron2", "torchvision"])
    key: str = setting("auto", "entry of the file that holds the weights; auto finds it")
    overwrite: bool = setting(False, "replace a file that exists", switch=True)


SCRIPT = cli.Script(
    "Writes the backbone of any checkpoint under the names of detectron2 or torchvision.",
    Settings(),
    positionals=("checkpoint", "out"),
)


def main(argv: Sequence[str] | None = None) -> int:
    args = SCRIPT.parse(argv).settings
    out, ending = Path(args.out), ".pkl" if args.to == "detectron2" else ".pth"
    if out.suffix != ending:
        raise UserError(f"{out}: expected a name that ends in {ending}")
    refuse_overwriting(out, args.checkpoint, args.overwrite)
    told: Mapping[str, Any]
    if Path(args.checkpoint).suffix == ".pkl":
        read = read_pickle(args.checkpoint)
        state, origin, told, method = to_torchvision(read.model), args.checkpoint, {}, read.method
        require_finite(state, args.checkpoint)
    else:
        loaded = load_backbone(args.checkpoint, Hints(stem="imagenet"), args.key)
        state, origin, told = loaded.backbone.state_dict(), loaded.description, loaded.told
        method = loaded.family
    overrides = config_overrides(state, args.checkpoint)
    print(origin)
    if args.to == "torchvision":
        write_weights(out, state, told)
        print(f"wrote {len(state)} entries under torchvision's names to {out}")
        return 0
    model = to_detectron2(state)
    content = {"model": model, "__author__": "self-supervised", "matching_heuristics": True, "method": method}
    write_atomically(out, lambda file: pickle.dump(content, file))
    print(f"wrote {len(model)} entries to {out} ({len(state) - len(model)} counters of batch norms left out)")
    for line in what_is_found(model, overrides):
        print(line)
    return 0


def config_overrides(state: Mapping[str, Tensor], path: object) -> str:
    """detectron2's options for this network, "" for ResNet-50; raises UserError for what it cannot build."""
    found = resnet_in(state)
    if found is None:
        raise UserError(f"{path} is not a ResNet, which is what detectron2's configurations here build")
    name, width, stem, _ = found
    depth = int(name.removeprefix("resnet"))
    if stem != "imagenet":
        raise UserError(f"{path} has a 3x3 stem for small images, which detectron2's ResNets have not")
    if depth > 152:
        raise UserError(f"{path} is a {name}, which detectron2 does not build")
    channels = state["conv1.weight"].shape[0]
    if depth < 50 and channels != 64:
        raise UserError(f"{path} is a {name} of width {width:g}; detectron2 builds those of width 1 only")
    options = []
    if depth != 50:
        options.append(f"MODEL.RESNETS.DEPTH {depth}")
    if channels != 64:
        options += [f"MODEL.RESNETS.STEM_OUT_CHANNELS {channels}", f"MODEL.RESNETS.WIDTH_PER_GROUP {channels}"]
    res2 = channels if depth < 50 else 4 * channels
    if res2 != 256:
        options.append(f"MODEL.RESNETS.RES2_OUT_CHANNELS {res2}")
    return " ".join(options)


def what_is_found(model: Mapping[str, object], overrides: str) -> list[str]:
    """What a C4 and an FPN model will and will not find in the file."""
    last = sum(name.startswith("res5.") for name in model)
    lines = [
        f"an FPN model finds all {len(model)} in its backbone; its FPN and heads start at random",
        f"a C4 model finds {len(model) - last} in its backbone and {last} in its head's res5",
    ]
    if "MODEL.RESNETS.DEPTH 18" in overrides or "MODEL.RESNETS.DEPTH 34" in overrides:
        lines[1] = (
            f"a C4 model finds {len(model) - last} in its backbone; its head's res5 is made of bottlenecks, which "
            "basic blocks do not fill, so it starts mostly at random: prefer an FPN configuration (*_R_18_FPN_*)"
        )
    if overrides:
        lines.append(f"add to train_net.py's command: {overrides}")
    return lines


if __name__ == "__main__":
    cli.run(main)

"""SwAV on real images in minutes, on two CPU cores: cut patches, train, judge, draw, look.

    python scripts/quickstart.py [--epochs 12] [--out runs/quickstart]

Everything is done by the scripts a user would call; their command lines are printed. Started again, it continues
where it was stopped.
"""

import json
import math
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from src import cli
from src.data.datasets import FolderImages
from src.data.loading import ViewDataset, collate, loader_of
from src.data.sampling import Position
from src.data.to_device import ToDevice
from src.data.view_sets import multi_crop
from src.data.views import CentreView
from src.engine.monitor import duration, read_log
from src.evaluation.features import extract_features
from src.models.pretrained import load_backbone
from src.plots import crops_mosaic, embedding_map, training_curves
from src.settings import setting

from cut_patches import cut_once

# The network: a ResNet-18 a quarter as wide, with the stem for small images.
MODEL = ["--arch", "resnet18", "--width", "0.25", "--stem", "small"]
# The crops: the patches show textures, so crops are small parts of them, shown at about their own resolution. Colour
# tells photographs apart, so its jitter is mild; grayscale and blur are off.
CROPS = {"size_crops": [32], "nmb_crops": [2], "min_scale_crops": [0.15], "max_scale_crops": [0.6]}
COLOURS = {"jitter_strength": 0.25, "grayscale": 0.0, "blur": 0.0}
PROTOTYPES = 100
EVAL_SIZE = 64
# Features of an untrained network are large and want small learning rates, those of a trained one larger ones.
LEARNING_RATES = [0.001, 0.01, 0.1, 1, 10]


def flags(values: dict[str, Any]) -> list[str]:
    """``{"size_crops": [32]}`` -> ``["--size_crops", "32"]``."""
    out = []
    for name, value in values.items():
        out += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return out


def call(script: str, *arguments: object) -> None:
    """Runs one of the repository's scripts and shows its command line; ends with its exit code if it fails."""
    command = [script, *map(str, arguments)]
    print(f"\n$ python {shlex.join(command)}", flush=True)
    code = subprocess.run([sys.executable, *command], cwd=ROOT).returncode
    if code:
        sys.exit(code)


def train(patches: Path, run: Path, epochs: int) -> None:
    recipe = {
        **CROPS,
        **COLOURS,
        "nmb_prototypes": PROTOTYPES,
        "hidden_mlp": 256,
        "feat_dim": 64,
        "batch_size": 100,
        "epochs": epochs,
        "base_lr": 2.4,
        "warmup_epochs": 0,
        "freeze_prototypes_niters": 42,  # one epoch
    }
    online = {
        "knn_freq": max(1, epochs // 5),
        "knn_train_images": 1500,
        "eval_size": EVAL_SIZE,
        "eval_resize": EVAL_SIZE,
        "knn_k": 10,
        "log_every": 21,
    }
    here = {"workers": min(2, os.cpu_count() or 1), "device": "cpu", "dump_path": run}
    call("main_swav.py", "--data_path", patches / "train", *MODEL, *flags({**recipe, **online, **here}))


def judge(patches: Path, out: Path, checkpoint: Path) -> list[dict[str, Any]]:
    """kNN and linear accuracy on the test patches: trained, untrained, and of the pixels themselves."""
    common = [
        "--data_path",
        patches,
        "--device",
        "cpu",
        "--workers",
        1,
        "--crop_size",
        EVAL_SIZE,
        "--resize",
        EVAL_SIZE,
    ]
    linear = ["--features", "cached", "--epochs", 40, "--batch_size", 256, "--lr", *LEARNING_RATES]
    quiet = ["--eval_freq", 40, "--log_every", 340]
    rows = []
    for name, weights in (("SwAV", ["--pretrained", checkpoint]), ("random weights", MODEL), ("raw pixels", MODEL)):
        folder = out / "judged" / name.replace(" ", "_")
        pixels = name == "raw pixels"
        call("eval_knn.py", *common, *weights, "--k", 10, 20, "--dump_path", folder, *["--raw_pixels"] * pixels)
        row: dict[str, Any] = {
            "name": name,
            "knn10": json.loads((folder / "knn.json").read_text())["knn"]["10"]["top1"],
        }
        if not pixels:
            call("eval_linear.py", *common, *weights, *linear, *quiet, "--dump_path", folder)
            results = json.loads((folder / "linear.json").read_text())["lr"]
            row["linear"] = max(result["top1"] for result in results.values())
        rows.append(row)
    return rows


def draw(patches: Path, run: Path, out: Path, checkpoint: Path, baseline: float) -> None:
    """The three pictures."""
    views = multi_crop(*CROPS.values(), **COLOURS)  # type: ignore[arg-type]
    train_images = FolderImages(patches / "train")
    dataset = ViewDataset(train_images, views)
    some = [dataset[Position(0, index)] for index in range(0, len(dataset), len(dataset) // 8)][:8]
    whole = ViewDataset(train_images, [CentreView(64, 64)])
    originals = collate([whole[Position(0, sample.image)] for sample in some])
    crops_mosaic([*originals.crops, *collate(some).crops], out / "crops.png")
    training_curves(
        read_log(run / "log.jsonl", "train"),
        read_log(run / "log.jsonl", "evaluation"),
        out / "curves.png",
        reference_loss=math.log(PROTOTYPES),
        reference_value=baseline,
    )
    loaded = load_backbone(checkpoint)
    device = torch.device("cpu")
    test_images = FolderImages(patches / "test")
    prepare = ToDevice(device, loaded.settings["mean"], loaded.settings["std"])
    loader = loader_of(test_images, CentreView(EVAL_SIZE, EVAL_SIZE), 256, 1, device)
    features, labels, *_ = extract_features(loaded.backbone, loader, prepare)
    embedding_map(
        features, labels, test_images.classes, out / "embeddings.png", "SwAV features of the test patches (t-SNE)"
    )


def look(patches: Path, checkpoint: Path, folder: Path) -> None:
    """The page of the test patches, at the size that the judges use."""
    shown = ["--crop_size", EVAL_SIZE, "--resize", EVAL_SIZE]
    call("embed.py", patches / "test", checkpoint, *shown, "--device", "cpu", "--workers", 1, "--dump_path", folder)


@dataclass(frozen=True)
class Settings:
    """Quickstart"""

    epochs: int = setting(12, "number of epochs; more simply gets better", at_least=1, at_most=1e6)
    out: str = setting("runs/quickstart", "folder of the results")


SCRIPT = cli.Script("Trains SwAV on real images in minutes, on two CPU cores.", Settings())


def main(argv: Sequence[str] | None = None) -> int:
    args = SCRIPT.parse(argv).settings
    started = time.monotonic()
    out = Path(args.out).resolve()
    patches, run = cut_once(), out / f"swav-{args.epochs}ep"
    train(patches, run, args.epochs)
    checkpoint = run / "checkpoint.pth.tar"
    rows = judge(patches, run, checkpoint)
    draw(patches, run, out, checkpoint, rows[1]["knn10"])
    look(patches, checkpoint, out / "page")
    summary = {
        "epochs": args.epochs,
        "test_patches": len(FolderImages(patches / "test")),
        "seconds": round(time.monotonic() - started),
        "top1_percent": {row["name"]: {k: v for k, v in row.items() if k != "name"} for row in rows},
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=2))
    print(f"\n{'top-1 on the test patches':<28}{'10-NN':>9}{'linear':>9}")
    for row in rows:
        linear = f"{row['linear']:.1f} %" if "linear" in row else "-"
        print(f"{row['name']:<28}{row['knn10']:>7.1f} %{linear:>9}")
    print(f"\n{args.epochs} epochs, {duration(summary['seconds'])} in all. Pictures and summary.json are in {out}:")
    print(f"{', '.join(path.name for path in sorted(out.glob('*.png')))}; and a page to look at: page/index.html")
    return 0


if __name__ == "__main__":
    cli.run(main)

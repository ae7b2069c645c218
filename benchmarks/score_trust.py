"""How far scores without labels tell kNN accuracy: trains many runs on the photographs, and correlates their logs.

    python benchmarks/score_trust.py [--epochs 6] [--seeds 2] [--write]

Every run is a recipe of docs/results.md or a spoiled one, judged after each epoch by kNN and by all scores, on the test
patches. A run whose folder is complete is not repeated. With ``--write`` the result becomes
src/evaluation/score_trust.py.
"""

import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from src import cli
from src.data.patches import cut_patches
from src.engine.monitor import read_log
from src.evaluation.scores import SCORES
from src.settings import setting

import numpy as np
from scipy.stats import spearmanr

SMALL = (
    "--arch resnet18 --width 0.25 --stem small --eval_size 64 --eval_resize 64 --knn_freq 1 --knn_k 10 --scores_freq 1 "
    "--scores_images 400 --val_path data/patches/test "
    "--device cpu --track none --workers 1 --log_every 21"
)
SWAV = (
    "main_swav.py --size_crops 32 --min_scale_crops 0.15 --max_scale_crops 0.6 --nmb_crops 2 --jitter_strength 0.25 "
    "--grayscale 0 --blur 0 --hidden_mlp 256 --feat_dim 64 --batch_size 100 --warmup_epochs 0 "
    "--freeze_prototypes_niters 42"
)
TWIST = (
    "main_twist.py --batch_size 100 --bunch_size 100 --hid_dim 256 --dim 100 --size_crops 32 20 --min1 .15 --max1 .6 "
    "--min2 .05 --max2 .2 --local_crops_number 2 --sl_warmup_epochs 0 --lr 6 --warmup_epochs 0 --mme_epochs {epochs}"
)
CROPS = (
    "--crops_size 32 32 --crop_size 32 --min_scale_crops 0.15 0.15 --max_scale_crops 0.6 0.6 --crop_s0 0.15 "
    "--crop_s1 0.6 --gaussian_prob 0 0 --solarization_prob 0 0 --cj0 0.2 --cj1 0.2 --cj2 0.2 --cj3 0.05 --gs_p 0 "
    "--head_layers 2 --head_size 256 --emb 256 --bs 128 --w_size 64 --warmup_iters 33 --lr_step none"
)
INTL = f"main_intl.py {CROPS} --method intl --lr 0.6 --warmup_eps 1"
JOINT = f"main_cwrgp.py {CROPS} --num_samples 2 --optimizer adam --lr 0.002"
MOCO = (
    "main_disco.py --crop_size 32 --crop_scale 0.15 0.6 --jitter_strength 0.5 --grayscale 0 --batch_size 128 "
    "--bn_parts 4 --mlp --moco_t 0.2 --cos --moco_k 4096 --hidden 256 --lr 0.06"
)
RUNS = {
    "swav": f"{SWAV} --nmb_prototypes 100 --base_lr 2.4",
    "swav-spoiled": f"{SWAV} --nmb_prototypes 100 --base_lr 40",
    "deepcluster": f"{SWAV} --method deepcluster-v2 --nmb_prototypes 100 100 100 --base_lr 2.4",
    "twist": TWIST,
    "intl": INTL,
    "cwrgp": f"{JOINT} --method cwrgp --group 2 --w_eps 1e-3",
    "wmse": f"{JOINT} --method wmse --w_eps 1e-3",
    "simclr": f"{JOINT} --method contrastive",
    "simclr-spoiled": f"{JOINT} --method contrastive --lr 0.2",
    "byol": f"{JOINT} --method byol",
    "simsiam": f"{JOINT} --method simsiam --optimizer sgd --lr 0.12",
    "barlowtwins": f"{JOINT} --method barlowtwins",
    "vicreg": f"{JOINT} --method vicreg",
    "zero_icl": f"{JOINT} --method zero_icl",
    "moco": MOCO,
    "moco-spoiled": f"{MOCO} --lr 3",
}
DRAWS = 2000


@dataclass(frozen=True)
class Settings:
    """How far scores tell kNN accuracy"""

    epochs: int = setting(6, "of each run", at_least=3, at_most=1000)
    seeds: int = setting(2, "runs of each recipe", at_least=1, at_most=100)
    every: int = setting(3, "train on each so many-th patch only", at_least=1, at_most=100)
    out: str = setting("runs/score_trust", "folder of the runs")
    write: bool = setting(False, "write src/evaluation/score_trust.py", switch=True)


SCRIPT = cli.Script("How far scores without labels tell kNN accuracy.", Settings())


def train(name: str, seed: int, own: Settings) -> Path:
    folder = Path(own.out) / f"{name}-{seed}"
    words = [*RUNS[name].format(epochs=own.epochs).split(), *SMALL.split(), "--data_path", f"{own.out}/train.csv"]
    words += ["--dump_path", str(folder), "--epochs", str(own.epochs), "--seed", str(seed)]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        print(f"{name} ended early: {done.stderr.strip().splitlines()[-1]}", flush=True)
    return folder


def values_of(folder: Path) -> np.ndarray:
    """(epochs, 1 + scores): kNN accuracy, and the scores; nan where there is none."""
    names = ["knn_top1", *(score.name for score in SCORES)]
    rows = [[record.get(name) for name in names] for record in read_log(folder / "log.jsonl", "evaluation")]
    return np.array([[math.nan if value is None else value for value in row] for row in rows], dtype=float)


def correlation(pairs: np.ndarray) -> float:
    """Spearman's, of the finite rows of (n, 2); nan for fewer than three."""
    pairs = pairs[np.isfinite(pairs).all(axis=1)]
    if len(pairs) < 3 or (np.ptp(pairs, axis=0) == 0).any():
        return math.nan
    return float(spearmanr(*pairs.T).statistic)


def measured(runs: Sequence[np.ndarray], column: int) -> tuple[list[float], list[float]]:
    """Across runs and within them: the correlation and the ends of its interval, by resampling runs."""
    pair = [0, column]
    last = np.array([run[-1, pair] for run in runs])
    inside = np.array([correlation(run[:, pair]) for run in runs])
    generator = np.random.default_rng(0)
    draws = generator.integers(0, len(runs), (DRAWS, len(runs)))
    across = [correlation(last[draw]) for draw in draws]
    within = [np.nanmean(inside[draw]) for draw in draws]
    ends = [[float(v) for v in np.nanpercentile(values, [2.5, 97.5])] for values in (across, within)]
    return [correlation(last), *ends[0]], [float(np.nanmean(inside)), *ends[1]]


def main(argv: Sequence[str] | None = None) -> int:
    own = SCRIPT.parse(argv).settings
    if not (ROOT / "data/patches/train").exists():
        cut_patches(ROOT / "data/photographs", ROOT / "data/patches")
    images = sorted((ROOT / "data/patches/train").glob("*/*"))[:: own.every]
    Path(own.out).mkdir(parents=True, exist_ok=True)
    lines = ["path,label", *(f"{image},{image.parent.name}" for image in images)]
    (Path(own.out) / "train.csv").write_text("\n".join(lines) + "\n")
    runs = []
    for seed in range(own.seeds):
        for name in RUNS:
            found = values_of(train(name, seed, own))
            if len(found) >= 3:
                runs.append(found)
                print(f"{name:<18}seed {seed}: kNN {found[-1, 0]:.1f} after {len(found)} epochs", flush=True)
    lines = []
    print(f"{len(runs)} runs\n| score | across runs | within a run |\n|---|---|---|")
    for column, score in enumerate(SCORES, start=1):
        across, within = measured(runs, column)
        shown = [f"{a:.2f} ({b:.2f} to {c:.2f})" for a, b, c in (across, within)]
        print(f"| {score.title} | {shown[0]} | {shown[1]} |")
        numbers = ["(" + ", ".join(f"{v:.2f}" for v in values) + ")" for values in (across, within)]
        lines.append(f'    "{score.name}": Trust({numbers[0]}, {numbers[1]}),')
    if own.write:
        path = ROOT / "src/evaluation/score_trust.py"
        head = path.read_text().partition("# MEASURED")[0]
        said = f"# MEASURED on {len(runs)} runs of {len(RUNS)} recipes, {own.epochs} epochs each, on the photographs"
        path.write_text(head + "\n".join([said, "TRUST = {", *lines, "}", ""]))
    return 0


if __name__ == "__main__":
    cli.run(main)

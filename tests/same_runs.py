"""Proves a refactoring: the same short runs at another commit and in this working tree, compared bit for bit.

    python tests/same_runs.py REV [--only swav twist] [--keep FOLDER]

Every method of every script trains a few steps on the CPU in both trees, on the same machine. Equal must be: every
tensor of the final checkpoint (weights, optimiser, queues, random states), every logged number, and every setting that
the checkpoints of both commits have. Runs that the older commit left half done are finished by this tree and must
end alike, so old checkpoints still resume. The evaluations must write the same results. Takes eight minutes on two
cores; exits with 1 at a difference.
"""

import argparse
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

# Not part of what is computed: they differ from run to run.
TIMINGS = ("images_per_second", "waiting_for_data", "peak_memory_gb")

# Logged numbers that got another name on purpose: kind of record, old name -> new name
RENAMED = {
    ("train", "acc"): "views_agree",
    ("evaluation", "acc"): "hungarian_acc",
    ("evaluation", "train_acc"): "train_hungarian_acc",
}

COMMON = "--arch resnet18 --width 0.125 --stem small --device cpu --tensorboard false --log_every 1 --epochs 3"
TRAIN, FOLDERS = "--data_path {data}/train", "--data_path {data}"
SWAV = (
    f"main_swav.py {TRAIN} {COMMON} --size_crops 16 12 --nmb_crops 2 1 --min_scale_crops 0.3 0.1 --max_scale_crops 1 "
    "0.3 --hidden_mlp 32 --feat_dim 16 --nmb_prototypes 12 --warmup_epochs 1 --start_warmup 0.1 --base_lr 0.5 "
    "--final_lr 0.01 --batch_size 16 --freeze_prototypes_niters 4"
)
OFFLINE = f"{SWAV} --nmb_prototypes 6 5 4"
TWIST = (
    f"main_twist.py {FOLDERS} {COMMON} --size_crops 16 12 --img_size 16 --local_crops_number 1 --dim 6 --hid_dim 16 "
    "--batch-size 16 --bunch-size 16 --warmup-epochs 1 --sl_warmup_epochs 1 --mme_epochs 2"
)
INTL = (
    f"main_intl.py {FOLDERS} {COMMON} --crops_size 16 16 --crop_size 16 --head_layers 2 --head_size 16 --emb 32 --bs "
    "16 --w_size 8 --group 2 --warmup_eps 1 --warmup_iters 4"
)
DISCO = (
    f"main_disco.py {FOLDERS} {COMMON} --crop_size 16 --moco_dim 16 --moco_k 64 --hidden 16 --batch_size 16 --bn_parts "
    "2 --aug_plus --mlp --cos --moco_t 0.2"
)
DISTIL = f"{DISCO} --teacher {{runs}}/moco/checkpoint.pth.tar"
W2SSL = (
    f"main_w2ssl.py {FOLDERS} {COMMON} --crop_size 16 --crop_proj_dim 8 --moco_mlp_dim 16 --batch_size 16 "
    "--moco-m-cos --loss_crop 1.0 --warmup_epochs 1"
)
TWO = "2 processes: "  # such runs are started by torchrun

RUNS: dict[str, str] = {
    "swav": SWAV,
    "swav-queue": f"{SWAV} --queue_length 32 --epoch_queue_starts 1 --knn_freq 1 --knn_k 5 --workers 1",
    "swav-heads": f"{SWAV} --nmb_prototypes 6 5 --accumulate 2 --clip_norm 1 --head_bn false --zero_init_residual true",
    "swav-device-colours": f"{SWAV} --augment_on device --save_every 3 --precision bf16",
    "deepcluster-v2": f"{OFFLINE} --method deepcluster-v2",
    "sela-v2": f"{OFFLINE} --method sela-v2",
    "sela-v2-soft": f"{SWAV} --method sela-v2 --nmb_prototypes 6 6 --sela_hard false",
    "twist": f"{TWIST} --aug multicrop --dim 4 --knn_freq 2 --knn_k 5",
    "twist-barlow": f"{TWIST} --aug barlow --optim adamw --weight_decay_end 0.1 --lr_wbr 2",
    "twist-moco": f"{TWIST} --aug moco --optim sgd --act gelu --drop 0.1 --clip_norm 1 --proj_norm ln",
    "twist-rand": f"{TWIST} --aug rand --lbn_type identity --epochs 2 --mme_epochs 1",
    "twist-teacher": f"{TWIST} --aug multicrop --use_momentum_encoder 1 --momentum_start 0.9",
    "twist-self-label": f"{TWIST} --crops_interact_style self_label --mme_epochs 3 --quantile 0 --threshold 0.2",
    "twist-vit": f"{TWIST} --arch vit_t --width 1 --stem imagenet --size_crops 32 32 --img_size 32 --optim admw "
    "--freeze_embedding 1 --drop_path 0.1 --epochs 2 --mme_epochs 1 --max_steps 8",
    "intl": f"{INTL} --method intl",
    "intl_m": f"{INTL} --method intl_m --axis 1 --trade_off 0.02",
    "intl-three-views": f"{INTL} --method intl --nmb_crops 2 1 --crops_size 16 12 --no_add_bn",
    "intl-cifar": f"{INTL} --method intl --program intl_cifar",
    **{
        method: f"{INTL} --method {method} --num_samples 2"
        for method in ("cwrgp", "wmse", "pca", "bn", "plain", "contrastive", "byol", "simsiam")
    },
    "cwrgp-four-views": f"{INTL} --method cwrgp --num_samples 4 --program cwrgp_small --cov_w 0.01 --cov_stop 1 "
    "--w_iter 2 --lr_step cos --T0 1 --no_rg",
    **{
        method: f"{INTL} --method {method} --num_samples 2 --optimizer sgd"
        for method in ("barlowtwins", "vicreg", "zero_icl")
    },
    "moco": DISCO,
    "moco-v1": f"{DISCO.replace(' --aug_plus --mlp --cos', '')} --schedule 1 2 --momentum 0.8",
    "disco": DISTIL,
    "rkd": f"{DISTIL} --method rkd --use_mse --distill_norm ref32",
    "disco-maps": f"{DISTIL} --distill mse attention fitnet darkrank --teacher_mode eval --distill_weight 0.5",
    "seed": f"{DISTIL} --method seed",
    "swav-teacher": f"{SWAV} --teacher {{runs}}/moco/checkpoint.pth.tar --zero_init_residual true",
    "w2ssl": W2SSL,
    "w2ssl-quarters": f"{W2SSL} --grid 2x2 --flip none --optimizer adamw --independent_perm --accumulate 2",
    "swav-two": f"{TWO}{SWAV} --batch_size 8 --queue_length 32 --epoch_queue_starts 1 --sync_bn apex",
    "twist-two": f"{TWO}{TWIST} --batch-size 8 --aug multicrop",
    "intl-two": f"{TWO}{INTL} --method intl_m",
    "moco-two": f"{TWO}{DISCO}",
    "w2ssl-two": f"{TWO}{W2SSL}",
    "dino": f"main_dino.py {FOLDERS} {COMMON} --size_crops 16 12 --out_dim 16 --hidden_dim 16 --bottleneck_dim 8 "
    "--local_crops_number 2 --batch_size 16 --warmup_epochs 1",
}
JUDGE = f"{FOLDERS} --device cpu --workers 0 --crop_size 32 --resize 32 --dump_path {{runs}}/judged"
CHECKPOINT = "--pretrained {runs}/swav/checkpoint.pth.tar"
EVALUATIONS: dict[str, str] = {
    "knn": f"eval_knn.py {JUDGE}/knn {CHECKPOINT} --k 1 5",
    "knn-majority": f"eval_knn.py {JUDGE}/knn-majority {CHECKPOINT} --rule majority",
    **{
        f"linear-{protocol}": f"eval_linear.py {JUDGE}/linear-{protocol} {CHECKPOINT} --epochs 2 --protocol {protocol}"
        for protocol in ("auto", "barlow", "intl", "cwrgp", "small", "moco", "w2ssl")
    },
    "linear-kd": f"eval_linear.py {JUDGE}/linear-kd {CHECKPOINT} --epochs 2 --lr 0.1 1 --features augmented",
    "linear-lbfgs": f"eval_linear.py {JUDGE}/linear-lbfgs {CHECKPOINT} --optimizer lbfgs",
    **{
        f"semisup-{protocol}": f"eval_semisup.py {JUDGE}/semisup-{protocol} {CHECKPOINT} --epochs 2 --labels_perc 50 "
        f"--protocol {protocol}"
        for protocol in ("swav", "barlow", "intl", "moco")
    },
    "cluster": f"eval_cluster.py {JUDGE}/cluster {CHECKPOINT} --mosaic 0",
    "cluster-kmeans": f"eval_cluster.py {JUDGE}/cluster-kmeans {CHECKPOINT} --kmeans 4 --mosaic 0",
}


def chosen(names: list[str]) -> dict[str, str]:
    """The runs whose names start with one of ``names``, and the one that teaches the others."""
    wanted = {name: line for name, line in RUNS.items() if not names or name.startswith(tuple(names))}
    if any("{runs}/moco/" in line for line in wanted.values()):
        wanted = {"moco": RUNS["moco"], **wanted}
    return wanted


def record(tree: Path, out: Path, data: Path, names: list[str]) -> None:
    """Makes all runs with the code of ``tree``, below ``out``: whole ones, and ones that stop after seven steps."""
    sys.path[:0] = [str(tree)]
    import torch

    torch.set_num_threads(1)
    os.chdir(out)
    places = {"data": str(data), "runs": "whole"}
    for name, line in chosen(names).items():
        if not (tree / line.removeprefix(TWO).split()[0]).exists():
            continue  # a script that the older commit does not have
        start(tree, line.format(**places), f"whole/{name}")
        half = out / "half" / name
        if not half.exists():  # the first tree leaves them half done, the second one goes on
            start(tree, f"{line.format(**places)} --max_steps 7", f"half/{name}")
        else:
            start(tree, line.format(**places), f"half/{name}")
    if not names or "eval" in names:
        for line in EVALUATIONS.values():
            start(tree, line.format(**places), None)


def start(tree: Path, line: str, folder: str | None) -> None:
    """One command of ``tree``, in this process, or in two."""
    parallel = line.startswith(TWO)
    script, *arguments = line.removeprefix(TWO).split()
    if folder is not None:
        arguments += ["--dump_path", folder]
        if "--workers" not in arguments:
            arguments += ["--workers", "0"]
    print(f"$ {script} {' '.join(arguments)}", flush=True)
    if parallel:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
        subprocess.run([*launcher, tree / script, *arguments], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        return
    sys.argv = [script, *arguments]  # what the echo shows
    code = importlib.import_module(script.removesuffix(".py")).main(arguments)
    if code:
        raise SystemExit(f"exit code {code}: {line}")


def compare(old: Path, new: Path, names: list[str]) -> list[str]:
    """What differs between the runs below two folders, one line each; ``names`` as in :func:`chosen`."""
    problems = []
    for checkpoint in sorted(old.glob("whole/*/checkpoint.pth.tar")):
        name = checkpoint.parent.name
        if not (new / "whole" / name / "checkpoint.pth.tar").exists():
            if not names or name in chosen(names):
                problems.append(f"whole {name}: no checkpoint")
            continue
        expected = read(checkpoint)
        kept = read(new / "whole" / name / "checkpoint.pth.tar")["settings"].keys() & expected["settings"].keys()
        expected["settings"] = {setting: expected["settings"][setting] for setting in kept}
        for kind in ("whole", "half"):
            found = new / kind / name
            if not (found / "checkpoint.pth.tar").exists():
                problems.append(f"{kind} {name}: no checkpoint")
                continue
            problems += [f"{kind} {name}: {line}" for line in differences(expected, read(found / "checkpoint.pth.tar"))]
        problems += [
            f"whole {name}: {line}"
            for line in differences(log(checkpoint.parent), log(new / "whole" / name), "log.jsonl")
        ]
    results = sorted(old.glob("whole/judged/**/*.json")) if not names or "eval" in names else []
    for result in results:
        if result.name == "settings.json":
            continue
        found = new / result.relative_to(old)
        if not found.exists():
            problems.append(f"{found} is missing")
            continue
        before, after = json.loads(result.read_text()), json.loads(found.read_text())
        problems += [f"{result.relative_to(old)}: {line}" for line in differences(before, after)]
    return problems


def read(checkpoint: Path) -> dict[str, Any]:
    import torch

    content: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    del content["settings"]["dump_path"]  # each run has its own
    content.pop("checksum", None)  # of the rest, the path included
    return content


def log(folder: Path) -> list[dict[str, Any]]:
    records = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [
        {RENAMED.get((record["kind"], name), name): value for name, value in record.items() if name not in TIMINGS}
        for record in records
    ]


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """Where two nested values differ; entries that only the new one has are allowed in dicts."""
    import torch

    if isinstance(old, torch.Tensor):
        same = isinstance(new, torch.Tensor) and old.dtype == new.dtype and torch.equal(old, new)
        return [] if same or _both_nan(old, new) else [f"{where} differs"]
    if isinstance(old, dict) and isinstance(new, dict):
        missing = [f"{where}.{key} is missing" for key in old if key not in new]
        shared = [key for key in old if key in new]
        return missing + [line for key in shared for line in differences(old[key], new[key], f"{where}.{key}")]
    if isinstance(old, (list, tuple)) and isinstance(new, (list, tuple)):
        if len(old) != len(new):
            return [f"{where} has {len(new)} entries, not {len(old)}"]
        return [line for i in range(len(old)) for line in differences(old[i], new[i], f"{where}[{i}]")]
    return [] if old == new or (old != old and new != new) else [f"{where}: {old!r} became {new!r}"]


def _both_nan(old: Any, new: Any) -> bool:
    import torch

    return (
        isinstance(new, torch.Tensor)
        and old.shape == new.shape
        and torch.equal(old.isnan(), new.isnan())
        and (torch.equal(old.nan_to_num(), new.nan_to_num()))
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rev", help="the commit to compare with")
    parser.add_argument("--only", nargs="*", default=[], help="runs whose names start so; `eval` for the evaluations")
    parser.add_argument("--keep", type=Path, help="keep everything in this folder; what REV did there is used again")
    parser.add_argument("--record", nargs=3, type=Path, help=argparse.SUPPRESS)  # tree, out, data: used by itself
    args = parser.parse_args()
    if args.record:
        try:
            record(*args.record, args.only)
        except BaseException:
            traceback.print_exc()
            return 1
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        place = (args.keep or Path(temporary)).resolve()
        place.mkdir(parents=True, exist_ok=True)
        old, new, data = place / "old", place / "new", place / "data"
        if not (old / "done").exists():
            shutil.rmtree(old, ignore_errors=True)
            old.mkdir()
            make_data(data)
            tree = place / "tree"
            subprocess.run(["git", "worktree", "add", "--force", "--detach", tree, args.rev], cwd=ROOT, check=True)
            try:
                run(tree, old, data, args.only)
            finally:
                subprocess.run(["git", "worktree", "remove", "--force", tree], cwd=ROOT, check=True)
            (old / "done").touch()
        shutil.rmtree(new, ignore_errors=True)
        shutil.copytree(old / "half", new / "half")
        run(ROOT, new, data, args.only)
        problems = compare(old, new, args.only)
        for line in problems:
            print(f"DIFFERENT  {line}")
        count = len(list(new.glob("whole/*/checkpoint.pth.tar")))
        print(f"{count} runs, each in one go and resumed from {args.rev}: {len(problems)} differences")
        return 1 if problems else 0


def make_data(data: Path) -> None:
    sys.path[:0] = [str(ROOT)]
    from tests.helpers import photograph_patches

    photograph_patches(data)


def run(tree: Path, out: Path, data: Path, names: list[str]) -> None:
    command = [sys.executable, Path(__file__), "-", "--record", tree, out, data]
    with open(out / "output.txt", "w") as output:
        code = subprocess.run(
            [*command, *(["--only", *names] if names else [])], stdout=output, stderr=output
        ).returncode
    if code:
        raise SystemExit((out / "output.txt").read_text()[-3000:] + f"\nthe runs of {tree} failed")


if __name__ == "__main__":
    sys.exit(main())

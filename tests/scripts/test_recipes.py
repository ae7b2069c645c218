"""Each sbatch recipe against the published table: resources, flags, and that the script accepts them."""

import os
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import eval_linear
import eval_semisup
import main_disco
import main_intl
import main_swav
import main_twist
import main_w2ssl
from src.evaluation.protocols import LINEAR, SEMISUP
from tests.built import built, judged, resolved
from tests.helpers import ROOT

import pytest

SCRIPTS = ROOT / "scripts"

# The published table of resources: nodes, GPUs a node, CPUs a GPU, memory, hours.
RESOURCES = {
    "swav_100ep_pretrain": (8, 8, 8, "450G", 7),
    "swav_200ep_pretrain": (8, 8, 8, "450G", 13),
    "swav_400ep_pretrain": (8, 8, 8, "450G", 25),
    "swav_800ep_pretrain": (8, 8, 8, "450G", 50),
    "swav_400ep_2x224_pretrain": (8, 8, 8, "450G", 25),
    "swav_200ep_bs256_pretrain": (1, 4, 4, "150G", 72),
    "swav_400ep_bs256_pretrain": (1, 4, 4, "150G", 72),
    "swav_RN50w2_400ep_pretrain": (16, 8, 10, "450G", 72),
    "swav_RN50w4_400ep_pretrain": (8, 8, 10, "450G", 72),
    "swav_RN50w5_400ep_pretrain": (16, 8, 10, "450G", 72),  # from the paper; its resources are w2's
    "deepclusterv2_400ep_pretrain": (8, 8, 8, "450G", 25),
    "deepclusterv2_400ep_2x224_pretrain": (8, 8, 8, "450G", 25),
    "deepclusterv2_800ep_pretrain": (8, 8, 8, "450G", 40),
    "selav2_400ep_pretrain": (8, 8, 8, "450G", 25),  # as DeepCluster-v2's
    "selav2_400ep_2x224_pretrain": (8, 8, 8, "450G", 25),
}
# ... and of flags, as far as they differ from the first row.
COMMON = {
    "nmb_crops": [2, 6], "size_crops": [224, 96], "min_scale_crops": [0.14, 0.05], "max_scale_crops": [1.0, 0.14],
    "crops_for_assign": [0, 1], "temperature": 0.1, "epsilon": 0.05, "sinkhorn_iterations": 3, "feat_dim": 128,
    "nmb_prototypes": [3000], "wd": 1e-6, "use_fp16": True, "workers": 10, "checkpoint_freq": 25, "seed": 31,
    "syncbn_process_group_size": 8, "epochs": 100, "batch_size": 64, "base_lr": 4.8, "final_lr": 0.0048,
    "warmup_epochs": 10, "start_warmup": 0.3, "freeze_prototypes_niters": 313, "queue_length": 0,
    "epoch_queue_starts": 15, "arch": "resnet50", "hidden_mlp": 2048, "head_bn": True, "sync_bn": "apex",
}  # fmt: skip
SMALL_BATCH = {
    "base_lr": 0.6, "final_lr": 0.0006, "warmup_epochs": 0, "start_warmup": 0.0, "freeze_prototypes_niters": 5005,
    "queue_length": 3840, "epoch_queue_starts": 15, "sync_bn": "pytorch",
}  # fmt: skip
CLUSTERS = {
    "method": "deepcluster-v2", "nmb_prototypes": [3000, 3000, 3000], "freeze_prototypes_niters": 300000,
    "precision": "fp32",
}  # fmt: skip
TWO_VIEWS = {"nmb_crops": [2], "size_crops": [224], "min_scale_crops": [0.08], "max_scale_crops": [1.0]}
SMALLER = {"nmb_crops": [2, 4], "size_crops": [160, 96], "min_scale_crops": [0.08, 0.05]}
SELA = {**CLUSTERS, "method": "sela-v2", "freeze_prototypes_niters": 313}
CIFAR = {
    **TWO_VIEWS, "size_crops": [32], "min_scale_crops": [0.2], "jitter_strength": 0.5, "blur": 0.0, "arch": "resnet18",
    "stem": "small", "dataset": "cifar10", "nmb_prototypes": [100], "batch_size": 256, "base_lr": 0.6,
    "final_lr": 0.0006, "warmup_epochs": 0, "start_warmup": 0.0, "epochs": 200, "sync_bn": "pytorch",
}  # fmt: skip
FLAGS = {
    "swav_100ep_pretrain": {},
    "swav_200ep_pretrain": {"epochs": 200},
    "swav_400ep_pretrain": {"epochs": 400},
    "swav_800ep_pretrain": {"epochs": 800},
    "swav_400ep_2x224_pretrain": {"epochs": 400, **TWO_VIEWS},
    "deepclusterv2_400ep_pretrain": {"epochs": 400, **CLUSTERS, **SMALLER},
    "deepclusterv2_400ep_2x224_pretrain": {"epochs": 400, **CLUSTERS, **TWO_VIEWS},
    "deepclusterv2_800ep_pretrain": {"epochs": 800, **CLUSTERS},
    "selav2_400ep_pretrain": {"epochs": 400, **SELA, **SMALLER},
    "selav2_400ep_2x224_pretrain": {"epochs": 400, **SELA, **TWO_VIEWS},
    "swav_200ep_bs256_pretrain": {"epochs": 200, **SMALL_BATCH},
    "swav_400ep_bs256_pretrain": {"epochs": 400, **SMALL_BATCH},
    "swav_400ep_single_node": {"epochs": 400, **SMALL_BATCH, "batch_size": 32},
    **{
        name: {"epochs": 200, **SMALL_BATCH, "arch": "efficientb0", "teacher": teacher, "distill_weight": 0.5}
        for name, teacher in (("disco_swav", "/path/to/swav_800ep_pretrain.pth.tar"), ("disco_swav_baseline", ""))
    },
    "swav_200ep_single_gpu": {"epochs": 200, **SMALL_BATCH, "batch_size": 256, "sync_bn": "none"},
    "swav_cifar10": CIFAR,
    "deepclusterv2_cifar10": {**CIFAR, **CLUSTERS, "nmb_prototypes": [100] * 3, "freeze_prototypes_niters": int(1e10)},
    "selav2_cifar10": {**CIFAR, "method": "sela-v2", "nmb_prototypes": [100] * 3, "precision": "fp32"},
    "swav_RN50w2_400ep_pretrain": {
        "epochs": 400, "nmb_crops": [2, 4], "batch_size": 32, "arch": "resnet50w2", "hidden_mlp": 8192,
    },
    "swav_RN50w4_400ep_pretrain": {
        "epochs": 400, "nmb_crops": [2, 4], "min_scale_crops": [0.08, 0.08], "batch_size": 40, "arch": "resnet50w4",
        "hidden_mlp": 8192, "queue_length": 2560, "epoch_queue_starts": 0,
    },
    "swav_RN50w5_400ep_pretrain": {
        "epochs": 400, "nmb_crops": [2, 4], "batch_size": 12, "arch": "resnet50w5", "hidden_mlp": 10240,
        "head_bn": False, "queue_length": 1536, "epoch_queue_starts": 0,
    },
}  # fmt: skip
# TWIST's published table (as far as it differs from the flags' defaults, which are the first column of it but one) ...
TWIST = {
    "arch": "resnet50", "dim": 4096, "hid_dim": 4096, "aug": "multicrop", "local_crops_number": 12, "epochs": 850,
    "mme_epochs": 800, "optim": "lars", "lr": 0.5, "lr_sl": 0.05, "weight_decay": 1.5e-6, "weight_decay_end": 1.5e-6,
    "lam1": 0.0, "lam2": 1.0, "tau": 1.0, "EPS": 1e-5, "act": "relu", "drop_path": 0.0, "clip_norm": 0.0,
    "use_momentum_encoder": False, "batch_size": 128, "bunch_size": 256, "warmup_epochs": 10, "sl_warmup_epochs": 5,
    "lr_wbr": 1.0, "quantile": 0.5, "quantile_end": 0.6, "min1": 0.4, "max1": 1.0, "min2": 0.05, "max2": 0.4,
    "size_crops": [224, 96], "proj_norm": "bn", "lbn_type": "bn", "seed": 0, "std": [0.229, 0.224, 0.225],
}  # fmt: skip
VIT = {
    "optim": "admw", "lam1": -0.6, "lam2": 1.0, "clip_norm": 3.0, "use_momentum_encoder": True, "momentum_start": 0.996,
    "momentum_end": 1.0, "epochs": 300, "mme_epochs": 300, "weight_decay": 0.06, "weight_decay_end": 0.06,
    "local_crops_number": 6,
}  # fmt: skip
TWO = {"dim": 32768, "aug": "barlow", "local_crops_number": 0, "epochs": 800, "batch_size": 256}
# ... name: nodes of 8 GPUs, global batch, processes a bunch, flags
TWIST_RECIPES = {
    "twist_resnet50_2views": (1, 2048, 1, TWO),
    "twist_resnet50_multicrop": (2, 2048, 2, {}),
    "twist_resnet50w2": (
        4, 1920, 4, {"arch": "resnet50w2", "batch_size": 60, "bunch_size": 240, "epochs": 250, "mme_epochs": 200},
    ),
    "twist_deit_s": (
        2, 1024, 4, {**VIT, "arch": "vit_s", "batch_size": 64, "lr": 3e-4, "weight_decay_end": 0.12, "act": "gelu"},
    ),
    "twist_vit_b": (
        4, 1024, 8,
        {**VIT, "arch": "vit_b", "batch_size": 32, "lr": 7.5e-4, "act": "gelu", "drop_path": 0.1,
         "local_crops_number": 10},
    ),
    "twist_deit_s_first_release": (2, 2048, 2, {**VIT, "arch": "vit_s", "batch_size": 128, "lr": 5e-4}),
    "twist_vit_b_first_release": (4, 2048, 4, {**VIT, "arch": "vit_b", "batch_size": 64, "lr": 7.5e-4}),
    "twist_unsupervised_classification": (1, 2048, 1, {**TWO, "dim": 1000}),
}  # fmt: skip

# INTL's and CW-RGP's published tables: GPUs, flags
INTL_R50 = {
    "arch": "resnet50", "bs": 256, "wd": 1e-5, "iters": 4, "axis": 0, "head_layers": 3, "head_size": 8192, "emb": 8192,
    "warmup_eps": 2, "trade_off": pytest.approx(0.05), "optimizer": "sgd", "zero_init_residual": True,
    "std": [0.229, 0.224, 0.225], "precision": "auto",
}  # fmt: skip
EMA = {
    **INTL_R50, "method": "intl_m", "m": 0.996, "nmb_crops": [2, 1, 1, 1, 1], "crops_size": [224, 192, 160, 128, 96],
    "min_scale_crops": [0.2, 0.171, 0.143, 0.114, 0.086], "max_scale_crops": [1.0, 0.857, 0.714, 0.571, 0.429],
    "gaussian_prob": [0.5] * 5, "solarization_prob": [0.1] * 5,
}  # fmt: skip
PLAIN = {
    **INTL_R50, "method": "intl", "nmb_crops": [1, 1], "crops_size": [224, 224], "min_scale_crops": [0.08, 0.08],
    "max_scale_crops": [1.0, 1.0], "gaussian_prob": [1.0, 0.1], "solarization_prob": [0.0, 0.2],
}  # fmt: skip
INTL_SMALL = {
    "method": "intl", "arch": "resnet18", "stem": "small", "epochs": 1000, "lr": 0.3, "wd": 1e-4, "bs": 256,
    "head_size": 2048, "emb": 2048, "head_layers": 3, "trade_off": pytest.approx(0.05), "crops_size": [32, 32],
    "gaussian_prob": [0.0, 0.0], "solarization_prob": [0.0, 0.2], "zero_init_residual": False, "precision": "fp32",
}  # fmt: skip


def cwrgp(views, dataset, epochs, lr, bs, w_size, group, w_iter, emb, head):
    stem = "small" if dataset.startswith("cifar") else "small_pool"
    return 1, {
        "method": "cwrgp", "dataset": dataset, "epochs": epochs, "lr": lr, "num_samples": views, "bs": bs, "stem": stem,
        "w_size": w_size, "group": group, "w_iter": w_iter, "emb": emb, "head_size": head, "head_layers": 2, "axis": 0,
        "wd": 1e-6, "optimizer": "adam", "warmup_iters": 500, "drop": [50, 25], "drop_gamma": 0.2, "gs_p": 0.1,
        "cj2": 0.4, "crop_s0": 0.2, "w_eps": 0.0, "minus": 1, "zero_init_residual": True, "precision": "fp32",
        "crop_size": 32 if dataset.startswith("cifar") else 64,
    }  # fmt: skip


CWRGP_R50 = {
    "method": "cwrgp", "arch": "resnet50", "bs": 512, "lr": 0.05, "wd": 1e-4, "num_samples": 4, "w_size": 128,
    "group": 2, "emb": 1024, "head_layers": 3, "head_size": 2048, "optimizer": "sgd", "gs_p": 0.2, "cj2": 0.4,
    "warmup_iters": 500,
}  # fmt: skip
INTL_RECIPES = {
    "intl_ep100_multi-crop_ema": (8, {**EMA, "epochs": 100, "lr": 0.5}),
    "intl_ep200_multi-crop_ema": (8, {**EMA, "epochs": 200, "lr": 0.4}),
    "intl_ep400_multi-crop_ema": (8, {**EMA, "epochs": 400, "lr": 0.4}),
    "intl_ep800_multi-crop_ema": (8, {**EMA, "epochs": 800, "lr": 0.3}),
    "intl_ep800": (8, {**PLAIN, "epochs": 800, "lr": 0.3}),
    "intl_in100": (
        4,
        {**PLAIN, "arch": "resnet18", "epochs": 400, "lr": 0.5, "bs": 128, "wd": 2.5e-5, "head_size": 4096,
         "trade_off": pytest.approx(0.04), "zero_init_residual": False},
    ),
    "intl_cifar10": (1, {**INTL_SMALL, "mean": [0.4914, 0.4822, 0.4465], "std": [0.2470, 0.2435, 0.2616]}),
    "intl_cifar100": (1, {**INTL_SMALL, "mean": [0.5071, 0.4865, 0.4409], "std": [0.2673, 0.2564, 0.2762]}),
    "cwrgp4_cifar10": cwrgp(4, "cifar10", 1000, 3e-3, 256, 64, 4, 1, 512, 1024),
    "cwrgp4_cifar100": cwrgp(4, "cifar100", 1000, 3e-3, 256, 64, 4, 1, 512, 1024),
    "cwrgp4_stl10": cwrgp(4, "stl10", 2000, 2e-3, 256, 64, 4, 1, 512, 1024),
    "cwrgp4_tiny_in": cwrgp(4, "tiny_in", 1000, 2e-3, 256, 128, 2, 1, 1024, 2048),
    "cwrgp2_cifar10": cwrgp(2, "cifar10", 1000, 3e-3, 256, 64, 4, 4, 512, 1024),
    "cwrgp2_cifar100": cwrgp(2, "cifar100", 1000, 3e-3, 512, 64, 4, 1, 512, 1024),
    "cwrgp2_stl10": cwrgp(2, "stl10", 2000, 2e-3, 512, 64, 4, 1, 512, 1024),
    "cwrgp2_tiny_in": cwrgp(2, "tiny_in", 1000, 2e-3, 512, 128, 2, 1, 1024, 2048),
    "cwrgp_imagenet_ep100": (4, {**CWRGP_R50, "epochs": 100, "cov_w": 0.005, "cov_stop": 50}),
    "cwrgp_imagenet_ep200": (4, {**CWRGP_R50, "epochs": 200, "cov_w": 0.01, "cov_stop": 100}),
}  # fmt: skip

# Evaluations: what they resolve to on 8 processes.
JUDGES = {
    "twist_eval_linear_resnet50": (
        eval_linear, LINEAR,
        {"protocol": "barlow", "lr": [0.2], "lr_factor": 1, "wd": 0, "batch_size": 128, "scheduler_type": "cosine"},
    ),
    **{
        f"twist_eval_linear_{name}": (
            eval_linear, LINEAR,
            {"protocol": "vit", "lr": [rate], "lr_factor": 4, "wd": 0, "batch_size": 128, "n_last_blocks": 4},
        )
        for name, rate in (("deit_s", 0.02), ("vit_b", 0.0015))
    },
    **{
        f"intl_eval_semisup_{percent}percent": (
            eval_semisup, SEMISUP,
            {"protocol": "intl", "lr": [0.2], "lr_backbone": 0.004, "labels_perc": percent, "epochs": 20,
             "batch_size": 32, "decay_epochs": [60, 80]},
        )
        for percent in (1, 10)
    },
    "twist_eval_semisup_1percent": (
        eval_semisup, SEMISUP,
        {"protocol": "barlow", "lr": [0.2], "lr_backbone": 0.04, "labels_perc": 1, "epochs": 20, "batch_size": 32},
    ),
    "twist_eval_semisup_10percent": (
        eval_semisup, SEMISUP, {"protocol": "barlow", "lr": [0.2], "lr_backbone": 0.02, "labels_perc": 10, "wd": 0},
    ),
    "twist_eval_semisup_100percent": (
        eval_semisup, SEMISUP,
        {"protocol": "barlow", "lr": [0.2], "lr_backbone": 0.01, "labels_perc": 100, "epochs": 30},
    ),
    "w2ssl_eval_linear": (
        eval_linear, LINEAR,
        {"protocol": "w2ssl", "lr": [0.1], "lr_factor": 1.0, "batch_size": 32, "epochs": 100, "wd": 0.0,
         "scheduler_type": "cosine"},
    ),
    **{
        f"disco_eval_{name}": (module, table, {"protocol": protocol, "lr": [3.0], **rest})
        for name, module, table, protocol, rest in (
            ("linear", eval_linear, LINEAR, "moco", {"epochs": 100, "gamma": 0.5, "batch_size": 32, "wd": 0.0}),
            ("semisup", eval_semisup, SEMISUP, "moco", {"epochs": 100, "weights": "freeze", "decay_epochs": [60, 80]}),
            ("cifar", eval_linear, LINEAR, "cifar", {"epochs": 200, "bicubic": True, "decay_epochs": []}),
        )
    },
    "eval_linear": (
        eval_linear, LINEAR, {"protocol": "swav", "lr": [0.3], "batch_size": 32, "epochs": 100, "wd": 1e-6},
    ),
    "swav_eval_semisup_1percent": (
        eval_semisup, SEMISUP, {"protocol": "swav", "lr": [5.0], "lr_backbone": 0.02, "labels_perc": 1, "epochs": 20},
    ),
    "swav_eval_semisup_10percent": (
        eval_semisup, SEMISUP, {"protocol": "swav", "lr": [0.2], "lr_backbone": 0.01, "labels_perc": 10, "epochs": 20},
    ),
}  # fmt: skip


MOCO_V2 = {
    "mlp": True, "moco_t": 0.2, "aug_plus": True, "cos": True, "batch_size": 256, "lr": 0.03, "moco_k": 65536,
    "moco_m": 0.999, "wd": 1e-4, "momentum": 0.9, "moco_dim": 128, "crop_size": 224, "epochs": 200, "bn_parts": 1,
    "precision": "fp32",
}  # fmt: skip
DISTILLED = {
    "method": "disco", "hidden": 2048, "arch": "efficientb0", "distill": ["mse"], "distill_norm": "sum",
    "distill_weight": 1.0, "teacher": "/path/to/moco_resnet50.pth.tar", "zero_init_residual": False,
}  # fmt: skip
MOCO_RECIPES = {
    **{
        f"moco_{arch}": {"method": "moco", "arch": arch, "hidden": hidden, "epochs": epochs, "zero_init_residual": True}
        for arch, hidden, epochs in (
            ("resnet50", 2048, 200), ("resnet101", 2048, 200), ("resnet152", 2048, 800), ("mobilenetv3", 512, 200),
            ("efficientb0", 1280, 200), ("efficientb1", 1280, 200), ("resnet18", 1280, 200), ("resnet34", 1280, 200),
        )
    },
    "disco_pretrain": DISTILLED,
    "disco_hidden2048": DISTILLED,
    "disco_rkd": {**DISTILLED, "method": "rkd", "distill": ["rkd_distance", "rkd_angle"]},
    "disco_rkd_mse": {**DISTILLED, "method": "rkd", "distill": ["rkd_distance", "rkd_angle", "mse"]},
    "disco_teacher_swav": {**DISTILLED, "arch": "resnet34", "teacher": "/path/to/swav_800ep_pretrain.pth.tar"},
    "disco_seed": {"method": "seed", "arch": "efficientb0", "hidden": -1, "teacher_temperature": 1e-4},
}  # fmt: skip

W2SSL_RECIPES = {
    name: {
        "batch_size": batch, "epochs": 200, "loss_crop": 1.0, "moco_m_cos": True, "crop_min": 0.2, "lr": 0.6,
        "wd": 1e-6,
        "warmup_epochs": warmup, "optimizer": "lars", "moco_m": 0.99, "grid": grid, "flip": "patch", "loss_loc": 1.0,
    }
    for name, batch, grid, warmup in (
        ("w2ssl_bs256", 512, "1x2", 10), ("w2ssl_bs1024", 2048, "1x2", 10), ("w2ssl_2x2", 256, "2x2", 0),
    )
}  # fmt: skip


def directives(path: Path) -> dict[str, str]:
    """``{"nodes": "8", "requeue": "", ...}`` of the #SBATCH lines."""
    lines = path.read_text().splitlines()
    assert lines[0].startswith("#!")  # sbatch refuses anything else
    found = re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", path.read_text(), re.MULTILINE)
    assert len(found) == sum("SBATCH" in line for line in lines)
    return dict(found)


def command_of(name: str, *extra: str) -> list[str]:
    environ = {**os.environ, "DRY_RUN": "1", "DATASET_PATH": "/data", "EXPERIMENT_PATH": "/out"}
    result = subprocess.run(
        ["bash", f"scripts/{name}.sh", *extra], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=30
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def test_every_recipe_is_checked():
    assert {path.stem for path in SCRIPTS.glob("*.sh")} - {"launch", "small", "study"} == {
        *FLAGS,
        *TWIST_RECIPES,
        *INTL_RECIPES,
        *MOCO_RECIPES,
        *W2SSL_RECIPES,
        *JUDGES,
    }


@pytest.mark.parametrize("name", RESOURCES)
def test_resources_are_the_published_ones(name):
    nodes, gpus, cpus, memory, hours = RESOURCES[name]
    found = directives(SCRIPTS / f"{name}.sh")
    assert found == {
        "job-name": name,
        "nodes": str(nodes),
        "gpus-per-node": str(gpus),
        "ntasks-per-node": "1",  # torchrun, which starts a process for each GPU
        "cpus-per-task": str(gpus * cpus),
        "mem": memory,
        "time": f"{hours}:00:00",
        "requeue": "",
        "signal": "USR1@120",
        "open-mode": "append",
        "output": "%x-%j.log",
    }


@pytest.mark.parametrize("name", FLAGS)
def test_flags_are_the_published_ones(name):
    script, *flags = command_of(name)
    assert script == "main_swav.py"
    processes = RESOURCES[name][0] * RESOURCES[name][1] if name in RESOURCES else 1
    args = resolved(main_swav, flags, processes)
    expected = {**COMMON, **FLAGS[name]}
    assert {flag: getattr(args, flag) for flag in expected} == expected
    assert (args.data_path, args.dump_path) == ("/data", "/out")
    if name in RESOURCES:
        nodes, gpus, *_ = RESOURCES[name]
        total = nodes * gpus * args.batch_size
        assert total == {"bs256": 256, "w4": 2560, "w5": 1536}.get(
            next((key for key in ("bs256", "w4", "w5") if key in name), ""), 4096
        )
        assert args.queue_length % total == 0


@pytest.mark.parametrize("name", TWIST_RECIPES)
def test_twists_recipes_are_the_published_ones(name):
    nodes, batch, ranks_a_bunch, flags = TWIST_RECIPES[name]
    script, *words = command_of(name)
    assert script == "main_twist.py"
    run = built(main_twist, words, processes=8 * nodes)
    args = SimpleNamespace(**run.values)
    expected = {**TWIST, **flags}
    assert {flag: getattr(args, flag) for flag in expected} == expected
    found = directives(SCRIPTS / f"{name}.sh")
    assert (found["job-name"], found["nodes"], found["gpus-per-node"]) == (name, str(nodes), "8")
    assert args.batch_size * 8 * nodes == batch
    assert run.run.settings.model.ranks_of_a_bunch(args.batch_size, 8 * nodes) == ranks_a_bunch
    assert [view.size for view in run.views] == [224, 224] + [96] * args.local_crops_number


@pytest.mark.parametrize("name", INTL_RECIPES)
def test_intls_and_cwrgps_recipes_are_the_published_ones(name):
    gpus, expected = INTL_RECIPES[name]
    script, *words = command_of(name)
    assert script == "main_intl.py"
    args = resolved(main_intl, words, processes=gpus)
    assert {flag: getattr(args, flag) for flag in expected} == expected
    found = directives(SCRIPTS / f"{name}.sh")
    assert (found["job-name"], found["nodes"], found["gpus-per-node"]) == (name, "1", str(gpus))


@pytest.mark.parametrize("name", MOCO_RECIPES)
def test_mocos_and_discos_recipes_are_the_published_ones(name):
    script, *words = command_of(name)
    assert script == "main_disco.py"
    args = resolved(main_disco, words, processes=8)
    expected = {**MOCO_V2, **MOCO_RECIPES[name]}
    assert {flag: getattr(args, flag) for flag in expected} == expected
    found = directives(SCRIPTS / f"{name}.sh")
    assert (found["job-name"], found["nodes"], found["gpus-per-node"]) == (name, "1", "8")


@pytest.mark.parametrize(("name", "gpus"), list(zip(W2SSL_RECIPES, (4, 8, 2), strict=True)))
def test_w2ssls_recipes_are_the_published_ones(name, gpus):
    script, *words = command_of(name)
    assert script == "main_w2ssl.py"
    args = resolved(main_w2ssl, words, processes=gpus)
    assert {flag: getattr(args, flag) for flag in W2SSL_RECIPES[name]} == W2SSL_RECIPES[name]
    found = directives(SCRIPTS / f"{name}.sh")
    assert (found["job-name"], found["nodes"], found["gpus-per-node"]) == (name, "1", str(gpus))


@pytest.mark.parametrize("name", JUDGES)
def test_evaluations_are_the_published_ones(name):
    module, table, expected = JUDGES[name]
    script, *flags = command_of(name)
    assert script == f"{module.__name__}.py"
    args = judged(module, table, flags, "swav", processes=8)
    assert {flag: getattr(args, flag) for flag in expected} == expected
    assert (args.data_path, args.dump_path) == ("/data", "/out")
    found = directives(SCRIPTS / f"{name}.sh")
    assert (found["job-name"], found["nodes"], found["gpus-per-node"]) == (name, "1", "8")


def test_recipes_run_with_the_published_ranks_on_any_number_of_gpus():
    """Each process plays its share of them; the batch of a step stays."""
    for path in sorted(SCRIPTS.glob("*.sh")):
        resources = dict(re.findall(r"#SBATCH --(nodes|gpus-per-node)=(\d+)", path.read_text()))
        ranks = int(resources.get("nodes", 1)) * int(resources.get("gpus-per-node", 1))
        if ranks == 1 or "launch.sh main_" not in path.read_text():
            continue
        command = command_of(path.stem)
        assert command[command.index("--ranks") :][:4] == ["--ranks", str(ranks), "--virtual_ranks", "auto"], path
    name = "swav_400ep_pretrain"
    for processes, played in ((64, 1), (8, 8), (1, 64)):
        found = built(main_swav, command_of(name)[1:], processes)
        assert found.training["virtual_ranks"] == played
        assert (found.run.step_batch, found.run.batch_size, found.run.clock.steps_per_epoch) == (4096, 64, 312)


def test_flags_can_be_added_and_overridden():
    flags = command_of("swav_100ep_pretrain", "--epochs", "30", "--compile")
    args = resolved(main_swav, flags[1:])
    assert (args.epochs, args.compile) == (30, True)

"""Every flag of every script reaches what it names: changed alone, it changes something that is built."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import main_cwrgp
import main_dino
import main_disco
import main_intl
import main_swav
import main_twist
import main_w2ssl
from src.errors import UserError
from src.models.backbones import vit
from src.pretraining import Pretraining
from src.settings import Leaf, flat, leaves
from tests.built import Built, FakeImages, FakeTeacher, built

import numpy as np
import pytest
import torch
from torch import Tensor, nn

IMAGES = FakeImages(64, 4)
TINY = "--data_path /x --arch resnet18 --width 0.0625 --stem small --epochs 20 --knn_freq 1 --knn_k 3"
SWAV = f"{TINY} --size_crops 16 --nmb_prototypes 4 --hidden_mlp 8 --feat_dim 4 --batch_size 4 --warmup_epochs 2"
TWIST = f"{TINY} --size_crops 16 12 --img_size 16 --dim 4 --hid_dim 8 --batch_size 4 --bunch_size 4 --mme_epochs 12"
JOINT = f"{TINY} --head_size 8 --emb 48 --bs 16"
DISCO = f"{TINY} --crop_size 16 --moco_k 16 --moco_dim 128 --hidden 8 --batch_size 4"
DINO = "--size_crops 16 12 --img_size 16 --out_dim 8 --hidden_dim 8 --bottleneck_dim 4 --batch_size 4"
W2SSL = f"{TINY} --crop_size 16 --crop_proj_dim 4 --moco_mlp_dim 8 --batch_size 4 --warmup_epochs 2"
CWRGP = f"{JOINT} --crop_size 16 --w_size 8 --num_samples 2 --warmup_iters 4"
# Processes, and the lines that flags are added to; a flag must change what at least one of them builds.
LINES: dict[types.ModuleType, tuple[int, list[str]]] = {
    main_swav: (1, [
        SWAV,
        f"{SWAV} --queue_length 8 --sync_bn apex",
        *(f"{SWAV} --nmb_prototypes 4 4 --method {method}" for method in ("deepcluster-v2", "sela-v2")),
        f"{SWAV} --feat_dim 128 --teacher /t",
    ]),
    main_twist: (2, [
        TWIST,
        f"{TWIST} --lbn_type syncbn",
        f"{TWIST} --mme_epochs 20",
        f"{TWIST} --use_momentum_encoder 1",
        f"{TWIST} --aug barlow",
        f"{TWIST} --arch vit_t --width 1 --stem imagenet --size_crops 32 32",
    ]),
    main_intl: (1, [f"{JOINT} --crops_size 16 16", f"{JOINT} --crops_size 16 16 --method intl_m"]),
    main_cwrgp: (1, [
        *(f"{CWRGP} --method {method}" for method in ("cwrgp", "contrastive", "byol", "barlowtwins", "vicreg")),
        f"{CWRGP} --w_eps 0.1",
        *(f"{CWRGP} --program cwrgp_small --drop 3 2 --lr_step {course}" for course in ("step", "cos")),
        f"{CWRGP} --program cwrgp_small --lr_step cos --T0 3",
    ]),
    main_disco: (1, [DISCO, f"{DISCO} --mlp", f"{DISCO} --teacher /t", f"{DISCO} --teacher /t --method seed"]),
    main_w2ssl: (1, [W2SSL]),
    main_dino: (1, [
        f"{TINY} {DINO}",
        f"{TINY} {DINO} --aug barlow",
        f"{TINY} {DINO} --arch vit_t --width 1 --stem imagenet --size_crops 32 32",
    ]),
}  # fmt: skip
# Those that say only where, how often or under which name, and what answers for them
ELSEWHERE = {
    "resume": "tests/checkpoints",
    "ranks": "tests/scripts/test_bad_input.py and test_recipes.py; refused with other numbers of processes",
    "env_name": "shown only",
    **dict.fromkeys(("init", "init_key"), "tests/scripts/test_init.py; reads a file"),
    "scores_images": "tests/evaluation/test_scores.py; of --scores_freq",
    "layer_decay": "tests/scripts/test_init.py; refused without layers",
    "dry_run": "tests/engine/test_footprint.py",
    **dict.fromkeys(("track", "project", "tensorboard", "wandb"), "tests/engine/test_tracking.py"),
    "shuffle_window": "tests/data/test_remote_shards.py; of shards",
    "shard": "tests/parallel/test_sharding.py; refused without processes",
}
# They matter, but not every value does: epochs beyond the end, bounds that are not reached
DEPENDS_ON_VALUE = ("program", "drop", "drop_gamma", "mme_epochs", "knn_train_images", "T0", "Tmult")
# Scripts whose published programs have no mixed precision, so that --use_fp16 asks for what they do anyway
ALWAYS_FP32 = (main_cwrgp, main_disco)
# Values of flags whose type tells none, or few that fit the lines
VALUES = {
    "accept_changes": ["lr"], "value_range": ["0 9"], "channels": ["1"], "extensions": [".gif"],
    "T0": ["3"], "arch": ["resnet34"], "batch_size": ["8"], "bn_parts": ["2"], "bs": ["32"], "bunch_size": ["8"],
    "crops_for_assign": ["1 0"], "data_path": ["/y"], "device": ["cuda"], "dim": ["5"], "dist_url": ["tcp://localhost:1"],
    "distill": ["darkrank"], "dump_path": ["/z"], "emb": ["64"], "eval_resize": ["40"], "eval_size": ["12"],
    "group": ["2"], "hidden": ["-1"], "index_cache": ["/i"],
    "knn_k": ["4"], "knn_train_images": ["16"], "max2": ["0.3"], "max_steps": ["7"],
    "min1": ["0.5"], "more_data": ["/m"], "path_column": ["p"],
    "label_column": ["l"], "weights": ["2"], "moco_dim": ["64"], "nmb_crops": ["3", "2 1"],
    "nmb_prototypes": ["5", "5 5"],
    "program": ["intl_cifar", "cwrgp_small"], "queue_length": ["16"], "schedule": ["3 5"], "shard_cache_gb": ["5"],
    "size_dataset": ["32"],
    "solarization_prob": ["0.5 0.5"], "sync_bn": ["none", "false"], "teacher": ["/u"], "teacher_arch": ["resnet50"],
    "trade_off": ["0.7"], "val_path": ["/v"], "virtual_ranks": ["2"],
    "w_size": ["4"], "warmup_epochs": ["4"], "warmup_iters": ["3"],
}  # fmt: skip


def other_values(leaf: Leaf) -> Iterator[list[str]]:
    """Words after the flag that give it another value."""
    if leaf.name in VALUES:
        yield from ([*text.split()] for text in VALUES[leaf.name])
    elif leaf.about.switch:
        yield []
    elif leaf.item_type is bool:
        yield from (["false"], ["true"])
    elif leaf.about.choices:
        yield from ([choice] for choice in leaf.about.choices if choice != leaf.value)
    else:
        old = leaf.value if isinstance(leaf.value, tuple) else (leaf.value,)
        changes = (lambda x: x + 1, lambda x: 2 * x + 2) if leaf.item_type is int else (
            lambda x: x / 2 if x else 0.25, lambda x: min((x or 0.3) * 1.5, 1.0))  # fmt: skip
        yield from ([str(change(value)) for value in old] for change in changes)


def outline(what: Built) -> str:
    """A digest of everything that was built, and nothing of the settings that it was built from."""
    run, training = what.run, dict(what.training)
    clock, schedules, store = training.pop("clock"), training.pop("schedules"), training.pop("checkpoints")
    training.pop("monitor")
    optimizer = training.pop("optimizer")
    rates = {}
    for option, schedule in schedules.items():
        for step in range(0, clock.total_steps, 3):
            clock.step = step
            rates[f"{option} {step}"] = schedule(clock)
    groups = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    counts = [[tuple(parameter.shape) for parameter in group["params"]] for group in optimizer.param_groups]
    dataset = run.loader.dataset
    content = [
        training, rates, clock.epochs, clock.steps_per_epoch, type(optimizer).__name__, groups, counts,
        [vars(one) for epoch in (0, 15) for one in dataset.views_of(epoch)],
        dataset.seed, dataset.colours_on_device, run.loader.num_workers, vars(run.batches), len(run.images),
        run.prepare.mean, run.prepare.std, run.eval_view, str(store.folder), store.frequency, store.keep_last,
        store.backbone_file, store.accepted, what.sync_bn, what.monitor, what.asked,
        {n: v for n, v in vars(optimizer).items() if isinstance(v, (int, float, str))},
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(described(content, set())).encode()).hexdigest()


def described(value: Any, seen: set[int]) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        return ["tensor", list(value.shape), hashlib.sha256(value.detach().numpy().tobytes()).hexdigest()]
    if isinstance(value, (list, tuple, set, frozenset)):
        return [described(item, seen) for item in value]
    if isinstance(value, dict):
        return {str(key): described(item, seen) for key, item in value.items()}
    if id(value) in seen or isinstance(value, (FakeImages, torch.device, torch.dtype, np.dtype, Path)):
        return f"{type(value).__name__} {value if isinstance(value, (torch.device, torch.dtype)) else ''}"
    seen.add(id(value))
    if isinstance(value, Pretraining):
        return [value.batch_size, described(value.eval_view, seen), value.train_path]
    if isinstance(value, FakeTeacher):
        return described(value.asked, seen)
    if isinstance(value, functools.partial):
        return ["partial", *(described(part, seen) for part in (value.func, value.args, value.keywords))]
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        return [value.__qualname__, *(described(cell, seen) for cell in cells if not dataclasses.is_dataclass(cell)
                                      or not type(cell).__name__.endswith("Settings"))]  # fmt: skip
    if isinstance(value, nn.Module):
        own = {n: v for n, v in vars(value).items() if not n.startswith("_") or n == "_teacher"}
        compiled = getattr(value, "_compiled_call_impl", None) is not None
        tensors = [*value.named_parameters(recurse=False), *value.named_buffers(recurse=False)]
        parts = [described(child, seen) for child in value.children()]
        trained = [parameter.requires_grad for parameter in value.parameters(recurse=False)]
        return [type(value).__name__, compiled, described(own, seen), described(tensors, seen), trained, parts]
    if hasattr(value, "__dict__"):
        return [type(value).__name__, described(vars(value), seen)]
    return type(value).__name__


@pytest.fixture(autouse=True)
def short_transformers(monkeypatch):
    """They are built a thousand times."""
    monkeypatch.setattr(vit, "DEPTH", 2)


@pytest.mark.parametrize("module", LINES, ids=lambda module: module.__name__)
def test_every_flag_changes_something(module: types.ModuleType) -> None:
    processes, lines = LINES[module]

    def outline_of(line: str) -> str:
        return outline(built(module, line, processes, IMAGES, on_meta=False))

    def changes(line: str, leaf: Leaf) -> bool:
        for words in other_values(leaf):
            try:
                if outline_of(f"{line} {leaf.flags[0]} {' '.join(words)}") != before[line]:
                    return True
            except UserError:
                continue  # not with these other flags
        return False

    plain = {line: built(module, line, processes, IMAGES, on_meta=False) for line in lines}
    before = {line: outline(one) for line, one in plain.items()}
    read = {line: {*one.run.call.reads.names} for line, one in plain.items()}
    assert outline_of(lines[0]) == before[lines[0]]  # the same line builds the same
    without_effect = []
    for leaf in leaves(module.SCRIPT.settings):
        if leaf.name == "use_fp16" and module in ALWAYS_FP32:
            continue
        if leaf.name in ELSEWHERE or (leaf.name == "method" and len(leaf.about.choices) == 1):
            continue
        likely = sorted(lines, key=lambda line: leaf.name not in read[line])
        if not any(changes(line, leaf) for line in likely):
            without_effect.append(leaf.flags[0])
    assert without_effect == []


@pytest.mark.slow
@pytest.mark.parametrize("module", LINES, ids=lambda module: module.__name__)
def test_a_flag_without_effect_is_told(module: types.ModuleType) -> None:
    """On every line: whatever flag changes nothing that is built has not been read, so that the user is warned."""
    processes, lines = LINES[module]
    kept_quiet = []
    for line in lines:
        plain = built(module, line, processes, IMAGES, on_meta=False)
        before, values = outline(plain), flat(plain.run.settings)
        for leaf in leaves(module.SCRIPT.settings):
            if leaf.name in ELSEWHERE or leaf.name in DEPENDS_ON_VALUE:
                continue
            others = []
            for words in other_values(leaf):
                with contextlib.suppress(UserError):
                    given = f"{line} {leaf.flags[0]} {' '.join(words)}"
                    others.append(built(module, given, processes, IMAGES, on_meta=False))
            others = [other for other in others if flat(other.run.settings) != values]
            if any(outline(other) != before for other in others):
                continue
            if any(leaf.name in other.run.call.reads.names for other in others):
                kept_quiet.append(f"{line}: {leaf.flags[0]}")
    assert kept_quiet == []

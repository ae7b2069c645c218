"""Every flag of eval_linear.py and eval_semisup.py reaches what it names: changed alone, it changes what is built."""

import contextlib
import hashlib
import json
import types
from typing import Any
from unittest import mock

import eval_linear
import eval_semisup
from src.cli import Call
from src.errors import UserError
from src.evaluation import classification, classifier_parts, subject
from src.models.backbones import BackboneSpec
from src.models.pretrained import Pretrained, random_backbone
from src.parallel.launch import World
from src.settings import Leaf, leaves
from tests.built import FakeTeacher
from tests.helpers import run
from tests.scripts.test_flags import described, other_values

import pytest
import torch

BASE = "--epochs 12 --workers 0 --crop_size 32 --resize 32 --batch_size 8"
MORE = (
    "",
    "--scheduler_type exponential --final_lr 0.001",
    "--labels_perc 50",
    "--teacher /t",
    "--information_every 3",
    "--global_pooling false --crop_size 224 --resize 224 --arch resnet18",
    "--decay_epochs 3",
    "--arch vit_t",
    "--arch resnet18",
)
LINES = {
    eval_linear: [*(f"{BASE} {more}" for more in MORE), f"{BASE} --protocol moco", f"{BASE} --protocol small"],
    eval_semisup: [BASE, f"{BASE} --protocol intl", *(f"{BASE} --protocol moco {more}" for more in MORE)],
}
# What is done after everything was built, and which test looks at it
ELSEWHERE = {
    "resume": "tests/scripts/test_evaluations.py",
    "evaluate": "tests/scripts/test_evaluations.py",
    "index_cache": "tests/data/test_index.py",
    "run_pipes": "tests/data/test_sources.py",
    "shard_cache_gb": "tests/data/test_remote_shards.py",
    "path_column": "tests/data/test_lists.py",
    "label_column": "tests/data/test_lists.py",
    "classifier_file": "tests/scripts/test_evaluations.py",
    "published_classifier": "tests/evaluation/test_published_classifier.py",
    "subset_file": "tests/scripts/test_evaluations.py",
    "parity_drop_first": "tests/evaluation/test_protocols.py",
    "information_bins": "tests/evaluation/test_information.py",
    "information_compat": "tests/evaluation/test_information.py",
    "use_fp16": "the papers' evaluations have no mixed precision; --precision asks for it",
    "download": "torchvision's own",
    "extensions": "tests/data/test_folder.py",
    "channels": "tests/data/test_decoding.py; of the weights, which are made up here",
    "value_range": "tests/data/test_decoding.py; the images here have 8 bits",
    "exif_orientation": "tests/data/test_decoding.py; the images here have none",
    "dataset": "tests/data/test_datasets.py",
}
VALUES = {
    "accept_changes": ["lr"], "teacher_stem": ["small"],
    "lr": ["0.7", "0.1 0.2"], "lr_backbone": ["0.3"], "wd": ["0.1"], "final_lr": ["0.01"], "gamma": ["0.3"],
    "decay_epochs": ["3 5"], "epochs": ["9"], "batch_size": ["4"], "labels_perc": ["25"], "n_last_blocks": ["2"],
    "bicubic": ["true"], "pretrained": ["/w"], "key": ["teacher_backbone"], "crop_size": ["24"], "resize": ["40"],
    "mean": ["0.1 0.2 0.3"], "std": ["0.1 0.2 0.3"], "max_steps": ["5"], "information_images": ["10"],
    "weights": ["finetune --lr_backbone 0.1", "freeze"], "arch": ["resnet34"], "teacher_arch": ["resnet50"],
    "protocol": ["intl"], "optimizer": ["adam"], "seed": ["5"], "data_path": ["OTHER"], "dump_path": ["/z"],
    "teacher": ["/u"], "device": ["cuda"], "dist_url": ["tcp://localhost:1"],
}  # fmt: skip


class FourClasses(FakeTeacher):
    width = 4


def outline(module: types.ModuleType, line: str, patches: Any) -> str:
    """A digest of what the script builds up to the training."""
    found: dict[str, Any] = {"asked": []}

    class Captured(Exception):
        pass

    def capture(**arguments: Any) -> None:
        found["training"] = arguments
        raise Captured

    def weights(settings: Any) -> Pretrained:
        asked = settings.judged.pretrained, settings.judged.key, settings.judged.seed, repr(settings.backbone.hints)
        found["asked"].append(asked)
        arch = settings.backbone.arch  # resnet18 has maps of 7x7 positions here
        small = BackboneSpec("resnet18", 0.0625, "imagenet" if arch == "resnet18" else "small")
        spec = BackboneSpec("vit_t") if arch == "vit_t" else small
        return Pretrained(random_backbone(spec, 0), spec, {}, "weights")

    def start(*arguments: Any) -> World:
        found["asked"].append(arguments)
        return World(0, 1, 0, torch.device("cpu"))

    words = ["--data_path", str(patches), *line.replace("OTHER", str(patches / ".." / patches.name)).split()]
    with contextlib.ExitStack() as stack:
        for owner, name, stand_in in (
            (classification, "Training", capture),
            (classification, "open_weights", weights),
            (classifier_parts, "Teacher", FourClasses),
            (classification, "Monitor", mock.MagicMock()),
            (classification, "alone_in", lambda _: contextlib.nullcontext()),
            (subject, "require_writable", lambda _: None),
            (classification.launch, "start", start),
        ):
            stack.enter_context(mock.patch.object(owner, name, stand_in))
        stack.enter_context(contextlib.suppress(Captured))
        module.main(words)
    training = found["training"]
    clock, schedules = training.pop("clock"), training.pop("schedules")
    store, optimizer, loader = training.pop("checkpoints"), training.pop("optimizer"), training["loader"]
    rates = []
    for epoch in range(clock.epochs):
        clock.step = epoch * clock.steps_per_epoch
        rates.append(schedules["lr"](clock))
    groups = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    dataset = loader.dataset
    data = [vars(one) for one in dataset.views_of(0)] if hasattr(dataset, "views_of") else dataset.features
    content = [
        training, rates, clock.epochs, clock.steps_per_epoch, type(optimizer).__name__, groups, data, len(dataset),
        loader.num_workers, str(store.folder), store.accepted, found["asked"], words[1], getattr(dataset, "seed", None),
        dataset.source.name(0) if hasattr(dataset, "source") else "",
        [dataset.source._indices] if hasattr(getattr(dataset, "source", None), "_indices") else [],
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(described(content, set())).encode()).hexdigest()


@pytest.mark.parametrize("module", LINES, ids=lambda module: module.__name__)
def test_every_flag_changes_something(module: types.ModuleType, patches: Any) -> None:
    lines = LINES[module]

    def changes(line: str, leaf: Leaf) -> bool:
        values = [text.split() for text in VALUES[leaf.name]] if leaf.name in VALUES else other_values(leaf)
        for words in values:
            try:
                if outline(module, f"{line} {leaf.flags[0]} {' '.join(words)}", patches) != before[line]:
                    return True
            except UserError:
                continue  # not with these other flags
        return False

    before = {}
    for line in lines:
        with contextlib.suppress(UserError):
            before[line] = outline(module, line, patches)
    assert outline(module, lines[0], patches) == before[lines[0]]
    without_effect = []
    for leaf in leaves(module.SCRIPT.settings):
        if leaf.name == "lr_backbone" and module is eval_linear:
            continue  # training the backbone is eval_semisup.py's
        if leaf.name not in ELSEWHERE and not any(changes(line, leaf) for line in before):
            without_effect.append(leaf.flags[0])
    assert without_effect == []


@pytest.mark.parametrize("line", [
    "", "--features cached", "--labels_perc 50", "--information_every 2", "--optimizer lbfgs", "--protocol small",
])  # fmt: skip
@pytest.mark.parametrize("module", LINES, ids=lambda module: module.__name__)
def test_no_flag_is_said_to_have_no_effect_that_is_read_later(module, line, patches, tmp_path, monkeypatch):
    if module is eval_semisup and line and "labels" not in line:
        line += " --protocol moco"
    calls = []
    real = Call.tell_unread
    monkeypatch.setattr(Call, "tell_unread", lambda call: (calls.append(call), real(call)))
    words = f"{line} --epochs 1 --batch_size 32 --arch resnet18 --width 0.0625 --stem small --device cpu --workers 0"
    given = ["--data_path", str(patches), "--dump_path", str(tmp_path), "--crop_size", "32", *words.split()]
    with contextlib.suppress(UserError):  # not every line is for both
        assert module.main(given) == 0
        assert calls[0].reads.names - calls[0].reads.told == set()


@pytest.mark.parametrize(("script", "flags", "named"), [
    ("eval_knn.py", "--rule majority --k 3 --temperature 0.2", "--temperature"),
    ("eval_knn.py", "--raw_pixels --k 3", None),
    ("eval_cluster.py", "--kmeans 3 --tau 0.5 --act gelu", "--act --tau"),
    ("eval_linear.py", "--features cached --epochs 1 --alpha 0.3 --T 3", "--alpha --T"),
    ("eval_linear.py", "--features cached --epochs 1 --scheduler_type cosine --gamma 0.3", None),
    ("eval_linear.py", "--features cached --epochs 1 --information_bins 5", "--information_bins"),
    ("eval_linear.py", "--optimizer lbfgs --momentum 0.3", "--momentum"),
    ("eval_linear.py", "--optimizer adam --epochs 1 --features cached --nesterov true", "--nesterov"),
])  # fmt: skip
def test_flags_without_effect_are_told(script, flags, named, patches, tmp_path):
    base = "--arch resnet18 --width 0.0625 --stem small --device cpu --workers 0 --crop_size 32"
    result = run(script, *flags.split(), *base.split(), "--data_path", patches, "--dump_path", tmp_path)
    assert result.returncode == 0, result.stderr
    told = [line.split()[1] for line in result.stderr.splitlines() if "has no effect with the other flags" in line]
    assert told == (named.split() if named else [])

"""Steps on a device that only pretends to be one: they wait for nothing, and their numbers are those of the CPU."""

import importlib
import json
import subprocess
import sys

from src.settings import leaves
from tests.audit import PRECISIONS
from tests.helpers import ROOT
from tests.spoiled import ALLOWED, FACTS, IN_A_STEP, ONCE
from tests.steps import LINES, make_teacher, steps, training_of

import pytest
import torch

SCRIPTS = sorted({line.split()[0] for line in LINES.values()})
FAST = ("main_swav.py", "main_disco.py")


def started(*words):
    """Runs a module in a process of its own, since torch is changed there."""
    return subprocess.run([sys.executable, "-m", *map(str, words)], cwd=ROOT, capture_output=True, text=True)


def audited(patches, folder, names, per_epoch):
    """What the audit found; ``per_epoch`` are the steps of an epoch in each precision."""
    found = folder / "audit.json"
    words = ["--only", *names, "--precision", *per_epoch, "--steps", *per_epoch.values()]
    words += ["--patches", patches, "--json", found]
    done = started("tests.audit", *words)
    assert found.exists(), done.stderr
    return json.loads(found.read_text())


def losses_of_the_cpu(name, patches, runs, counts):
    training = training_of(name, patches, runs, torch.device("cpu"), "--augment_on", "device", *PRECISIONS["fp32"])
    if isinstance(training.optimizer, torch.optim.Adam):
        for group in training.optimizer.param_groups:
            group["fused"] = True  # as on a device; the other one rounds otherwise, which Adam's first steps magnify
    return [outputs["loss"].item() for outputs in steps(training, counts=counts)]


@pytest.mark.parametrize(
    "script", [one if one in FAST else pytest.param(one, marks=pytest.mark.slow) for one in SCRIPTS]
)
def test_steps_wait_for_nothing(patches, tmp_path, script):
    """Nor do they mix devices, or change sizes; with float32 their losses are those of the CPU."""
    names = [name for name, line in LINES.items() if line.startswith(script)]
    found = audited(patches, tmp_path, names, {"fp16": 3, "fp32": 2})
    assert {name: faults for name, faults in found["faults"].items() if faults} == {}
    make_teacher(patches, tmp_path)
    for name in names:
        expected = losses_of_the_cpu(name, patches, tmp_path, (2, 1))
        assert found["losses"][f"{name} fp32"] == pytest.approx(expected, rel=1e-4), name


def test_every_method_is_among_the_lines():
    for script in SCRIPTS:
        settings = importlib.import_module(script.removesuffix(".py")).SCRIPT.settings
        method = next(leaf for leaf in leaves(settings) if leaf.name == "method")
        lines = " ".join(f"--method {method.value} {line} " for line in LINES.values() if line.startswith(script))
        assert [name for name in method.about.choices if name not in LINES and f"--method {name} " not in lines] == []


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_more_steps_wait_for_nothing(patches, tmp_path, script):
    names = [name for name, line in LINES.items() if line.startswith(script)]
    found = audited(patches, tmp_path, names, {"fp32": 4, "bf16": 4})
    assert {name: faults for name, faults in found["faults"].items() if faults} == {}


def test_mistakes_are_named(patches, tmp_path):
    done = started("tests.spoiled", patches, tmp_path)
    assert not done.returncode, done.stderr
    found = json.loads((tmp_path / "spoiled.json").read_text())
    for name, (_, named) in IN_A_STEP.items():
        assert any(named in fault for fault in found[name]), f"{name}: {found[name]}"
    assert {name: found[name] for name in ALLOWED} == {name: [] for name in ALLOWED}
    assert found["facts"] == dict.fromkeys(FACTS, True)
    for name in ONCE:
        assert any("copy to the device" in fault for fault in found[name]), f"{name}: {found[name]}"

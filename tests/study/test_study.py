"""A study from the command line: its runs, what is told of them, kills, and several processes that share the work."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import study
from src.errors import UserError
from src.study.label_free import most_trusted_score
from src.study.recipes import TITLES
from tests.helpers import ROOT, run
from tests.study.tiny import TINY, studied

import numpy as np
import pytest


def test_the_page_says_what_the_runs_reached(one, patches):
    text = (one / "study.md").read_text()
    assert re.search(r"96 training images of 4 classes \(\w+, \w+, \w+, \.\.\.\); 32 test images of their own", text)
    assert text.startswith("# Study: one\n")
    assert "resnet18w0.0625, 16 pixels, 2 epochs, 32 images a step, 3 seeds" in text
    assert f"Code: {json.loads((one / 'runs' / 'swav-1' / 'settings.json').read_text())['commit']}" in text
    for title in ("SwAV", "MoCo-v2", "random weights"):
        assert len(re.findall(rf"^\| {title} \|", text, re.MULTILINE)) >= 1
    judged = [json.loads((one / "runs" / f"swav-{seed}" / "judged.json").read_text()) for seed in (1, 2, 3)]
    mean = np.mean([found["knn"] for found in judged])
    row = re.search(r"^\| SwAV \| ([\d.]+)", text, re.MULTILINE)
    assert row[1] == f"{mean:.1f}"
    assert "## Differences to the best by 10-NN" in text
    numbers = json.loads((one / "study.json").read_text())
    # two others less the best and less random weights, by kNN and linear
    tables = sum(1 if found["best"] == "random" else 2 for found in numbers["differences"].values())
    assert text.count("## Above random weights by") == tables - 2
    assert len(re.findall(r"\| (real|within noise) \|$", text, re.MULTILINE)) == 2 * tables
    assert "| RankMe (more is better) |" in text
    assert (one / "study.png").stat().st_size > 10_000
    assert "So far" not in text
    assert set(numbers["differences"]["knn"]["pairs"]) == {"random - swav", "random - moco", "swav - moco"}
    assert set(numbers["scores"]["rankme"]["by_method"]) == {"swav", "moco"}
    assert numbers["methods"]["swav"]["judged"]["1"]["knn"] == judged[0]["knn"]
    with np.load(one / "runs" / "swav-1" / "right.npz") as right:
        assert right["knn"].shape == (32,)
        assert 100 * right["knn"].mean() == pytest.approx(judged[0]["knn"])
    assert judged[0]["cost"]["images_per_second"] > 0
    assert judged[0]["cost"]["memory_gb"] > 0


@pytest.mark.slow
def test_a_second_start_repeats_nothing_and_more_seeds_are_added(one, patches, tmp_path):
    folder = tmp_path / "one"
    shutil.copytree(one, folder)
    assert studied(patches, folder, "--methods", "swav", "moco", "--seeds", 2, trains=None) == 0
    before = (folder / "runs" / "swav-2" / "checkpoint.pth.tar").stat().st_mtime_ns
    assert studied(patches, folder, "--methods", "moco", "--seeds", 4) == 0
    assert (folder / "runs" / "moco-4" / "judged.json").exists()
    assert (folder / "runs" / "swav-2" / "checkpoint.pth.tar").stat().st_mtime_ns == before
    text = (folder / "study.md").read_text()  # of all that the folder holds
    assert "4 seeds" in text
    assert re.search(r"^\| SwAV \|.*\| 3 \|$", text, re.MULTILINE)
    assert re.search(r"^\| MoCo-v2 \|.*\| 4 \|$", text, re.MULTILINE)


def test_a_page_while_runs_are_under_way(one, patches, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "one"
    shutil.copytree(one, folder)
    monkeypatch.setattr(study, "work", lambda *words, look, **more: look())
    assert studied(patches, folder, "--methods", "swav", "moco", "simclr", "--seeds", 4) == 0
    said = capsys.readouterr().out
    assert "12 runs: swav, moco, simclr; seeds 1 to 4" in said
    assert "other processes are at the last runs, and write the page" in said
    text = (folder / "study.md").read_text()
    assert "So far 6 of 12 runs are over." in text
    assert re.search(r"^\| SimCLR \| - .*\| 0 \|$", text, re.MULTILINE)


def test_a_study_has_not_ended_while_random_weights_are_to_be_judged(one, patches, tmp_path, monkeypatch):
    folder = tmp_path / "one"
    shutil.copytree(one, folder)
    (folder / "runs" / "random-3" / "judged.json").unlink()
    monkeypatch.setattr(study, "work", lambda *words, look, **more: look())
    assert studied(patches, folder, "--methods", "swav", "moco") == 0
    assert "So far 6 of 6 runs are over." in (folder / "study.md").read_text()


def test_another_study_is_refused(one, patches):
    with pytest.raises(UserError, match=r"holds another study: size 16 -> 24; choose another --dump_path"):
        studied(patches, one, "--methods", "swav", "--size", 24)
    with pytest.raises(UserError, match="other list"):
        studied(patches / "test", one, "--methods", "swav")


def test_runs_of_another_recipe_are_not_mixed_with_new_ones(one, patches, tmp_path):
    folder = tmp_path / "one"
    shutil.copytree(one, folder)
    path = folder / "recipes" / "swav.json"
    path.write_text(re.sub(r'("--hidden_mlp",\s*)"64"', r'\1"32"', path.read_text()))
    with pytest.raises(UserError, match=r"has runs of swav by another recipe \(32 -> 64\), which would be mixed"):
        studied(patches, folder, "--methods", "swav", "--seeds", 4)
    with pytest.raises(UserError, match="another recipe"):
        studied(patches, folder, "--methods", "swav", "--first_seed", 4)
    assert studied(patches, folder, "--methods", "swav", "moco", "--seeds", 3, trains=None) == 0  # only the page is new
    (folder / "runs" / "swav-3" / "judged.json").unlink()
    (folder / "runs" / "swav-3" / "failed.json").write_text('{"code": 1, "reason": "the loss is nan"}')
    with pytest.raises(UserError, match="another recipe"):
        studied(patches, folder, "--methods", "swav", "moco", "--retry")
    assert (folder / "runs" / "swav-3" / "failed.json").exists()


def test_a_page_is_written_again_on_a_machine_of_another_precision(one, patches, tmp_path):
    folder = tmp_path / "one"
    shutil.copytree(one, folder)
    path = folder / "identity.json"
    path.write_text(path.read_text().replace('"fp32"', '"bf16"'))
    assert studied(patches, folder, "--methods", "swav", "moco", "--seeds", 3, trains=None) == 0
    with pytest.raises(UserError, match="precision bf16 -> fp32"):
        studied(patches, folder, "--methods", "swav", "moco", "--seeds", 4)


@pytest.mark.slow
def test_without_labels_it_recommends(patches, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    (tmp_path / "test").mkdir()  # of a program, and nothing of the images
    (tmp_path / "test" / "test_it.py").touch()
    for number, path in enumerate(sorted((patches / "train").glob("*/*.png"))):
        (flat / f"{number:03d}.png").symlink_to(path)
    assert studied(flat, tmp_path / "out", "--methods", "swav", "simclr", "--seeds", 1, "--epochs", 1) == 0
    text = (tmp_path / "out" / "study.md").read_text()
    assert "96 training images." in text
    assert "## Recommendation" in text
    assert "10-NN" not in text.partition("## Recommendation")[0]
    score = most_trusted_score()
    values = {m: json.loads((tmp_path / "out" / "runs" / f"{m}-1" / "judged.json").read_text())["scores"][score.name]
              for m in ("swav", "simclr")}  # fmt: skip
    assert f"{TITLES[max(values, key=lambda m: score.sign * values[m])]}, by {score.title}" in text


@pytest.mark.slow
def test_folders_that_are_no_classes(patches, tmp_path):
    assert (
        studied(patches, tmp_path / "out", "--methods", "swav", "--seeds", 1, "--epochs", 1, "--labels", "false") == 0
    )
    text = (tmp_path / "out" / "study.md").read_text()
    assert "96 training images. " in text
    assert "## Recommendation" in text


def test_a_dry_run_says_what_would_run_and_writes_nothing(patches, tmp_path, capsys):
    assert studied(patches, tmp_path / "out", "--methods", "disco", "--seeds", 2, "--dry_run") == 0
    images, *lines, runs = capsys.readouterr().out.splitlines()
    assert (images[:18], runs) == ("96 training images", "4 trainings to come")
    assert [line.partition(":")[0] for line in lines] == [
        f"{method}-{seed}" for seed in (1, 2) for method in ("random", "moco", "disco")
    ]
    assert lines[0] == "random-1: random weights"
    assert lines[1].startswith("moco-1: main_disco.py --aug_plus --crop_size 16 ")
    assert f"--teacher {tmp_path}/out/runs/moco-1/checkpoint.pth.tar" in lines[2]
    assert studied(patches, tmp_path / "out", "--methods", "disco", "--seeds", 1, "--rates", 1, 3, "--dry_run") == 0
    _, *lines, runs = capsys.readouterr().out.splitlines()
    assert runs == "6 trainings to come"
    told = dict(line.split(": ", 1) for line in lines)
    assert told["moco-rate-3"].startswith("main_disco.py")
    assert told["disco-rate-1"] == told["moco-1"] == "as moco-rate-1, moco-rate-3 will tell"
    assert told["disco-1"] == "as disco-rate-1, disco-rate-3 will tell"
    words = ["--methods", "moco", "--seeds", 1, "--rates", 0.5, 2, "--minutes", 0.03]
    assert studied(patches, tmp_path / "out", *words, "--dry_run", tiny=TINY[2:]) == 0
    told = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines()[1:-1])
    assert told["moco-timing"].startswith("main_disco.py")
    assert told["moco-rate-2"] == "as moco-timing will tell"
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_classes_without_test_images_rates_and_minutes(patches, tmp_path):
    shutil.copytree(patches / "train", tmp_path / "alone" / "images")
    words = ["--methods", "disco", "--seeds", 1, "--rates", 0.5, 2, "--minutes", 0.03]
    assert studied(tmp_path / "alone" / "images", tmp_path / "out", *words, tiny=TINY[2:]) == 0
    text = (tmp_path / "out" / "study.md").read_text()
    assert "16 test images among them, held out from the classifiers" in text
    assert {path.name for path in (tmp_path / "out" / "rates").iterdir() if path.is_dir()} == {
        f"{method}-rate-{rate}" for method in ("moco", "disco") for rate in ("0.5", "2")
    }
    given = json.loads((tmp_path / "out" / "runs" / "disco-1" / "settings.json").read_text())["arguments"]
    tried = {rate: json.loads((tmp_path / "out" / "rates" / f"disco-rate-{rate}" / "judged.json").read_text())["knn"]
             for rate in ("0.5", "2")}  # fmt: skip
    best = max(tried, key=tried.get)
    assert f"| DisCo | {tried['0.5']:.1f} | {tried['2']:.1f} | {best} |" in text
    assert json.loads((tmp_path / "out" / "study.json").read_text())["rates"]["disco"] == float(best)
    assert given["lr"] == pytest.approx(float(best) * 0.0045 * 32 / 128)
    assert given["teacher"].endswith("runs/moco-1/checkpoint.pth.tar")
    rate = json.loads((tmp_path / "out" / "timing" / "disco-timing" / "judged.json").read_text())["cost"]
    assert given["epochs"] == max(1, int(0.03 * 60 * rate["images_per_second"] / 96))
    other = tmp_path / "out" / "rates" / f"disco-rate-{'2' if best == '0.5' else '0.5'}" / "judged.json"
    other.write_text(other.read_text().replace('"knn": ', '"knn": 1'))  # as if it had failed first, and then been good
    words = ["--methods", "moco", "--seeds", 1, *words[4:]]  # of which DisCo is no more
    assert studied(tmp_path / "alone" / "images", tmp_path / "out", *words, tiny=TINY[2:], trains=None) == 0
    assert json.loads((tmp_path / "out" / "study.json").read_text())["rates"]["disco"] == float(best)
    text = (tmp_path / "out" / "study.md").read_text()
    assert f", DisCo {given['epochs']}." in text
    assert re.search(rf"^\| DisCo \| .* \| {best} \|$", text, re.MULTILINE)


@pytest.mark.slow
def test_a_failed_and_a_collapsed_run_are_told(one, patches, tmp_path):
    folder = tmp_path / "one"
    shutil.copytree(one, folder)
    judged = folder / "runs" / "swav-1" / "judged.json"
    content = json.loads(judged.read_text())
    content["scores"]["rankme"] = 1.2
    judged.write_text(json.dumps(content))
    (folder / "runs" / "moco-2" / "judged.json").unlink()
    (folder / "runs" / "moco-2" / "failed.json").write_text('{"code": 1, "reason": "the loss is nan"}')
    assert studied(patches, folder, "--methods", "swav", "moco", "--seeds", 2) == 0
    text = (folder / "study.md").read_text()
    assert "SwAV collapsed with seed 1" in text
    assert "MoCo-v2 failed with seed 2, and is in no mean: the loss is nan" in text
    assert studied(patches, folder, "--methods", "swav", "moco", "--seeds", 2, "--retry") == 0
    assert "failed" not in (folder / "study.md").read_text()


def test_a_dead_terminal_ends_nothing(monkeypatch):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        study.say("nobody reads this")
        monkeypatch.undo()
        with contextlib.suppress(BrokenPipeError):
            gone.close()


def test_torchrun_is_refused(patches, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"study.py is not started by torchrun"):
        studied(patches, tmp_path / "out", "--methods", "swav")


BAD = {
    "an unknown method": (["--methods", "swap"], "--methods swap: expected some of swav"),
    "a batch that is too large": (["--methods", "swav", "--batch_size", "128"], "do not fill a batch of 128"),
    "a network that was not made for it": (
        ["--methods", "swav", "--arch", "vit_small_patch14_dinov2", "--width", "1"],
        "cannot be cut into the network's patches of 14x14",
    ),
    "an odd batch": (["--methods", "swav", "--batch_size", "30"], "--batch_size 30: expected a multiple of 4"),
    "two lengths": (["--methods", "swav", "--minutes", "1"], "--epochs and --minutes: a run has one length"),
    "an area from large to small": (["--methods", "swav", "--area", "0.6", "0.2"], "the smallest share is above"),
    "one cluster": (["--methods", "twist", "--clusters", "1"], "--clusters 1: expected 2 or more"),
    "results among the images": (
        ["--methods", "swav", "--dump_path", "{data}/train/studies/mine"],
        "the results would lie among the images of {data}/train",
    ),
    "results among the test images": (
        ["--methods", "swav", "--dump_path", "{data}/test"],
        "the results would lie among the images of {data}/test",
    ),
    "no images": (["--methods", "swav"], "does not exist"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case, patches, tmp_path):
    words, said = BAD[case]
    data = tmp_path / "nowhere" if case == "no images" else patches
    if case.startswith("results among"):  # a failing test would leave its results among the images of the others
        data = shutil.copytree(patches, tmp_path / "data")
    words, said = [word.format(data=data) for word in words], said.format(data=data)
    with pytest.raises(UserError, match=re.escape(said)):
        studied(data, tmp_path / "out", *words)


@pytest.mark.slow
def test_one_command_studies_the_photographs(tmp_path):
    """A shortened one: its first method."""
    words = ["METHODS=swav", "SEEDS=1", "STUDY_EPOCHS=2", f"STUDY={tmp_path / 'out'}"]
    done = subprocess.run(["make", "-o", ".venv/installed", "study", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "4,261 training images of 26 classes" in done.stdout
    assert "1,278 test images of their own" in done.stdout
    found = json.loads((tmp_path / "out" / "study.json").read_text())["methods"]
    assert found["swav"]["judged"]["1"]["knn"] > found["random"]["judged"]["1"]["knn"] + 5


@pytest.mark.slow
def test_two_runs_at_a_time(patches, tmp_path):
    words = [
        "study.py",
        patches,
        "--dump_path",
        tmp_path / "out",
        *TINY,
        "--methods",
        "swav",
        "--seeds",
        3,
        "--at_once",
        2,
    ]
    done = run(*words, launcher=[sys.executable])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("swav-") == 6  # of each run when it begins and when it ends, in whichever process
    assert "| SwAV |" in done.stdout
    assert len(list((tmp_path / "out" / "runs").glob("swav-*/judged.json"))) == 3


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGUSR1])
def test_a_killed_study_goes_on_where_it_was(number, patches, tmp_path):
    words = [sys.executable, "study.py", patches, "--dump_path", tmp_path / "out", *TINY, "--methods", "moco",
             "--seeds", 1, "--epochs", 24]  # fmt: skip
    command = [str(word) for word in words]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True)
    log = tmp_path / "out" / "runs" / "moco-1" / "log.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_text().count('"train"') > 5):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    code = process.wait(timeout=60)
    assert code == (-9 if number == signal.SIGKILL else 128 + number)
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert "continuing from" in (tmp_path / "out" / "runs" / "moco-1" / "output.txt").read_text()
    assert "| MoCo-v2 |" in done.stdout

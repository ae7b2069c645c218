"""main_disco.py as users run it: the published commands, every method, kills and resumes, what it refuses."""

import json
import re

import main_disco
import main_swav
from src.checkpoints.store import read_run
from src.models.backbones import create_backbone
from tests import built
from tests.helpers import run
from tests.runs import assert_same_end, kill_until_done
from tests.scripts.test_bad_input import fails

import pytest
import torch

SMALL = [
    "--arch", "resnet18", "--width", "0.125", "--stem", "small", "--crop_size", "16", "--moco_dim", "8",
    "--moco_k", "64", "--hidden", "16", "--batch_size", "16", "--bn_parts", "2", "--aug_plus", "--mlp",
    "--cos", "--moco_t", "0.2",    "--tensorboard", "false", "--device", "cpu", "--log_every", "1",
]  # fmt: skip


def command(patches, folder, *extra):
    return ["main_disco.py", "--data_path", patches, "--dump_path", folder, *SMALL, *map(str, extra)]


TEST_BED = (
    "--data_path /dev/shm/train --base_lr 0.6 --final_lr 0.0006 --warmup_epochs 0 --crops_for_assign 0 1 "
    "--size_crops 224 96 --nmb_crops 2 6 --min_scale_crops 0.14 0.05 --max_scale_crops 1. 0.14 --use_fp16 true "
    "--freeze_prototypes_niters 5005 --queue_length 3840 --epoch_queue_starts 15 --dump_path ./ckpt --sync_bn pytorch "
    "--temperature 0.1 --epsilon 0.05 --sinkhorn_iterations 3 --feat_dim 128 --nmb_prototypes 3000 --epochs 200 "
    "--batch_size 64 --wd 0.000001 --arch efficientb0 --pretrained /path/to/swav_800ep_pretrain.pth.tar "
)


def resolved(line):
    return built.resolved(main_disco, line)


@pytest.fixture(scope="session")
def teacher(patches, tmp_path_factory):
    """The checkpoint of a small MoCo run."""
    folder = tmp_path_factory.mktemp("teacher")
    result = run(*command(patches, folder, "--epochs", 1, "--max_steps", 3, "--workers", 1))
    assert result.returncode == 0, result.stderr
    return folder / "checkpoint.pth.tar"


# ------------------------------------------------------------------------------------------------ commands

LAUNCH = "--dist-url 'tcp://localhost:10001' --multiprocessing-distributed --world-size 1 --rank 0"
MOCO = "--batch-size 256 --learning-rate 0.03 --mlp --moco-t 0.2 --aug-plus --cos --epochs {epochs} " + LAUNCH
DISCO = "--lr 0.03 --batch-size 256 --moco-t 0.2 --aug-plus " + LAUNCH + " --mlp --cos"
COMMON = {"batch_size": 256, "lr": 0.03, "mlp": True, "moco_t": 0.2, "aug_plus": True, "cos": True, "moco_k": 65536,
          "moco_m": 0.999, "momentum": 0.9, "wd": 1e-4, "crop_size": 224, "moco_dim": 128,
          "precision": "fp32", "blur": 0.5}  # fmt: skip


@pytest.mark.parametrize(("line", "expected"), [
    *((f"-a {arch} {MOCO.format(epochs=epochs)} --hidden {hidden} /dev/shm/",
       {**COMMON, "method": "moco", "arch": arch, "epochs": epochs, "hidden": hidden, "data_path": "/dev/shm/",
        "zero_init_residual": True, "distill": []})
      for arch, epochs, hidden in (("resnet50", 200, 2048), ("resnet101", 200, 2048), ("resnet152", 800, 2048),
                                   ("mobilenetv3", 200, 512), ("efficientb0", 200, 1280), ("efficientb1", 200, 1280),
                                   ("resnet18", 200, 1280), ("resnet34", 200, 1280))),
    (f"-a efficientb0 {DISCO} --teacher_arch resnet50 --teacher /t.pth.tar /dev/shm/",
     {**COMMON, "method": "disco", "epochs": 200, "hidden": 2048, "teacher": "/t.pth.tar", "teacher_arch": "resnet50",
      "distill": ["mse"], "zero_init_residual": False, "teacher_mode": "train", "distill_norm": "sum",
      "init_queue_from_teacher": True}),
    (f"-a efficientb0 {DISCO} --teacher_arch resnet50w2 --teacher /swav.pth.tar /dev/shm",
     {"method": "disco", "teacher_arch": "resnet50w2", "data_path": "/dev/shm"}),
    (f"-a resnet34 {DISCO} --teacher_arch SWAVresnet50 --teacher /swav.pth.tar /dev/shm",
     {"method": "disco", "teacher_arch": "SWAVresnet50", "hidden": 2048}),
    (f"-a efficientb0 {DISCO} --teacher_arch resnet50 --teacher /t.pth.tar --hidden 2048 /dev/shm/", {"hidden": 2048}),
    (f"-a efficientb0 {DISCO} --teacher /t.pth.tar --use-mse /dev/shm",
     {"method": "rkd", "distill": ["rkd_distance", "rkd_angle", "mse"], "hidden": 2048}),
    (f"--method rkd -a efficientb0 {DISCO} --teacher /t.pth.tar /dev/shm",
     {"method": "rkd", "distill": ["rkd_distance", "rkd_angle"]}),
    (f"-a resnet18 {DISCO} --teacher /t.pth.tar --only-mse --nmb_prototypes 0 --resume-ckpt --resume '' /d",
     {"only_mse": True, "resume": "auto", "method": "disco"}),
    ("/d", {"method": "moco", "moco_t": 0.07, "mlp": False, "hidden": -1, "blur": 0.0, "schedule": [120, 160]}),
    ("-a efficientb5 /d", {"crop_size": 456}),
    ("--method seed --teacher /t /d", {"hidden": -1, "teacher_temperature": 1e-4, "distill": []}),
])  # fmt: skip
def test_the_published_commands(line, expected, capsys):
    args = resolved(line)
    assert {name: getattr(args, name) for name in expected} == expected
    if "--multiprocessing-distributed" in line:
        assert "torchrun" in capsys.readouterr().err


def test_views():
    first, second = built.built(main_disco, "--aug-plus /d").views
    assert first == second
    assert (first.size, first.scale, first.jitter, first.jitter_probability) == (
        224,
        (0.2, 1.0),
        (0.4, 0.4, 0.4, 0.1),
        0.8,
    )
    assert (first.grayscale, first.blur, first.blur_sigma, first.flip) == (0.2, 0.5, (0.1, 2.0), 0.5)
    assert (first.bicubic, first.gray_first, first.solarize) == (False, False, 0.0)
    old, _ = built.built(main_disco, "/d").views
    assert (old.jitter, old.jitter_probability, old.blur, old.gray_first) == ((0.4, 0.4, 0.4, 0.4), 1.0, 0.0, True)
    assert len(built.built(main_disco, "--method seed --teacher x /d").views) == 1


def test_the_published_learning_rates(patches, tmp_path):
    """0.03 in the first epoch, a cosine by epoch; or steps."""
    from src.clock import Clock
    from src.optim.schedules import warmup_cosine

    found = [warmup_cosine(epoch, total=200, base=0.03) for epoch in (0, 1, 100, 199)]
    assert found == pytest.approx([0.03, 0.0299981, 0.015, 1.85051e-6], rel=1e-4)
    assert warmup_cosine(799, total=800, base=0.03) == pytest.approx(1.15658e-7, rel=1e-4)
    assert Clock(10, 2, step=19).epoch == 1
    steps = command(patches, tmp_path, "--epochs", 3, "--workers", 0, "--schedule", "1", "2", "--lr", "0.5")
    steps.remove("--cos")
    assert run(*steps).returncode == 0
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    rates = {line["epoch"]: line["lr"] for line in log}
    assert rates == pytest.approx({0: 0.5, 1: 0.05, 2: 0.005})


def test_the_swav_test_bed_command():
    args = built.resolved(main_swav, TEST_BED)
    assert (args.teacher, args.arch, args.nmb_crops) == ("/path/to/swav_800ep_pretrain.pth.tar", "efficientb0", [2, 6])
    assert (args.base_lr, args.queue_length, args.distill_weight, args.teacher_normalise) == (0.6, 3840, 0.5, False)


# ------------------------------------------------------------------------------------------------ runs


@pytest.mark.parametrize("extra", [
    ["--method", "moco"],
    ["--teacher", "{teacher}"],
    ["--teacher", "{teacher}", "--only-mse", "--distill_norm", "ref32", "--teacher_mode", "eval"],
    ["--method", "rkd", "--teacher", "{teacher}"],
    ["--teacher", "{teacher}", "--use-mse"],
    ["--teacher", "{teacher}", "--distill", "darkrank", "attention", "fitnet"],
    ["--method", "seed", "--teacher", "{teacher}", "--teacher_temperature", "0.1"],
], ids=" ".join)  # fmt: skip
def test_every_method_trains(patches, tmp_path, teacher, extra):
    extra = [word.format(teacher=teacher) for word in extra]
    result = run(*command(patches, tmp_path, "--epochs", 1, "--workers", 1, "--max_steps", 3, *extra))
    assert result.returncode == 0, result.stderr
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len(log) == 3
    assert all(line["loss"] is not None and line["rankme"] > 1 for line in log)
    names = create_backbone("resnet18", width=0.125, stem="small").state_dict().keys()
    saved = read_run(tmp_path / "checkpoint.pth.tar")["state_dict"]
    assert {n.removeprefix("backbone.") for n in saved if n.startswith("backbone.")} == set(names)
    assert not any("teacher" in name for name in saved)
    if extra[-1] != "moco":
        return
    judged = run("eval_knn.py", "--data_path", patches, "--pretrained", tmp_path / "checkpoint.pth.tar", "--k", 5,
                 "--workers", 0, "--dump_path", tmp_path)  # fmt: skip
    assert judged.returncode == 0, judged.stderr


def test_a_timm_student_learns_from_a_resnet(patches, tmp_path, teacher):
    small = [word for word in SMALL if word not in ("--width", "0.125", "--stem", "small")]
    small[small.index("resnet18")] = "mobilenetv3_small_050"
    result = run("main_disco.py", patches, "--dump_path", tmp_path, *small, "--teacher", teacher, "--epochs", 1,
                 "--max_steps", 2, "--workers", 0)  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "starts with the teacher's keys" in result.stdout
    assert re.search(r"an image's squared error weighs 16 times \(published: 32\)", result.stdout)
    assert "--distill_norm ref32 keeps it" in result.stderr + result.stdout


def test_the_queue_starts_as_asked(patches, tmp_path, teacher):
    theirs = read_run(teacher)["state_dict"]["queue"]
    for asked in ("true", "false"):
        folder = tmp_path / asked
        plan = ["--teacher", teacher, "--epochs", 1, "--max_steps", 1, "--init_queue_from_teacher", asked]
        assert run(*command(patches, folder, *plan)).returncode == 0
        ours = read_run(folder / "checkpoint.pth.tar")["state_dict"]
        assert ours["queue_ptr"].tolist() == [16]
        assert torch.equal(ours["queue"][:, 16:], theirs[:, 16:]) == (asked == "true")
    plan = ["--teacher", teacher, "--epochs", 1, "--max_steps", 1, "--moco_k", 48]
    result = run(*command(patches, tmp_path / "c", *plan))
    assert "the student's starts at random" in result.stdout + result.stderr


def test_swav_with_a_teacher(patches, tmp_path, teacher):
    base = [
        "main_swav.py", "--data_path", patches / "train", "--arch", "resnet18", "--width", "0.125", "--stem", "small",
        "--size_crops", "16", "--batch_size", "16", "--nmb_prototypes", "6", "--feat_dim", "8", "--hidden_mlp", "8",
        "--epochs", "2", "--warmup_epochs", "0", "--base_lr", "0.1", "--pretrained", teacher, "--device", "cpu",
        "--tensorboard", "false", "--log_every", "1",
    ]  # fmt: skip
    assert run(*base, "--dump_path", tmp_path / "a", "--workers", 1).returncode == 0
    assert run(*base, "--dump_path", tmp_path / "b", "--workers", 0, "--max_steps", 4).returncode == 0
    result = run(*base, "--dump_path", tmp_path / "b", "--workers", 1)
    assert result.returncode == 0, result.stderr
    assert_same_end(tmp_path / "a", tmp_path / "b")
    first = json.loads((tmp_path / "a" / "log.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(first["swav"] + 0.5 * first["mse"], rel=1e-5)


# ------------------------------------------------------------------------------------------------ resume


@pytest.mark.parametrize(
    "extra",
    [
        [],
        pytest.param(["--teacher", "{teacher}"], marks=pytest.mark.slow),
        pytest.param(["--method", "seed", "--teacher", "{teacher}"], marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_resume_is_exact(patches, tmp_path, teacher, extra):
    """Queue and pointer with it; the permutations follow from the step."""
    plan = [*(word.format(teacher=teacher) for word in extra), "--epochs", 3, "--save_every", 4]
    assert run(*command(patches, tmp_path / "a", *plan, "--workers", 1)).returncode == 0
    assert run(*command(patches, tmp_path / "b", *plan, "--workers", 0, "--max_steps", 7)).returncode == 0
    result = run(*command(patches, tmp_path / "b", *plan, "--workers", 2))
    assert result.returncode == 0, result.stderr
    assert_same_end(tmp_path / "a", tmp_path / "b")


@pytest.mark.slow
def test_killed_at_random_it_ends_in_the_same_weights(patches, tmp_path, teacher):
    plan = ["--epochs", 6, "--save_every", 4, "--teacher", teacher]
    assert run(*command(patches, tmp_path / "a", *plan)).returncode == 0
    kill_until_done(command(patches, tmp_path / "b", *plan), tmp_path / "b", kills=2)
    assert_same_end(tmp_path / "a", tmp_path / "b")


@pytest.mark.slow
def test_two_ranks_resume_exactly(patches, tmp_path, teacher):
    plan = ["--epochs", 3, "--workers", 1, "--teacher", teacher, "--bn_parts", 1]
    assert run(*command(patches, tmp_path / "a", *plan), ranks=2).returncode == 0
    assert run(*command(patches, tmp_path / "b", *plan, "--max_steps", 8), ranks=2).returncode == 0
    result = run(*command(patches, tmp_path / "b", *plan), ranks=2)
    assert result.returncode == 0, result.stderr
    assert_same_end(tmp_path / "a", tmp_path / "b")


def test_another_teacher_is_refused_on_resume(patches, tmp_path, teacher):
    plan = ["--epochs", 1, "--max_steps", 1, "--workers", 0]
    assert run(*command(patches, tmp_path / "run", *plan, "--teacher", teacher)).returncode == 0
    content = read_run(teacher)
    content["state_dict"]["head.0.weight"] += 1
    del content["checksum"]  # changed on purpose
    torch.save(content, tmp_path / "other.pth.tar")
    result = run(
        *command(patches, tmp_path / "run", "--epochs", 1, "--workers", 0, "--teacher", tmp_path / "other.pth.tar")
    )
    assert result.returncode == 2
    assert "was made with other settings: teacher_sha256" in result.stderr


def test_a_folder_to_resume_from(patches, tmp_path):
    plan = ["--epochs", 2, "--workers", 0]
    assert run(*command(patches, tmp_path / "a", *plan, "--max_steps", 7)).returncode == 0
    result = run(*command(patches, tmp_path / "b", *plan, "--max_steps", 8, "--resume", tmp_path / "a"))
    assert result.returncode == 0, result.stderr
    assert "continuing from" in result.stdout
    assert read_run(tmp_path / "b" / "checkpoint.pth.tar")["step"] == 8


# ------------------------------------------------------------------------------------------------ bad input

BAD = [
    (["--method", "disco"], "--method disco needs a --teacher"),
    (["--method", "moco", "--teacher", "{teacher}"], "--method moco has no teacher"),
    (["--method", "seed", "--teacher", "{teacher}", "--distill", "mse"], "goes with --method disco or rkd"),
    (["--distill", "mse"], "goes with --method disco or rkd, not with moco"),
    (["--teacher", "{tmp}/nowhere.pth"], "does not exist"),
    (["--teacher", "{tmp}/backbone.pth"], "say --stem small"),
    (["--teacher", "{tmp}/backbone.pth", "--teacher_stem", "small"], "without its head"),
    (["--teacher", "{teacher}", "--moco_dim", "9"], "--moco_dim 8"),
    (["--teacher", "{teacher}", "--distill", "nothing"], "invalid choice"),
    (["--teacher", "{teacher}", "--nmb_prototypes", "3000"], "no embeddings"),
    (["--moco_k", "8"], "does not hold one batch of 16"),
    (["--bn_parts", "3"], "does not cut the 16 images"),
    (["--bn_parts", "16"], "does not cut the 16 images"),
    (["--moco_t", "0"], "expected a number above 0, up to 1,000"),
    (["--moco_m", "1.5"], "expected a number from 0 to 1"),
    (["--lr", "-1"], "expected a number from 0 to 1,000,000"),
    (["--hidden", "-2"], "expected a whole number from -1 to 1,000,000"),
    (["--crop_scale", "0", "1"], "expected numbers above 0, up to 1"),
    (["--blur", "2"], "expected a number from 0 to 1"),
    (["--jitter_strength", "3"], "expected a number from 0 to 1.25"),
    (["--batch_size", "1000", "--moco_k", "1000"], "do not fill one batch"),
    (["--arch", "resnet19"], "options of our ResNets"),
    (["--data_path", "{tmp}/nowhere"], "does not exist"),
]


@pytest.mark.parametrize(("extra", "message"), BAD, ids=[" ".join(e) for e, _ in BAD])
def test_bad_input(patches, tmp_path, teacher, capsys, extra, message):
    torch.save(create_backbone("resnet18", width=0.125, stem="small").state_dict(), tmp_path / "backbone.pth")
    arguments = [*command(patches, tmp_path / "run", "--epochs", 1, "--workers", 0)[1:], *extra]
    fails(main_disco.main, [str(a).format(tmp=tmp_path, teacher=teacher) for a in arguments], capsys, message)

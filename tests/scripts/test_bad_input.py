"""Wrong calls: each gets one line that says what was wrong, exit code 2, no traceback, and destroys nothing."""

import os
import pickle
import stat

import eval_knn
import eval_linear
import eval_semisup
import main_swav
from src import cli
from src.checkpoints.state import RunState
from src.checkpoints.store import CheckpointStore
from src.clock import Clock
from src.methods.swav import SwAV
from src.models.backbones import create_backbone
from src.optim.larc import LARC
from src.parallel import launch
from tests.helpers import run

import pytest
import torch

CROPS = ["--size_crops", "16", "--nmb_crops", "2", "--min_scale_crops", "0.3", "--max_scale_crops", "1"]
MODEL = ["--arch", "resnet18", "--width", "0.125", "--stem", "small", "--hidden_mlp", "8", "--feat_dim", "8",
         "--nmb_prototypes", "6"]  # fmt: skip
BASE = [*CROPS, *MODEL, "--batch_size", "8", "--epochs", "1", "--warmup_epochs", "0", "--workers", "0",
        "--tensorboard", "false", "--device", "cpu", "--max_steps", "1"]  # fmt: skip


def fails(main, arguments, capsys, message):
    """Runs a script's main as ``__main__`` would, and checks the one line it leaves."""

    def with_arguments(_):
        return main(list(map(str, arguments)))

    with pytest.raises(SystemExit) as caught:
        cli.run(with_arguments)
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if line and not line.startswith("warning:")]
    assert caught.value.code == 2, err
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    assert message in lines[0], lines[0]


@pytest.fixture
def place(tmp_path, patches):
    """Names that the table below refers to."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("hello")
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "foreign.pth")
    (tmp_path / "torn.pth").write_bytes((tmp_path / "foreign.pth").read_bytes()[:300])
    (tmp_path / "code.pth").write_bytes(pickle.dumps(os.getcwd))
    torch.save({"x": os.getcwd}, tmp_path / "code_in_zip.pth")
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    backbone = create_backbone("resnet50", width=0.125).state_dict()
    torch.save({f"module.{n}": t for n, t in list(backbone.items())[:-3]}, tmp_path / "partial.pth")
    return {"tmp": tmp_path, "train": patches / "train", "root": patches, "flat": patches / "train" / "leaf"}


def filled(arguments, place):
    return [str(a).format(**place) for a in arguments]


SWAV = [
    # data
    (["--data_path", "{tmp}/nowhere"], "does not exist"),
    (["--data_path", "{tmp}/empty"], "no images in"),
    (["--data_path", "{tmp}/file.txt"], "does not exist, nor do others"),
    (["--data_path", "{tmp}/torn.pth"], "is a file"),
    (["--data_path", "{root}"], "takes the training folder"),
    (["--dataset", "cifar10", "--data_path", "{tmp}/empty"], "pass --download"),
    (["--dataset", "imagenet21k"], "invalid choice"),
    (["--size_dataset", "0"], "--size_dataset 0"),
    (["--size_dataset", "5000"], "expected 1 to 96"),
    (["--batch_size", "97"], "do not fill one batch"),
    (["--batch_size", "0"], "expected a whole number from 1 to 10,000,000"),
    (["--accumulate", "14"], "do not fill one batch of 8 on each of 14 ranks"),
    (["--accumulate", "2", "--virtual_ranks", "2"], "leave it out"),
    (["--virtual_ranks", "0"], "expected a whole number from 1 on, or auto"),
    (["--virtual_ranks", "two"], "expected a whole number from 1 on, or auto"),
    (["--virtual_ranks", "auto"], "needs --ranks"),
    (["--virtual_ranks", "2", "--ranks", "3"], "1 processes with --virtual_ranks 2 are 2"),
    (["--ranks", "2"], "1 processes with --virtual_ranks 1 are 1"),
    (["--virtual_ranks", "4", "--sync_bn", "apex", "--syncbn_process_group_size", "3"], "batch norms over 3 ranks"),
    (["--workers", "-1"], "expected a whole number from 0 to 1,024"),
    (["--knn_freq", "1", "--data_path", "{flat}"], "pass the validation images with --val_path"),
    (["--knn_freq", "1", "--data_path", "{flat}", "--val_path", "{root}/test"], "no class folders"),
    (["--knn_freq", "1", "--knn_k", "1000"], "only 96 training images"),
    (["--knn_freq", "1", "--eval_size", "64", "--eval_resize", "32"], "cannot cut a crop of 64"),
    # views
    (["--size_crops", "16", "12"], "one entry for each resolution"),
    (["--nmb_crops", "1"], "at least two"),
    (["--nmb_crops", "0"], "expected whole numbers from 1 to 1,000"),
    (["--size_crops", "4"], "expected whole numbers from 8 to 2,048"),
    (["--size_crops", "100000"], "expected whole numbers from 8 to 2,048"),
    (["--min_scale_crops", "0.9", "--max_scale_crops", "0.2"], "0 < min <= max <= 1"),
    (["--max_scale_crops", "1.5"], "expected numbers above 0, up to 1"),
    (["--jitter_strength", "9"], "--jitter_strength"),
    (["--blur", "1.5"], "expected a number from 0 to 1"),
    (["--crops_for_assign", "0", "5"], "from 0 to 1"),
    (["--crops_for_assign", "0", "0"], "distinct"),
    # model
    (["--nmb_prototypes", "0"], "expected whole numbers from 2 to 100,000,000"),
    (["--nmb_prototypes", "1"], "expected whole numbers from 2 to 100,000,000"),
    (["--arch", "resnet5O", "--width", "1", "--stem", "imagenet"], "did you mean resnet50"),
    (["--arch", "efficientnet_b0"], "options of our ResNets"),
    (["--width", "0"], "expected a number above 0, up to 64"),
    (["--method", "deepcluster-v2", "--nmb_prototypes", "100"], "a process sees 96 images an epoch"),
    (["--method", "deepcluster-v2", "--queue_length", "64"], "belongs to SwAV"),
    (["--method", "sela-v2", "--sela_epsilon", "0"], "expected a number above 0, up to 100"),
    (["--method", "sela-v2", "--sela_hard", "false", "--nmb_prototypes", "6", "5"], "equally many prototypes"),
    (["--method", "swa"], "invalid choice"),
    (["--shard"], "start with torchrun"),
    (
        ["--arch", "mobilenetv3_small_050", "--width", "1", "--stem", "imagenet", "--checkpoint_activations"],
        "works for our ResNets",
    ),
    (["--augment_on", "gpu"], "invalid choice"),
    (["--temperature", "0"], "expected a number above 0, up to 1,000"),
    (["--epsilon", "0.0001"], "expected a number from 0.003 to 100"),
    (["--sinkhorn_iterations", "0"], "expected a whole number from 1 to 10,000"),
    (["--queue_length", "7"], "does not hold one batch of 8"),
    (["--queue_length", "12.5"], "is not a whole number"),
    # optimisation
    (["--epochs", "0"], "expected a whole number from 1 to 1,000,000,000"),
    (["--warmup_epochs", "2"], "is more than --epochs"),
    (["--base_lr", "-1"], "expected a number from 0 to 1,000,000"),
    (["--epochs", "3.5"], "is not a whole number"),
    (["--base_lr", "fast"], "'fast' is not a number"),
    # run
    (["--epoch", "5"], "did you mean --epochs"),
    (["--batchsize", "5"], "unknown argument --batchsize"),
    (["stray"], "unknown argument stray"),
    (["--use_fp16", "maybe"], "not a boolean"),
    (["--precision", "fp16"], "needs a GPU"),
    (["--device", "gpu"], "expected auto, cpu or cuda"),
    (["--dist_url", "localhost:1234"], "expected env://"),
    (["--dump_path", "{tmp}/file.txt/run"], "cannot write"),
    (["--resume", "{tmp}/nowhere.pth"], "does not exist"),
    (["--resume", "{tmp}/foreign.pth"], "not a training checkpoint of this program"),
    (["--resume", "{tmp}/torn.pth"], "torn or not a PyTorch checkpoint"),
    (["--resume", "{tmp}/code.pth"], "could run code"),
    (["--resume", "{tmp}/code_in_zip.pth"], "could run code"),
    (["--resume", "{tmp}/empty"], "is a folder"),
    (["--checkpoint_freq", "0"], "expected a whole number from 1 to 1,000,000,000"),
]


@pytest.mark.parametrize(("extra", "message"), SWAV, ids=[" ".join(e) for e, _ in SWAV])
def test_main_swav(extra, message, place, capsys):
    arguments = ["--data_path", "{train}", "--dump_path", "{tmp}/run", *BASE, *extra]
    fails(main_swav.main, filled(arguments, place), capsys, message)


JUDGES = [
    (["--data_path", "{tmp}/nowhere"], "does not exist"),
    (["--data_path", "{train}"], "evaluation takes the folder that holds train and val"),
    (["--pretrained", "{tmp}/nowhere.pth"], "does not exist"),
    (["--pretrained", "{tmp}/torn.pth"], "torn or not a PyTorch checkpoint"),
    (["--pretrained", "{tmp}/code.pth"], "could run code"),
    (["--pretrained", "{tmp}/tensor.pth"], "no weights that this program knows"),
    (["--pretrained", "{tmp}/partial.pth", "--arch", "resnet50"], "missing (such as"),
    (["--pretrained", "{tmp}/foreign.pth"], "1 unexpected (such as a)"),
    (["--crop_size", "64", "--resize", "32"], "cannot cut a crop"),
]


@pytest.mark.parametrize("main", [eval_knn.main, eval_linear.main, eval_semisup.main], ids=["knn", "linear", "semisup"])
@pytest.mark.parametrize(("extra", "message"), JUDGES, ids=[" ".join(e) for e, _ in JUDGES])
def test_evaluations(main, extra, message, place, capsys):
    model = ["--arch", "resnet18", "--width", "0.125", "--crop_size", "16"]
    base = ["--data_path", "{root}", "--dump_path", "{tmp}/run", "--workers", "0", "--device", "cpu", *model]
    fails(main, filled([*base, *extra], place), capsys, message)


@pytest.mark.parametrize(
    ("main", "extra", "message"),
    [
        (eval_knn.main, ["--k", "1000"], "only 96 training images"),
        (eval_knn.main, ["--temperature", "0"], "expected a number above 0, up to 1,000"),
        (eval_linear.main, ["--lr", "0"], "expected numbers above 0, up to 1,000,000"),
        (eval_linear.main, ["--lr", "0.1", "0.1"], "different learning rates"),
        (eval_linear.main, ["--features", "cached", "--global_pooling", "false"], "--global_pooling true"),
        (eval_linear.main, ["--arch", "efficientnet_b0", "--width", "1", "--global_pooling", "false"], "our ResNets"),
        (eval_linear.main, ["--global_pooling", "false"], "needs maps of 7x7 positions"),
        (eval_linear.main, ["--weights", "finetune"], "is eval_semisup.py"),
        (eval_linear.main, ["--protocol", "dino"], "invalid choice"),
        (eval_linear.main, ["--protocol", "vit"], "need a vision transformer"),
        (eval_linear.main, ["--schedule", "sometimes"], "expected cos, step, or epochs"),
        (eval_linear.main, ["--batch_size", "0"], "expected a whole number from 1 to 10,000,000"),
        (eval_linear.main, ["--evaluate"], "there is no checkpoint in"),
        (eval_linear.main, ["--evaluate", "--resume", "never"], "cannot go with"),
        (eval_linear.main, ["more", "and more", "words"], "unknown argument and more"),
        (eval_semisup.main, ["--labels_perc", "0"], "expected a number above 0, up to 100"),
        (eval_semisup.main, ["--labels_perc", "1000"], "expected a number above 0, up to 100"),
        (eval_semisup.main, ["--labels_perc", "ten"], "not a number"),
        (eval_semisup.main, ["--subset_file", "{tmp}/nowhere.txt"], "cannot read the list"),
        (eval_semisup.main, ["--subset_file", "{tmp}/file.txt"], "are not among the training images (such as hello)"),
        (eval_semisup.main, ["--lr_last_layer", "0.1", "1"], "give one learning rate"),
        (eval_semisup.main, ["--lr", "-1"], "expected a number from 0 to 1,000,000"),
        (eval_semisup.main, ["--features", "cached"], "need --weights freeze"),
    ],
)
def test_flags_of_one_evaluation(main, extra, message, place, capsys):
    model = ["--arch", "resnet18", "--width", "0.125", "--crop_size", "16"]
    base = ["--data_path", "{root}", "--dump_path", "{tmp}/run", "--workers", "0", "--device", "cpu", *model]
    fails(main, filled([*base, *extra], place), capsys, message)


def test_evaluation_needs_labels_and_the_same_classes(tmp_path, patches, capsys):
    for split, name in (("train", "a"), ("val", "a"), ("val", "b")):
        folder = tmp_path / "other" / split / name
        folder.mkdir(parents=True)
        (folder / "x.png").write_bytes(next((patches / "train" / "leaf").iterdir()).read_bytes())
    base = ["--dump_path", tmp_path, "--workers", 0, "--device", "cpu", "--arch", "resnet18", "--width", 0.125]
    fails(
        eval_knn.main, ["--data_path", tmp_path / "other", *base], capsys, "all training images have the same class (a)"
    )
    (tmp_path / "flat" / "val").mkdir(parents=True)
    (tmp_path / "flat" / "train").mkdir()
    for split in ("train", "val"):
        (tmp_path / "flat" / split / "x.png").write_bytes((tmp_path / "other" / "train" / "a" / "x.png").read_bytes())
    fails(eval_knn.main, ["--data_path", tmp_path / "flat", *base], capsys, "no class folders, and labels are needed")


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"RANK": "0"}, "WORLD_SIZE"),
        ({"RANK": "3", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}, "does not exist in a world"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR"),
    ],
)
def test_bad_launcher_settings(environ, message, place, capsys, monkeypatch):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    if environ["RANK"] != "0":
        monkeypatch.setattr(launch, "rank_in_environment", lambda: 0)
    arguments = ["--data_path", "{train}", "--dump_path", "{tmp}/run", *BASE]
    fails(main_swav.main, filled(arguments, place), capsys, message)


def test_a_resume_loses_nothing_of_other_models_and_other_programs(place, capsys):
    """A checkpoint that cannot be used is still there, byte for byte, after the refusal."""
    folder = place["tmp"] / "run"
    method = SwAV(create_backbone("resnet18", width=0.25), hidden_mlp=8, feat_dim=8, nmb_prototypes=6)
    state = RunState(method, LARC(method.parameters()), torch.amp.GradScaler("cpu", enabled=False), Clock(10, 4), 8)
    CheckpointStore(folder, {}).save(state)
    before = {path: path.read_bytes() for path in folder.rglob("*.pth*")}
    arguments = ["--data_path", "{train}", "--dump_path", folder, *BASE]
    fails(main_swav.main, filled(arguments, place), capsys, "choose another --dump_path for another model")
    fails(main_swav.main, filled([*arguments, "--resume", "never"], place), capsys, "holds checkpoints")
    assert {path: path.read_bytes() for path in folder.rglob("*.pth*")} == before

    other = place["tmp"] / "other"
    other.mkdir()
    (other / "checkpoint.pth.tar").write_bytes((place["tmp"] / "foreign.pth").read_bytes())
    arguments = ["--data_path", "{train}", "--dump_path", other, *BASE]
    fails(main_swav.main, filled(arguments, place), capsys, "none of the 1 checkpoints")
    assert (other / "checkpoint.pth.tar").read_bytes() == (place["tmp"] / "foreign.pth").read_bytes()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_folder(place, capsys):
    locked = place["tmp"] / "locked"
    locked.mkdir(mode=stat.S_IRUSR | stat.S_IXUSR)
    arguments = ["--data_path", "{train}", "--dump_path", locked / "run", *BASE]
    fails(main_swav.main, filled(arguments, place), capsys, "cannot write")


def test_from_the_shell_it_is_one_line_and_exit_code_2(tmp_path):
    result = run("main_swav.py", "--data_path", tmp_path / "nowhere", "--dump_path", tmp_path / "run")
    assert result.returncode == 2
    assert result.stderr == f"error: {tmp_path / 'nowhere'} does not exist\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["main_swav.py", "eval_knn.py", "eval_linear.py", "eval_semisup.py"])
def test_missing_arguments_and_help(name):
    missing = run(name)
    assert missing.returncode == 2
    assert missing.stderr == "error: the following arguments are required: --data_path\n"
    help_ = run(name, "--help")
    assert help_.returncode == 0
    assert "--data_path" in help_.stdout


def test_a_broken_data_set_in_a_worker_is_one_line_too(tmp_path):
    for i in range(30):
        (tmp_path / f"{i}.jpg").write_bytes(b"")
    result = run("main_swav.py", "--data_path", tmp_path, "--dump_path", tmp_path / "run", *BASE, "--workers", 1)
    assert result.returncode == 2, result.stderr
    errors = [line for line in result.stderr.splitlines() if not line.startswith("warning:")]
    assert len(errors) == 1, result.stderr
    assert "20 images in a row could not be read" in errors[0]

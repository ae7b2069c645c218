"""A run or an evaluation continues only what has the same data, weights and settings; all else is refused by name."""

import json
import shutil

import eval_linear
import main_swav
import main_w2ssl
from src.checkpoints import identity
from src.data.datasets import FolderImages
from src.data.fingerprint import fingerprint
from src.data.lmdb_file import LMDBImages
from src.errors import UserError
from src.models.backbones import create_backbone
from src.models.teacher import Teacher
from src.settings import flat
from tests.helpers import run

import pytest
import torch
from PIL import Image

SWAV = (
    "main_swav.py --arch resnet18 --width 0.0625 --stem small --device cpu --tensorboard false --size_crops 16 "
    "--nmb_crops 2 --hidden_mlp 8 --feat_dim 8 --nmb_prototypes 6 --warmup_epochs 0 --batch_size 32 --workers 0"
)
OTHER_OPTIMISER = "main_cwrgp.py --method simsiam --head_size 8 --emb 8 --crop_size 16 --bs 32 --warmup_iters 0"
LINEAR = "eval_linear.py --features cached --epochs 2 --batch_size 32 --workers 0 --lr 0.3 --wd 0"


@pytest.fixture(scope="module")
def renditions(patches, tmp_path_factory):
    """The same images under other names, with other pixels, and with one class less, and a copy of them."""
    root = tmp_path_factory.mktemp("renditions")
    for name in ("copy", "pixels", "names", "fewer", "relabelled"):
        shutil.copytree(patches, root / name)
    for path in (root / "pixels").rglob("*.*"):
        with Image.open(path) as image:
            image.convert("RGB").resize((32, 32)).save(path)
    for split in ("train", "test"):
        first = sorted((root / "names" / split / "leaf").iterdir())[3]
        first.rename(first.with_name(f"zz{first.suffix}"))
        shutil.rmtree(root / "fewer" / split / "leaf")
        (root / "relabelled" / split / "leaf").rename(root / "relabelled" / split / "oak")
    return root


@pytest.fixture(scope="module")
def finished(patches, tmp_path_factory):
    """A training of two epochs, and a linear evaluation of it."""
    root = tmp_path_factory.mktemp("finished")
    result = run(*SWAV.split(), "--data_path", patches / "train", "--dump_path", root / "swav", "--epochs", 2)
    assert result.returncode == 0, result.stderr
    result = run(*linear(root, patches))
    assert result.returncode == 0, result.stderr
    return root


def linear(root, data):
    weights = root / "swav" / "checkpoint.pth.tar"
    return [*LINEAR.split(), "--data_path", data, "--pretrained", weights, "--dump_path", root / "judged"]


@pytest.mark.parametrize(("which", "differs"), [
    ("pixels", ["content"]), ("names", ["list"]), ("fewer", ["images", "classes", "other class names", "list"]),
    ("relabelled", ["other class names", "list"]),
])  # fmt: skip
def test_other_images_are_never_judged_as_these(finished, patches, renditions, which, differs):
    before = (finished / "judged" / "linear.json").read_bytes()
    for command, folder in (
        (linear(finished, renditions / which), "judged"),
        (
            [
                *SWAV.split(),
                "--data_path",
                renditions / which / "train",
                "--dump_path",
                finished / "swav",
                "--epochs",
                2,
            ],
            "swav",
        ),
    ):
        result = run(*command)
        assert result.returncode == 2, (folder, result.stdout)
        assert "was made with other settings: " in result.stderr
        for name in differs:
            assert name in result.stderr.partition("train_images (")[2].partition(")")[0]
    assert (finished / "judged" / "linear.json").read_bytes() == before


@pytest.mark.parametrize("flags", [
    "--lr 30", "--wd 0.1", "--optimizer adam", "--optimizer larc", "--batch_size 16", "--crop_size 24", "--seed 7",
    "--mean 0.1 0.1 0.1", "--scheduler_type step", "--momentum 0.5", "--nesterov true", "--lr 0.3 3", "--epochs 1",
    "--labels_perc 50", "--features augmented", "--key auto --protocol barlow",
])  # fmt: skip
def test_another_evaluation_is_never_reported_as_this_one(finished, patches, flags):
    before = (finished / "judged" / "linear.json").read_bytes()
    result = run(*linear(finished, patches), *flags.split())
    assert result.returncode == 2, result.stdout
    assert "Traceback" not in result.stderr
    assert ("was made with other settings" in result.stderr) or ("has gone through 2 epochs" in result.stderr)
    assert "choose another --dump_path" in result.stderr
    assert (finished / "judged" / "linear.json").read_bytes() == before


@pytest.mark.parametrize("flags", [
    "--base_lr 0.1", "--wd 0.1", "--temperature 0.3", "--seed 5", "--size_crops 18", "--nmb_crops 3", "--clip_norm 1",
    "--warmup_epochs 1", "--freeze_prototypes_niters 0", "--epochs 1", "--mean 0.1 0.1 0.1", "--size_dataset 90",
])  # fmt: skip
def test_another_training_never_continues_this_one(finished, patches, flags):
    folder = finished / "swav"
    before = {path: path.read_bytes() for path in (folder / "settings.json", folder / "checkpoint.pth.tar")}
    result = run(*SWAV.split(), "--data_path", patches / "train", "--dump_path", folder, "--epochs", 2, *flags.split())
    assert result.returncode == 2, result.stdout
    name = flags.split()[0].removeprefix("--")
    assert name in result.stderr or "has gone through 2 epochs, and 1 are asked for" in result.stderr
    assert {path: path.read_bytes() for path in before} == before


def test_a_finished_run_says_so_and_keeps_its_settings(finished, patches, renditions):
    settings = (finished / "swav" / "settings.json").read_bytes()
    for data, more in ((patches, ["--workers", 1]), (renditions / "copy", ["--knn_freq", 1])):  # a moved data set
        result = run(
            *SWAV.split(), "--data_path", data / "train", "--dump_path", finished / "swav", "--epochs", 2, *more
        )
        assert result.returncode == 0, result.stderr
        assert "finished: 2 epochs, 6 steps are done; there is nothing to do" in result.stdout
        assert (finished / "swav" / "settings.json").read_bytes() == settings
    written = json.loads((finished / "judged" / "linear.json").read_text())["lr"]
    result = run(*linear(finished, renditions / "copy"))
    assert "finished before: 2 epochs are done" in result.stdout
    assert json.loads((finished / "judged" / "linear.json").read_text())["lr"] == written


def test_what_may_change_changes_with_a_line(finished, patches, tmp_path):
    shutil.copytree(finished / "swav", tmp_path / "swav")
    result = run(*SWAV.split(), "--data_path", patches / "train", "--dump_path", tmp_path / "swav", "--epochs", 3)
    assert result.returncode == 0, result.stderr
    assert "settings changed since the checkpoint was written: epochs 2 -> 3" in result.stderr
    command = [
        *SWAV.split(),
        "--data_path",
        patches / "train",
        "--dump_path",
        tmp_path / "swav",
        "--epochs",
        4,
        "--wd",
        0.5,
    ]
    assert run(*command).returncode == 2
    result = run(*command, "--accept_changes", "wd")
    assert result.returncode == 0, result.stderr
    assert "wd 1e-06 -> 0.5" in result.stderr
    assert "there is no such setting" in run(*command, "--accept_changes", "weight").stderr


def test_another_optimiser_is_refused_in_one_line(patches, tmp_path):
    base = [
        *OTHER_OPTIMISER.split(),
        *SWAV.split()[1:9],
        "--data_path",
        patches,
        "--dump_path",
        tmp_path,
        "--workers",
        0,
    ]
    assert run(*base, "--epochs", 1, "--optimizer", "sgd").returncode == 0
    for accepted in ([], ["--accept_changes", "optimizer"]):
        result = run(*base, "--epochs", 2, "--optimizer", "adam", *accepted)
        assert result.returncode == 2
        assert result.stderr.strip().count("\n") == 0, result.stderr
        assert "optimi" in result.stderr


def test_files_from_before_the_images_were_noted_are_compared_by_path():
    old = {"data_path": "/a", "dataset": "folder", "lr": 0.3}
    new = {**old, "train_images": {"images": 3}}
    assert identity.compare(old, new, "x") == ""
    with pytest.raises(UserError, match="data_path /a -> /b"):
        identity.compare(old, {**new, "data_path": "/b"}, "x")
    assert identity.compare(new, {**new, "data_path": "/b"}, "x") == ""


def test_a_packed_folder_is_the_same_data(patches, tmp_path):
    from scripts import make_lmdb

    make_lmdb.main(["--data_path", str(patches / "test"), "--out", str(tmp_path / "x.lmdb")])
    assert fingerprint(LMDBImages(tmp_path / "x.lmdb")) == fingerprint(FolderImages(patches / "test"))


def test_default_folders_carry_the_names_of_what_goes_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def folder(module, *words):
        return flat(module.SCRIPT.parse(list(words)).settings)["dump_path"]

    assert folder(main_swav, "--data_path", "/data/imagenet/train") == "runs/swav-resnet50-imagenet"
    assert folder(main_w2ssl, "/data/birds", "--arch", "resnet18") == "runs/w2ssl-resnet18-birds"
    names = [
        folder(eval_linear, "--data_path", data, "--pretrained", weights)
        for data in ("/data/a", "/data/b")
        for weights in ("/runs/x/checkpoint.pth.tar", "/runs/y/checkpoints/ckp-4.pth", "/w/resnet50.pth")
    ]
    assert names[:3] == [f"evaluations/{name}-on-a" for name in ("x-checkpoint", "y-ckp-4", "resnet50")]
    assert len(set(names)) == 6
    assert folder(eval_linear, "--data_path", "/a", "--arch", "resnet18") == "evaluations/random-resnet18-on-a"
    # where an earlier release has left a run in the current folder, it is continued
    for name in ("checkpoint.pth.tar", "settings.json"):
        (tmp_path / name).touch()
    assert folder(main_swav, "--data_path", "/data/imagenet/train") == "."
    assert folder(main_swav, "--data_path", "/x", "--dump_path", "z") == "z"


def test_the_detector_continues_its_own_weights_only(tmp_path):
    from detection import train_torchvision

    torch.manual_seed(0)
    torch.save(create_backbone("resnet18").state_dict(), tmp_path / "a.pth")
    parse = train_torchvision.SCRIPT.parse
    assert (
        flat(parse(["--pretrained", str(tmp_path / "a.pth")]).settings)["dump_path"]
        == "detections/fasterrcnn-a-on-coco"
    )


def test_the_same_weights_behind_another_stem_are_another_teacher(tmp_path):
    torch.save(create_backbone("resnet18", width=0.0625, stem="small").state_dict(), tmp_path / "x.pth")
    one, again, other = (Teacher(tmp_path / "x.pth", stem=stem).identity for stem in ("small", "small", "small_pool"))
    assert one["teacher_sha256"] == other["teacher_sha256"]
    assert identity.compare(one, again, "x") == ""
    with pytest.raises(UserError, match=r"teacher_network \(stem small -> small_pool\)"):
        identity.compare(one, other, "x")
    assert identity.compare({"teacher_sha256": one["teacher_sha256"]}, other, "x") == ""  # of an earlier release

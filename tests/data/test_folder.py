"""Which files of a folder are its images, and that everything else is named: links, other endings, hidden files, ..."""

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from src.data.datasets import How, open_images, open_train_and_test
from src.data.folder import FolderImages
from src.data.splits import find_val_beside
from src.errors import UserError
from tests.helpers import run


def images(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (8, 8), (len(name), 7, 9)).save(folder / name)


def other_endings(root):
    images(root / "fish", "a.gif", "b.gif")
    (root / "fish" / "notes").write_text("")
    return ["2 with the ending .gif (such as", "1 without an ending", "1 class folders without images (such as"]


def hidden(root):
    images(root / "cat", ".c.png")
    images(root / ".thumbnails", "a.png")
    return ["1 hidden files", "1 hidden folders"]


def beside(root):
    images(root, "stray.png", "other.png")
    return ["2 images beside the class folders (such as"]


def no_files(root):
    os.mkfifo(root / "cat" / "pipe.png")
    (root / "cat" / "lost.png").symlink_to(root / "nowhere.png")
    (root / "cat" / "folder.png").mkdir()
    return ["1 pipes, sockets or devices (such as", "1 links to nothing (such as"]


def loops(root):
    (root / "cat" / "up").symlink_to(root)
    (root / "dog" / "self").symlink_to(root / "dog")
    (root / "dog" / "there").symlink_to(root / "cat")
    images(root / "cat" / "deep" / "er", "x.png")
    (root / "cat" / "deep" / "er" / "back").symlink_to(root / "cat" / "deep")
    return ["links back to a folder above them (such as"]


@pytest.mark.parametrize("mistake", [other_endings, hidden, beside, no_files, loops])
def test_what_is_left_out_is_counted_and_named(tmp_path, mistake):
    root = tmp_path / "train"
    images(root / "cat", "a.png", "b.png")
    images(root / "dog", "a.png")
    expected = mistake(root)
    source = FolderImages(root)
    lines = "; ".join(source.left_out)
    for text in expected:
        assert text in lines
    assert source.classes == ["cat", "dog"]
    found = [source.relative_name(index) for index in range(len(source))]
    assert len(found) == len(set(found))
    plain = {"cat/a.png", "cat/b.png", "dog/a.png"}
    if mistake is loops:  # a link to a class is followed, once
        plain |= {"cat/deep/er/x.png", "dog/there/a.png", "dog/there/b.png", "dog/there/deep/er/x.png"}
    assert set(found) == plain


def test_nothing_is_left_out_of_a_plain_folder(patches):
    assert FolderImages(patches / "train").left_out == []


@pytest.mark.parametrize("ending", [".GIF", "gif"])
def test_further_endings_are_asked_for(tmp_path, ending):
    images(tmp_path / "cat", "a.gif")
    images(tmp_path / "dog", "b.png")
    assert FolderImages(tmp_path).classes == ["dog"]
    source = open_images("folder", tmp_path, how=How(extensions=(ending,)))
    assert (source.classes, list(source.left_out)) == (["cat", "dog"], [])
    with pytest.raises(UserError, match=r"no images in .*left out: 1 with the ending \.gif"):
        FolderImages(tmp_path / "cat")


@pytest.mark.parametrize("names", [
    ("train", "val"), ("Train", "Test"), ("training", "validation"), ("train", "valid", "test"), ("TRAIN", "dev"),
])  # fmt: skip
def test_a_root_of_splits_is_no_folder_of_classes(tmp_path, names):
    for name in names:
        images(tmp_path / name / "cat", "a.png")
    with pytest.raises(UserError, match=rf"which are splits and no classes; .*{names[0]}"):
        open_images("folder", tmp_path)
    open_images("folder", tmp_path / names[0])


def test_classes_may_be_called_like_splits(tmp_path):
    for name in ("test", "train", "bus"):
        images(tmp_path / name, "a.png")
    assert open_images("folder", tmp_path).classes == ["bus", "test", "train"]


def test_a_labelled_evaluation_needs_two_classes(tmp_path):
    for split in ("train", "val"):
        images(tmp_path / split / "cat", "a.png")
    with pytest.raises(UserError, match=r"all training images have the same class \(cat\)"):
        open_train_and_test("folder", tmp_path)


def test_validation_may_lack_a_class_and_may_not_have_another(tmp_path):
    for name in ("ant", "bee", "cat", "dog"):
        images(tmp_path / "train" / name, "a.png")
    for name in ("bee", "dog"):
        images(tmp_path / "val" / name, "a.png", "b.png")
    train, val = open_train_and_test("folder", tmp_path)
    assert val.classes == train.classes
    assert list(val.labels) == [1, 1, 3, 3]
    images(tmp_path / "val" / "emu", "a.png")
    with pytest.raises(UserError, match=r"1 of the 3 classes of the test images have no training images \(such as emu"):
        open_train_and_test("folder", tmp_path)


def test_validation_lies_beside_the_training_images_as_they_are_given(tmp_path):
    for place in ("a/train", "a/val", "store/train", "store/val"):
        images(tmp_path / place / "cat", "x.png")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "train").symlink_to(tmp_path / "store" / "train")
    shutil.copytree(tmp_path / "a" / "val", tmp_path / "b" / "val")
    assert find_val_beside("folder", tmp_path / "b" / "train") == tmp_path / "b" / "val"
    assert find_val_beside("folder", f"{tmp_path}/b/x/../train/") == tmp_path / "b" / "val"


def test_names_that_are_no_utf_8_work_everywhere(patches, tmp_path):
    """Log, CSV, LMDB, pictures, messages."""
    odd = b"caf\xe9$".decode("utf-8", "surrogateescape")
    root = tmp_path / "data"
    for split in ("train", "test"):
        for name in ("leaf", "dogs"):
            shutil.copytree(patches / split / name, root / split / (odd if name == "dogs" else name))
        (root / split / odd / f"{odd}.png").write_bytes(b"broken")
    model = ["--arch", "resnet18", "--width", 0.0625, "--stem", "small", "--device", "cpu", "--workers", 0]
    trained = run("main_swav.py", *model, "--data_path", root / "train", "--dump_path", tmp_path / "run", "--epochs", 1,
                  "--size_crops", 16, "--hidden_mlp", 8, "--feat_dim", 8, "--nmb_prototypes", 4, "--batch_size", 16,
                  "--knn_freq", 1, "--knn_k", 3)  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    assert r"unreadable image skipped" in trained.stderr
    judged = ["--data_path", root, "--pretrained", tmp_path / "run" / "checkpoint.pth.tar", "--workers", 0,
              "--dump_path", tmp_path / "judged", "--device", "cpu"]  # fmt: skip
    for command in (["eval_cluster.py", "--kmeans", 3], ["eval_knn.py", "--k", 3],
                    ["eval_linear.py", "--features", "cached", "--epochs", 1],
                    ["plot_embedding.py", "--nmb_classes", 2]):  # fmt: skip
        result = run(*command, *judged)
        assert result.returncode == 0, result.stderr
        assert "1 images cannot be read and are left out" in result.stderr
    table = (tmp_path / "judged" / "predictions.csv").read_bytes()
    assert b"caf\xe9$/" in table
    assert table.count(b"\n") == 17  # a header, and the 16 images that can be read
    packed = run("scripts/make_lmdb.py", "--data_path", root / "train", "--out", tmp_path / "x.lmdb")
    assert packed.returncode == 0, packed.stderr
    source = open_images("lmdb", tmp_path / "x.lmdb")
    assert odd in source.classes
    assert {source.relative_name(i) for i in range(len(source))} >= {f"{odd}/{odd}.png"}

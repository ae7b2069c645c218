"""torchvision's sets for transfers, in torchvision's own layout."""

import eval_semisup
from src.data.datasets import open_train_and_test
from src.errors import UserError
from src.models.backbones import create_backbone
from tests.checkpoints.test_layouts import prefixed

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from torchvision import datasets


@pytest.fixture
def flowers(tmp_path, monkeypatch):
    """Twelve images of four classes: four to train on, four to validate, four to test."""
    folder = tmp_path / "flowers-102"
    (folder / "jpg").mkdir(parents=True)
    for number in range(1, 13):
        pixels = np.full((40, 40, 3), 20 * number, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "jpg" / f"image_{number:05d}.jpg")
    labels = np.array([[1 + n % 4 for n in range(12)]])
    scipy.io.savemat(folder / "imagelabels.mat", {"labels": labels})
    parts = {"trnid": [[1, 2, 3, 4]], "valid": [[5, 6, 7, 8]], "tstid": [[9, 10, 11, 12]]}
    scipy.io.savemat(folder / "setid.mat", parts)
    monkeypatch.setattr(datasets.Flowers102, "_check_integrity", lambda self: True)  # digests of the real files
    return tmp_path


@pytest.fixture
def pets(tmp_path):
    folder = tmp_path / "oxford-iiit-pet"
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    for split, first in (("trainval", 0), ("test", 3)):
        lines = []
        for number in range(first, first + 3):
            for label, breed in enumerate(("Abyssinian", "great_dane"), start=1):
                pixels = np.full((40, 60, 3), 30 * number + label, dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "images" / f"{breed}_{number}.jpg")
                lines.append(f"{breed}_{number} {label} 1 1")
        (folder / "annotations" / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_flowers_train_on_two_splits(flowers):
    train, test = open_train_and_test("flowers102", flowers)
    assert (len(train), len(test)) == (8, 4)
    assert list(train.labels) == [0, 1, 2, 3, 0, 1, 2, 3]
    assert len(train.classes) == 102
    assert [np.asarray(train.open(n))[0, 0, 0] // 20 for n in (0, 7)] == [1, 8]
    assert np.asarray(test.open(0))[0, 0, 0] // 20 == 9


def test_pets_have_breeds(pets):
    train, test = open_train_and_test("oxford_pets", pets)
    assert (len(train), len(test)) == (6, 6)
    assert list(train.labels) == [0, 1, 0, 1, 0, 1]
    assert train.classes == ["Abyssinian", "Great Dane"]
    assert train.open(0).size == (60, 40)


@pytest.mark.parametrize("name", ["flowers102", "oxford_pets"])
def test_w2ssls_weights_are_fine_tuned_on_them(request, tmp_path, capsys, name):
    root = request.getfixturevalue("flowers" if name == "flowers102" else "pets")
    state = {**create_backbone("resnet18", width=0.125).state_dict(), "fc_crop.0.weight": torch.ones(1)}
    torch.save({"state_dict": prefixed(state, "module.base_encoder.")}, tmp_path / "w2ssl.pth.tar")
    words = ["--data_path", root, "--dataset", name, "--pretrained", tmp_path / "w2ssl.pth.tar", "--workers", 0]
    words += ["--dump_path", tmp_path / "out", "--device", "cpu", "--crop_size", 32, "--epochs", 1, "--batch_size", 4]
    assert eval_semisup.main([str(word) for word in words]) == 0
    assert "protocol   transfer (fine-tuning on small sets, as MoCo-v3 transfers; W2SSL's" in capsys.readouterr().out
    assert (tmp_path / "out" / "semisup.json").exists()


def test_what_is_not_there_gets_one_line(tmp_path):
    for name in ("flowers102", "oxford_pets"):
        with pytest.raises(UserError, match=f"{name} is not usable .*pass --download"):
            open_train_and_test(name, tmp_path)

"""Evaluations compute what they say, on what they say: right values are computed here, on the images that are left."""

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

from src.checkpoints.state import RunState
from src.checkpoints.store import CheckpointStore
from src.clock import Clock
from src.data.folder import FolderImages
from src.data.labels import UNLABELLED
from src.data.loading import loader_of
from src.data.to_device import ToDevice
from src.data.views import CentreView
from src.evaluation.features import extract_features
from src.evaluation.knn import knn_predict, nearest_majority, top_k_accuracy
from src.methods.swav import SwAV
from src.models.backbones import create_backbone
from src.optim.larc import LARC
from src.pretraining import online
from tests.helpers import on_ranks, run

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

SMALL = {"method": "swav", "arch": "resnet18", "width": 0.125, "stem": "small_pool", "eval_size": 32, "eval_resize": 36,
         "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}  # fmt: skip


def save_run(folder, settings, change=lambda method: None):
    torch.manual_seed(0)
    backbone = create_backbone("resnet18", width=settings["width"], stem=settings["stem"])
    method = SwAV(backbone, hidden_mlp=8, feat_dim=8, nmb_prototypes=6, queue_rows=4)
    change(method)
    state = RunState(method, LARC(method.parameters()), torch.amp.GradScaler("cpu", enabled=False), Clock(10, 4), 8)
    CheckpointStore(folder, settings).save(state)
    return folder / "checkpoint.pth.tar"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_run(tmp_path_factory.mktemp("run"), SMALL)


@pytest.fixture(scope="module")
def damaged(patches, tmp_path_factory):
    """The patches, with a third of the test images and two training images torn; and the same without them."""
    root = tmp_path_factory.mktemp("damaged")
    for name in ("torn", "left"):
        shutil.copytree(patches, root / name)
    for split, every in (("test", 3), ("train", 40)):
        for path in sorted((root / "torn" / split).rglob("*.*"))[::every]:
            path.write_bytes(path.read_bytes()[:100])
            (root / "left" / path.relative_to(root / "torn")).unlink()
    return root


COMMANDS = {
    "knn": ["eval_knn.py", "--k", 1, 5],
    "linear": ["eval_linear.py", "--features", "cached", "--epochs", 2, "--batch_size", 32],
    "augmented": ["eval_linear.py", "--epochs", 1, "--batch_size", 32],
    "lbfgs": ["eval_linear.py", "--optimizer", "lbfgs"],
    "semisup": ["eval_semisup.py", "--epochs", 1, "--batch_size", 32, "--labels_perc", 100],
    "cluster": ["eval_cluster.py", "--kmeans", 5],
    "plot": ["plot_embedding.py", "--nmb_classes", 4],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_unreadable_images_are_left_out_named_and_counted(checkpoint, damaged, tmp_path, name):
    found = {}
    for which in ("torn", "left"):
        folder = tmp_path / which
        result = run(*COMMANDS[name], "--data_path", damaged / which, "--pretrained", checkpoint, "--dump_path", folder,
                     "--workers", 0, "--device", "cpu")  # fmt: skip
        assert result.returncode == 0, result.stderr
        files = list(folder.glob("*.json"))
        found[which] = (json.loads(files[0].read_text()) if files else {}), result
    (torn, result), (left, plain) = found["torn"], found["left"]
    assert "images cannot be read and are left out: " in result.stderr or "unreadable image skipped" in result.stderr
    assert "left out" not in plain.stderr
    if name in ("knn", "cluster"):
        assert " of 32 " in result.stdout or " of 32 images" in result.stdout, result.stdout
    if name in ("augmented", "semisup"):
        # in these trainings torn images are replaced, so that only what is judged is the same
        assert torn["test_images"] == left["test_images"] == 21
        assert len(torn["unreadable"]) == 11
        return
    if name != "plot":
        names = " ".join(torn.pop("unreadable"))
        assert left.pop("unreadable") == []
        assert str(damaged / "torn" / "test" / "leaf") in names
        assert {k: v for k, v in torn.items() if k != "data_path"} == {
            k: v for k, v in left.items() if k != "data_path"
        }
    if name == "cluster":
        tables = {w: list(csv.reader((tmp_path / w / "predictions.csv").open())) for w in ("torn", "left")}
        assert [row[1:] for row in tables["torn"]] == [row[1:] for row in tables["left"]]
        assert all(row[3] == row[0].split("/")[-2] for row in tables["torn"][1:])  # names and classes belong together


def test_classes_without_a_vote_are_no_hits():
    torch.manual_seed(0)
    train, labels = torch.randn(300, 6), torch.randint(0, 10, (300,))
    test, truth = torch.randn(200, 6), torch.randint(0, 10, (200,))
    distance = torch.cdist(nn.functional.normalize(test), nn.functional.normalize(train)).numpy()
    for k in (1, 3, 20):
        neighbours = labels.numpy()[np.argsort(distance, axis=1)[:, :k]]
        for rule, options in ((knn_predict, {"temperature": 0.07}), (nearest_majority, {})):
            source = train if rule is knn_predict else nn.functional.normalize(train)
            judged = test if rule is knn_predict else nn.functional.normalize(test)
            scores = rule(source, labels, judged, ks=[k], num_classes=10, **options)[k]
            assert top_k_accuracy(scores, truth, 10) == pytest.approx(
                100 * np.mean([label in row for label, row in zip(truth.tolist(), neighbours, strict=True)])
            )
            if k == 1:
                assert top_k_accuracy(scores, truth, 5) == top_k_accuracy(scores, truth, 1)


def test_votes_do_not_vanish_at_low_temperatures():
    """exp((cosine - 1) / 0.001) is 0 in float32 for neighbours that are not very near."""
    train = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    test = torch.tensor([[1.0, 0.9], [0.9, 1.0]])
    scores = knn_predict(train, torch.tensor([0, 1]), test, ks=[2], num_classes=2, temperature=1e-3)[2]
    assert scores.argmax(dim=1).tolist() == [0, 1]
    assert top_k_accuracy(scores, torch.tensor([0, 1]), 1) == 100


def test_images_without_a_label_are_judged_by_no_evaluation(checkpoint, patches, tmp_path):
    """Shards may lack the label of some images."""
    import io
    import tarfile

    for split in ("train", "val"):
        source = FolderImages(patches / ("test" if split == "val" else split))
        (tmp_path / "data" / split).mkdir(parents=True)
        with tarfile.open(tmp_path / "data" / split / "0.tar", "w") as archive:
            for index in range(len(source)):
                content = {source.name(index).rpartition(".")[2]: Path(source.name(index)).read_bytes()}
                if index % 4:
                    content["cls"] = str(source.labels[index]).encode()
                for ending, blob in content.items():
                    member = tarfile.TarInfo(f"{index:04d}.{ending}")
                    member.size = len(blob)
                    archive.addfile(member, io.BytesIO(blob))
    for command, result_file in (("eval_knn.py --k 5", "knn"), ("eval_cluster.py --kmeans 4", "cluster"),
                                 ("eval_linear.py --features cached --epochs 1", "linear")):  # fmt: skip
        result = run(*command.split(), "--data_path", tmp_path / "data", "--dataset", "webdataset", "--pretrained",
                     checkpoint, "--dump_path", tmp_path, "--workers", 0, "--device", "cpu")  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert "8 without a label" in result.stderr
        written = json.loads((tmp_path / f"{result_file}.json").read_text())
        assert written.get("test_images", written.get("images")) == 24
    with (tmp_path / "predictions.csv").open() as file:
        assert all(row["true class"] != "-" for row in csv.DictReader(file))


def test_neighbours_while_training_are_taken_from_the_images_with_a_label(monkeypatch):
    """A few hundred of a million may have one."""

    class Listed:
        labels, classes, left_out, decoding = np.full(10_000, UNLABELLED), ["a", "b"], [], None

        def __len__(self):
            return len(self.labels)

    Listed.labels[3::500] = np.arange(20) % 2
    monkeypatch.setattr(online, "validation_images", lambda run: "val")
    knn, data = SimpleNamespace(knn_train_images=10), SimpleNamespace(dataset="list")
    run = SimpleNamespace(settings=SimpleNamespace(knn=knn, data=data), source=Listed(), train_path="train.csv")
    train, val = online.labelled_images(run)
    assert (len(train), val) == (10, "val")
    assert UNLABELLED not in train.labels


@pytest.mark.parametrize("out", ["plain.pth", "plain.safetensors"])
def test_an_exported_network_is_the_same_network(checkpoint, patches, tmp_path, out):
    """Stem, image size, mean and deviation leave no trace in the entries; the file tells them all the same."""
    assert run("export.py", checkpoint, tmp_path / out).returncode == 0
    base = ["eval_knn.py", "--data_path", patches, "--k", 5, "--workers", 0, "--device", "cpu", "--pretrained"]
    numbers = []
    for weights in (checkpoint, tmp_path / out):
        result = run(*base, weights, "--dump_path", tmp_path / f"on-{weights.name}")
        assert result.returncode == 0, result.stderr
        numbers.append(json.loads((tmp_path / f"on-{weights.name}" / "knn.json").read_text())["knn"])
    assert numbers[0] == numbers[1]
    contradiction = run(*base, tmp_path / out, "--stem", "small")
    assert (contradiction.returncode, "has --stem small_pool, not small" in contradiction.stderr) == (2, True)


def test_a_stem_that_the_file_does_not_tell_is_asked_for(checkpoint, patches, tmp_path):
    run("export.py", checkpoint, tmp_path / "told.pth")
    torch.save(dict(torch.load(tmp_path / "told.pth")), tmp_path / "x.pth")  # as another program writes it
    base = ["--workers", 0, "--device", "cpu", "--data_path", patches, "--dump_path", tmp_path]
    size = ["--crop_size", 32, "--resize", 36, "--mean", 0.4, 0.5, 0.6, "--std", 0.2, 0.25, 0.3]
    for name in COMMANDS:
        result = run(*COMMANDS[name], *base, "--pretrained", tmp_path / "x.pth")
        assert result.returncode == 2
        assert "does not tell what follows: say --stem small, small_pool or small_padded" in result.stderr
    assert run("export.py", tmp_path / "x.pth", tmp_path / "y.pth").returncode == 2
    knn = {}
    for stem, weights in ((None, checkpoint), ("small_pool", tmp_path / "x.pth"), ("small", tmp_path / "x.pth")):
        given = [] if stem is None else ["--stem", stem, *size]  # without --arch, which the file tells
        result = run(*COMMANDS["knn"], *base, "--pretrained", weights, *given)
        assert result.returncode == 0, result.stderr
        knn[stem] = json.loads((tmp_path / "knn.json").read_text())["knn"]
    assert knn["small_pool"] == knn[None] != knn["small"]


def test_weights_that_are_no_numbers_are_refused_everywhere(patches, tmp_path):
    def spoil(method):
        method.backbone.layer2[0].conv1.weight.data[0, 0] = float("nan")

    broken = save_run(tmp_path / "nan", SMALL, spoil)
    base = ["--workers", 0, "--device", "cpu", "--data_path", patches, "--dump_path", tmp_path]
    for command in [*(COMMANDS[name] for name in COMMANDS)]:
        result = run(*command, *base, "--pretrained", broken)
        assert result.returncode == 2
        assert "entries are not finite (such as layer2.0.conv1.weight)" in result.stderr
    for command in (["export.py", broken, tmp_path / "x.pth"],
                    ["detection/convert_to_detectron2.py", broken, tmp_path / "x.pkl"],
                    ["detection/train_torchvision.py", "--pretrained", broken, "--data_path", tmp_path]):  # fmt: skip
        assert run(*command).returncode == 2
    assert not (tmp_path / "x.pth").exists()


def _few_on_many(root):
    backbone = nn.Sequential(nn.AvgPool2d(8), nn.Flatten())
    prepare = ToDevice(torch.device("cpu"), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    loader = loader_of(FolderImages(root), CentreView(16, 16), 4, 0, torch.device("cpu"))
    found = extract_features(backbone, loader, prepare)
    return found.features.numpy(), found.labels.numpy(), found.indices.numpy(), found.unreadable


def test_fewer_images_than_processes_and_a_process_that_can_read_none(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (20, 20), (30, 60, 90)).save(tmp_path / name / "x.png")
    (tmp_path / "a" / "a.png").write_bytes(b"torn")  # the first process's only image
    alone = _few_on_many(tmp_path)
    assert alone[1].tolist() == [0, 1]
    assert alone[2].tolist() == [1, 2]
    for found in on_ranks(4, _few_on_many, tmp_path):
        for ours, theirs in zip(found[:3], alone[:3], strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert found[3] == alone[3]


def test_default_neighbours_are_as_many_as_can_be_read(checkpoint, patches, tmp_path):
    shutil.copytree(patches, tmp_path / "data")
    torn = sorted((tmp_path / "data" / "train").rglob("*.*"))
    for path in torn[8:]:
        path.write_bytes(b"")
    base = ["--data_path", tmp_path / "data", "--pretrained", checkpoint, "--workers", 0, "--device", "cpu"]
    result = run("eval_knn.py", *base, "--dump_path", tmp_path)
    assert result.returncode == 0, result.stderr
    assert "note: --k is 8, as there are only 8 training images" in result.stderr
    assert list(json.loads((tmp_path / "knn.json").read_text())["knn"]) == ["8"]
    asked = run("eval_knn.py", *base, "--dump_path", tmp_path, "--k", 9)
    assert (asked.returncode, "--k 9: there are only 8 training images" in asked.stderr) == (2, True)

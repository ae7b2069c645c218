"""A default that nobody typed never forbids a run: it adapts, and says so. What was typed is refused if nonsense."""

import eval_knn
import main_cwrgp
import main_dino
import main_intl
import main_swav
import main_twist
import main_w2ssl
from src.data.folder import FolderImages
from src.errors import UserError
from src.pretraining import Plan
from tests.built import FakeImages, built
from tests.helpers import run

import pytest
import torch

WARMED_UP = {
    main_swav: ("warmup_epochs", 10), main_w2ssl: ("warmup_epochs", None), main_dino: ("warmup_epochs", 10),
    main_twist: ("warmup_epochs", 3), main_intl: ("warmup_eps", 2),
}  # fmt: skip
TINY = "--data_path /x --arch resnet18 --width 0.0625 --stem small"


@pytest.mark.parametrize("script", WARMED_UP, ids=lambda script: script.__name__)
@pytest.mark.parametrize("epochs", [1, 2, 5, 20, 60])
def test_warm_ups_leave_something_of_every_run(script, epochs, capsys):
    name, usual = WARMED_UP[script]
    settings = script.SCRIPT.parse([*TINY.split(), "--epochs", str(epochs)]).settings
    warmup = getattr(settings.optim, name)
    said = capsys.readouterr().err
    assert warmup < epochs
    if usual is not None and usual >= epochs:
        assert f"note: --{name} is {warmup} instead of {usual}, for a run of {epochs} epochs" in said
        assert warmup == (round(epochs / 10) or int(epochs > 1))
    typed = [*TINY.split(), "--epochs", str(epochs), f"--{name}"]
    with pytest.raises(UserError, match=f"--{name} {epochs + 1} is more than --epochs {epochs}"):
        script.SCRIPT.parse([*typed, str(epochs + 1)])
    assert getattr(script.SCRIPT.parse([*typed, str(epochs)]).settings.optim, name) == epochs
    long = script.SCRIPT.parse([*TINY.split(), "--epochs", "100"]).settings
    assert getattr(long.optim, name) in (usual, 10, 5, 0)  # published values, untouched


def test_a_tenth():
    assert [Plan(epochs, 1, False).warmup("w", 99, False)[0] for epochs in (1, 2, 5, 14, 16, 99)] == [0, 1, 1, 1, 2, 10]
    assert Plan(5, 1, False).warmup("w", 0, True) == (0, "")


@pytest.mark.parametrize(("batch", "ranks", "expected"), [
    (16, 2, 32), (128, 2, 256), (128, 4, 256), (100, 6, 200), (256, 3, 256), (300, 2, 300), (64, 6, 192),
])  # fmt: skip
def test_twists_bunch_fits_the_processes(batch, ranks, expected, capsys):
    line = f"{TINY} --size_crops 16 12 --img_size 16 --dim 4 --hid_dim 8 --epochs 4 --batch_size {batch}"
    what = built(main_twist, line, ranks, FakeImages(10_000, 4))
    assert what.run.settings.model.bunch_size == expected
    assert what.checkpoints.settings["bunch_size"] == expected
    assert ("note: --bunch_size is" in capsys.readouterr().err) == (expected != 256)
    if expected != 256:
        with pytest.raises(UserError, match="--bunch_size 256 is not made of"):
            built(main_twist, f"{line} --bunch_size 256", ranks, FakeImages(10_000, 4))


def test_self_labelling_is_not_all_warm_up(capsys):
    settings = main_twist.SCRIPT.parse([*TINY.split(), "--epochs", "22", "--mme_epochs", "20"]).settings
    assert settings.optim.sl_warmup_epochs == 1
    assert "--sl_warmup_epochs is 1 instead of 5, for 2 epochs of self-labelling" in capsys.readouterr().err


def test_warm_ups_in_steps(capsys):
    line = f"{TINY} --method byol --crop_size 16 --head_size 8 --emb 8 --bs 32 --epochs 2"
    what = built(main_cwrgp, line, 1, FakeImages(320, 4))
    assert what.run.settings.optim.warmup_iters == 2
    assert "--warmup_iters is 2 instead of 500, for a run of 20 steps" in capsys.readouterr().err
    with pytest.raises(UserError, match="--warmup_iters 500 is more than the run's 20 steps"):
        built(main_cwrgp, f"{line} --warmup_iters 500", 1, FakeImages(320, 4))
    assert built(main_cwrgp, line, 1, FakeImages(32_000, 4)).run.settings.optim.warmup_iters == 500


def test_neighbours_that_there_are_not(patches, tmp_path, capsys):
    few = FakeImages(12, 4)
    line = f"{TINY} --size_crops 16 --nmb_prototypes 4 --batch_size 4 --epochs 3 --knn_freq 1"
    assert built(main_swav, line, 1, few).run.settings.knn.knn_k == 12
    with pytest.raises(UserError, match="--knn_k 13: only 12 training images"):
        built(main_swav, f"{line} --knn_k 13", 1, few)
    result = run("eval_knn.py", "--data_path", patches, "--arch", "resnet18", "--width", 0.0625, "--workers", 0,
                 "--device", "cpu", "--crop_size", 32, "--dump_path", tmp_path)  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "note: --k is 10 20, as there are only 96 training images" in result.stderr
    assert len(FolderImages(patches / "train")) == 96
    with pytest.raises(UserError, match="--k 200: there are only 96"):
        eval_knn.fitted(eval_knn.KNNSettings(), {"k": (10, 20, 200)}, 96)


def test_a_picture_of_fewer_classes_than_usual(patches, tmp_path):
    result = run("plot_embedding.py", "--data_path", patches, "--arch", "resnet18", "--width", 0.0625, "--workers", 0,
                 "--device", "cpu", "--crop_size", 32, "--dump_path", tmp_path, "--projection", "pca")  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "test images of 4 classes" in result.stdout


def test_prototypes_that_never_learn_are_named(patches, tmp_path):
    torch.manual_seed(0)
    result = run("main_swav.py", *TINY.split()[2:], "--data_path", patches / "train", "--dump_path", tmp_path,
                 "--size_crops", 16, "--hidden_mlp", 8, "--feat_dim", 8, "--nmb_prototypes", 4, "--batch_size", 32,
                 "--epochs", 5, "--workers", 0, "--device", "cpu", "--max_steps", 1)  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "--warmup_epochs is 1 instead of 10, for a run of 5 epochs" in result.stderr
    assert "--freeze_prototypes_niters 313: prototypes stay as drawn for all 15 steps" in result.stderr

"""plot_embedding.py"""

import importlib.util

from tests.helpers import run

import numpy as np
import pytest

BASE = ["--arch", "resnet18", "--width", "0.125", "--stem", "small", "--crop_size", 32, "--resize", 32, "--workers", 0]


@pytest.mark.parametrize(("projection", "out"), [("tsne", "map.png"), ("pca", "map.pdf")])
def test_it_draws_the_first_images_of_some_classes(patches, tmp_path, projection, out):
    command = ["plot_embedding.py", "--data_path", patches, *BASE, "--dump_path", tmp_path, "--projection", projection]
    result = run(*command, "--first_class", 1, "--nmb_classes", 2, "--per_class", 5, "--out", out, "--save_features")
    assert result.returncode == 0, result.stderr
    assert "drew 10 test images of 2 classes" in result.stdout
    assert (tmp_path / out).stat().st_size > 3000
    assert np.load(tmp_path / "features.npy").shape == (10, 64)
    assert np.load(tmp_path / "labels.npy").tolist() == [1] * 5 + [2] * 5


@pytest.mark.parametrize(("extra", "message"), [
    (["--first_class", 500], "classes"),
    (["--out", "map.jpg"], "ends in .png, .pdf or .svg"),
    (["--nmb_classes", 1, "--per_class", 2], "only 2 test images"),
    (["--projection", "mds"], "invalid choice"),
])  # fmt: skip
def test_bad_input(patches, tmp_path, extra, message):
    result = run(
        "plot_embedding.py", "--data_path", patches, *BASE, "--dump_path", tmp_path, "--nmb_classes", 2, *extra
    )
    assert (result.returncode, message in result.stderr) == (2, True), result.stderr


@pytest.mark.slow
def test_umap_is_optional(patches, tmp_path):
    result = run("plot_embedding.py", "--data_path", patches, *BASE, "--dump_path", tmp_path, "--nmb_classes", 2,
                 "--per_class", 9, "--projection", "umap")  # fmt: skip
    if importlib.util.find_spec("umap"):
        assert result.returncode == 0, result.stderr
    else:
        assert (result.returncode, "pip install umap-learn" in result.stderr) == (2, True)

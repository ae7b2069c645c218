import json

from tests.helpers import run

import pytest
from PIL import Image


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_quickstart_trains_judges_and_draws(tmp_path):
    """One epoch is too short for much, but long enough to be ahead of random weights."""
    result = run("scripts/quickstart.py", "--epochs", 1, "--out", tmp_path, timeout=800)
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    top1 = summary["top1_percent"]
    assert summary["epochs"] == 1
    assert summary["test_patches"] >= 1200
    assert top1["SwAV"]["linear"] > top1["random weights"]["linear"]
    assert set(top1) == {"SwAV", "random weights", "raw pixels"}
    for name in ("crops.png", "curves.png", "embeddings.png"):
        with Image.open(tmp_path / name) as image:
            assert image.width > 200
    assert f"{top1['SwAV']['linear']:.1f} %" in result.stdout
    assert "COLLAPSE" not in result.stderr

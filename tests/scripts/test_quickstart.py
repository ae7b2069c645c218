import json
from types import SimpleNamespace

from scripts import quickstart
from tests.helpers import run

import pytest
from PIL import Image


@pytest.mark.slow
def test_the_quickstart_trains_judges_and_draws(tmp_path, monkeypatch, capsys):
    """One epoch of a network half as wide, judged at half the size: little, but ahead of random weights."""
    complaints = []

    def in_a_fork(command, cwd):
        done = run(*command[1:])
        complaints.append(done.stderr)
        return done

    monkeypatch.setattr(quickstart, "subprocess", SimpleNamespace(run=in_a_fork))
    monkeypatch.setattr(quickstart, "MODEL", [*quickstart.MODEL, "--width", "0.125"])
    monkeypatch.setattr(quickstart, "EVAL_SIZE", 32)
    assert quickstart.main(["--epochs", "1", "--out", str(tmp_path)]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    top1 = summary["top1_percent"]
    assert summary["epochs"] == 1
    assert summary["test_patches"] >= 1200
    assert top1["SwAV"]["linear"] > top1["random weights"]["linear"]
    assert set(top1) == {"SwAV", "random weights", "raw pixels"}
    for name in ("crops.png", "curves.png", "embeddings.png"):
        with Image.open(tmp_path / name) as image:
            assert image.width > 200
    assert (tmp_path / "page" / "index.html").exists()
    assert f"{top1['SwAV']['linear']:.1f} %" in capsys.readouterr().out
    assert "COLLAPSE" not in "".join(complaints)

"""What is kept of the code and the machine that numbers came from."""

import subprocess

from src import surroundings

import pytest
import torch


def test_versions_are_those_that_are_loaded():
    found = surroundings.versions()
    assert found["torch"] == torch.__version__
    assert {"python", "timm", "numpy", "pillow"} <= set(found)


def test_a_package_that_is_not_there_is_left_out(monkeypatch):
    monkeypatch.setattr(surroundings, "PACKAGES", ("numpy", "no-such-package"))
    assert set(surroundings.versions()) == {"python", "torch", "numpy"}


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository with one commit, that the code is taken to be in."""
    (tmp_path / "src").mkdir()
    file = tmp_path / "src" / "surroundings.py"
    file.write_text("1")
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "one"]):
        subprocess.run(["git", "-C", tmp_path, *words], check=True)
    monkeypatch.setattr(surroundings, "__file__", str(file))
    return file


def test_the_commit_and_whether_files_differ_from_it(checkout):
    name = surroundings.commit()
    assert len(name) == 40
    checkout.write_text("2")
    assert surroundings.commit() == f"{name} (changed)"


def test_outside_of_a_checkout_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(surroundings, "__file__", str(tmp_path / "src" / "surroundings.py"))
    assert surroundings.commit() == ""


def test_without_git_there_is_none(checkout, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert surroundings.commit() == ""


def test_peak_memory_grows_with_what_is_held():
    before = surroundings.peak_memory(torch.device("cpu"))
    held = torch.ones(200_000_000)
    assert surroundings.peak_memory(torch.device("cpu")) >= max(before, held.numel() * 4e-9)

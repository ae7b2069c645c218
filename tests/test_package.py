"""The package as other code meets it: installed with pip under its own name, or loaded by torch.hub."""

import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

from tests.helpers import ROOT

import pytest

NOTEBOOK = """
import sys
import torch
import ssl_vision
assert "src" not in sys.modules
{snippet}
"""


def snippet() -> str:
    """The Python block of the README that shows the package."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return next(block for block in blocks if "from ssl_vision" in block)


def test_every_folder_of_the_package_is_listed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(ROOT / "src") for path in (ROOT / "src").rglob("__init__.py")}
    assert sorted(listed) == sorted(".".join(("ssl_vision", *folder.parts)) for folder in folders)


def test_the_package_imports_itself_by_relative_names_only():
    absolute = re.compile(r"^\s*(from|import) (src|ssl_vision)\b", re.MULTILINE)
    assert [path for path in (ROOT / "src").rglob("*.py") if absolute.search(path.read_text())] == []


@pytest.mark.slow
def test_installed_in_a_fresh_environment_it_works_in_a_notebook(tmp_path):
    files = subprocess.run(["git", "ls-files", "src", "pyproject.toml", "README.md", "LICENSE"], cwd=ROOT,
                           capture_output=True, text=True, check=True).stdout.split()  # fmt: skip
    for name in files:
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "source" / name)
    venv.create(tmp_path / "fresh", with_pip=True)
    python = tmp_path / "fresh" / "bin" / "python"
    site = next((tmp_path / "fresh" / "lib").glob("python*")) / "site-packages"
    # the dependencies are those of this environment, without what it has installed of this project
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [python, "-m", "pip", "install", "--quiet", "--no-deps", tmp_path / "source"]
    installed = subprocess.run(pip, capture_output=True, text=True)
    assert installed.returncode == 0, installed.stderr
    result = subprocess.run(
        [python, "-c", NOTEBOOK.format(snippet=snippet())], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert Path(site / "ssl_vision" / "methods" / "swav.py").exists()


def test_the_hub_works_beside_another_package_called_src(tmp_path):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "__init__.py").write_text("theirs = True\n")
    code = (
        "import src, torch\n"
        f"backbone = torch.hub.load({str(ROOT)!r}, 'resnet50w2', source='local', pretrained=False)\n"
        "assert src.theirs and backbone.feature_width == 4096\n"
        "import src\n"
        "assert src.theirs\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr

"""What a run's numbers came from besides its settings: which code, which packages, how much memory."""

import resource
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("torch", "torchvision", "timm", "numpy", "scipy", "scikit-learn", "pillow", "safetensors")


def versions() -> dict[str, str]:
    """Of Python and of the packages that numbers depend on; those that are not installed are left out."""
    found = {"python": sys.version.split()[0], "torch": str(torch.__version__)}
    for name in PACKAGES:
        try:
            found.setdefault(name, version(name))
        except PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """Of the checkout that the code runs from, with ``(changed)`` where files differ from it; "" outside of one."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return ""
    try:
        name = _git(root, "rev-parse", "HEAD")
        return f"{name} (changed)" if name and _git(root, "status", "--porcelain", "-uno") else name
    except (OSError, subprocess.SubprocessError):
        return ""  # no git, or another user's checkout


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=20, check=True)
    return done.stdout.strip()


def peak_memory(device: torch.device) -> float:
    """The most memory that this process has had so far, in GB: of tensors on a GPU, or all of it on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9

"""Cuts the photographs in data/ into the labelled patches that the quickstart and docs/results.md use: data/patches.

python scripts/cut_patches.py
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from src.data.patches import cut_patches

PATCHES = ROOT / "data" / "patches"


def cut_once() -> Path:
    """Cuts them where that was not done yet; returns the folder."""
    if not (PATCHES / "complete").exists():
        counts = cut_patches(ROOT / "data" / "photographs", PATCHES)
        (PATCHES / "complete").touch()
        print(f"cut {counts['train']} training and {counts['test']} test patches into {PATCHES}", flush=True)
    return PATCHES


if __name__ == "__main__":
    cut_once()

"""Draws which package imports which, from the imports in the code.

    python scripts/draw_architecture.py docs/architecture.png

Packages stand above everything that they import, so all arrows point down; packages that import each other in a circle
are an error. Arrows that follow from others (a imports b, b imports c, so a may import c) are left out.
"""

import ast
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from src import cli
from src.errors import UserError
from src.settings import setting

SCRIPTS = "main_*, eval_*, ..."


def package_of(path: Path) -> str:
    """``models`` for everything in ``src/models``; modules directly in ``src`` stand for themselves."""
    parts = path.relative_to(ROOT).parts
    if parts[0] != "src":
        return SCRIPTS
    return parts[1].removesuffix(".py")


def imports() -> dict[str, set[str]]:
    """Package -> the packages that it imports, over all modules of ``src`` and the scripts of the repository."""
    found: dict[str, set[str]] = {}
    for path in [*(ROOT / "src").rglob("*.py"), *ROOT.glob("*.py")]:
        here = package_of(path)
        if here == "__init__":
            continue
        found.setdefault(here, set())
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                found[here] |= set(_targets(node, path)) - {here}
    return found


def _targets(node: ast.ImportFrom, path: Path) -> list[str]:
    """The packages of ``src`` that an import names."""
    module = (node.module or "").split(".") if node.module else []
    if node.level:
        base = list(path.parent.relative_to(ROOT).parts)
        module = [*base[: len(base) - node.level + 1], *module]
    if not module or module[0] != "src":
        return []
    return [module[1]] if len(module) > 1 else [alias.name for alias in node.names]


def floors(graph: dict[str, set[str]]) -> dict[str, int]:
    """Each package's floor: 0 for those that import nothing, else one above the highest that they import.

    Raises UserError for a circle.
    """
    level: dict[str, int] = {}
    while len(level) < len(graph):
        ready = [name for name in graph if name not in level and graph[name] <= level.keys()]
        if not ready:
            circle = sorted(set(graph) - level.keys())
            raise UserError(f"these packages import each other in a circle: {', '.join(circle)}")
        level |= {name: 1 + max((level[below] for below in graph[name]), default=-1) for name in ready}
    return level


def without_shortcuts(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The imports that do not follow from others."""

    def below(name: str) -> set[str]:
        return graph[name] | {other for direct in graph[name] for other in below(direct)}

    return {name: {b for b in found if not any(b in below(o) for o in found - {b})} for name, found in graph.items()}


def draw(graph: dict[str, set[str]], level: dict[str, int], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")  # no screen is needed
    import matplotlib.pyplot as plt

    place: dict[str, tuple[float, float]] = {}
    for floor in range(max(level.values()) + 1):
        names = sorted(name for name in graph if level[name] == floor)
        for i, name in enumerate(names):
            place[name] = (2.6 * (i - (len(names) - 1) / 2) + 0.5 * (floor % 2), 1.0 * floor)
    figure, axes = plt.subplots(figsize=(8, 8))
    for name, found in without_shortcuts(graph).items():
        for other in found:
            axes.annotate(
                "", xy=place[other], xytext=place[name],
                arrowprops={"arrowstyle": "->", "color": "0.55", "shrinkA": 14, "shrinkB": 22},
            )  # fmt: skip
    for name, (x, y) in place.items():
        title = name if name == SCRIPTS else f"src/{name}"
        box = {"boxstyle": "round,pad=0.4", "facecolor": "#e8f0fb", "edgecolor": "#3b6ea5"}
        axes.text(x, y, title, ha="center", va="center", fontsize=10, bbox=box)
    axes.set_xlim(min(x for x, _ in place.values()) - 1.6, max(x for x, _ in place.values()) + 1.6)
    axes.set_ylim(-0.7, max(level.values()) + 0.7)
    axes.axis("off")
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


@dataclass(frozen=True)
class Settings:
    """Picture"""

    out: str = setting("", "the picture to write", required=True)


SCRIPT = cli.Script("Draws which package imports which.", Settings(), positionals=("out",))


def main(argv: Sequence[str] | None = None) -> int:
    out = SCRIPT.parse(argv).settings.out
    graph = imports()
    draw(graph, floors(graph), out)
    print(f"drew {len(graph)} packages: {out}")
    return 0


if __name__ == "__main__":
    cli.run(main)

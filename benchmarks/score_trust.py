"""How far scores without labels tell kNN accuracy, by studies of labelled images: what eval_scores.py says of them.

    python benchmarks/score_trust.py --write
    python benchmarks/score_trust.py "my images=studies/mine"

Reads each study's study.json; default: those of docs/studies. With --write the numbers go into
src/evaluation/score_trust.py.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.publish_study import OF_SCORES, STUDIES, methods_of, told_of
from src import cli
from src.checkpoints.files import read_json
from src.errors import UserError
from src.evaluation.score_trust import Trust, in_words
from src.evaluation.scores import SCORES
from src.settings import setting
from src.study.label_free import regret_by_lot

PUBLISHED = {data: str(STUDIES / name) for data, name in OF_SCORES.items()}
TOLD = ROOT / "src" / "evaluation" / "score_trust.py"


@dataclass(frozen=True)
class Settings:
    """How far scores tell kNN accuracy"""

    studies: tuple[str, ...] = setting(
        (), "what the images are called, =, and the study's folder; default: the published ones", empty=True
    )
    write: bool = setting(False, "write src/evaluation/score_trust.py", switch=True)


SCRIPT = cli.Script("How far scores without labels tell kNN accuracy.", Settings(), positionals=("studies",))


def trust_of(folder: str) -> tuple[dict[str, Trust], float]:
    """Score -> its trust, as a study measured it; and the regret of taking any method."""
    content = read_json(Path(folder) / "study.json")
    found = content.get("scores") if isinstance(content, dict) else None
    if not found or any(score.name not in found for score in SCORES):
        raise UserError(f"{folder}: a study without labels, of an older program, or one that has not ended")
    trust = {}
    for score in SCORES:
        one = told_of(score, content, folder)
        across, within = (tuple(round(value, 2) for value in one[name]) for name in ("across", "within"))
        trust[score.name] = Trust(across, within, round(one["regret"], 1))
    return trust, round(regret_by_lot(methods_of(content)), 1)


def main(argv: Sequence[str] | None = None) -> int:
    own = SCRIPT.parse(argv).settings
    given = [words.rpartition("=") for words in own.studies]
    folders = {name or folder: folder for name, _, folder in given} or PUBLISHED
    measured = {name: trust_of(folder) for name, folder in folders.items()}
    lines = []
    for name, (trusts, by_lot) in measured.items():
        print(f"{name}: any method, taken by lot, loses {by_lot} %")
        print("| score | across methods | within a method | regret, % |\n|---|---|---|---|")
        lines.append(f'    "{name}": {{')
        for score in SCORES:
            one = trusts[score.name]
            print(f"| {score.title} | {in_words(one.across)} | {in_words(one.within)} | {one.regret:.1f} |")
            lines.append(f'        "{score.name}": Trust({one.across}, {one.within}, {one.regret}),')
        lines.append("    },")
    lots = [f'    "{name}": {by_lot},' for name, (_, by_lot) in measured.items()]
    if own.write:
        head, mark, _ = TOLD.read_text().partition("# MEASURED: ")
        names = "data -> score -> its trust; BY_LOT: data -> regret of taking any method"
        TOLD.write_text(head + mark + "\n".join([names, "MEASURED = {", *lines, "}", "BY_LOT = {", *lots, "}", ""]))
    return 0


if __name__ == "__main__":
    cli.run(main)

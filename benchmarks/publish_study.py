"""Puts a study into docs/studies, and its numbers into the tables of docs/results.md and README.md.

    python benchmarks/publish_study.py studies/patches photographs      # a study that has ended, and its name there
    python benchmarks/publish_study.py                                  # only the tables

docs/studies/NAME holds the page, and what every run reached in runs.tar.xz: unpacked into a folder, it is a study that
has ended, whose page the same command writes again without training, or with more seeds. In docs/results.md a table
stands between <!-- study NAME --> (or <!-- scores -->) and <!-- end -->; in README.md it is the last column of the
methods. tests/test_docs.py fails where the pages say anything else.
"""

import io
import json
import re
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from src import cli
from src.checkpoints.files import read_json
from src.engine.monitor import read_log
from src.errors import UserError
from src.evaluation.score_trust import in_words
from src.evaluation.scores import SCORES, Score
from src.settings import setting
from src.study.judge import JUDGED, RIGHT
from src.study.label_free import regret_by_lot
from src.study.method import Method
from src.study.page import LABELLED
from src.study.plan import FAILED, RANDOM
from src.study.recipes import TITLES
from src.study.statistics import SEEDS, interval

STUDIES = ROOT / "docs" / "studies"
PAGE = ("study.md", "study.png", "study.json")
RUNS = "runs.tar.xz"
RESULTS, FRONT = ROOT / "docs" / "results.md", ROOT / "README.md"
ON_THE_FRONT = "photographs"  # whose numbers README.md shows
OF_SCORES = {"the photographs of data/": "photographs", "CIFAR-10": "cifar10"}  # these tell of scores
FRONT_TITLES = {"CW-RGP": "cwrgp4"}  # rows that are called by less than a method's title
# named in that row, without numbers
BESIDE = ("wmse", "simclr", "byol", "simsiam", "barlowtwins", "vicreg", "zero_icl")
Study = Mapping[str, Any]  # what a study.json holds


@dataclass(frozen=True)
class Settings:
    """Publishing a study"""

    study: str = setting("", "folder of a study that has ended; without one only the tables are written")
    name: str = setting("", "what it is called in docs/studies")


SCRIPT = cli.Script("Puts a study into docs/studies and its numbers into the pages' tables.", Settings(),
                    positionals=("study", "name"))  # fmt: skip


def files_of(study: Path) -> Iterator[tuple[str, bytes]]:
    """What the page is made of, without networks and without the paths of this machine."""
    wanted = (f"identity.json recipes/*.json rates/*.json */*/{JUDGED} */*/{FAILED} runs/*/{RIGHT} runs/*/log.jsonl "
              "runs/*/settings.json")  # fmt: skip
    for path in sorted(path for pattern in wanted.split() for path in study.glob(pattern)):
        if path.parent.parent.name == "runs" and not any((path.parent / name).exists() for name in (JUDGED, FAILED)):
            continue  # a run under way
        content = path.read_bytes()
        if path.name == "log.jsonl":
            content = "".join(f"{json.dumps(record)}\n" for record in read_log(path, "evaluation")).encode()
        if path.name == "settings.json":
            content = json.dumps({"commit": read_json(path).get("commit")}).encode()
        yield str(path.relative_to(study)), content


def pack(study: Path, into: Path) -> None:
    """Writes these files as one; the same files make the same bytes."""
    with tarfile.open(into, "w:xz") as archive:
        for name, content in files_of(study):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def content_of(study: Path) -> Study:
    """Its study.json. Raises UserError for a study that cannot be published."""
    missing = [name for name in PAGE if not (study / name).exists()]
    if missing:
        raise UserError(f"{study}: there is no {missing[0]}: not the folder of a study that has ended")
    if re.search("^So far ", (study / "study.md").read_text(), re.MULTILINE):
        raise UserError(f"{study}: the study has not ended: start it again, and publish it then")
    content = read_json(study / "study.json")
    if "knn" not in content["differences"]:
        raise UserError(f"{study}: a study without labels has no accuracies for the tables")
    pairs, others = content["differences"]["knn"]["pairs"], set(content["methods"]) - {RANDOM}
    untold = sorted(name for name in others if pairs.get(f"{RANDOM} - {name}", {}).get("low") is None)
    if untold:
        raise UserError(f"{study}: {untold[0]} has too few runs beside those of random weights: at least {SEEDS} seeds")
    return content


def publish(study: Path, into: Path) -> None:
    into.mkdir(parents=True, exist_ok=True)
    for name in PAGE:
        shutil.copy(study / name, into / name)
    pack(study, into / RUNS)


def published() -> dict[str, Study]:
    """Name -> study.json, of the studies in docs/studies."""
    return {path.parent.name: read_json(path) for path in sorted(STUDIES.glob("*/study.json"))}


def methods_of(study: Study) -> dict[str, Method]:
    """What its runs reached."""
    return {name: Method(one["title"], {int(seed): judged for seed, judged in one["judged"].items()})
            for name, one in study["methods"].items()}  # fmt: skip


def above_random(study: Study, method: str) -> str:
    """``+25.4 (+11.7 to +39.2)``, with what is within noise named."""
    one = study["differences"]["knn"]["pairs"][f"{RANDOM} - {method}"]
    words = f"{-one['mean']:+.1f} ({-one['high']:+.1f} to {-one['low']:+.1f})"
    return words if one["real"] else f"{words}, within noise"


def methods_table(study: Study) -> list[str]:
    """Every method by its 10-NN accuracy."""
    methods = methods_of(study)
    order = sorted(methods, key=lambda name: -interval(methods[name].values("knn")).mean)
    lines = ["| | " + " | ".join(LABELLED.values()) + " | 10-NN above random weights |", "|" + "---|" * 5]
    for name in order:
        cells = [methods[name].title, *(methods[name].shown(measure) for measure in LABELLED)]
        lines.append("| " + " | ".join([*cells, "-" if name == RANDOM else above_random(study, name)]) + " |")
    return lines


def told_of(score: Score, study: Study, name: str) -> dict[str, Any]:
    """What a study says of a score. Raises UserError where it says too little."""
    one: dict[str, Any] = study["scores"][score.name]
    if None in (*one["across"], *one["within"], one["regret"]):
        raise UserError(
            f"{name}: too few runs, or too few checkpoints with an accuracy, to tell anything of {score.title}"
        )
    return one


def scores_table(studies: Mapping[str, Study]) -> list[str]:
    """How far each score agrees with 10-NN, study by study."""
    heads = [f"{name}: {what}" for name in studies for what in ("across methods", "within a method", "regret, %")]
    lines = ["| score | " + " | ".join(heads) + " |", "|" + "---|" * (len(heads) + 1)]
    for score in SCORES:
        cells = [f"{score.title} ({score.better} is better)"]
        for name, study in studies.items():
            one = told_of(score, study, name)
            chosen = study["methods"][one["chosen"]]["title"]
            cells += [in_words(one["across"]), in_words(one["within"]), f"{one['regret']:.1f} ({chosen})"]
        lines.append("| " + " | ".join(cells) + " |")
    lots = [cell for study in studies.values() for cell in ("-", "-", f"{regret_by_lot(methods_of(study)):.1f}")]
    return [*lines, "| any method, taken by lot | " + " | ".join(lots) + " |"]


def between(text: str, mark: str, lines: Sequence[str]) -> str:
    """The same page with these lines after ``<!-- mark -->``."""
    start, end = f"<!-- {mark} -->\n", "<!-- end -->"
    pattern = re.escape(start) + r".*?" + re.escape(end)
    return once(pattern, lambda match: "\n".join([start.rstrip("\n"), "", *lines, "", end]), text, mark)


def once(pattern: str, write: Callable[[re.Match[str]], str], text: str, what: str) -> str:
    """The same page with the one place that is meant. Raises UserError where there is none, or more than one."""
    changed, count = re.subn(pattern, write, text, flags=re.DOTALL | re.MULTILINE)
    if count != 1:
        raise UserError(f"{what}: stands {count} times on the page")
    return changed


def with_front_column(text: str, study: Study) -> str:
    """README.md with the last column of its methods, and the sentence below them."""
    methods, names = methods_of(study), {title: name for name, title in TITLES.items()} | FRONT_TITLES

    missing = [title for title in [*TITLES, RANDOM] if title not in methods]
    if missing:
        raise UserError(f"README.md shows all methods, and the study has no {missing[0]}")

    def knn(name: str) -> str:
        one = interval(methods[name].values("knn"))
        return f"{one.mean:.1f} ± {one.mean - one.low:.1f}"

    def row(match: re.Match[str]) -> str:
        star = " *" if match["title"] in FRONT_TITLES else ""
        return f"{match['row']}| {knn(names[match['title']])}{star} |"

    means = {name: interval(one.values("knn")).mean for name, one in methods.items()}
    best = max(means, key=lambda name: means[name])
    beside = sorted(means[name] for name in BESIDE)
    star = f"* CW-RGP with four views; the methods beside it have {beside[0]:.1f} to {beside[-1]:.1f}"
    sentence = f"Random weights have {knn(RANDOM)}, and {methods[best].title} has the most,\n{knn(best)} ({star})"
    pattern = r"Random weights have [^,]*, and [^,]* has the most,\n[\d.]+ ± [\d.]+ \(\*[^)]*\)"
    text = once(pattern, lambda match: sentence, text, "the sentence of random weights and the best method")
    return re.sub(r"^(?P<row>\| \[(?P<title>[^\]]+)\]\(.*)\| [\d.]+ ± [\d.]+( \*)? \|$", row, text, flags=re.MULTILINE)


def pages(studies: Mapping[str, Study]) -> dict[Path, str]:
    """What the pages should say of these."""
    front = with_front_column(FRONT.read_text(), studies[ON_THE_FRONT])
    results = RESULTS.read_text()
    for name, study in studies.items():
        results = between(results, f"study {name}", methods_table(study))
    results = between(results, "scores", scores_table({name: studies[name] for name in OF_SCORES.values()}))
    return {RESULTS: results, FRONT: front}


def main(argv: Sequence[str] | None = None) -> int:
    own = SCRIPT.parse(argv).settings
    if bool(own.study) != bool(own.name):
        raise UserError("give the folder of a study and its name in docs/studies, or neither")
    studies = published()
    if own.study:
        studies[own.name] = content_of(Path(own.study))
    texts = pages(studies)  # what cannot be written is told before anything is
    if own.study:
        publish(Path(own.study), STUDIES / own.name)
    for path, text in texts.items():
        if text != path.read_text():
            path.write_text(text)
            print(f"{path.relative_to(ROOT)} is written")
    return 0


if __name__ == "__main__":
    cli.run(main)

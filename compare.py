"""Puts runs side by side: a table of what they reached and of the flags that tell them apart, and their curves.

    python compare.py runs/swav runs/deepcluster runs/swav-eval [--plot compare.png] [--json compare.json]

A run is the --dump_path of a training or of an evaluation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from src import cli
from src.checkpoints.files import read_json, write_json
from src.checkpoints.identity import NEUTRAL_SETTINGS
from src.engine.monitor import number, read_log
from src.errors import UserError
from src.evaluation.scores import SCORES
from src.plots import comparison
from src.settings import setting

RESULTS = ("knn.json", "linear.json", "semisup.json", "cluster.json", "scores.json")


class Run(NamedTuple):
    """What a folder tells.

    Attributes:
        name: of the folder.
        flags: of the training; empty for a folder of evaluations only.
        train, evaluations: records of its log.
        values: column of the table -> text.
    """

    name: str
    flags: dict[str, Any]
    train: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    values: dict[str, str]


def read(folder: Path) -> Run:
    """Reads whatever of a run's files is there; raises UserError for a folder without any, and for damaged files."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    try:
        return _read(folder)
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(
            f"{folder} holds a log or results that are no run's ({type(error).__name__}: {error})"
        ) from None


def _read(folder: Path) -> Run:
    log = folder / "log.jsonl"
    train, evaluations = (read_log(log, kind) if log.exists() else [] for kind in ("train", "evaluation"))
    settings = read_json(folder / "settings.json") if (folder / "settings.json").exists() else {}
    flags = settings.get("arguments", {})
    values: dict[str, str] = {}
    if flags:
        values["method"] = str(flags.get("method", ""))
        width = flags.get("width", 1.0)
        values["backbone"] = str(flags.get("arch", "")) + (f" x{width:g}" if width != 1 else "")
    if train:
        last = train[-1]
        values["epochs"] = f"{last['epoch'] + 1}/{flags.get('epochs', '?')}"
        values["loss"] = "not finite" if last["loss"] is None else number(last["loss"])
        rates = sorted(r["images_per_second"] for r in train if "images_per_second" in r)
        values["img/s"] = number(rates[len(rates) // 2]) if rates else "?"
    for name in {name: None for record in evaluations for name in record if name.endswith("top1")}:
        series = [record[name] for record in evaluations if record.get(name) is not None]
        values[f"online {name.replace('_', ' ')}"] = f"{series[-1]:.2f} (best {max(series):.2f})"
    for score in SCORES:
        series = [record[score.name] for record in evaluations if record.get(score.name) is not None]
        if series:
            values[f"online {score.title}"] = number(series[-1])
    for result in RESULTS:
        if (folder / result).exists():
            values |= columns_of(result, read_json(folder / result))
    if not values:
        raise UserError(f"{folder} is no run: there is neither settings.json nor log.jsonl nor {', '.join(RESULTS)}")
    return Run(folder.name or str(folder.resolve().name), flags, train, evaluations, values)


def columns_of(result: str, content: dict[str, Any]) -> dict[str, str]:
    """The columns of one file of results."""
    if result == "knn.json":
        return {f"{k}-NN": f"{values['top1']:.2f}" for k, values in content["knn"].items()}
    if result == "scores.json":
        titles = {score.name: score.title for score in SCORES}
        return {titles[name]: number(value) for name, value in content["scores"].items() if value is not None}
    if result == "cluster.json":
        return {name: f"{value:.2f}" for name, value in content["scores"].items() if value is not None}
    rate, best = max(content["lr"].items(), key=lambda item: item[1]["top1"])
    share = f" {content['labels_percent']:g} %" if content.get("labels_percent", 100) != 100 else ""
    return {f"{result.removesuffix('.json')}{share}": f"{best['top1']:.2f} (lr {rate})"}


def differing_flags(runs: Sequence[Run]) -> list[str]:
    """Names of the flags that are not the same in all trainings, apart from those that change nothing computed."""
    flags = [run.flags for run in runs if run.flags]
    names = dict.fromkeys(name for each in flags for name in each)
    shown = ("method", "arch", "width", *NEUTRAL_SETTINGS)  # the first three have columns
    found = {name: [each[name] for each in flags if name in each] for name in names if name not in shown}
    return [name for name, values in found.items() if any(value != values[0] for value in values)]


def table(runs: Sequence[Run]) -> list[list[str]]:
    """Header and rows; columns in the order in which runs bring them, flags last."""
    columns = list(dict.fromkeys(name for run in runs for name in run.values))
    flags = differing_flags(runs)
    rows = [["run", *columns, *(f"--{flag}" for flag in flags)]]
    for run in runs:
        values = [run.values.get(name, "-") for name in columns]
        rows.append([run.name, *values, *(_text(run.flags.get(flag, "-")) for flag in flags)])
    return rows


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """The table in Markdown, its columns aligned for a terminal too."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def reference(text: str) -> tuple[str, float]:
    """Name and accuracy of ``NAME=ACCURACY``."""
    name, _, accuracy = text.rpartition("=")
    try:
        value = float(accuracy)
    except ValueError:
        name = ""
    if not name:
        raise UserError(f"--reference {text!r}: expected NAME=ACCURACY")
    return name, value


@dataclass(frozen=True)
class Settings:
    """Comparison"""

    runs: tuple[str, ...] = setting((), "folders of the runs; plain words do as well", empty=True)
    plot: str | None = setting(None, "PNG with the curves of losses and online accuracies")
    reference: tuple[str, ...] = setting(
        (), "NAME=ACCURACY, such as a published one: a dashed line in the picture", empty=True
    )
    json: str | None = setting(None, "file for the table")


SCRIPT = cli.Script("Puts runs side by side.", Settings(), positionals=("runs",))


def main(argv: Sequence[str] | None = None) -> int:
    args = SCRIPT.parse(argv).settings
    folders = args.runs
    if not folders:
        raise UserError("which runs? Give at least one folder")
    references = dict(reference(text) for text in args.reference)
    runs = [read(Path(folder)) for folder in folders]
    rows = table(runs)
    print(markdown(rows))
    if args.json:
        write_json(args.json, [dict(zip(rows[0], row, strict=True)) for row in rows[1:]])
    if args.plot:
        drawn = {run.name: (run.train, run.evaluations) for run in runs if run.train}
        if len(drawn) < sum(bool(run.train) for run in runs):
            raise UserError("--plot: two of the folders have the same name")
        if not drawn:
            raise UserError("--plot: none of the folders has a log of a training")
        comparison(drawn, args.plot, references)
        print(f"curves: {args.plot}")
    return 0


if __name__ == "__main__":
    cli.run(main)

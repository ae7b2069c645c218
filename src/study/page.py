"""A study's page: tables in Markdown, and a picture."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no screen is needed

import matplotlib.pyplot as plt
import numpy as np

from ..checkpoints.files import write_atomically, write_json
from ..engine.diagnostics import RANK_OF_A_COLLAPSE
from ..engine.monitor import read_log
from ..evaluation.scores import SCORES
from ..plots import save_figure
from ..surroundings import commit, versions
from .judge import RIGHT
from .plan import RANDOM
from .recipes import TITLES
from .runs import Plan
from .statistics import Difference, Interval, interval, rank_correlation, to_the_best

LABELLED = {"knn": "10-NN, %", "linear": "linear, %", "nmi": "NMI, %"}
MEASURES = ("knn", "linear")  # of which differences are tested


@dataclass
class Method:
    """What the runs of a method reached.

    Attributes:
        judged: seed -> what its run's ``judged.json`` says.
        right: measure -> (S, M), whether each seed's network was right about each test image.
        failed: seed -> why its run failed.
        collapsed: seeds whose features have collapsed.
        curve: records of the evaluations while training, by seed.
    """

    title: str
    judged: dict[int, dict[str, Any]] = field(default_factory=dict)
    right: dict[str, np.ndarray] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    collapsed: list[int] = field(default_factory=list)
    curve: dict[int, list[dict[str, Any]]] = field(default_factory=dict)

    def values(self, name: str) -> list[float]:
        """Of a measure, a score or a cost, over the seeds; without those that have none."""
        found = []
        for one in self.judged.values():
            value = one.get(name, one["scores"].get(name, one["cost"].get(name)))
            if value is not None and not math.isnan(value):
                found.append(float(value))
        return found

    def shown(self, name: str, digits: int = 1) -> str:
        values = self.values(name)
        return interval(values).in_words(digits) if values else "-"


def gather(plan: Plan) -> dict[str, Method]:
    """Reads what all runs left behind."""
    found = {}
    for method, tasks in plan.runs.items():
        one = found[method] = Method(TITLES.get(method, "random weights"))
        rows: dict[str, list[np.ndarray]] = {}
        for task in tasks:
            if task.has_failed:
                one.failed[task.seed] = task.reason()
                continue
            one.judged[task.seed] = task.judged()
            rank = one.judged[task.seed]["scores"]["rankme"]
            if rank is None or rank < RANK_OF_A_COLLAPSE:
                one.collapsed.append(task.seed)
            if (task.folder / RIGHT).exists():
                with np.load(task.folder / RIGHT) as right:
                    for name in MEASURES:
                        rows.setdefault(name, []).append(right[name])
            log = task.folder / "log.jsonl"
            one.curve[task.seed] = read_log(log, "evaluation") if log.exists() else []
        one.right = {name: np.stack(tables) for name, tables in rows.items()}
    return found


def write_report(folder: Path, plan: Plan, command: str) -> str:
    """Writes ``study.md``, ``study.png`` and ``study.json``; returns the first."""
    methods = gather(plan)
    has_labels = plan.images.test is not None
    order = sorted(methods, key=lambda name: -(np.mean(methods[name].values(_main(has_labels)) or [-math.inf])))
    tested = {name: _tested(methods, name) for name in MEASURES} if has_labels else {}
    lines = [
        *_head(plan, command),
        *_table(methods, order, has_labels),
        *_ended(methods, order),
        *(line for name, found in tested.items() for line in _differences(methods, order, name, found)),
        *_scores(methods, has_labels),
        *_recommendation(methods, has_labels),
        "![intervals over seeds, and curves](study.png)",
        "",
    ]
    text = "\n".join(lines)
    write_atomically(folder / "study.md", lambda file: file.write(text.encode(errors="backslashreplace")))
    write_json(folder / "study.json", _numbers(methods, tested))
    draw(methods, order, has_labels, folder / "study.png")
    return text


def _main(has_labels: bool) -> str:
    return "knn" if has_labels else "rankme"


def _tested(methods: Mapping[str, Method], name: str) -> tuple[str, dict[str, Difference]] | None:
    right = {method: one.right[name] for method, one in methods.items() if name in one.right}
    return to_the_best(right) if len(right) > 1 else None


def _head(plan: Plan, command: str) -> list[str]:
    settings = plan.settings
    own, views, network = settings.study, settings.views, settings.network
    length = f"as many epochs as fit into {own.minutes:g} minutes" if own.minutes else f"{own.epochs} epochs"
    seeds = f"{own.seeds} seeds" if own.seeds > 1 else "one seed"
    known = ", ".join(f"{name} {value}" for name, value in versions().items() if name in ("torch", "torchvision"))
    return [
        "# Study",
        "",
        f"{plan.images.words}. {network.spec.name}, {views.size} pixels, {length}, {own.batch_size} images a step, "
        f"{seeds}. Means and 95 % intervals over seeds.",
        "",
        "```bash",
        command,
        "```",
        "",
        f"Code: {commit() or 'unknown'}; {known}.",
        "",
    ]


def _table(methods: Mapping[str, Method], order: list[str], has_labels: bool) -> list[str]:
    labelled = LABELLED if has_labels else {}
    heads = ["method", *labelled.values(), *(score.title for score in SCORES), "minutes", "images/s", "GB", "runs"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for name in order:
        one = methods[name]
        cells = [one.title, *(one.shown(measure) for measure in labelled)]
        cells += [one.shown(score.name, 2) for score in SCORES]
        cells += [one.shown("minutes"), one.shown("images_per_second", 0), one.shown("memory_gb", 2)]
        lines.append("| " + " | ".join([*cells, str(len(one.judged))]) + " |")
    return [*lines, ""]


def _ended(methods: Mapping[str, Method], order: list[str]) -> list[str]:
    """Runs that failed or collapsed: they are told, and collapsed ones are in the means."""
    lines = []
    for name in order:
        one = methods[name]
        if one.collapsed and name != RANDOM:
            seeds = ", ".join(map(str, one.collapsed))
            lines.append(f"* {one.title} collapsed with seed {seeds}: its features vary in fewer than "
                         f"{RANK_OF_A_COLLAPSE:g} directions. It is in the means above.")  # fmt: skip
        lines += [f"* {one.title} failed with seed {seed}: {reason}" for seed, reason in one.failed.items()]
    return [*lines, ""] if lines else []


def _differences(
    methods: Mapping[str, Method], order: list[str], name: str, found: tuple[str, dict[str, Difference]] | None
) -> list[str]:
    if found is None:
        return []
    best, others = found
    lines = [
        f"## Differences to the best by {LABELLED[name].removesuffix(', %')}, {methods[best].title}",
        "",
        "In percent, paired by seed and test image; p after Holm's correction for all pairs of methods.",
        "",
        "| method | difference | p | |",
        "|---|---|---|---|",
    ]
    for other in order:
        if other not in others:
            continue
        one = others[other]
        if math.isnan(one.corrected):
            lines.append(
                f"| {methods[other].title} | {one.interval.mean + 0.0:+.1f} | - | one seed tells nothing of the noise |"
            )
            continue
        ends = f"{one.interval.mean:+.1f} ({one.interval.low:+.1f} to {one.interval.high:+.1f})"
        p = "< 0.001" if one.corrected < 0.001 else f"{one.corrected:.3f}"
        lines.append(f"| {methods[other].title} | {ends} | {p} | {'real' if one.is_real else 'within noise'} |")
    return [*lines, ""]


def points_of(methods: Mapping[str, Method], score: str) -> tuple[np.ndarray, np.ndarray]:
    """(n, 2) of a score and the kNN accuracy at the end of every run, and which method each row is of."""
    rows, names = [], []
    for name, one in methods.items():
        for judged in one.judged.values():
            value, knn = judged["scores"].get(score), judged.get("knn")
            if name != RANDOM and value is not None and knn is not None:
                rows.append((value, knn))
                names.append(name)
    return np.array(rows, dtype=float).reshape(-1, 2), np.array(names)


def within(methods: Mapping[str, Method], score: str) -> Interval:
    """The mean over methods of the correlation over a method's checkpoints and seeds."""
    found = []
    for one in methods.values():
        rows = [
            (record[score], record["knn_top1"])
            for records in one.curve.values()
            for record in records
            if record.get(score) is not None and record.get("knn_top1") is not None
        ]
        value = rank_correlation(np.array(rows, dtype=float).reshape(-1, 2), np.zeros(len(rows))).mean
        if not math.isnan(value):
            found.append(value)
    return interval(found) if found else Interval(math.nan, math.nan, math.nan)


def _scores(methods: Mapping[str, Method], has_labels: bool) -> list[str]:
    """How far each score without labels agrees with kNN, over this study."""
    if not has_labels:
        return []
    lines = [
        "## Scores without labels",
        "",
        "Rank correlation with 10-NN, counted so that 1 is always right: over the ends of all runs (interval by "
        "resampling methods), and within a method over its checkpoints (interval over methods). Regret: how much 10-NN "
        "is lost by taking the method with the best mean score.",
        "",
        "| score | across methods | within a method | regret, % |",
        "|---|---|---|---|",
    ]
    for score in SCORES:
        pairs, names = points_of(methods, score.name)
        across = _signed(rank_correlation(pairs, names), score.sign)
        inside = _signed(within(methods, score.name), score.sign)
        chosen = chosen_by(methods, score.name, score.sign)
        lost = "-" if chosen is None else f"{regret(methods, chosen):.1f} ({methods[chosen].title})"
        cells = [_words(across), _words(inside), lost]
        lines.append(f"| {score.title} ({score.better} is better) | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _signed(one: Interval, sign: int) -> Interval:
    ends = sorted((sign * one.low, sign * one.high))
    return Interval(sign * one.mean, *ends)


def _words(one: Interval) -> str:
    return "-" if math.isnan(one.mean) else one.in_words(2)


def chosen_by(methods: Mapping[str, Method], score: str, sign: int) -> str | None:
    """The method with the best mean score; None where nothing was trained."""
    means = {
        name: float(np.mean(one.values(score))) for name, one in methods.items() if name != RANDOM and one.values(score)
    }
    return max(means, key=lambda name: sign * means[name]) if means else None


def regret(methods: Mapping[str, Method], chosen: str) -> float:
    """How much mean kNN accuracy the chosen method has less than the best."""
    means = {name: float(np.mean(one.values("knn"))) for name, one in methods.items() if one.values("knn")}
    return max(means.values()) - means[chosen]


RECOMMENDS = "rankme"  # the score that agreed best with kNN, see docs/results.md


def _recommendation(methods: Mapping[str, Method], has_labels: bool) -> list[str]:
    """Without labels: the method that the most trustworthy score names."""
    score = next(one for one in SCORES if one.name == RECOMMENDS)
    chosen = chosen_by(methods, score.name, score.sign)
    if has_labels or chosen is None:
        return []
    return [
        "## Recommendation",
        "",
        f"{methods[chosen].title}, by {score.title}: of the scores without labels the one that agreed best with kNN "
        "where there were labels. It is a hint and no proof: look at the networks with embed.py, too.",
        "",
    ]


def _numbers(methods: Mapping[str, Method], tested: Mapping[str, Any]) -> dict[str, Any]:
    """The same for programs."""
    return {
        "methods": {
            name: {"title": one.title, "judged": one.judged, "failed": one.failed, "collapsed": one.collapsed}
            for name, one in methods.items()
        },
        "differences": {
            name: {"best": found[0], "others": {other: _plain(one) for other, one in found[1].items()}}
            for name, found in tested.items()
            if found is not None
        },
    }


def _plain(one: Difference) -> dict[str, Any]:
    known = {**one.interval._asdict(), "p": one.p, "corrected": one.corrected}
    return {name: None if math.isnan(value) else value for name, value in known.items()} | {"real": one.is_real}


def draw(methods: Mapping[str, Method], order: list[str], has_labels: bool, path: Path) -> None:
    """Intervals over seeds with the runs as points, and the mean curves."""
    name = _main(has_labels)
    title = {"knn": "10-NN on the test images, %", "rankme": "RankMe"}[name]
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 1.5 + 0.32 * len(order)))
    shown = [one for one in order if methods[one].values(name)]
    for row, one in enumerate(reversed(shown)):
        values = methods[one].values(name)
        mean, low, high = interval(values)
        colour = "tab:grey" if one == RANDOM else "tab:blue"
        left.plot(values, [row] * len(values), "o", color=colour, alpha=0.35, markersize=4)
        if not math.isnan(low):
            left.plot([low, high], [row, row], color=colour, linewidth=2)
        left.plot([mean], [row], "|", color=colour, markersize=12, markeredgewidth=2)
    left.set_yticks(range(len(shown)), [methods[one].title for one in reversed(shown)])
    left.set(xlabel=title, title="means and 95 % intervals over seeds; points are runs")
    left.grid(alpha=0.3)
    key = "knn_top1" if has_labels else "rankme"
    for number, one in enumerate(shown):
        by_epoch: dict[int, list[float]] = {}
        for records in methods[one].curve.values():
            for record in records:
                if record.get(key) is not None:
                    by_epoch.setdefault(record["epoch"], []).append(record[key])
        if by_epoch:
            epochs = sorted(by_epoch)
            style = ("-", "--", ":")[number // 10 % 3]
            means = [float(np.mean(by_epoch[epoch])) for epoch in epochs]
            right.plot(epochs, means, marker="o", markersize=3, linestyle=style, label=methods[one].title)
    right.set(xlabel="epoch", title=f"while training: {'10-NN, %' if has_labels else 'RankMe'} (mean over seeds)")
    right.grid(alpha=0.3)
    if right.lines:
        right.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    save_figure(figure, path)

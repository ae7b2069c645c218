"""A study's page: tables in Markdown, and a picture."""

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoints.files import write_atomically, write_json
from ..engine.diagnostics import RANK_OF_A_COLLAPSE
from ..engine.monitor import read_log
from ..evaluation.scores import SCORES
from ..surroundings import commit, versions
from .judge import RIGHT
from .method import Method
from .picture import draw
from .plan import RANDOM
from .recipes import TITLES
from .runs import Plan
from .statistics import SEEDS, Difference, Interval, interval, rank_correlation, to_the_best

LABELLED = {"knn": "10-NN, %", "linear": "linear, %", "nmi": "NMI, %"}
MEASURES = ("knn", "linear")  # of which differences are tested


def gather(plan: Plan) -> dict[str, Method]:
    """Reads what all runs left behind; runs that are not over are left out."""
    found = {}
    files: dict[tuple[str, int], dict[str, np.ndarray]] = {}
    for method, tasks in plan.runs.items():
        one = found[method] = Method(TITLES.get(method, "random weights"))
        for task in tasks:
            if task.has_failed:
                one.failed[task.seed] = task.reason()
            if not task.is_judged:
                continue
            one.judged[task.seed] = task.judged()
            rank = one.judged[task.seed]["scores"]["rankme"]
            if rank is None or rank < RANK_OF_A_COLLAPSE:
                one.collapsed.append(task.seed)
            if (task.folder / RIGHT).exists():
                with np.load(task.folder / RIGHT) as content:
                    files[method, task.seed] = {name: content[name] for name in ("indices", *MEASURES)}
            log = task.folder / "log.jsonl"
            one.curve[task.seed] = read_log(log, "evaluation") if log.exists() else []
    common = functools.reduce(np.intersect1d, [file["indices"] for file in files.values()] or [np.empty(0)])
    for (method, seed), file in files.items():
        rows = np.isin(file["indices"], common)
        for name in MEASURES:
            found[method].right.setdefault(name, {})[seed] = file[name][rows]
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
    draw(methods, order, _main(has_labels), folder / "study.png")
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
        *_chosen(plan),
        f"Code: {commit() or 'unknown'}; {known}.",
        "",
    ]


def _chosen(plan: Plan) -> list[str]:
    """What tries have decided, method by method."""
    lines = []
    if plan.tries:
        rates = ", ".join(f"{TITLES[method]} {plan.rate_of(method):g}" for method in plan.tries)
        lines += [f"Factors on the learning rates, chosen by tries: {rates}.", ""]
    if plan.timings:
        epochs = ", ".join(f"{TITLES[method]} {plan.epochs_of(method)}" for method in plan.timings)
        lines += [f"Epochs: {epochs}.", ""]
    return lines


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
        "In percent, paired by seed and test image. Intervals and p hold for all pairs of methods together (Tukey).",
        "",
        "| method | difference | p | |",
        "|---|---|---|---|",
    ]
    for other in order:
        if other not in others:
            continue
        one = others[other]
        mean = one.interval.mean + 0.0  # no minus before 0
        if math.isnan(one.statistic):
            lines.append(f"| {methods[other].title} | {mean:+.1f} | - | {SEEDS} seeds or more tell what is noise |")
            continue
        ends = f"{mean:+.1f} ({one.interval.low:+.1f} to {one.interval.high:+.1f})"
        p = "< 0.001" if one.p < 0.001 else f"{one.p:.3f}"
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
    known = {**one.interval._asdict(), "p": one.p}
    told = {name: None if math.isnan(value) else value for name, value in known.items()}
    return {**told, "real": one.is_real, "seeds": one.seeds}

"""A study's page: tables in Markdown, and a picture."""

import functools
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..checkpoints.files import write_atomically, write_json
from ..engine.diagnostics import RANK_OF_A_COLLAPSE
from ..engine.monitor import finite_or_none, number, read_log
from ..evaluation.scores import SCORES
from ..surroundings import commit, versions
from .judge import RIGHT
from .label_free import agreement, most_trusted_score, numbers, recommendation, scores_in_words
from .method import Method
from .picture import draw
from .plan import RANDOM, Task, read_object, trainings_of
from .rates import compared
from .recipes import DISTILLED, TITLES
from .runs import RUNS, Plan
from .statistics import SEEDS, Difference, best_of, differences, less

LABELLED = {"knn": "10-NN, %", "linear": "linear, %", "nmi": "NMI, %"}
MEASURES = ("knn", "linear")  # of which differences are tested


def tasks_in(folder: Path, plan: Plan) -> dict[str, list[Task]]:
    """The runs of a study's folder by method: those of the plan, and what earlier starts asked for."""
    found = {method: list(tasks) for method, tasks in plan.runs.items()}
    known = {task.name for tasks in found.values() for task in tasks}
    for path in sorted((folder / RUNS).glob("*-*")):
        method, _, seed = path.name.rpartition("-")
        if path.name not in known and seed.isdigit() and method in (*TITLES, RANDOM):
            found.setdefault(method, []).append(Task(path.name, RUNS, method, int(seed), path, None))
    return {method: sorted(tasks, key=lambda task: task.seed) for method, tasks in found.items()}


def gather(folder: Path, plan: Plan) -> dict[str, Method]:
    """Reads what all runs left behind; runs that are not over are left out."""
    found = {}
    files: dict[tuple[str, int], dict[str, np.ndarray]] = {}
    for method, tasks in tasks_in(folder, plan).items():
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
    methods = gather(folder, plan)
    has_labels = plan.images.test is not None
    main, title, sign = "knn", "10-NN on the test images, %", 1
    if not has_labels:
        main, title, _, sign = most_trusted_score()
    order = sorted(methods, key=lambda name: -np.mean([sign * x for x in methods[name].values(main)] or [-math.inf]))
    tested = {name: _tested(methods, name) for name in MEASURES} if has_labels else {}
    agreed = {score.name: agreement(methods, score) for score in SCORES} if has_labels else {}
    tries = {method: plan.tries_of(method) for method in dict.fromkeys([*plan.tries, *TITLES])}
    tries = {method: by_rate for method, by_rate in tries.items() if by_rate}
    ended = [method for method, by_rate in tries.items() if all(task.is_over for task in by_rate.values())]
    kept = {method: rate for method in ended if (rate := plan.rate_kept(method)) is not None}
    lines = [
        *_head(plan, methods, command),
        *_tables(methods, order, has_labels),
        *_ended(methods, order),
        *(line for name, found in tested.items() for line in _differences(methods, order, name, found)),
        *(scores_in_words(methods, agreed) if has_labels else recommendation(methods)),
        *_rates(plan, tries, kept),
        "![intervals over seeds, and curves](study.png)",
        "",
    ]
    text = "\n".join(lines)
    write_atomically(folder / "study.md", lambda file: file.write(text.encode(errors="backslashreplace")))
    write_json(folder / "study.json", {**_numbers(methods, tested), "scores": numbers(agreed), "rates": kept})
    draw(methods, order, main, title, folder / "study.png")
    return text


class Tested(NamedTuple):
    """All pairs of methods by one measure, and the best method."""

    pairs: dict[tuple[str, str], Difference]
    best: str


def _tested(methods: Mapping[str, Method], name: str) -> Tested | None:
    right = {method: one.right[name] for method, one in methods.items() if name in one.right}
    return Tested(differences(right), best_of(right)) if len(right) > 1 else None


def _head(plan: Plan, methods: Mapping[str, Method], command: str) -> list[str]:
    settings = plan.settings
    own, views, network = settings.study, settings.views, settings.network
    length = f"as many epochs as fit into {own.minutes:g} minutes" if own.minutes else f"{own.epochs} epochs"
    runs = max(len(one.judged) + len(one.failed) for one in methods.values())
    seeds = f"{runs} seeds" if runs > 1 else "one seed"
    trainings, has_ended = trainings_of(plan.tasks), all(task.is_over for task in plan.tasks)
    over = sum(task.is_over for task in trainings)
    known = ", ".join(f"{name} {value}" for name, value in versions().items() if name in ("torch", "torchvision"))
    return [
        f"# Study: {plan.folder.name}",
        "",
        f"{plan.images.words}. {network.spec.name}, {views.size} pixels, {length}, {own.batch_size} images a step, "
        f"{seeds}. Means and 95 % intervals over seeds.",
        "",
        *([] if has_ended else [f"So far {over} of {len(trainings)} runs are over.", ""]),
        "```bash",
        command,
        "```",
        "",
        *_lengths(plan),
        f"Code: {_commits(plan)}; {known}.",
        "",
    ]


def _commits(plan: Plan) -> str:
    """Of the runs, which tell them in their settings, and how many have each; until there are any, of this program."""
    trained = [task for tasks in tasks_in(plan.folder, plan).values() for task in tasks if task.method != RANDOM]
    told = [task.folder / "settings.json" for task in trained if task.is_judged]
    found = Counter(str(read_object(path).get("commit") or "unknown") for path in told if path.exists())
    if len(found) < 2:
        return next(iter(found), commit() or "unknown")
    return ", ".join(f"{name} ({count} {'run' if count == 1 else 'runs'})" for name, count in sorted(found.items()))


def _lengths(plan: Plan) -> list[str]:
    """The epochs that fitted into the minutes of a run, method by method."""
    timed = [method for method in dict.fromkeys([*plan.runs, *TITLES]) if plan.is_timed(method)]
    if not timed:
        return []
    lines = ["Epochs: " + ", ".join(f"{TITLES[method]} {plan.epochs_of(method)}" for method in timed) + "."]
    longer = [TITLES[one] for one in timed if plan.minutes_of_an_epoch(one) > plan.settings.study.minutes]
    lines += [f"One epoch takes longer than that, and was trained nevertheless: {', '.join(longer)}."] if longer else []
    return [*lines, ""]


def _rates(plan: Plan, tries: Mapping[str, Mapping[float, Task]], kept: Mapping[str, float]) -> list[str]:
    """What each method reached in its tries, and which factor on its learning rate it kept."""
    if not tries:
        return []
    rates = plan.settings.study.rates
    measure = LABELLED["knn"] if plan.images.test is not None else most_trusted_score().title
    lines = [
        "## Learning rates",
        "",
        "Each method was tried once with each factor on its learning rate, judged among the training images "
        f"({measure}), and kept the best. One run is a matter of chance, so a factor counts half by its own run and a "
        "quarter by each of the two beside it (two thirds and one at an end).",
        "",
        "| method | " + " | ".join(f"{rate:g}" for rate in rates) + " | kept |",
        "|" + "---|" * (len(rates) + 2),
    ]
    for method, by_rate in tries.items():
        cells = [_tried(by_rate[rate]) if rate in by_rate else "-" for rate in rates]
        last = f"{kept[method]:g}" if method in kept else "-"
        lines.append("| " + " | ".join([TITLES[method], *cells, last]) + " |")
    ends = min(rates), max(rates)
    outside = [TITLES[method] for method, rate in kept.items() if rate in ends and len(rates) > 2]
    if outside:
        lines += ["", f"At an end of what was tried, so that another rate may be better: {', '.join(outside)}."]
    return [*lines, ""]


def _tried(task: Task) -> str:
    if not task.is_judged:
        return "failed" if task.has_failed else "-"
    found = task.judged()
    value = compared(found)
    return "-" if value is None else f"{value:.1f}" if "knn" in found else number(value)


def _tables(methods: Mapping[str, Method], order: list[str], has_labels: bool) -> list[str]:
    """What was reached, by labels and without, and what it cost."""
    runs = {name: str(len(methods[name].judged)) for name in order}
    scores = {score.name: score.title for score in SCORES}
    lines = []
    if has_labels:
        lines += _table(methods, order, LABELLED, 1, runs)
        lines += ["Scores without labels:", "", *_table(methods, order, scores, 2)]
    else:
        lines += _table(methods, order, scores, 2, runs)
    cost = {"minutes": "minutes of training steps", "images_per_second": "images/s", "memory_gb": "memory, GB"}
    trained = [name for name in order if name != RANDOM]
    words = "Cost" + (f" ({TITLES[DISTILLED]}'s without its teacher's)" if DISTILLED in methods else "")
    return [*lines, f"{words}:", "", *_table(methods, trained, cost, 2)]


def _table(
    methods: Mapping[str, Method],
    order: list[str],
    measures: Mapping[str, str],
    digits: int,
    runs: Mapping[str, str] | None = None,
) -> list[str]:
    heads = ["method", *measures.values(), *(["runs"] if runs else [])]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for name in order:
        one = methods[name]
        cells = [one.title, *(one.shown(measure, digits) for measure in measures), *([runs[name]] if runs else [])]
        lines.append("| " + " | ".join(cells) + " |")
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
        lines += [f"* {one.title} failed with seed {seed}, and is in no mean: {reason}"
                  for seed, reason in one.failed.items()]  # fmt: skip
    return [*lines, ""] if lines else []


def _differences(methods: Mapping[str, Method], order: list[str], name: str, found: Tested | None) -> list[str]:
    """To the best, and to random weights."""
    if found is None:
        return []
    by = LABELLED[name].removesuffix(", %")
    lines = [
        f"## Differences to the best by {by}, {methods[found.best].title}",
        "",
        "In percent, paired by seed and test image. Intervals and p hold for all pairs of methods together (Tukey), "
        "which share one spread of seeds. So two methods may be within noise whose own intervals above do not overlap.",
        "",
        *_less(methods, order, found, name, found.best),
    ]
    if RANDOM in methods and methods[RANDOM].right.get(name) and found.best != RANDOM:
        lines += [f"## Above random weights by {by}", "", *_less(methods, order, found, name, RANDOM)]
    return lines


def _less(methods: Mapping[str, Method], order: list[str], found: Tested, name: str, reference: str) -> list[str]:
    """Every other method less this one."""
    lines = ["| method | difference | p | |", "|---|---|---|---|"]
    others = less(reference, found.pairs)
    for other in order:
        rows = methods[other].right.get(name)
        if other == reference or not rows:
            continue
        if other not in others:
            lines.append(f"| {methods[other].title} | - | - | no seed in common |")
            continue
        one = others[other]
        is_all = one.seeds == len(rows) == len(methods[reference].right[name])
        said = "" if is_all else f" ({one.seeds} seeds in common)"
        mean = one.interval.mean + 0.0  # no minus before 0
        if math.isnan(one.statistic):
            told = f"{SEEDS} seeds or more tell what is noise{said}"
            lines.append(f"| {methods[other].title} | {mean:+.1f} | - | {told} |")
            continue
        ends = f"{mean:+.1f} ({one.interval.low:+.1f} to {one.interval.high:+.1f})"
        p = "< 0.001" if one.p < 0.001 else f"{one.p:.3f}"
        lines.append(f"| {methods[other].title} | {ends} | {p} | {'real' if one.is_real else 'within noise'}{said} |")
    return [*lines, ""]


def _numbers(methods: Mapping[str, Method], tested: Mapping[str, Tested | None]) -> dict[str, Any]:
    """The same for programs."""
    return {
        "methods": {
            name: {"title": one.title, "judged": one.judged, "failed": one.failed, "collapsed": one.collapsed}
            for name, one in methods.items()
        },
        "differences": {
            name: {
                "best": found.best,
                "others": {
                    other: {**_plain(one), **finite_or_none({"p": one.p})}
                    for other, one in less(found.best, found.pairs).items()
                },
                "pairs": {f"{first} - {second}": _plain(one) for (first, second), one in found.pairs.items()},
            }
            for name, found in tested.items()
            if found is not None
        },
    }


def _plain(one: Difference) -> dict[str, Any]:
    return {**finite_or_none(one.interval._asdict()), "real": one.is_real, "seeds": one.seeds}

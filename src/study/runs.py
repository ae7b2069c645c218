"""From the settings of a study to its runs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..engine.monitor import number
from ..models.backbones import feature_width
from ..models.pretrained import Pretrained, load_backbone, random_backbone
from .images import StudyImages
from .judge import Judge, cost_of
from .plan import RANDOM, Task
from .recipes import TEACHER, Scale, words_of
from .settings import Settings

TRIED = 24  # steps of the try that tells how long an epoch takes
POINTS = 5  # of each run's curve
RUNS, RATES, TIMING = "runs", "rates", "timing"  # folders
AWAY = 1_000_000  # from the study's own seeds to those of tries


@dataclass
class Plan:
    """A study's runs.

    Attributes:
        images: what is trained on and judged by.
        judging: judges networks; ``tuning`` those of tries, by training images only.
        runs: method -> its runs, by seed.
        tries: method -> its tries, by the factor on the learning rate.
        timings: method -> a few steps that tell how long an epoch takes.
    """

    settings: Settings
    images: StudyImages
    folder: Path
    judging: Judge
    tuning: Judge
    runs: dict[str, list[Task]] = field(default_factory=dict)
    tries: dict[str, dict[float, Task]] = field(default_factory=dict)
    timings: dict[str, Task] = field(default_factory=dict)

    @property
    def tasks(self) -> list[Task]:
        """All of them; of each seed all methods before the next seed."""
        tries = [task for by_rate in self.tries.values() for task in by_rate.values()]
        by_seed = zip(*self.runs.values(), strict=True)
        return [*self.timings.values(), *tries, *(task for tasks in by_seed for task in tasks)]

    def judge(self, task: Task) -> str:
        """Judges a run, and says what it reached."""
        task.folder.mkdir(parents=True, exist_ok=True)
        if task.command is None:
            spec = self.settings.network.spec
            loaded = Pretrained(random_backbone(spec, task.seed), spec, {}, "random weights")
        else:
            loaded = load_backbone(task.folder / "checkpoint.pth.tar")
        judging = self.judging if task.place == RUNS else self.tuning
        found = judging(loaded, task.folder, is_trained=task.command is not None)
        said = [f"{name} {found[name]:.1f} %" for name in ("knn", "linear", "nmi") if name in found]
        rank = found["scores"]["rankme"]
        return ", ".join([*said, "features are not finite" if rank is None else f"RankMe {number(rank)}"])

    def epochs_of(self, method: str) -> int:
        """``--epochs``, or as many as fit into ``--minutes``."""
        own = self.settings.study
        timing = self.timings.get(method)
        if timing is None or timing.has_failed:
            return int(own.epochs)
        rate = cost_of(timing.folder)["images_per_second"] or 0
        return max(1, int(own.minutes * 60 * rate / len(self.images.train)))

    def rate_of(self, method: str) -> float:
        """The factor on the learning rate that was best in the tries."""
        known = {rate: task.judged() for rate, task in self.tries.get(method, {}).items() if task.is_judged}
        return max(known, key=lambda rate: goodness(known[rate])) if known else float(self.settings.study.rates[0])

    def command(self, task: Task, rate: float | None, teacher: Task | None) -> list[str]:
        """The command line of a run; ``rate`` None takes the best one."""
        views, network = self.settings.views, self.settings.network
        epochs = self.settings.study.epochs if task.place == TIMING else self.epochs_of(task.method)
        scale = Scale(
            images=len(self.images.train),
            width=feature_width(network.spec.build()),
            epochs=epochs,
            batch=self.settings.study.batch_size,
            size=views.size,
            area=views.area,
            jitter=views.jitter,
            grayscale=views.grayscale,
            blur=views.blur,
            clusters=views.clusters,
            rate=self.rate_of(task.method) if rate is None else rate,
            teacher="" if teacher is None else str(teacher.folder / "checkpoint.pth.tar"),
        )
        own: list[object] = ["--epochs", epochs, "--seed", task.seed, "--dump_path", task.folder]
        own += ["--max_steps", TRIED] if task.place == TIMING else []
        watched = self.watched(epochs) if task.place == RUNS else []
        return [*words_of(task.method, scale), *self.same_for_all(), *watched, *map(str, own)]

    def same_for_all(self) -> list[str]:
        """Flags of images, network and device."""
        data, network, shown = self.settings.data, self.settings.network, self.settings.views.shown
        words = ["--data_path", self.images.path, "--dataset", data.dataset, "--workers", data.workers]
        words += ["--mean", *self.images.mean, "--std", *self.images.std, "--channels", network.channels]
        words += ["--arch", network.arch, "--device", self.settings.device.device, "--track", "none"]
        words += ["--width", network.width, "--stem", network.stem] if network.arch.startswith("resnet") else []
        for name in ("path_column", "label_column", "value_range", "extensions"):
            value = getattr(data, name)
            if value:
                words += [f"--{name}", *(value if isinstance(value, tuple) else [value])]
        words += ["--log_every", max(1, min(50, len(self.images.train) // self.settings.study.batch_size // 2))]
        return [*map(str, words), "--eval_size", str(shown.size), "--eval_resize", str(shown.resize)]

    def watched(self, epochs: int) -> list[str]:
        """Some points of a curve."""
        every = max(1, epochs // POINTS)
        words: list[object] = ["--scores_freq", every, "--scores_images", min(400, self.settings.study.scored_images)]
        if self.images.is_tested_beside:
            k = min(10, len(self.images.train))
            words += ["--knn_freq", every, "--knn_k", k, "--knn_train_images", 5000, "--knn_rule", "weighted"]
        return [str(word) for word in words]


def goodness(judged: Mapping[str, Any]) -> float:
    """By what tries are compared."""
    value = judged["knn"] if "knn" in judged else judged["scores"]["rankme"]
    return -math.inf if value is None or math.isnan(value) else float(value)


def plan_of(settings: Settings, methods: Sequence[str], images: StudyImages, folder: Path, judging: Judge) -> Plan:
    """All runs of a study: of random weights, of every method with every seed, and what these wait for.

    DisCo must come after its teacher.
    """
    own = settings.study
    seeds = range(own.first_seed, own.first_seed + own.seeds)
    plan = Plan(settings, images, folder, judging, replace(judging, train=images.tuned[0], test=images.tuned[1]))

    def task(
        place: str, name: str, method: str, seed: int, needs: Sequence[Task], rate: float | None, teacher: Task | None
    ) -> Task:
        needed = (*needs, *([teacher] if teacher else []))
        made = Task(name, place, method, seed, folder / place / name, None, needed)
        return replace(made, command=partial(plan.command, made, rate, teacher))

    plan.runs[RANDOM] = [Task(f"{RANDOM}-{n}", RUNS, RANDOM, n, folder / RUNS / f"{RANDOM}-{n}", None) for n in seeds]
    for method in methods:
        learns = method == "disco"
        first: list[Task] = []
        if own.minutes:
            made = task(
                TIMING, f"{method}-timing", method, own.first_seed, [], None, plan.timings[TEACHER] if learns else None
            )
            plan.timings[method] = made
            first.append(made)
        if len(own.rates) > 1:
            before = list(first)
            by_rate = {}
            for rate in own.rates:
                teacher = next(iter(plan.tries[TEACHER].values())) if learns else None
                seed = own.first_seed + AWAY
                by_rate[rate] = task(RATES, f"{method}-rate-{rate:g}", method, seed, before, rate, teacher)
            plan.tries[method] = by_rate
            first += by_rate.values()
        plan.runs[method] = [
            task(RUNS, f"{method}-{seed}", method, seed, first, None, plan.runs[TEACHER][number] if learns else None)
            for number, seed in enumerate(seeds)
        ]
    return plan

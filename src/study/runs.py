"""From the settings of a study to its runs."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import torch

from ..checkpoints.files import write_json
from ..engine.monitor import number
from ..errors import UserError
from ..models.backbones import feature_width, is_ours
from ..models.pretrained import Pretrained, load_backbone, random_backbone
from .images import StudyImages, open_study_images
from .judge import JUDGED, NEIGHBOURS, Judge, pace_of, ready_steps
from .plan import RANDOM, Task, read_object
from .rates import best_rate
from .recipes import DISTILLED, RECIPES, TEACHER, Scale, require_batches, words_of
from .settings import Settings

TRIED = 28  # steps of the try that tells how long an epoch takes, behind those whose batches are ready at once
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
        if task.place == TIMING:
            write_json(task.folder / JUDGED, {"cost": {"images_per_second": pace_of(task.folder)}, "scores": {}})
            minutes = self.minutes_of_an_epoch(task.method)
            return f"an epoch takes {minutes:.2g} minutes, so runs have {self.epochs_of(task.method)}"
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
        if not self.is_timed(method):
            return int(own.epochs)
        return max(1, int(own.minutes / self.minutes_of_an_epoch(method)))

    def minutes_of_an_epoch(self, method: str) -> float:
        """Of a method that is timed; infinite where its log told nothing."""
        rate = read_object(self._timing(method) / JUDGED)["cost"]["images_per_second"]
        return len(self.images.train) / rate / 60 if rate else math.inf

    def is_timed(self, method: str) -> bool:
        """Whether this start, or an earlier one, knows how long its epochs take."""
        return bool(self.settings.study.minutes) and (self._timing(method) / JUDGED).exists()

    def _timing(self, method: str) -> Path:
        return self.folder / TIMING / f"{method}-timing"

    def rate_of(self, method: str) -> float:
        """The factor on the learning rate that the tries speak for, or did when the first run began.

        Raises UserError where no try reached anything.
        """
        if len(self.settings.study.rates) < 2:
            return float(self.settings.study.rates[0])
        kept = self.rate_kept(method)
        if kept is None:
            reasons = [task.reason() for task in self.tries_of(method).values() if task.has_failed]
            raise UserError(f"no try of its learning rate reached anything{f': {reasons[0]}' if reasons else ''}")
        return kept

    def rate_kept(self, method: str) -> float | None:
        """As ``rate_of``; None where no try reached anything."""
        path = self._kept(method)
        if path.exists():
            return float(read_object(path)["rate"])
        over = {rate: task for rate, task in self.tries_of(method).items() if task.is_over}
        return best_rate({rate: task.judged() if task.is_judged else None for rate, task in over.items()})

    def tries_of(self, method: str) -> dict[float, Task]:
        """Of this start, or of an earlier one that asked for other methods."""
        if method in self.tries or len(self.settings.study.rates) < 2:
            return self.tries.get(method, {})
        found = {rate: self.folder / RATES / f"{method}-rate-{rate:g}" for rate in self.settings.study.rates}
        return {rate: Task(path.name, RATES, method, 0, path, None) for rate, path in found.items() if path.exists()}

    def _kept(self, method: str) -> Path:
        return self.folder / RATES / f"{method}.json"

    def keep_rate(self, method: str) -> None:
        """For all runs of a method, whatever a later try of a failed one says."""
        if method in self.tries and not self._kept(method).exists():
            write_json(self._kept(method), {"rate": self.rate_of(method)})

    def best_try(self, method: str) -> Task | None:
        """The one with the rate that is kept, or the best of those that have not failed; None where all have."""
        known = {rate: task for rate, task in self.tries[method].items() if task.is_judged}
        rate = self.rate_kept(method)
        if rate not in known:
            rate = best_rate({rate: task.judged() for rate, task in known.items()})
        return None if rate is None else known[rate]

    def forget_failures(self) -> None:
        """So that they are tried again; and the rates that were kept when tries had failed, where nothing was trained
        with them yet."""
        for task in self.tasks:
            task.forget_failure()
        for method in self.tries:
            if not any((self.folder / RUNS).glob(f"{method}-[0-9]*/checkpoint.pth.tar")):
                self._kept(method).unlink(missing_ok=True)

    def command(self, task: Task, rate: float | None, teacher: Callable[[], Task | None]) -> list[str]:
        """The command line of a run; ``rate`` None takes the best one. Raises UserError where its teacher failed."""
        master = teacher() if task.method == DISTILLED else None
        if task.method == DISTILLED and master is None:
            raise UserError(f"no run of {TEACHER} that it could learn from has ended well")
        if task.place == RUNS and not self.settings.study.dry_run:
            self.keep_rate(task.method)
        scale = self.scale(task, rate, "" if master is None else str(master.folder / "checkpoint.pth.tar"))
        own: list[object] = ["--epochs", scale.epochs, "--seed", task.seed, "--dump_path", task.folder]
        tried = TRIED + ready_steps(self.settings.data.workers)
        own += ["--max_steps", tried] if task.place == TIMING else []
        every = 4 if task.place == TIMING else max(1, min(50, scale.steps_per_epoch // 2))
        own += ["--log_every", every]
        watched = self.watched(scale.epochs) if task.place == RUNS else []
        return [*words_of(task.method, scale), *self.same_for_all(), *watched, *map(str, own)]

    @cached_property
    def width(self) -> int:
        """The backbone's features."""
        return feature_width(self.settings.network.spec.build())

    def scale(self, task: Task, rate: float | None, teacher: str) -> Scale:
        """What the recipe of a run depends on."""
        views = self.settings.views
        return Scale(
            images=len(self.images.train),
            width=self.width,
            epochs=self.settings.study.epochs if task.place == TIMING else self.epochs_of(task.method),
            batch=self.settings.study.batch_size,
            size=views.size,
            area=views.area,
            jitter=views.jitter,
            grayscale=views.grayscale,
            blur=views.blur,
            clusters=views.clusters,
            rate=self.rate_of(task.method) if rate is None else rate,
            teacher=teacher,
        )

    def require_one_recipe(self, is_again: bool) -> None:
        """Keeps the recipes that the folder began with. Raises UserError where runs to come (failed ones among them, if
        they are tried again) would have others, as after an update."""
        for method, tasks in self.runs.items():
            if method not in RECIPES:
                continue
            path = self.folder / "recipes" / f"{method}.json"
            recipe = words_of(method, replace(self.scale(tasks[0], 1.0, ""), epochs=self.settings.study.epochs))
            if not path.exists():
                write_json(path, {"words": recipe})
            before = read_object(path)["words"]
            changed = [f"{had} -> {has}" for had, has in zip(before, recipe, strict=False) if had != has]
            own = (*tasks, *self.tries.get(method, {}).values())
            if before != recipe and not all(task.is_judged or (task.has_failed and not is_again) for task in own):
                raise UserError(
                    f"{self.folder} has runs of {method} by another recipe ({', '.join(changed[:3])}), which would be "
                    "mixed with those to come; choose another --dump_path"
                )

    def same_for_all(self) -> list[str]:
        """Flags of images, network and device."""
        data, network, shown = self.settings.data, self.settings.network, self.settings.views.shown
        words = ["--data_path", self.images.path, "--dataset", data.dataset, "--workers", data.workers]
        words += ["--mean", *self.images.mean, "--std", *self.images.std, "--channels", network.channels]
        words += ["--arch", network.arch, "--device", self.settings.device.device, "--track", "none"]
        words += ["--width", network.width, "--stem", network.stem] if is_ours(network.arch) else []
        words += ["--precision", precision_of(self.judging.device)]
        words += ["--exif_orientation", data.exif_orientation is not False]
        words += ["--index_cache", data.index_cache or self.folder / "index"] if self.keeps_index else []
        words += ["--run_pipes"] if data.run_pipes else []
        for name in ("path_column", "label_column", "value_range", "extensions", "shard_cache_gb"):
            value = getattr(data, name)
            if value is not None and value not in ("", ()):
                words += [f"--{name}", *(value if isinstance(value, tuple) else [value])]
        return [*map(str, words), "--eval_size", str(shown.size), "--eval_resize", str(shown.resize)]

    @property
    def keeps_index(self) -> bool:
        """Whether the list of the images lies in a file, which no run need make again."""
        return bool(self.settings.data.index_cache) or (self.folder / "index").exists()

    def watched(self, epochs: int) -> list[str]:
        """Some points of a curve."""
        every = max(1, epochs // POINTS)
        words: list[object] = ["--scores_freq", every, "--scores_images", min(400, self.settings.study.scored_images)]
        words += ["--val_path", self.images.watched] if self.images.watched else []
        if self.images.is_tested_beside:
            k = min(NEIGHBOURS, len(self.images.learnt or ()))
            words += ["--knn_freq", every, "--knn_k", k, "--knn_train_images", 5000, "--knn_rule", "weighted"]
        return [str(word) for word in words]


def precision_of(device: torch.device) -> str:
    """The same for all methods, whose own defaults differ."""
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if has_bf16 else "fp32"


def plan_of(settings: Settings, methods: Sequence[str], folder: Path, device: torch.device) -> Plan:
    """All runs of a study: of random weights, of every method with every seed, and what these wait for.

    Opens the images, and decides how networks are judged.
    DisCo must come after its teacher. Raises UserError for images that there are not, and for less than one batch.
    """
    own, data, view = settings.study, settings.data, settings.views.shown
    images = open_study_images(data, settings.network.channels, folder, own.judged_images, own.scored_images)
    judging = Judge(images.learnt, images.test, images.scored, view, images.mean, images.std, device, data.workers)
    require_batches(len(images.train), own.batch_size)
    seeds = range(own.first_seed, own.first_seed + own.seeds)
    tuned = images.to_tune_by() if len(own.rates) > 1 else (None, None)
    tuning = replace(judging, train=tuned[0], test=tuned[1], scored=images.seen)
    plan = Plan(settings, images, folder, judging, tuning)

    def task(
        place: str,
        name: str,
        method: str,
        seed: int,
        *,
        needs: Sequence[Task] = (),
        after: Sequence[Task] = (),
        rate: float | None = None,
        teacher: Callable[[], Task | None] = lambda: None,
    ) -> Task:
        made = Task(name, place, method, seed, folder / place / name, None, tuple(needs), tuple(after))
        return replace(made, command=partial(plan.command, made, rate, teacher))

    plan.runs[RANDOM] = [Task(f"{RANDOM}-{n}", RUNS, RANDOM, n, folder / RUNS / f"{RANDOM}-{n}", None) for n in seeds]
    for method in methods:
        learns = method == DISTILLED
        timed: list[Task] = []
        if own.minutes:
            master = [plan.timings[TEACHER]] if learns else []
            name = f"{method}-timing"
            rate = min(own.rates, key=lambda one: abs(math.log(one)))  # steps last as long with any, and it fails least
            plan.timings[method] = task(
                TIMING, name, method, own.first_seed, needs=master, rate=rate, teacher=lambda: plan.timings[TEACHER]
            )
            timed.append(plan.timings[method])
        tried: list[Task] = []
        if len(own.rates) > 1:
            masters = [*plan.tries[TEACHER].values()] if learns else []
            seed, best = own.first_seed + AWAY, partial(plan.best_try, TEACHER)
            plan.tries[method] = {
                rate: task(
                    RATES, f"{method}-rate-{rate:g}", method, seed, needs=timed, after=masters, rate=rate, teacher=best
                )
                for rate in own.rates
            }
            tried += plan.tries[method].values()
        plan.runs[method] = []
        for at, seed in enumerate(seeds):
            masters = [plan.runs[TEACHER][at]] if learns else []
            teacher, needs = partial(_first, masters), [*timed, *masters]
            plan.runs[method].append(
                task(RUNS, f"{method}-{seed}", method, seed, needs=needs, after=tried, teacher=teacher)
            )
    return plan


def _first(tasks: Sequence[Task]) -> Task | None:
    return tasks[0] if tasks else None

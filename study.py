"""Which method on my images? Trains every method by one rule, several times, and says what is more than noise.

    python study.py /my/images                                     every method, three seeds
    python study.py /my/images --methods swav moco simclr --seeds 5 --epochs 50 --size 64
    sbatch --array=0-7 scripts/study.sh /my/images                 eight processes share the runs

The folder holds train and val (or test), or only images. Runs lie in --dump_path, go on after a kill, and are shared by
all processes that are started with the same folder. At the end stand study.md and study.png: with labels by kNN,
linear classification and NMI, and in any case by scores without labels. The rules are in src/study/recipes.py.
"""

import contextlib
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from shlex import quote

from src import cli
from src.checkpoints.files import require_writable, write_json
from src.checkpoints.identity import differences
from src.data.fingerprint import fingerprint
from src.errors import UserError
from src.models.backbones import require_size
from src.parallel import launch
from src.study.page import write_report
from src.study.plan import array_job, read_object, trainings_of
from src.study.recipes import DISTILLED, RECIPES, TEACHER
from src.study.runs import RUNS, Plan, plan_of, precision_of
from src.study.settings import Settings, StudySettings
from src.study.work import orderly_end, start_more, work

import torch

# What launchers tell of ranks
RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_PROCID",
         "SLURM_LOCALID", "SLURM_NTASKS")  # fmt: skip
SCRIPT = cli.Script("Which method on my images? Many runs by one rule, and honest intervals.", Settings(),
                    positionals=("data_path",))  # fmt: skip


def methods_of(own: StudySettings) -> list[str]:
    """The methods in the order asked for; MoCo comes with DisCo, which learns from it."""
    methods = list(dict.fromkeys(own.methods or RECIPES))
    unknown = [method for method in methods if method not in RECIPES]
    if unknown:
        raise UserError(f"--methods {' '.join(unknown)}: expected some of {', '.join(RECIPES)}")
    if DISTILLED in methods and TEACHER not in methods:
        methods.append(TEACHER)
    return sorted(methods, key=lambda method: method == DISTILLED)  # after its teacher


def open_folder(plan: Plan) -> None:
    """Makes the study's folder, or goes on with it. Raises UserError where it holds another study."""
    require_writable(plan.folder)
    require_same_study(plan)
    is_requeued = os.environ.get("SLURM_RESTART_COUNT", "0") != "0" and not array_job()
    is_again = plan.settings.study.retry and not is_requeued
    plan.require_one_recipe(is_again)
    if is_again:
        plan.forget_failures()


def require_same_study(plan: Plan) -> None:
    """Raises UserError where the folder holds a study of other images, networks, views or lengths; methods and seeds
    may be added."""
    settings, images, folder = plan.settings, plan.images, plan.folder
    own = settings.study
    now = {
        **vars(settings.network),
        **vars(settings.views),
        **{name: getattr(own, name) for name in ("epochs", "minutes", "batch_size", "judged_images", "scored_images")},
        "rates": list(own.rates),
        "labels": settings.data.labels,
        "precision": precision_of(plan.judging.device),
        "mean": list(images.mean),
        "std": list(images.std),
        "exif_orientation": images.train.decoding.exif_orientation,
        "value_range": list(images.train.decoding.value_range or ()),
        "images": fingerprint(images.train),
        "judged": fingerprint(images.scored if images.test is None else images.test),
    }
    now = {name: list(value) if isinstance(value, tuple) else value for name, value in now.items()}
    path = folder / "identity.json"
    if path.exists():
        is_only_page = all(task.is_over for task in plan.tasks) and not own.retry  # written again on another machine
        changed = [one for one in differences(read_object(path), now) if not (is_only_page and one.name == "precision")]
        if changed:
            told = ", ".join(one.text for one in changed)
            raise UserError(f"{folder} holds another study: {told}; choose another --dump_path")
    else:
        write_json(path, now)


def stand_alone(own: StudySettings, device: str) -> None:
    """Every process of a study works by itself, and so do the trainings that it starts: what a launcher said of ranks
    is forgotten. Raises UserError for torchrun, whose processes would expect each other."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("study.py is not started by torchrun: say --at_once 8, or start it several times")
    for name in [name for name in os.environ if name in RANKS or name.startswith("SLURM_STEP_")]:
        del os.environ[name]
    if own.at_once > 1 and ":" in device:
        raise UserError(f"--at_once {own.at_once} takes the GPUs in turn: leave out --device {device}")


def share_cores(at_once: int) -> None:
    """Gives each of so many processes, and the trainings that it starts, its part of the cores."""
    if "OMP_NUM_THREADS" not in os.environ:
        each = max(1, torch.get_num_threads() // at_once)
        os.environ["OMP_NUM_THREADS"] = str(each)
        torch.set_num_threads(each)


def main(argv: Sequence[str] | None = None) -> int:
    call = SCRIPT.parse(argv)
    settings = call.settings
    own, folder = settings.study, Path(settings.study.dump_path).absolute()
    methods = methods_of(own)
    stand_alone(own, settings.device.device)
    world = launch.start(settings.device.device, settings.device.dist_url)
    if own.at_once > 1:
        share_cores(own.at_once)
    require_size(settings.network.spec.build(), settings.views.size, settings.network.channels)
    plan = plan_of(settings, methods, folder, world.device)
    if own.dry_run:
        tell(plan)
        return 0
    open_folder(plan)
    if not own.helper:
        call.tell_unread()
        say(plan.images.words)
        seeds = f"seeds {own.first_seed} to {own.first_seed + own.seeds - 1}"
        say(f"{len(trainings_of(plan.tasks))} runs: {', '.join(methods)}; {seeds}")
    words = [word for word in (sys.argv[1:] if argv is None else argv) if word != "--retry"]
    with orderly_end(), start_more(own.at_once, words, torch.cuda.device_count()):
        work(
            plan.tasks,
            folder / "claims",
            plan.judge,
            say,
            leaves=own.helper or "SLURM_ARRAY_TASK_ID" in os.environ,
            look=(lambda: None) if own.helper else partial(write_report, folder, plan, call.command),
        )
    if own.helper:
        return 0
    if all(task.is_over for task in plan.tasks):
        say(write_report(folder, plan, call.command))
    else:
        say("other processes are at the last runs, and write the page")
    return 0


def tell(plan: Plan) -> None:
    """Says which runs there are, with their command lines where these are known before others have run."""
    print(plan.images.words)
    for task in plan.tasks:
        decide = [other.name for other in (*task.needs, *task.after) if other.place != RUNS and not other.is_over]
        if task.command is None:
            print(f"{task.name}: random weights")
        elif decide:
            print(f"{task.name}: as {', '.join(decide)} will tell")
        else:
            try:
                print(f"{task.name}:", *map(quote, task.command()))
            except UserError as error:
                print(f"{task.name}: fails ({error})")
    again = plan.settings.study.retry
    come = [task for task in trainings_of(plan.tasks) if not task.is_over or (again and task.has_failed)]
    print(f"{len(come)} trainings to come")


def say(line: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may be gone, and the runs go on
        print(line, flush=True)


if __name__ == "__main__":
    cli.run(main)

"""Whether our views cost anything against torchvision's: MoCo-v2 with both, over many seeds, compared as in a study.

    python benchmarks/views.py data/patches --arch mobilenetv3_small_050 --seeds 10 --epochs 48 --size 32 \
        --area 0.15 0.6 --jitter 0.5 --grayscale 0 --dump_path studies/views

Everything but the views is the same: step, order of the images, initial weights, and how networks are judged.
torchvision's transforms work on Pillow images, one operation after another, with draws of their own. Flags are those of
study.py, but for --methods and --at_once; several processes that are started with the same folder share the runs.
"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import main_disco
import study
from src import cli
from src.data.draws import Draw, no_change
from src.data.views import Picture, RandomView
from src.errors import UserError
from src.parallel import launch
from src.study.page import write_report
from src.study.plan import Task
from src.study.recipes import TEACHER as MOCO
from src.study.recipes import TITLES
from src.study.runs import RUNS, Plan, plan_of
from src.study.settings import Settings
from src.study.work import orderly_end, work

import numpy as np
import torch
from torch import Tensor
from torchvision import transforms

TORCHVISION = "torchvision"
TITLES[TORCHVISION] = "MoCo-v2 on torchvision's views"
SCRIPT = cli.Script("Whether our views cost anything against torchvision's.", Settings(), positionals=("data_path",))


@dataclass(frozen=True)
class TorchvisionView(RandomView):
    """The same view by torchvision's transforms, with the random numbers that these draw."""

    def draw(self, generator: np.random.Generator, width: int, height: int) -> Draw:
        return no_change(width, height)._replace(seed=int(generator.integers(2**62)))

    @cached_property
    def transform(self) -> transforms.Compose:
        jitter = transforms.ColorJitter(*self.jitter)
        return transforms.Compose(
            [
                transforms.RandomResizedCrop(self.size, self.scale, self.ratio),
                transforms.RandomApply([jitter], self.jitter_probability),
                transforms.RandomGrayscale(self.grayscale),
                transforms.RandomApply([transforms.GaussianBlur(self.size // 10 * 2 + 1, self.blur_sigma)], self.blur),
                transforms.RandomHorizontalFlip(self.flip),
                transforms.PILToTensor(),
            ]
        )

    def cut(self, picture: Picture, draw: Draw | None) -> Tensor:
        assert draw is not None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(draw.seed)
            return self.transform(picture.image)

    def reduction(self, draw: Draw | None) -> int:
        return 1


def train_with_torchvision(words: Sequence[str] | None = None) -> int:
    """main_disco.py with torchvision's views."""
    views_of = main_disco.views_of
    main_disco.views_of = lambda settings: [
        TorchvisionView(**{field.name: getattr(view, field.name) for field in dataclasses.fields(view)})
        for view in views_of(settings)
    ]
    return main_disco.main(words)


def words_of(plan: Plan, task: Task) -> list[str]:
    """The command of a run with torchvision's views."""
    return ["benchmarks/views.py", TORCHVISION, *plan.command(task, None, lambda: None)[1:]]


def main(argv: Sequence[str] | None = None) -> int:
    call = SCRIPT.parse(argv)
    settings, own, folder = call.settings, call.settings.study, Path(call.settings.study.dump_path).absolute()
    if own.methods or own.at_once > max(1, torch.cuda.device_count()):
        raise UserError("MoCo-v2 is trained, by one process: leave out --methods and --at_once")
    world = launch.start(settings.device.device, settings.device.dist_url)
    plan = plan_of(settings, [MOCO], folder, world.device)
    plan.runs[TORCHVISION] = []
    for task in plan.runs[MOCO]:
        name = f"{TORCHVISION}-{task.seed}"
        other = replace(task, name=name, folder=folder / RUNS / name)
        plan.runs[TORCHVISION].append(replace(other, command=partial(words_of, plan, other)))
    if own.dry_run:
        study.tell(plan)
        return 0
    study.open_folder(plan)
    with orderly_end():
        work(plan.tasks, folder / "claims", plan.judge, print)
    print(write_report(folder, plan, call.command))
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == [TORCHVISION]:
        del sys.argv[1]
        cli.run(train_with_torchvision)
    cli.run(main)

"""Pre-trains a network with CW-RGP (Weng et al. 2022, arXiv 2210.03586) or the methods it is compared with.

    torchrun --nproc_per_node=4 main_cwrgp.py --data_path /path/to/imagenet --num_samples 4
    python main_cwrgp.py --dataset cifar10 --data_path data --num_samples 4 --bs 256 --w_size 64 --group 4

The defaults depend on the method and the data, as the paper's two programs differ: see PROGRAMS. The methods are
src/methods/cwrgp.py and src/methods/baselines/.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from src import cli, pretraining
from src.clock import Clock
from src.data.datasets import TrainingDataSettings
from src.data.small_sets import SMALL_SETS, default_path, evaluation_resize, known_set
from src.data.splits import find_training
from src.data.view_sets import CWRGPViewSettings
from src.data.views import RandomView
from src.engine.loop import Schedule
from src.engine.method import Method, Scale
from src.engine.monitor import Monitor, number
from src.errors import UserError
from src.evaluation.knn import OnlineKNNSettings
from src.methods.baselines.barlowtwins import BarlowTwins, BarlowTwinsSettings
from src.methods.baselines.byol import BYOL, BYOLSettings
from src.methods.baselines.simclr import SimCLR, SimCLRSettings
from src.methods.baselines.simsiam import SimSiam
from src.methods.baselines.vicreg import VICReg, VICRegSettings
from src.methods.baselines.zero_icl import ZeroICL
from src.methods.cwrgp import TRANSFORMS, GroupWhitening, GroupWhiteningSettings
from src.methods.joint_embedding import Parts
from src.models.backbones import BackboneSpec, ResidualStart
from src.models.heads import ProjectorSettings
from src.optim.batch_scaled import ELSEWHERE, BatchScaledSettings
from src.optim.schedules import dropped_rate, epoch_cosine_rate, warm_restarts
from src.parallel import sync_bn
from src.pretraining import Plan, Pretraining, PretrainingSettings, RunSettings
from src.settings import replaced, setting

import torch

TWO_VIEWS = ("simsiam", "barlowtwins", "vicreg", "zero_icl")


@dataclass(frozen=True)
class OptimSettings(BatchScaledSettings):
    """Optimisation"""

    warmup_iters: int = setting(500, "number of steps of linear warm-up", at_least=0, at_most=1e12)
    lr_step: str = setting("step", "course of adam's learning rate", choices=["step", "cos", "none"])
    drop: tuple[int, ...] = setting(
        (50, 25), "step: the rate drops so many epochs before the end", empty=True, at_least=0, at_most=1e9
    )
    drop_gamma: float = setting(0.2, "step: what the rate is multiplied by", at_least=0, at_most=1)
    T0: int | None = setting(
        None, "cos: number of epochs until the first restart; default: all", at_least=1, at_most=1e9
    )
    Tmult: int = setting(1, "cos: factor from the length of one cycle to the next", at_least=1, at_most=1000)
    eta_min: float = setting(0.0, "cos: rate at the end of a cycle", at_least=0, at_most=1e6)


@dataclass(frozen=True)
class Settings(PretrainingSettings):
    """Method"""

    method: str = setting(
        "cwrgp",
        "method to train",
        choices=[*TRANSFORMS, "contrastive", "byol", *TWO_VIEWS],
        spellings={"cw-rgp": "cwrgp"},
    )
    program: str | None = setting(
        None,
        "program whose defaults, views and optimiser to use; default: cwrgp_small for small data and for all methods "
        "without whitening, else cwrgp",
        choices=["cwrgp", "cwrgp_small"],
    )
    data: TrainingDataSettings = TrainingDataSettings(data_path="data/ImageNet")
    start: ResidualStart = ResidualStart(True)
    run: RunSettings = RunSettings(seed=0)
    knn: OnlineKNNSettings = OnlineKNNSettings(knn_k=5, knn_rule="majority")  # the paper reports 5-NN
    views: CWRGPViewSettings = CWRGPViewSettings()
    head: ProjectorSettings = ProjectorSettings()
    whitening: GroupWhiteningSettings = GroupWhiteningSettings()
    simclr: SimCLRSettings = SimCLRSettings()
    byol: BYOLSettings = BYOLSettings()
    barlowtwins: BarlowTwinsSettings = BarlowTwinsSettings()
    vicreg: VICRegSettings = VICRegSettings()
    optim: OptimSettings = OptimSettings()

    def fitted(self, given: Mapping[str, Any], scale: Scale, clock: Clock) -> tuple[Self, list[str]]:
        """As others do; the warm-up, which is in steps, leaves something of the run."""
        settings, said = super().fitted(given, scale, clock)
        warmup, steps = self.optim.warmup_iters, clock.total_steps
        if not warmup or warmup < steps:
            return settings, said
        if "warmup_iters" in given:
            if warmup > steps:
                raise UserError(f"--warmup_iters {warmup} is more than the run's {steps} steps")
            return settings, said
        line = f"--warmup_iters is {steps // 10} instead of {warmup}, for a run of {steps} steps"
        return replaced(settings, {"warmup_iters": steps // 10}), [*said, line]

    @property
    def plan(self) -> Plan:
        return Plan(self.optim.epochs, self.optim.bs, in_all=True, clip_norm=self.optim.clip_norm)

    @property
    def training_size(self) -> int:
        return self.views.crop_size


# The paper's programs: on ImageNet and on small data
PROGRAMS = {
    "cwrgp": Settings(
        views=CWRGPViewSettings(num_samples=4),
        head=ProjectorSettings(head_layers=3, head_size=2048, emb=1024),
        whitening=GroupWhiteningSettings(group=2),
        optim=OptimSettings(epochs=100, bs=512, lr=0.05, wd=1e-4),
    ),
    "cwrgp_small": Settings(
        backbone=BackboneSpec("resnet18"),
        views=CWRGPViewSettings(gs_p=0.1),
        head=ProjectorSettings(head_layers=2, head_size=1024, emb=512),
        optim=OptimSettings(epochs=200, bs=512, lr=1e-3, wd=1e-6, optimizer="adam"),
    ),
}
# SimSiam has a trainer of its own: SGD and a cosine, without warm-up
SIMSIAM = {"optimizer": "sgd", "warmup_iters": 0}
INTL_FLAGS = (
    *("--nmb_crops", "--crops_size", "--min_scale_crops", "--max_scale_crops", "--gaussian_prob"),
    *("--solarization_prob", "--multi_crop", "--iters", "--trade_off", "--m", "--warmup_eps"),
)


def program_of(given: Mapping[str, Any]) -> str:
    """A key of PROGRAMS."""
    method = given.get("method", "cwrgp")
    small = given.get("dataset") in SMALL_SETS or method not in TRANSFORMS
    return given.get("program") or ("cwrgp_small" if small else "cwrgp")


def complete(given: Mapping[str, Any]) -> Settings:
    """What was given, with the defaults of its program and data set."""
    program, dataset = program_of(given), given.get("dataset", "folder")
    known = known_set(dataset)
    size = given.get("eval_size", given.get("crop_size", known.crop))
    base = replaced(
        PROGRAMS[program],
        {
            "mean": known.mean,
            "std": known.std,
            "crop_size": known.crop,
            "stem": known.stem,
            "eval_resize": evaluation_resize(dataset, size),
            "precision": "fp32",  # the programs have no mixed precision
            **default_path(given),
            **(SIMSIAM if given.get("method") == "simsiam" and "program" not in given else {}),
        },
    )
    return replaced(base, given)


SCRIPT = cli.Script(
    "Pre-trains a network with CW-RGP or the methods it is compared with.",
    Settings(),
    complete=complete,
    ignored=dict.fromkeys(INTL_FLAGS, "it belongs to --method intl and intl_m"),
    retired=ELSEWHERE,
    repeatable=True,
)


def views_of(settings: Settings) -> list[RandomView]:
    return settings.views.views(small=is_small(settings))


def is_small(settings: Settings) -> bool:
    program = program_of({"program": settings.program, "method": settings.method, "dataset": settings.data.dataset})
    return program == "cwrgp_small"


METHODS: dict[str, Callable[[Settings, Parts], Method]] = {
    **dict.fromkeys(TRANSFORMS, lambda s, parts: GroupWhitening.build(parts, s.method, s.whitening)),
    "contrastive": lambda s, parts: SimCLR.build(parts, s.simclr),
    "byol": lambda s, parts: BYOL.build(parts, s.byol),
    "simsiam": lambda s, parts: SimSiam.build(parts),
    "barlowtwins": lambda s, parts: BarlowTwins.build(parts, s.barlowtwins),
    "vicreg": lambda s, parts: VICReg.build(parts, s.vicreg),
    "zero_icl": lambda s, parts: ZeroICL.build(parts),
}


def main(argv: Sequence[str] | None = None) -> int:
    call = SCRIPT.parse(argv)
    settings = call.settings
    views = views_of(settings)
    if len(views) < 2:
        raise UserError("these methods compare views of an image: at least two are needed")
    if settings.method in TWO_VIEWS and len(views) != 2:
        raise UserError(f"{settings.method} has two views, not {len(views)}")
    run = pretraining.start(call, views, find_training(settings.data.dataset, settings.data.data_path))
    settings = run.settings
    method = METHODS[settings.method](
        settings, Parts.of(settings.backbone, settings.head, settings.start, run.batch_size, bias=True)
    )
    if settings.optim.sync_bn:
        sync_bn.convert(method, device_type=run.world.device.type, virtual_ranks=run.virtual_ranks)
    pretraining.place(run, method)
    return pretraining.train(
        run,
        method,
        build_optimizer(settings.optim, method),
        {"lr": schedule(run)},
        lambda monitor: echo(run, method, monitor),
        backbone_file=f"{settings.backbone.arch}.pth",
    )


def build_optimizer(optim: OptimSettings, method: Method) -> torch.optim.Optimizer:
    """SGD or Adam; with SGD the rate of SimSiam's predictor stays as it is."""
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    if not isinstance(method, SimSiam) or optim.optimizer == "adam":
        return optim.build([{"params": trained}])
    predictor = list(method.predictor.parameters())
    theirs = {id(parameter) for parameter in predictor}
    return optim.build(
        [
            {"params": [p for p in trained if id(p) not in theirs]},
            {"params": predictor, "lr": optim.base_rate, "lr_fixed": True},
        ]
    )


def schedule(run: Pretraining[Settings]) -> Schedule:
    """The learning rate of the small-data program (adam) or of the one for ImageNet (sgd)."""
    optim, steps = run.settings.optim, run.clock.steps_per_epoch
    warmup, base = optim.warmup_iters, optim.base_rate

    def of_imagenet(clock: Clock) -> float:
        return epoch_cosine_rate(clock.step, steps_per_epoch=steps, epochs=clock.epochs, warmup=warmup, base=base)

    def of_small_data(clock: Clock) -> float:
        if optim.lr_step == "cos" and clock.step >= warmup:
            first = optim.T0 or clock.epochs
            return warm_restarts(clock.step / steps, first=first, factor=optim.Tmult, base=base, floor=optim.eta_min)
        milestones = [clock.epochs - drop for drop in optim.drop] if optim.lr_step == "step" else []
        return dropped_rate(
            clock.step,
            steps_per_epoch=steps,
            warmup=warmup,
            base=base,
            milestones=milestones,
            gamma=optim.drop_gamma,
        )

    return of_small_data if optim.optimizer == "adam" else of_imagenet


def echo(run: Pretraining[Settings], method: Method, monitor: Monitor) -> None:
    """What is about to happen, in numbers that a user can check against the recipe."""
    settings, optim, whitening = run.settings, run.settings.optim, run.settings.whitening
    pretraining.echo_data(run, monitor, pretraining.crops_in_words(views_of(settings)))
    pretraining.echo_model(run, monitor, method, f"embedding {settings.head.emb}")
    monitor.say(f"lr         {number(optim.base_rate)} ({optim.optimizer}), weight decay {optim.wd:g}")
    if settings.method in TRANSFORMS:
        monitor.say(
            f"whitening  {TRANSFORMS[settings.method]} of {whitening.w_size} images, {whitening.group} groups of "
            f"channels, axis {whitening.axis}, {whitening.w_iter} times"
        )


if __name__ == "__main__":
    cli.run(main)
